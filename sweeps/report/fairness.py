"""The ledger of fairness: each rule of the method with what this sweep measured for it, green or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.facts import Facts, mapping, mean_value, rows
from sweeps.verdict.caveats import MEMORY_SPREAD_LIMIT
from sweeps.verdict.confirmed import FEWEST_SEEDS
from sweeps.verdict.speeds import measured_speeds

Level = Literal["ok", "warn", "bad", "unknown"]
RULES = {
    1: "No leak",
    2: "Equal tokens, the same tokens",
    3: "The schedule is in tokens and ends at the budget",
    4: "One exam",
    5: "Every arm gets the same tuning effort",
    6: "Early stopping is fair to arms",
    7: "No best rate at an edge",
    8: "Selected on one thing, judged on another",
    9: "Statistics stated in advance",
    10: "Tokens, time, memory",
    11: "Why, and how far",
    12: "Load balancing is the same for every arm",
    13: "Everything is written down",
}
_AUDITED_RULES = {"exam_rows": 4, "straddling_windows": 13, "document_tokens": 11, "epochs": 2}
"""Which rule a finding of the audit is about; all others are about leaks."""
_AUDIT_LEVELS: Mapping[str, Level] = {"ok": "ok", "warn": "warn", "refuse": "bad"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured value for one rule."""

    rule: int
    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class RuleEntry:
    """A rule with its checks; its level is that of its worst check."""

    rule: int
    title: str
    checks: tuple[Check, ...]

    @property
    def level(self) -> Level:
        """The worst level among the checks, ``unknown`` where nothing was measured."""
        found = {check.level for check in self.checks}
        levels: tuple[Level, ...] = ("bad", "warn", "ok")
        return next((level for level in levels if level in found), "unknown")


def fairness_ledger(facts: Facts) -> list[RuleEntry]:
    """Return one entry for every rule of the method, in its order."""
    checks = [*_audited(facts), *(check for measure in _MEASURES for check in measure(facts))]
    return [
        RuleEntry(rule=rule, title=title, checks=tuple(check for check in checks if check.rule == rule))
        for rule, title in RULES.items()
    ]


def _audited(facts: Facts) -> Iterator[Check]:
    """Yield what the corpus audit found before the sweep began."""
    for finding in rows(mapping(facts.beginning.get("audit")).get("findings")):
        name = str(finding.get("rule"))
        text = str(finding.get("message") or f"{name}: {finding.get('value')}")
        yield Check(
            rule=_AUDITED_RULES.get(name, 1), level=_AUDIT_LEVELS.get(str(finding.get("level")), "unknown"), text=text
        )


def _tokens(facts: Facts) -> Iterator[Check]:
    judged = [result for result in facts.cells("confirm") if result.outcome == "completed"]
    if judged:
        seen = {result.tokens_seen for result in judged}
        if len(seen) == 1:
            cells = written.plural(len(judged), "finished confirm cell")
            text = f"all {cells} saw {written.count(next(iter(seen)))} tokens"
        else:
            text = f"confirm cells saw from {written.count(min(seen))} to {written.count(max(seen))} tokens"
        yield Check(rule=2, level="ok" if len(seen) == 1 else "bad", text=text)
    steps = {arm.tokens_per_step for arm in facts.arms if arm.tokens_per_step}
    if len(steps) == 1:
        yield Check(rule=2, level="ok", text=f"{written.count(next(iter(steps)))} tokens per step in every arm")
    elif steps:
        span = f"from {written.count(min(steps))} to {written.count(max(steps))}"
        text = f"tokens per step differ, {span}: arms take unequal numbers of updates"
        yield Check(rule=2, level="warn", text=text)


def _schedule(facts: Facts) -> Iterator[Check]:
    schedule = mapping(facts.space.get("schedule"))
    budget = facts.budget_tokens
    warmup, decay = finite(schedule.get("warmup_share")), finite(schedule.get("decay_share"))
    if budget and warmup is not None and decay is not None:
        shares = f"warm-up over {written.share(warmup)} and decay over the last {written.share(decay)}"
        text = f"{shares} of {written.count(budget)} tokens"
        yield Check(rule=3, level="ok", text=text)
    skipped = [result.last("skipped_steps") for result in facts.results.cells]
    known = [value for value in skipped if value is not None]
    if known:
        total = round(sum(known))
        yield Check(
            rule=3, level="ok" if total == 0 else "warn", text=f"{written.plural(total, 'skipped step')} in all cells"
        )


def _exam(facts: Facts) -> Iterator[Check]:
    exam = mapping(facts.beginning.get("exam"))
    fingerprint = exam.get("fingerprint") or mapping(facts.beginning.get("fingerprints")).get("exam")
    if fingerprint:
        rows_test, block_len = finite(exam.get("rows_test")), finite(exam.get("block_len"))
        size = f", {written.count(rows_test * block_len)} test tokens" if rows_test and block_len else ""
        yield Check(rule=4, level="ok", text=f"one exam for all cells, fingerprint {str(fingerprint)[:16]}{size}")
    if exam.get("packed") is not None:
        packed = bool(exam["packed"])
        text = "exam rows are packed from several documents" if packed else "every exam row is cut from one document"
        yield Check(rule=4, level="warn" if packed else "ok", text=text)


def _effort(facts: Facts) -> Iterator[Check]:
    by_arm = {arm.name: facts.cells("explore", arm=arm.name) for arm in facts.arms}
    numbers = {name: len(cells) for name, cells in by_arm.items()}
    if not any(numbers.values()):
        return
    if len(set(numbers.values())) == 1:
        yield Check(rule=5, level="ok", text=f"{written.plural(next(iter(numbers.values())), 'explore cell')} per arm")
    else:
        text = "explore cells per arm: " + ", ".join(f"{name} {n}" for name, n in numbers.items())
        yield Check(rule=5, level="warn", text=text)
    rates = mapping(facts.space.get("rates"))
    for key, text in (("adamw_ratio", "AdamW's rate is {} of Muon's"), ("adamw_fixed", "AdamW's rate is fixed at {}")):
        if (value := finite(rates.get(key))) is not None:
            yield Check(rule=5, level="ok" if key == "adamw_ratio" else "warn", text=text.format(written.rate(value)))


def _stopping(facts: Facts) -> Iterator[Check]:
    explored = facts.cells("explore")
    if not explored:
        return
    stopped = sum(result.outcome == "stopped_early" for result in explored)
    text = f"{stopped:,} of {len(explored):,} explore cells stopped early, each ranked within its own arm"
    yield Check(rule=6, level="ok", text=text if stopped or facts.rungs_tokens else "no explore cell was stopped early")
    unreached = [
        arm.name
        for arm in facts.arms
        if not any(result.outcome == "completed" for result in facts.cells("explore", arm=arm.name))
    ]
    if unreached:
        yield Check(rule=6, level="bad", text=f"no explore cell reached the full budget in {written.listed(unreached)}")
    else:
        yield Check(rule=6, level="ok", text="in every arm at least one explore cell reached the full budget")


def _edges(facts: Facts) -> Iterator[Check]:
    known = [arm for arm in facts.arms if finite(arm.row.get("best_lr")) is not None]
    at_edge = [f"{arm.name} (lr {written.rate(arm.row['best_lr'])})" for arm in known if arm.row.get("best_lr_at_edge")]
    if at_edge:
        yield Check(rule=7, level="bad", text=f"best rate at the end of its grid: {written.listed(at_edge)}")
    elif known:
        rates = ", ".join(f"{arm.name} {written.rate(arm.row['best_lr'])}" for arm in known)
        yield Check(rule=7, level="ok", text=f"best rates lie inside their grids: {rates}")


def _judgement(facts: Facts) -> Iterator[Check]:
    confirm = facts.cells("confirm")
    if not confirm:
        yield Check(rule=8, level="bad", text="no confirm cell: nothing was judged on fresh seeds")
        return
    shared = {r.cell.seed for r in confirm} & {r.cell.seed for r in facts.cells("explore")}
    text = f"seeds used in both phases: {sorted(shared)}" if shared else "explore and confirm share no seed"
    yield Check(rule=8, level="bad" if shared else "ok", text=text)
    finished = {arm.name: sum(r.outcome == "completed" for r in facts.confirmed(arm.name)) for arm in facts.arms}
    fewest = min(finished.values())
    span = f"{fewest}" if fewest == max(finished.values()) else f"{fewest} to {max(finished.values())}"
    yield Check(rule=8, level="ok" if fewest >= FEWEST_SEEDS else "warn", text=f"{span} finished confirm seeds per arm")
    lost = [r for r in confirm if r.outcome in ("diverged", "failed", "oom", "stopped_early")]
    if lost:
        names = written.listed([f"{r.cell.strategy} seed {r.cell.seed} ({r.outcome})" for r in lost[:6]])
        yield Check(
            rule=8, level="bad", text=f"confirm cells that did not finish: {names}{' …' if len(lost) > 6 else ''}"
        )


def _statistics(facts: Facts) -> Iterator[Check]:
    looks = mapping(facts.verdict.get("looks"))
    planned, used = finite(looks.get("planned")), finite(looks.get("used"))
    alpha = finite(facts.verdict.get("alpha"))
    if planned is not None and used is not None:
        text = f"{written.plural(round(used), 'look')} used of {round(planned)} planned"
        if alpha is not None:
            text += f", alpha {alpha:.3g} in all"
        yield Check(rule=9, level="ok" if used <= planned else "warn", text=text)
    margin = finite(facts.verdict.get("margin"))
    if margin is not None:
        yield Check(rule=9, level="ok", text=f"margin of equivalence {written.loss(margin)} nats per token")


def _memory_and_time(facts: Facts) -> Iterator[Check]:
    peaks = [
        peak
        for arm in facts.arms
        if (peak := mean_value(facts.cells("confirm", arm=arm.name), "peak_mem_allocated_gib")) is not None
    ]
    if len(peaks) > 1 and max(peaks) > 0:
        spread = 1 - min(peaks) / max(peaks)
        equal = spread <= MEMORY_SPREAD_LIMIT
        text = f"peak memory differs by {written.share(spread)} between arms"
        gpus = mapping(facts.beginning.get("hardware")).get("gpus")
        silent = not equal or gpus == []
        text += ", measured on a CPU" if gpus == [] else ""
        yield Check(
            rule=10, level="ok" if equal else "warn", text=text + (": no claim is made about memory" if silent else "")
        )
    yield from _loads(facts)


def _loads(facts: Facts) -> Iterator[Check]:
    """Under which load confirm cells were timed: records count the trials on their device."""
    counted = {finite(record.get("concurrent_trials")) for r in facts.cells("confirm") for record in r.records} - {None}
    loads = sorted(int(load) for load in counted if load is not None)
    if not loads:
        return
    speeds = measured_speeds({arm.name: facts.cells("confirm", arm=arm.name) for arm in facts.arms})
    if len(loads) == 1:
        yield Check(rule=10, level="ok", text=f"confirm cells ran {loads[0]} at a time throughout")
    elif speeds is not None and speeds.concurrent_trials is not None:
        shared = f"speeds are compared where {speeds.concurrent_trials} did"
        text = f"confirm cells ran {loads[0]} to {loads[-1]} at a time; {shared}"
        yield Check(rule=10, level="ok", text=text)
    else:
        text = "confirm cells ran under unequal load: seconds are not compared"
        yield Check(rule=10, level="warn", text=text)


def _reasons(facts: Facts) -> Iterator[Check]:
    context, controls = facts.verdict.get("context"), facts.verdict.get("controls")
    text = "own context and common context both scored" if context else "no view at common context: a lead is not split"
    yield Check(rule=11, level="ok" if context else "warn", text=text)
    text = (
        "a control with grouped windows separates length from diversity"
        if controls
        else "no control was run: length and batch diversity are not separated"
    )
    yield Check(rule=11, level="ok" if controls else "warn", text=text)


def _balancing(facts: Facts) -> Iterator[Check]:
    loads = {
        arm.name: load
        for arm in facts.arms
        if (load := mean_value(facts.cells("confirm", arm=arm.name), "expert_load_max_over_mean")) is not None
    }
    if loads:
        text = "busiest expert over the mean at the end: " + ", ".join(
            f"{name} {load:.2f}" for name, load in loads.items()
        )
        yield Check(rule=12, level="ok", text=text + "; frequencies are counted over the whole optimizer step")
    splits = sum(r.last("micro_batch_splits") or 0 for r in facts.results.cells)
    if splits:
        yield Check(rule=12, level="warn", text=f"{round(splits):,} times a micro-batch was split to fit the memory")


def _written_down(facts: Facts) -> Iterator[Check]:
    total = len(facts.results.cells)
    open_cells = facts.outcomes["unfinished"]
    if total:
        text = f"{total - open_cells} of {written.plural(total, 'cell')} have an outcome"
        yield Check(rule=13, level="ok" if open_cells == 0 else "warn", text=text + ", all are listed below")
    used = sorted(
        {str(r.records[-1]["precision"]) for r in facts.results.cells if r.records and r.records[-1].get("precision")}
    )
    if used:
        yield Check(rule=13, level="ok" if len(used) == 1 else "warn", text=f"precision used: {written.listed(used)}")
    git = mapping(facts.beginning.get("git"))
    if git.get("commit"):
        dirty = bool(git.get("dirty"))
        text = f"git {str(git['commit'])[:12]}" + (" with uncommitted changes" if dirty else ", clean")
        yield Check(rule=13, level="warn" if dirty else "ok", text=text)
    else:
        yield Check(rule=13, level="warn", text="no git commit is known for the code")


_MEASURES: tuple[Callable[[Facts], Iterator[Check]], ...] = (
    _tokens,
    _schedule,
    _exam,
    _effort,
    _stopping,
    _edges,
    _judgement,
    _statistics,
    _memory_and_time,
    _reasons,
    _balancing,
    _written_down,
)


def worst_levels(entries: list[RuleEntry]) -> dict[str, Any]:
    """Return how many rules stand at each level."""
    return {level: sum(entry.level == level for entry in entries) for level in ("ok", "warn", "bad", "unknown")}
