"""Which segment runs next: a pure answer from what the ledger holds.

A segment is a cell's stretch from one rung to the next. The plan knows nothing of Ray: it is asked ``next()``
and given what was started and what the cell's folder says afterwards. All that it decides follows from recorded losses;
recorded speeds change the order alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from search_spaces import Cell, EarlyStopping
from sweeps.ledger.results import CellResult
from sweeps.ledger.sweep_folder import PlannedCell
from sweeps.plan.early_stopping import Contender, Decision, Rung, decide, decide_in_turn, standing_in_turn

NO_STOPPING = EarlyStopping(kind="none")

Waiting = Literal["wait", "finished"]
Bracket = tuple[int, str, int]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a cell is: durable tokens, exam losses at points of the budget, how it ended; its newest speed."""

    tokens_seen: int = 0
    exam_losses: Mapping[int, float] = field(default_factory=dict)
    outcome: str | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A cell and how far it is to be trained now, in tokens."""

    planned: PlannedCell
    until_tokens: int


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A cell that early stopping ends, and why."""

    planned: PlannedCell
    rung_tokens: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Early stopping of a space: the rungs of each budget, all in tokens, and what each keeps.

    ``suggestions`` is the number of rates that a search will suggest to each arm, one after another.
    """

    rungs_tokens: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    keep: EarlyStopping = NO_STOPPING
    suggestions: int = 0

    def rungs(self, budget_tokens: int, n_cells: int) -> tuple[Rung, ...]:
        """Rungs of a bracket of so many cells."""
        counts = self.keep.keep_counts(n_cells)
        points = self.rungs_tokens[budget_tokens]
        return tuple(Rung(tokens=tokens, keep=count) for tokens, count in zip(points, counts, strict=True))

    def rungs_of(self, cell: Cell) -> tuple[int, ...]:
        """Points at which a cell that may stop early is ranked."""
        return self.rungs_tokens.get(cell.budget_tokens, ())


class Plan:
    """The cells of a sweep, how far each is, and what may run next."""

    def __init__(self, rule: StoppingRule, cells: Iterable[PlannedCell] = ()) -> None:
        self._rule = rule
        self._cells: dict[str, PlannedCell] = {}
        self._place: dict[str, int] = {}
        self._postponed: dict[str, int] = {}
        self._progress: dict[str, Progress] = {}
        self._running: set[str] = set()
        self._open: set[str] = set()
        self._brackets: dict[Bracket, list[PlannedCell]] = {}
        self._decided: dict[Bracket, dict[tuple[str, int], Decision]] = {}
        self._tokens_per_s: dict[str, float] = {}
        self.add(cells)

    def add(self, cells: Iterable[PlannedCell]) -> None:
        """Take up cells that are not known yet."""
        for planned in cells:
            if planned.cell_id in self._cells:
                continue
            self._cells[planned.cell_id] = planned
            self._place[planned.cell_id] = len(self._place)
            self._progress[planned.cell_id] = Progress()
            self._open.add(planned.cell_id)
            if planned.may_stop_early:
                self._brackets.setdefault(_bracket(planned), []).append(planned)
                self._decided.pop(_bracket(planned), None)

    @property
    def cells(self) -> tuple[PlannedCell, ...]:
        """Every cell in the order in which it was planned."""
        return tuple(self._cells.values())

    @property
    def brackets(self) -> tuple[tuple[PlannedCell, ...], ...]:
        """Cells that are ranked together: those of one budget, arm and seed that may be stopped early."""
        return tuple(tuple(bracket) for bracket in tuple(self._brackets.values()))

    def planned(self, cell_id: str) -> PlannedCell:
        """The cell of this id."""
        return self._cells[cell_id]

    def progress(self, cell_id: str) -> Progress:
        """What was last recorded of a cell."""
        return self._progress[cell_id]

    @property
    def running(self) -> tuple[str, ...]:
        """Cells that were handed out and have not come back."""
        return tuple(self._running)

    def state(self, cell_id: str) -> str:
        """``running``, ``queued``, ``waiting`` (at a rung), or the cell's outcome."""
        progress = self._progress[cell_id]
        if progress.outcome is not None:
            return progress.outcome
        if cell_id in self._running:
            return "running"
        if self._cells[cell_id].may_stop_early and progress.tokens_seen in self._rule.rungs_of(
            self._cells[cell_id].cell
        ):
            return "waiting"
        return "queued"

    def started(self, cell_id: str) -> None:
        """A segment of this cell was handed out."""
        self._running.add(cell_id)

    def ended(self, cell_id: str, progress: Progress) -> None:
        """A segment of this cell is over; ``progress`` is what its folder says now."""
        self._running.discard(cell_id)
        self._progress[cell_id] = progress
        if progress.tokens_per_s:
            self._tokens_per_s[self._cells[cell_id].cell.strategy] = progress.tokens_per_s
        if progress.outcome is None:
            self._open.add(cell_id)
        else:
            self._open.discard(cell_id)
        self._decided.pop(_bracket(self._cells[cell_id]), None)

    def postpone(self, cell_id: str) -> None:
        """Hand this cell out after all others: something around it failed, and may fail it again."""
        self._postponed[cell_id] = self._postponed.get(cell_id, 0) + 1

    def open_groups(self) -> set[tuple[int, str, str]]:
        """(budget, phase, strategy) of all cells without an outcome."""
        cells = (self._cells[cell_id].cell for cell_id in self._open)
        return {(cell.budget_tokens, cell.phase, cell.strategy) for cell in cells}

    def dropped(self) -> list[Dropped]:
        """Cells without an outcome that early stopping ends now."""
        return [
            Dropped(planned=self._cells[cell_id], rung_tokens=tokens, reason=self._reason(cell_id, bracket, tokens))
            for bracket in self._brackets
            for (cell_id, tokens), decision in self._decisions(bracket).items()
            if decision == "drop" and cell_id in self._open and cell_id not in self._running
        ]

    def next(self, strategies: Sequence[str] | None = None) -> Segment | Waiting:
        """The next segment of one of ``strategies`` (of any, without), or whether to wait or to stop asking.

        Smaller budgets go before larger ones, explore before confirm, and a cell further along before one that is not,
        so that started cells get finished and a rung fills before the next bracket starts. Of judged cells those that
        take longest go first, so that the last ones are short and all workers end at nearly the same time.
        """
        asked = [
            cell_id for cell_id in self._open if strategies is None or self._cells[cell_id].cell.strategy in strategies
        ]
        ready = [segment for cell_id in asked if (segment := self._segment(self._cells[cell_id])) is not None]
        if ready:
            return min(ready, key=self._order)
        return "wait" if asked and self._running else "finished"

    def _segment(self, planned: PlannedCell) -> Segment | None:
        if planned.cell_id in self._running:
            return None
        until = planned.cell.budget_tokens
        if planned.may_stop_early:
            progress = self._progress[planned.cell_id]
            for tokens in self._rule.rungs_of(planned.cell):
                if tokens > progress.tokens_seen or tokens not in progress.exam_losses:
                    until = tokens
                    break
                if self._decisions(_bracket(planned))[planned.cell_id, tokens] != "promote":
                    return None
        return Segment(planned=planned, until_tokens=until)

    def _order(self, segment: Segment) -> tuple[int, int, int, int, float, int]:
        cell, cell_id = segment.planned.cell, segment.planned.cell_id
        phase_rank = 0 if cell.phase == "explore" else 1
        postponed, seen = self._postponed.get(cell_id, 0), self._progress[cell_id].tokens_seen
        tokens_per_s = self._tokens_per_s.get(cell.strategy, 0.0) if phase_rank else 0.0
        return postponed, cell.budget_tokens, phase_rank, -seen, tokens_per_s, self._place[cell_id]

    def _decisions(self, bracket: Bracket) -> Mapping[tuple[str, int], Decision]:
        if bracket not in self._decided:
            contenders = [self._contender(planned) for planned in self._brackets[bracket]]
            if self._is_suggested(bracket):
                found = decide_in_turn(contenders, self._rungs(bracket), self._rule.suggestions)
            else:
                found = decide(contenders, self._rungs(bracket))
            self._decided[bracket] = found
        return self._decided[bracket]

    def _is_suggested(self, bracket: Bracket) -> bool:
        return self._brackets[bracket][0].reason == "suggestion"

    def _rungs(self, bracket: Bracket) -> tuple[Rung, ...]:
        expected = self._rule.suggestions if self._is_suggested(bracket) else len(self._brackets[bracket])
        return self._rule.rungs(bracket[0], expected)

    def _reason(self, cell_id: str, bracket: Bracket, tokens: int) -> str:
        rung = next(rung for rung in self._rungs(bracket) if rung.tokens == tokens)
        contenders = [self._contender(planned) for planned in self._brackets[bracket]]
        place = next(place for place, contender in enumerate(contenders) if contender.cell_id == cell_id)
        if self._is_suggested(bracket):
            rank, among, keep = standing_in_turn(contenders[: place + 1], rung, self._rule.suggestions)
            return f"rank {rank} of the {among} suggested so far in its arm at {tokens:,} tokens, {keep} go on"
        arrived = [contender for contender in contenders if tokens in contender.losses]
        ranked = sorted(arrived, key=lambda contender: contender.losses[tokens])
        rank = 1 + ranked.index(contenders[place])
        return f"rank {rank} of {len(contenders)} in its arm at {tokens:,} tokens, {rung.keep} go on"

    def _contender(self, planned: PlannedCell) -> Contender:
        progress = self._progress[planned.cell_id]
        return Contender(
            cell_id=planned.cell_id,
            losses=progress.exam_losses,
            ended_badly=progress.outcome in ("diverged", "oom", "failed"),
            finished=progress.outcome == "completed",
        )


def _bracket(planned: PlannedCell) -> Bracket:
    cell = planned.cell
    return cell.budget_tokens, cell.strategy, cell.seed


def progress_of(result: CellResult) -> Progress:
    """What the plan needs to know of a cell."""
    losses = {
        int(record["tokens_seen"]): float(record["val_loss"])
        for record in result.records
        if record.get("val_loss") is not None
    }
    tokens_per_s = result.records[-1].get("tokens_per_s") if result.records else None
    return Progress(
        tokens_seen=result.tokens_seen, exam_losses=losses, outcome=result.outcome, tokens_per_s=tokens_per_s
    )
