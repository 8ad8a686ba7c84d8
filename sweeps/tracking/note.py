"""The Markdown that MLflow shows on a sweep's experiment and on its parent run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sweeps import formatting as written
from sweeps.shown_commands import with_shown_commands

if TYPE_CHECKING:
    from sweeps.ledger.results import Arm, SweepResults
    from sweeps.tracking.projection import SweepView
    from sweeps.verdict.verdict import Verdict

MAX_NOTE_CHARS = 7_900  # MLflow refuses a tag of more than 8,000


def experiment_description(results: SweepResults) -> str:
    """Return what this sweep asks, of which model, on what budget."""
    arms = ", ".join(_arm_text(arm) for arm in results.arms)
    budgets = written.listed([f"{budget:,}" for budget in results.budgets_tokens])
    shapes_alone = not any(arm.differs_in for arm in results.arms)
    choice = "batch shape" if shapes_alone else "of these arms"
    question = (
        f"Which {choice} does a Mixture-of-Experts language model learn best {'from' if shapes_alone else 'with'}, at "
        f"an equal budget of {budgets} tokens, and at which learning rate?"
    )
    lines = [
        question,
        str(results.space.get("description") or "").strip(),
        f"Strategies (micro_batch_size x seq_len x grad_accum_steps): {arms}.",
        "Every nested run is one cell: a strategy, a learning rate, a seed. The step of every metric is `tokens_seen`. "
        "Compare arms by `test_loss` of the runs whose `phase` is `confirm` and whose `budget_tokens` are equal, never "
        "by explore's `val_loss`.",
    ]
    return "\n\n".join(line for line in lines if line)


def _arm_text(arm: Arm) -> str:
    shape = f"`{arm.name}` {arm.micro_batch_size} x {arm.seq_len} x {arm.grad_accum_steps}"
    return f"{shape} ({written.settings(arm.differs_in)})" if arm.differs_in else shape


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
    note = with_shown_commands("\n\n".join(part for part in parts if part))
    return note if len(note) <= MAX_NOTE_CHARS else note[:MAX_NOTE_CHARS] + "\n\n(cut: see the report)"


def _statement(view: SweepView) -> str:
    if view.verdict is None:
        return "**No verdict yet.** " + ("The sweep is running." if view.states is not None else "It can be resumed.")
    statement = view.verdict.statement
    if view.verdict.is_decided:
        statement = f"**{view.verdict.outcome}**: {statement}"
    return "\n\n".join(part for part in (statement, view.verdict.before) if part)


def _arm_table(verdict: Verdict | None) -> str:
    if verdict is None or not verdict.strategies:
        return ""
    rows = []
    for arm in verdict.strategies:
        shape = f"{arm.arm.micro_batch_size} x {arm.arm.seq_len} x {arm.arm.grad_accum_steps}"
        rate = written.rate(arm.best_lr) + (" (edge)" if arm.best_lr_at_edge else "")
        span = written.interval(arm.ci_low, arm.ci_high)
        speed, memory = written.count(arm.tokens_per_s), written.gib(arm.peak_mem_allocated_gib)
        rows.append((arm.name, shape, rate, written.loss(arm.mean), span, speed, memory))
    header = ("strategy", "shape", "best lr", "test loss", "interval", "tokens/s", "peak memory")
    return written.markdown_table(header, rows, n_names=2)


def _pair_table(verdict: Verdict | None) -> str:
    if verdict is None or not verdict.is_decided:
        return ""
    rows = []
    for pair in verdict.pairs:
        span = written.interval(pair.ci_low, pair.ci_high, sign=True)
        p_adjusted = written.p_value(pair.p_adjusted)
        rows.append((f"{pair.a} − {pair.b}", written.signed(pair.difference), span, p_adjusted, pair.decision))
    return written.markdown_table(("pair", "difference in test loss", "interval", "p (Holm)", "decision"), rows)


def _cells_by_outcome(results: SweepResults) -> str:
    counts = Counter(cell.outcome or "unfinished" for cell in results.cells)
    return f"{len(results.cells)} cells: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) + "."


def _caveats(verdict: Verdict | None) -> str:
    caveats = verdict.caveats if verdict else ()
    return "\n".join(["Caveats:", "", *(f"- {caveat}" for caveat in caveats)]) if caveats else ""
