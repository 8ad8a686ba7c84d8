"""Several sweeps beside each other: whether their verdicts agree, pair by pair, and what was different between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps import formatting as written
from sweeps.errors import BadInputError
from sweeps.ledger.destinations import require_folder, write_file
from sweeps.ledger.results import SweepResults
from sweeps.report.blocks import Block, Bullets, Note, Section, Table, section
from sweeps.report.facts import MAX_DRAWN_PAIRS, Facts, mapping
from sweeps.report.markdown import blocks_text
from sweeps.report.report import ReportFiles, render_page, write_picture
from sweeps.report.tables import flat, shape_text
from sweeps.report.why import estimate_text
from sweeps.shown_commands import shown_line, with_shown_commands
from sweeps.verdict.rows import PairResult
from sweeps.verdict.verdict import Verdict

MOST_NAMED = 3
"""So many sweeps give their names to the folder of a comparison; the names of a file have 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class SharedPair:
    """A pair of arms that every sweep has. ``of_sweeps`` are its results, which may name the two in another order.

    A pair is separated by its decision, after Holm's adjustment (rule 9 of the method): its own interval may exclude
    zero where the decision does not separate it.
    """

    a: str
    b: str
    of_sweeps: tuple[PairResult, ...]

    @property
    def agreement(self) -> str:
        """What the sweeps together say of a pair that all of them judged."""
        better = {pair.better for pair in self.of_sweeps}
        named = sorted(arm for arm in better if arm is not None)
        if not named:
            return f"{self.a} and {self.b} not separated in any"
        if len(named) > 1:
            return "opposite"
        return f"{named[0]} in all" if None not in better else f"{named[0]} where it is clear"


def comparison_folder(runs_dir: str, names: Sequence[str], out: Path | None) -> Path:
    """Return where a comparison is written: ``out``, else ``A+B`` in the runs folder, which no sweep's name can be.

    Raises:
        BadInputError: if nothing can be written there, or the runs folder is a bucket and ``out`` is not given.
    """
    if out is None and "://" in runs_dir.removeprefix("file://"):
        raise BadInputError(f"{runs_dir} is not a local folder; say with --out DIR where the comparison is written")
    shown = "+".join(names) if len(names) <= MOST_NAMED else f"{'+'.join(names[:2])}+{len(names) - 2}"
    folder = out or Path(runs_dir.removeprefix("file://")) / shown
    require_folder(folder, "--out")
    return folder


def compare_report(sweeps: Sequence[tuple[SweepResults, Verdict]], *, folder: Path) -> ReportFiles:
    """Write ``comparison.html``, ``comparison.md`` and the picture of the pairs into ``folder``.

    Strategies are matched by name; one whose shape differs is named.
    """
    from sweeps.report.plots.compare import draw_pairs

    all_facts = [Facts(results, verdict) for results, verdict in sweeps]
    pairs = shared_pairs(all_facts)
    leading = all_facts[0].verdict.leading
    drawn = pairs if len(pairs) <= MAX_DRAWN_PAIRS else [pair for pair in pairs if leading in (pair.a, pair.b)]
    picture = draw_pairs(drawn, all_facts) if drawn else None
    plots = write_picture(picture, folder) if picture else ()
    files = ReportFiles(html=folder / "comparison.html", markdown=folder / "comparison.md", plots=plots)
    found, title = _sections(all_facts, pairs), agreement(all_facts)
    text = "\n\n".join([f"# {written.markdown_text(title)}", *_text_of(found)]) + "\n"
    write_file(files.markdown, text.encode())
    names = [facts.results.name for facts in all_facts]
    page = render_page("compare.html.j2", names=names, agreement=title, picture=picture, sections=found)
    write_file(files.html, page.encode())
    return files


def _text_of(sections: Sequence[Section]) -> list[str]:
    return [text for found in sections for text in (f"## {found.title}", *blocks_text(found.blocks))]


def agreement(sweeps: Sequence[Facts]) -> str:
    """Return in one or two sentences whether the verdicts agree, and what is missing where they cannot be compared."""
    names = written.listed([facts.results.name for facts in sweeps])
    if undecided := [facts for facts in sweeps if not facts.verdict.is_decided]:
        return _not_comparable(sweeps, undecided)
    winning = [facts for facts in sweeps if facts.verdict.winner is not None]
    winners = {facts.verdict.winner for facts in winning}
    if len(winners) > 1:
        each = written.listed([f"{facts.verdict.winner} wins in {facts.results.name}" for facts in winning])
        return f"The verdicts contradict each other: {each}."
    if len(winning) == len(sweeps):
        return f"The verdicts agree: {winning[0].verdict.winner} wins in {names}."
    if all(facts.verdict.outcome == "tie" for facts in sweeps):
        return f"The verdicts agree that no arm wins: {names} each end in a tie."
    leading = {facts.verdict.leading for facts in sweeps}
    if not winning:
        same = f"{sweeps[0].verdict.leading} has the lowest mean in each"
        return f"None of {names} names a winner; {same if len(leading) == 1 else 'the lowest mean differs'}."
    others = [facts for facts in sweeps if facts.verdict.winner is None]
    endings = {"tie": "ends in a tie", "undecided": "ends undecided"}
    rest = written.listed([f"{facts.results.name} {endings[facts.verdict.outcome]}" for facts in others])
    won = written.listed([facts.results.name for facts in winning])
    lowest = ", with the lowest mean for the same arm" if len(leading) == 1 else ""
    return (
        "The verdicts do not agree, nor do they contradict each other: "
        f"{winning[0].verdict.winner} wins in {won}, {rest}{lowest}."
    )


def _not_comparable(sweeps: Sequence[Facts], undecided: Sequence[Facts]) -> str:
    names = written.listed([facts.results.name for facts in sweeps])
    without = written.listed([facts.results.name for facts in undecided])
    missing = f"{without} {'has' if len(undecided) == 1 else 'have'} no decided verdict"
    if len(undecided) == len(sweeps):
        missing = f"{'neither' if len(sweeps) == 2 else 'none'} has a decided verdict"
    commands = [f"`{shown_line(f.verdict.command)}`" for f in undecided if f.verdict.command]
    decide = f" To decide: {', '.join(commands)}." if commands else ""
    earlier = [f"{f.results.name}: {f.verdict.last_decided['statement']}" for f in undecided if f.verdict.last_decided]
    before = f" Decided before it was extended: {' '.join(earlier)}" if earlier else ""
    return f"{names} cannot be compared yet: {missing}.{decide}{before}"


def shared_pairs(sweeps: Sequence[Facts]) -> list[SharedPair]:
    """Return the measured pairs of arms that all sweeps have, in the order of the first."""
    found = []
    for first in sweeps[0].pairs:
        same = [pair for facts in sweeps for pair in facts.pairs if {pair.a, pair.b} == {first.a, first.b}]
        if len(same) == len(sweeps):
            found.append(SharedPair(a=first.a, b=first.b, of_sweeps=tuple(same)))
    return found


def _sections(sweeps: Sequence[Facts], pairs: Sequence[SharedPair]) -> list[Section]:
    statements = tuple(f"{facts.results.name}: {with_shown_commands(facts.verdict.statement)}" for facts in sweeps)
    note = (
        "The first arm's loss minus the second's, paired by seed within each sweep: below zero, the first is better. "
        "Intervals are over seeds, and over documents of the exam where losses by document are known."
    )
    if pairs:
        against: list[Block] = [Note(text=note), _pair_table(sweeps, pairs)]
    else:
        against = [Note(text="The sweeps share no pair of arms that was measured in all of them.")]
    note = "Losses on different corpora or exams do not compare with each other; leads do, with care."
    different = _differing(sweeps)
    found = [
        section("verdicts", "The verdicts", Bullets(items=statements)),
        section("pairs", "The arms against each other", against),
        section("arms", "The arms themselves", Note(text=note), _arm_table(sweeps)),
    ]
    return found + ([section("differing", "What was different", different)] if different else [])


def _pair_table(sweeps: Sequence[Facts], pairs: Sequence[SharedPair]) -> Table:
    judged = all(facts.verdict.is_decided for facts in sweeps)
    rows = [
        (
            f"{shared.a} − {shared.b}",
            *(estimate_text(found) if (found := pair.above(shared.b)) else "" for pair in shared.of_sweeps),
            *([shared.agreement] if judged else []),
        )
        for shared in pairs
    ]
    names = [facts.results.name for facts in sweeps]
    return Table(header=("pair", *names, *(["together"] if judged else [])), rows=tuple(rows))


def _arm_table(sweeps: Sequence[Facts]) -> Table:
    names = dict.fromkeys(arm.name for facts in sweeps for arm in facts.arms)
    return Table(
        header=("arm", *(facts.results.name for facts in sweeps)),
        rows=tuple((name, *(_arm_text(facts, name) for facts in sweeps)) for name in names),
    )


def _arm_text(facts: Facts, name: str) -> str:
    if name not in facts.index:
        return written.ABSENT
    arm = facts.arms[facts.index[name]]
    span = written.interval(arm.ci_low, arm.ci_high)
    shape = shape_text(arm.arm) or "shape unknown"
    return f"{written.loss(arm.mean)} ({span}) at lr {written.rate(arm.best_lr)}, {shape}"


def _differing(sweeps: Sequence[Facts]) -> Table | None:
    """What the sweeps were asked differently, and where corpus, code or machine differ; None if in nothing."""
    columns = []
    for facts in sweeps:
        parts = {key: mapping(facts.beginning.get(key)) for key in ("fingerprints", "git", "hardware")}
        columns.append(dict(flat({**facts.space, **parts})))
    keys = dict.fromkeys(key for column in columns for key in column if key != "description")
    rows = tuple(
        (key, *(column.get(key, written.ABSENT) for column in columns))
        for key in keys
        if len({column.get(key) for column in columns}) > 1
    )
    names = [facts.results.name for facts in sweeps]
    return Table(header=("", *names), rows=rows, n_names=1 + len(names)) if rows else None
