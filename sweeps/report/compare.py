"""Several sweeps beside each other: whether their verdicts agree, pair by pair, and what was different between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report import text as words
from sweeps.report.facts import MAX_DRAWN_PAIRS, Facts, mapping
from sweeps.report.markdown import escaped, table_lines
from sweeps.report.report import ReportFiles, render_page, write_file
from sweeps.report.tables import flat
from sweeps.report.why import Table
from sweeps.verdict.confirmed import DECIDED

if TYPE_CHECKING:
    from sweeps.ledger.results import SweepResults
    from sweeps.report.plots.files import Picture

UNCLEAR = "not separated"


@dataclass(frozen=True, kw_only=True)
class PairSide:
    """One pair of arms in one sweep: a's loss minus b's in nats per token, with its interval and the better arm.

    ``better`` is the arm that the verdict decided for: by the win's own test where it is the winner, else after Holm's
    adjustment (rule 9 of the method). The interval is of the pair alone and may part arms that the decision does not.
    """

    sweep: str
    is_judged: bool
    difference: float | None
    low: float | None
    high: float | None
    better: str


@dataclass(frozen=True, kw_only=True)
class SharedPair:
    """A pair of arms that every sweep has."""

    a: str
    b: str
    sides: tuple[PairSide, ...]

    @property
    def agreement(self) -> str:
        """What the sweeps together say of the pair; nothing where one of them has no verdict."""
        if not all(side.is_judged for side in self.sides):
            return "not judged in all"
        better = {side.better for side in self.sides}
        if len(better) == 1:
            return f"{self.a} and {self.b} not separated in any" if better == {UNCLEAR} else f"{better.pop()} in all"
        return "opposite" if {self.a, self.b} <= better else f"{next(iter(better - {UNCLEAR}))} where it is clear"


def compare_report(
    a: tuple[SweepResults, Mapping[str, Any]],
    b: tuple[SweepResults, Mapping[str, Any]],
    *more: tuple[SweepResults, Mapping[str, Any]],
    folder: Path,
) -> ReportFiles:
    """Write ``comparison.html``, ``comparison.md`` and the picture of the pairs into ``folder``.

    Each sweep is its results and the content of its ``verdict.json``. Strategies are matched by name; one whose shape
    differs is named.
    """
    from sweeps.report.plots.compare import draw_pairs

    sweeps = [Facts(results, verdict) for results, verdict in (a, b, *more)]
    pairs = shared_pairs(sweeps)
    drawn = pairs if len(pairs) <= MAX_DRAWN_PAIRS else [p for p in pairs if sweeps[0].leading in (p.a, p.b)]
    picture = draw_pairs(drawn, sweeps) if any(s.difference is not None for p in drawn for s in p.sides) else None
    plots = []
    for suffix, content in (("png", picture.png), ("svg", picture.svg.encode())) if picture else ():
        plots.append(folder / "plots" / f"{picture.name}.{suffix}" if picture else folder)
        write_file(plots[-1], content)
    files = ReportFiles(html=folder / "comparison.html", markdown=folder / "comparison.md", plots=tuple(plots))
    write_file(files.markdown, _markdown(sweeps, pairs).encode())
    write_file(files.html, _html(sweeps, pairs, picture).encode())
    return files


def agreement(sweeps: Sequence[Facts]) -> str:
    """Return in one sentence whether the verdicts agree."""
    names = written.listed([facts.results.name for facts in sweeps])
    unjudged = [facts for facts in sweeps if words.outcome(facts) not in DECIDED]
    leading = [facts.leading for facts in sweeps]
    same_lead = len(set(leading)) == 1 and leading[0] is not None
    if unjudged:
        which = written.listed([f"{facts.results.name} is {words.outcome(facts)}" for facts in unjudged])
        lead = f", though {leading[0]} has the lowest mean in each" if same_lead else ""
        return f"Nothing can be said about agreement of {names}, because {which}{lead}."
    winners = {facts.winner for facts in sweeps if words.outcome(facts) == "wins"}
    kinds = {words.outcome(facts) for facts in sweeps}
    if len(winners) > 1:
        each = written.listed([f"{facts.winner} wins in {facts.results.name}" for facts in sweeps if facts.winner])
        return f"The verdicts contradict each other: {each}."
    if kinds == {"wins"}:
        return f"The verdicts agree: {winners.pop()} wins in {names}."
    if kinds == {"tie"}:
        return f"The verdicts agree that no arm wins: {names} each end in a tie."
    if winners:
        winner = winners.pop()
        others = [facts for facts in sweeps if facts.winner is None]
        rest = written.listed([f"{facts.results.name} ends {_ending(facts)}" for facts in others])
        leads = all(facts.leading == winner for facts in others)
        return f"The verdicts do not agree, nor do they contradict each other: {winner} wins in " + (
            f"{written.listed([f.results.name for f in sweeps if f.winner])}, {rest}"
            f"{f', with {winner} lowest there too' if leads else ''}."
        )
    lead = f"; {leading[0]} has the lowest mean in each" if same_lead else "; the lowest mean is not the same arm's"
    return f"None of {names} names a winner{lead}."


def _ending(facts: Facts) -> str:
    return "in a tie" if words.outcome(facts) == "tie" else "undecided"


def shared_pairs(sweeps: Sequence[Facts]) -> list[SharedPair]:
    """Return the pairs of arms that all sweeps have, in the order of the first, each seen from the same arm."""
    found = []
    for pair in sweeps[0].pairs:
        a, b = str(pair.get("a")), str(pair.get("b"))
        sides = [_side(facts, a, b) for facts in sweeps]
        known = [side for side in sides if side is not None]
        if len(known) == len(sweeps):
            found.append(SharedPair(a=a, b=b, sides=tuple(known)))
    return found


def _side(facts: Facts, a: str, b: str) -> PairSide | None:
    for pair in facts.pairs:
        if {pair.get("a"), pair.get("b")} == {a, b}:
            seen = words.seen_from(pair, a)
            assert seen is not None
            return PairSide(
                sweep=facts.results.name,
                is_judged=words.outcome(facts) in DECIDED,
                difference=seen.difference,
                low=seen.low,
                high=seen.high,
                better=next((arm for arm in (a, b) if pair.get("decision") == f"{arm} is better"), UNCLEAR),
            )
    return None


def differing(sweeps: Sequence[Facts]) -> Table | None:
    """Return what the sweeps were asked differently, and where corpus, code or machine differ; None if in nothing."""
    columns = []
    for facts in sweeps:
        begun = facts.beginning
        columns.append(
            dict(flat(facts.space))
            | {f"fingerprints.{key}": value for key, value in flat(mapping(begun.get("fingerprints")))}
            | {f"git.{key}": value for key, value in flat(mapping(begun.get("git")))}
            | {f"hardware.{key}": value for key, value in flat(mapping(begun.get("hardware")))}
        )
    keys = dict.fromkeys(key for column in columns for key in column if key != "description")
    rows = tuple(
        (key, *(column.get(key, written.ABSENT) for column in columns))
        for key in keys
        if len({column.get(key) for column in columns}) > 1
    )
    names = [facts.results.name for facts in sweeps]
    return Table(header=("", *names), rows=rows, n_names=1 + len(names)) if rows else None


def arm_table(sweeps: Sequence[Facts]) -> Table:
    """Return each arm's mean test loss and interval in each sweep; losses of two corpora or exams do not compare."""
    names = dict.fromkeys(arm.name for facts in sweeps for arm in facts.arms)
    return Table(
        header=("arm", *(facts.results.name for facts in sweeps)),
        rows=tuple((name, *(_arm_text(facts, name) for facts in sweeps)) for name in names),
    )


def _arm_text(facts: Facts, name: str) -> str:
    arm = facts.arm_by_name.get(name)
    if arm is None:
        return written.ABSENT
    mean = written.loss(finite(arm.row.get("mean")))
    span = written.interval(finite(arm.row.get("ci_low")), finite(arm.row.get("ci_high")))
    return f"{mean} ({span}) at lr {written.rate(finite(arm.row.get('best_lr')))}, {arm.shape_text or 'shape unknown'}"


def pair_table(pairs: Sequence[SharedPair]) -> Table:
    """Return each shared pair's difference in each sweep and what they say together."""
    sweeps = [side.sweep for side in pairs[0].sides] if pairs else []
    return Table(
        header=("pair", *sweeps, "together"),
        rows=tuple((f"{p.a} − {p.b}", *(_side_text(side) for side in p.sides), p.agreement) for p in pairs),
    )


def _side_text(side: PairSide) -> str:
    span = "" if side.low is None else f" ({written.interval(side.low, side.high, sign=True)})"
    return written.signed(side.difference) + span


def _html(sweeps: Sequence[Facts], pairs: Sequence[SharedPair], picture: Picture | None) -> str:
    return render_page(
        "compare.html.j2",
        names=[facts.results.name for facts in sweeps],
        agreement=agreement(sweeps),
        sweeps=[
            {
                "name": facts.results.name,
                "outcome": words.outcome(facts),
                "outcome_name": words.OUTCOME_NAMES.get(words.outcome(facts), words.outcome(facts)),
                "statement": words.statement(facts),
            }
            for facts in sweeps
        ],
        picture=picture,
        arms=arm_table(sweeps),
        pairs=pair_table(pairs) if pairs else None,
        differing=differing(sweeps),
    )


def _markdown(sweeps: Sequence[Facts], pairs: Sequence[SharedPair]) -> str:
    def lines() -> Iterator[str]:
        yield f"# {escaped(agreement(sweeps))}\n"
        for facts in sweeps:
            yield f"- **{facts.results.name}**: {escaped(words.statement(facts))}"
        yield "\n## The arms\n"
        arms = arm_table(sweeps)
        yield from table_lines(arms.header, arms.rows)
        if pairs:
            yield "\n## Every pair\n"
            yield "The first arm's loss minus the second's, paired by seed within each sweep.\n"
            table = pair_table(pairs)
            yield from table_lines(table.header, table.rows)
        found = differing(sweeps)
        if found is not None:
            yield "\n## What was different\n"
            yield from table_lines(found.header, found.rows, numeric_from=found.n_names)

    return "\n".join(lines()) + "\n"
