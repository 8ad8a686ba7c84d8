"""How leads change with the budget, in words and tables."""

from __future__ import annotations

from collections.abc import Iterator

from sweeps import formatting as written
from sweeps.report.blocks import Block, Bullets, Figure, Heading, Note, Table
from sweeps.report.facts import Facts
from sweeps.report.why import estimate_text
from sweeps.verdict.trend_rows import NOT_SHOWN, NOT_TESTED, AtBudget, Crossover, PairTrend, TokenShare


def budget_blocks(facts: Facts) -> list[Block]:
    """Return what the budgets of a sweep show together; nothing for a sweep with one budget."""
    trend = facts.verdict.trend
    if not trend.budgets:
        return []
    blocks: list[Block] = [
        Note(
            text="Every arm is trained and judged at each budget, at the best rate found there, with a schedule that "
            "ends there. The verdict is about the largest; a smaller one is tested only while each larger has a winner."
        ),
        Table(
            header=("tokens", "outcome", "lowest mean", "seeds"),
            rows=tuple(_outcome_row(at) for at in trend.budgets),
            n_names=3,
        ),
    ]
    if trend.pairs:
        blocks += [
            Bullets(items=tuple(sentence for pair in trend.pairs for sentence in _sentences(pair))),
            Figure(name="budgets"),
            _lead_table(facts),
            Heading(text="What the smaller budgets predicted"),
            Note(text="The lead at the largest budget by a line through the smaller ones, and as at the last of them."),
            _prediction_table(facts),
        ]
    rates = [at for at in trend.budgets if any(arm.best_lr for arm in at.arms)]
    if rates:
        blocks += [Heading(text="Best rates by budget"), _rate_table(facts)]
    return blocks


def _outcome_row(at: AtBudget) -> tuple[str, ...]:
    outcome = "not tested" if at.outcome == NOT_TESTED else at.outcome
    if at.winner:
        outcome = f"{at.winner} wins"
    return written.count(at.budget_tokens), outcome, at.leading or written.ABSENT, str(at.seeds)


def _sentences(pair: PairTrend) -> Iterator[str]:
    per_doubling = estimate_text(pair.per_doubling)
    p_value = "" if pair.p_adjusted is None else f", p adjusted {written.p_value(pair.p_adjusted)}"
    text = f"The lead of {pair.a} over {pair.b} changes by {per_doubling} nats per doubling of the budget{p_value}"
    if pair.change == NOT_SHOWN:
        yield f"{text}: not shown to change."
    else:
        rates = ", though better rates at either end could make that" if pair.at_chosen_rates else ""
        yield f"{text}: it {pair.change}{rates}.{_in_tokens(pair)}"
    zero = _zero(pair.crossover)
    if zero:
        yield f"{pair.a} over {pair.b}: {zero}."


def _in_tokens(pair: PairTrend) -> str:
    if pair.advantage == pair.change:
        return f" Its advantage in tokens {pair.change} too."
    if pair.change == "shrinks":
        return " Its advantage in tokens is not shown to: while losses fall, a constant one shrinks in nats."
    return ""


def _zero(found: Crossover) -> str:
    """Where the lead may be zero, in words; nothing where that is nowhere."""
    if not found.ranges:
        return ""
    low, high = found.searched
    parts = [f"{written.count(start)} to {written.count(end)}" for start, end in found.ranges]
    where = ", extrapolated beyond the budgets that were run" if found.is_extrapolated else ""
    text = f"the fitted lead may be zero from {written.listed(parts)} tokens{where}"
    ends = [
        *([f"below {written.count(low)}"] if found.is_open_below else []),
        *([f"above {written.count(high)}"] if found.is_open_above else []),
    ]
    return f"{text}; nothing is known {written.listed(ends)}" if ends else text


def _lead_table(facts: Facts) -> Table:
    rows = [
        (
            pair.a,
            pair.b,
            written.count(at.budget_tokens),
            estimate_text(at.lead),
            _share(at.tokens),
        )
        for pair in facts.verdict.trend.pairs
        for at in pair.leads
    ]
    return Table(header=("lead of", "over", "tokens", "nats", "in tokens"), rows=tuple(rows), n_names=2, wide_only=(4,))


def _prediction_table(facts: Facts) -> Table:
    ways = {"line": "line", "persistence": "as at the last"}
    rows = [
        (
            pair.a,
            pair.b,
            ways[entry.by],
            written.signed(entry.predicted),
            written.signed(pair.leads[-1].lead.mean),
            estimate_text(entry.miss),
        )
        for pair in facts.verdict.trend.pairs
        for entry in pair.predictions
    ]
    return Table(header=("lead of", "over", "by", "predicted", "found", "off by"), rows=tuple(rows), n_names=3)


def _share(found: TokenShare) -> str:
    """``ARM needs 71% (65% to 78%)`` of the tokens."""
    about = "at most " if found.is_upper_bound else ""
    low = "?" if found.low is None else written.share(found.low)
    return f"{found.leader} needs {about}{written.share(found.share)} ({low} to {written.share(found.high)})"


def _rate_table(facts: Facts) -> Table:
    budgets = facts.verdict.trend.budgets
    names = [arm.name for arm in facts.arms]
    rows = []
    for name in names:
        row = [name]
        for at in budgets:
            arm = next((arm for arm in at.arms if arm.name == name), None)
            text = written.ABSENT if arm is None else written.rate(arm.best_lr)
            if arm is not None and arm.optimum_lr_low is not None:
                text += f" ({written.rate(arm.optimum_lr_low)} to {written.rate(arm.optimum_lr_high)})"
            row.append(text + (" edge" if arm is not None and arm.best_lr_at_edge else ""))
        rows.append(tuple(row))
    return Table(header=("arm", *(f"{written.count(at.budget_tokens)} tokens" for at in budgets)), rows=tuple(rows))
