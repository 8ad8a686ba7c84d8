"""The Markdown that MLflow shows on a sweep's experiment and on its parent run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sweeps import formatting as written

if TYPE_CHECKING:
    from sweeps.ledger.results import SweepResults
    from sweeps.tracking.projection import SweepView

MAX_NOTE_CHARS = 7_900  # MLflow refuses a tag of more than 8,000


def experiment_description(results: SweepResults) -> str:
    """Return what this sweep asks, of which model, on what budget."""
    arms = ", ".join(
        f"`{arm.name}` {arm.micro_batch_size} x {arm.seq_len} x {arm.grad_accum_steps}" for arm in results.arms
    )
    question = (
        "Which batch shape does a Mixture-of-Experts language model learn best from, at an equal budget of "
        f"{results.budget_tokens:,} tokens, and at which learning rate?"
    )
    lines = [
        question,
        str(results.space.get("description") or "").strip(),
        f"Strategies (micro_batch_size x seq_len x grad_accum_steps): {arms}.",
        "Every nested run is one cell: a strategy, a learning rate, a seed. The step of every metric is `tokens_seen`. "
        "Compare arms by `test_loss` of the runs whose `phase` is `confirm`, never by explore's `val_loss`.",
    ]
    return "\n\n".join(line for line in lines if line)


def parent_note(view: SweepView, artifacts_url: str) -> str:
    """Return the parent run's note: the verdict's statement, a table per arm, what came of the cells, links.

    ``artifacts_url`` is where this run's artifacts are shown, without a slash at its end.
    """
    parts = [_statement(view), _arm_table(view.verdict), _pair_table(view.verdict), _cells_by_outcome(view.results)]
    parts.append(_caveats(view.verdict))
    links = [f"[{name}]({artifacts_url}/{name}?workflowType=machine_learning)" for name in sorted(view.attachments)]
    if links:
        parts.append("Files: " + " · ".join(links))
    parts.append(f"The sweep itself is its folder; `sweeps report {view.results.name}` writes the report again.")
    note = "\n\n".join(part for part in parts if part)
    return note if len(note) <= MAX_NOTE_CHARS else note[:MAX_NOTE_CHARS] + "\n\n(cut: see the report)"


def _statement(view: SweepView) -> str:
    if view.verdict is None:
        return "**No verdict yet.** " + ("The sweep is running." if view.states is not None else "It can be resumed.")
    return f"**{view.verdict['outcome']}**: {view.verdict['statement']}"


def _arm_table(verdict: Mapping[str, Any] | None) -> str:
    if not verdict or not verdict["strategies"]:
        return ""
    rows = [
        "| strategy | shape | best lr | test loss | 95% interval | tokens/s | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in verdict["strategies"]:
        shape = f"{arm['micro_batch_size']} x {arm['seq_len']} x {arm['grad_accum_steps']}"
        edge = " (edge)" if arm.get("best_lr_at_edge") else ""
        cells = [
            arm["name"],
            shape,
            written.rate(arm.get("best_lr")) + edge,
            written.loss(arm.get("mean")),
            written.interval(arm.get("ci_low"), arm.get("ci_high")),
            _plain(arm.get("tokens_per_s"), ",.0f"),
            _plain(arm.get("peak_mem_allocated_gib"), ".2f"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _pair_table(verdict: Mapping[str, Any] | None) -> str:
    if not verdict or not verdict["pairs"]:
        return ""
    rows = ["| pair | difference in test loss | interval | p (Holm) | decision |", "|---|---|---|---|---|"]
    for pair in verdict["pairs"]:
        cells = [
            f"{pair['a']} − {pair['b']}",
            written.signed(pair.get("difference")),
            written.interval(pair.get("ci_low"), pair.get("ci_high"), sign=True),
            written.p_value(pair.get("p_adjusted")),
            str(pair.get("decision") or written.ABSENT),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cells_by_outcome(results: SweepResults) -> str:
    counts = Counter(cell.outcome or "unfinished" for cell in results.cells)
    return f"{len(results.cells)} cells: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) + "."


def _caveats(verdict: Mapping[str, Any] | None) -> str:
    caveats = list((verdict or {}).get("caveats", []))
    return "\n".join(["Caveats:", "", *(f"- {caveat}" for caveat in caveats)]) if caveats else ""


def _plain(value: float | None, form: str) -> str:
    return written.ABSENT if value is None else format(value, form)
