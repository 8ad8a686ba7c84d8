"""Checks of what an answer holds for: context and length, memory, time, scale, corpus, exam, experts, the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.verdict.confirmed import DECIDED
from sweeps.verdict.evidence import FEWEST_DOCUMENTS
from sweeps.verdict.findings import Check, Findings
from sweeps.verdict.rows import ControlSplit
from sweeps.verdict.speeds import measured_speeds
from sweeps.verdict.token_costs import costlier_arms, flops_of_tokens

MEMORY_SPREAD_LIMIT = 0.10
"""Peaks that differ by more than this are not equal memory (rule 10 of the method)."""
HALF_LIVES = "betas_at_tokens_per_step"
TOKENS_PER_PARAMETER = 20.0
"""Compute-optimal training sees about 20 tokens per parameter (Hoffmann et al. 2022, arXiv 2203.15556)."""
_AUDITED_RULES = {"exam_rows": 4, "straddling_windows": 13, "document_tokens": 11, "epochs": 2}
"""Which rule a finding of the corpus audit is about; all others are about leaks."""


def context(found: Findings) -> Iterator[Check]:
    """Whether the longest arm uses its context, and that both views were scored."""
    used = found.context_used
    if used is not None:
        gain = f"{used.gain.mean:.4f} nats"
        beyond = f"beyond {used.beyond_tokens:,} tokens its longer context brings {used.arm}"
        if used.is_used:
            yield Check(rule=11, kept=True, value=gain, sentence=beyond)
        else:
            text = (
                f"context not yet used: {beyond} {gain} per token, which is not shown to be a gain, so nothing is "
                "claimed about length"
            )
            yield Check(rule=11, kept=False, value=gain, sentence=text)
    if found.context:
        yield Check(rule=11, kept=True, sentence="own context and common context both scored")


def controls(found: Findings) -> Iterator[Check]:
    """Whether length and the diversity of a batch were told apart."""
    lengths = {arm.seq_len for arm in found.results.arms if arm.seq_len}
    if not found.controls and len(lengths) > 1 and found.outcome in DECIDED:
        text = (
            "no control was run (`controls = true`): what length does and what the diversity of a batch does are "
            "not separated"
        )
        yield Check(rule=11, kept=False, sentence=text)
    for entry in found.controls or ():
        if entry.diversity_share is not None and entry.lead.mean > 0:
            share = written.share(entry.diversity_share)
            yield Check(rule=11, kept=False, value=share, sentence=diversity_sentence(entry))


def diversity_sentence(entry: ControlSplit) -> str:
    """Return what share of a short arm's lead goes with the diversity of its batches."""
    lead, share = f"{entry.a}'s lead over {entry.b}", entry.diversity_share
    if share is None or entry.lead.mean <= 0:
        effect = f"{abs(entry.diversity.mean):.4f} nats {'worse' if entry.diversity.mean > 0 else 'better'}"
        return f"grouped windows make {entry.a} {effect}; it has no clear lead over {entry.b} to divide"
    if share <= 0:
        return f"none of {lead} goes with the diversity of its batches: it does not shrink with grouped windows"
    if share >= 1:
        return f"all of {lead} goes with the diversity of its batches: nothing of it is left with grouped windows"
    return (
        f"{written.share(share)} of {lead} goes with the diversity of its batches (it vanishes with grouped windows), "
        "the rest with length; the split says no more than that"
    )


def memory(found: Findings) -> Iterator[Check]:
    """Whether arms filled the same memory, and whose."""
    hardware = found.results.beginning.get("hardware")
    if isinstance(hardware, Mapping) and not hardware.get("gpus"):
        text = "measured on a CPU: no claim is made about the memory of a GPU or its speed"
        yield Check(rule=10, kept=False, value="CPU", sentence=text)
    peaks = {
        arm: max(values)
        for arm, cells in found.confirm_cells.items()
        if (values := [peak for r in cells if (peak := r.last("peak_mem_allocated_gib")) is not None])
    }
    if len(peaks) < 2 or max(peaks.values()) <= 0:
        return
    spread = 1 - min(peaks.values()) / max(peaks.values())
    value = written.share(spread)
    if spread > MEMORY_SPREAD_LIMIT:
        counts = ", ".join(f"{arm} {written.gib(peak)}" for arm, peak in peaks.items())
        text = f"arms do not fill the same memory ({counts}): no claim is made about equal memory"
        yield Check(rule=10, kept=False, value=value, sentence=text)
    else:
        yield Check(rule=10, kept=True, value=value, sentence="difference in peak memory between arms")


def time(found: Findings) -> Iterator[Check]:
    """Whether seconds compare, and whether the view at equal time says something else."""
    view = found.by_budget.time
    if view is not None and not view.comparable:
        text = "arms are not known to have been timed under equal load, so the view at equal time names no arm"
        yield Check(rule=10, kept=False, sentence=text)
    elif view is not None and found.outcome in DECIDED and view.winner != found.winner:
        sentence = f"at equal time {f'{view.winner} wins' if view.winner else 'no arm wins'}"
        yield Check(rule=10, kept=False, value=view.winner or "none", sentence=sentence)
    cells = found.confirm_cells
    counted = {finite(record.get("concurrent_trials")) for own in cells.values() for r in own for record in r.records}
    loads = sorted(int(load) for load in counted if load)
    if not loads:
        return
    span = f"{loads[0]}" if len(loads) == 1 else f"{loads[0]} to {loads[-1]}"
    speeds = measured_speeds(cells)
    if speeds is None or speeds.concurrent_trials is None:
        text = f"confirm cells ran under unequal load ({span} at a time): seconds are not compared"
        yield Check(rule=10, kept=False, value=span, sentence=text)
    else:
        text = f"confirm cells at a time; speeds are compared where {speeds.concurrent_trials} ran"
        yield Check(rule=10, kept=True, value=span, sentence=text)


def flops(found: Findings) -> Iterator[Check]:
    """Whether a token costs arms with other models the same, and what equal FLOPs say where it does not."""
    costs = flops_of_tokens(found.results)
    has_models = any(key.startswith("model.") for arm in found.results.arms for key in arm.differs_in)
    if not has_models or not costs:
        return
    low, high = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
    ratio = costs[high] / costs[low]
    view = found.by_budget.flops
    if not costlier_arms(costs):
        yield Check(rule=15, kept=True, value=f"{ratio:.3f}", sentence="largest ratio of training FLOPs per token")
    elif view is None:
        # with the view asked for, its cells are to come, or miss an arm that was added later
        how = "" if found.results.space.get("flops_view") else " (`flops_view = true` compares at those too)"
        text = (
            f"a token of {high} costs {ratio:.2f} times the training FLOPs of one of {low}: equal tokens are not equal "
            f"FLOPs{how}"
        )
        yield Check(rule=15, kept=False, value=f"{ratio:.2f}", sentence=text)
    elif found.outcome in DECIDED and view.winner != found.winner:
        text = f"at equal training FLOPs {f'{view.winner} wins' if view.winner else 'no arm wins'}"
        yield Check(rule=15, kept=False, value=view.winner or "none", sentence=text)
    else:
        text = "ratio of training FLOPs per token; at equal FLOPs the outcome is the same"
        yield Check(rule=15, kept=True, value=f"{ratio:.2f}", sentence=text)


def half_lives(found: Findings) -> Iterator[Check]:
    """Whether momentum and betas average over the same number of tokens in every arm."""
    steps = {arm.tokens_per_step for arm in found.results.arms}
    held = [found.results.rule_of(a.name, "optimizer", HALF_LIVES, None) for a in found.results.arms]
    if len(steps) < 2 or None in steps:
        return
    if all(held) and len(set(held)) == 1:
        yield Check(rule=15, kept=True, sentence="momentum and betas have the same half-lives in tokens in every arm")
    elif found.results.space.get("optimizer") is not None:
        text = (
            "momentum and betas are per step, and arms differ in tokens per step: they average gradients over "
            f"different numbers of tokens (`optimizer.{HALF_LIVES}` holds their half-lives in tokens)"
        )
        yield Check(rule=15, kept=False, sentence=text)


def scale(found: Findings) -> Iterator[Check]:
    """Whether training was long for the size of the model, the largest where arms differ."""
    sizes = found.results.model_sizes
    if not sizes:
        return
    ratio = found.results.budget_tokens / max(active for _, active in sizes)
    if ratio >= TOKENS_PER_PARAMETER:
        yield Check(rule=11, kept=True, value=f"{ratio:.3g}", sentence="tokens per active parameter")
        return
    text = (
        f"{ratio:.3g} tokens per active parameter, where compute-optimal training sees about "
        f"{TOKENS_PER_PARAMETER:g}: early training, and the order of arms may change with the budget"
    )
    yield Check(rule=11, kept=False, value=f"{ratio:.3g}", sentence=text)


def budgets(found: Findings) -> Iterator[Check]:
    """At how many budgets the arms were judged, and whether the winner's leads shrink as they grow."""
    tokens = [written.count(at.budget_tokens) for at in found.trend.budgets]
    if tokens:
        text = "budgets at which every arm was judged at its own best rate, smaller ones in a fixed sequence"
        yield Check(rule=14, kept=True, value=written.listed(tokens), sentence=text)
    for pair in found.trend.pairs:
        if pair.a == found.winner and pair.change == "shrinks":
            per_doubling = f"{abs(pair.per_doubling.mean):.4f} nats per doubling"
            text = (
                f"{pair.a}'s lead over {pair.b} shrinks with the budget, by {per_doubling}: it may not last beyond "
                f"{tokens[-1]} tokens"
            )
            yield Check(rule=14, kept=False, value=per_doubling, sentence=text)


def audit(found: Findings) -> Iterator[Check]:
    """What the corpus audit found before the sweep began."""
    audit = found.results.beginning.get("audit")
    for finding in (audit.get("findings") or ()) if isinstance(audit, Mapping) else ():
        if isinstance(finding, Mapping) and finding.get("message"):
            value = "" if finding.get("value") is None else f"{finding['value']:.3g}"
            yield Check(
                rule=_AUDITED_RULES.get(str(finding.get("rule")), 1),
                kept=finding.get("level") == "ok",
                value=value,
                sentence=str(finding["message"]),
            )


def exam(found: Findings) -> Iterator[Check]:
    """How the exam was cut, and whether it has the documents that a claim beyond it needs."""
    yield from _documents(found)
    exam = found.results.beginning.get("exam")
    if not isinstance(exam, Mapping):
        return
    if exam.get("packed"):
        text = "rows of the exam are packed from several documents, as in training: few documents are long enough"
        yield Check(rule=4, kept=False, sentence=text)
    elif exam.get("packed") is not None:
        yield Check(rule=4, kept=True, sentence="every row of the exam is cut from one document")
    if exam.get("fingerprint"):
        text = "fingerprint of the exam, one for all cells"
        yield Check(rule=4, kept=True, value=str(exam["fingerprint"])[:16], sentence=text)


def _documents(found: Findings) -> Iterator[Check]:
    """Whether the exam has the documents that a claim beyond it needs."""
    exam = found.exam
    if not found.n_seeds:
        return
    if exam.effective is None:
        text = "losses by document are not known, so every claim is about this exam"
        yield Check(rule=9, kept=False, sentence=text)
        return
    value, units = f"{exam.effective:.3g}", f"effective {exam.units}"
    if exam.is_on_this_exam:
        text = f"the exam holds {value} {units}, fewer than {FEWEST_DOCUMENTS}: every claim is about this exam"
        yield Check(rule=9, kept=False, value=value, sentence=text)
    else:
        yield Check(rule=9, kept=True, value=value, sentence=f"{units} in the exam")


def balancing(found: Findings) -> Iterator[Check]:
    """The load of the busiest expert, and micro-batches that had to be split."""
    loads = {
        arm: max(values)
        for arm, cells in found.confirm_cells.items()
        if (values := [load for r in cells if (load := r.last("expert_load_max_over_mean")) is not None])
    }
    if loads:
        value = ", ".join(f"{arm} {load:.2f}" for arm, load in loads.items())
        text = "load of the busiest expert over the mean at the end, counted over the whole optimizer step"
        yield Check(rule=12, kept=True, value=value, sentence=text)
    splits = round(sum(result.last("micro_batch_splits") or 0 for result in found.results.cells))
    if splits:
        text = f"a micro-batch was split {written.plural(splits, 'time')} to fit the memory"
        yield Check(rule=12, kept=False, value=f"{splits:,}", sentence=text)


def recorded(found: Findings) -> Iterator[Check]:
    """In which precision cells were trained, and by which code."""
    cells, git = found.results.cells, found.results.beginning.get("git")
    used = sorted({str(r.records[-1]["precision"]) for r in cells if r.records and r.records[-1].get("precision")})
    if len(used) > 1:
        text = f"cells were trained in several precisions: {written.listed(used)}"
        yield Check(rule=13, kept=False, value=written.listed(used), sentence=text)
    elif used:
        yield Check(rule=13, kept=True, value=used[0], sentence="precision used in every cell")
    if isinstance(git, Mapping) and git.get("commit"):
        commit = str(git["commit"])[:12]
        if git.get("dirty"):
            text = f"the code had changes that git commit {commit} does not hold"
            yield Check(rule=13, kept=False, value=commit, sentence=text)
        else:
            yield Check(rule=13, kept=True, value=commit, sentence="git commit of the code, without other changes")
