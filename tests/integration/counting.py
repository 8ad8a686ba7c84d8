"""What a fault cost a real sweep: records lost or doubled, cells run again, and seconds until something new counted."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from dataclasses import dataclass

from sweeps.ledger.commits import Commits
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from tests.integration.sweeping import curves, wait_for


@dataclass(frozen=True, kw_only=True)
class Durable:
    """What counts at one moment: losses of every record by cell and tokens, and every object that was written once."""

    losses: dict[tuple[str, int], tuple[object, ...]]
    objects: dict[str, bytes | str]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Records that counted and do not any more, those that count twice, and objects that were made again."""

    lost: int
    doubled: int
    redone: int


def durable(runs_uri: str, name: str) -> Durable:
    """What counts now: outcomes by their bytes, segments by name and hash."""
    ledger = Ledger(Storage(runs_uri), name)
    objects: dict[str, bytes | str] = {}
    for planned in ledger.planned_cells():
        folder = ledger.cell_folder(planned.cell_id)
        outcome, newest = folder.outcome(), folder.newest()
        if outcome is not None:
            objects[f"{planned.cell_id}/outcome"] = folder.storage.read_bytes("outcome.json")
            listed = {segment["name"]: segment["blake2b"] for segment in outcome["segments"]}
        else:
            listed = {} if newest is None else {segment.name: segment.blake2b for segment in newest.segments or []}
        objects |= {f"{planned.cell_id}/{segment}": sha256 for segment, sha256 in listed.items()}
    return Durable(losses=dict(curves(runs_uri, name)), objects=objects)


class Strike:
    """A moment at which a fault strikes, of one cell or of any: what counted then, and how soon something new did."""

    def __init__(self, runs_uri: str, name: str, cell_id: str | None = None) -> None:
        self._runs_uri = runs_uri
        self._name = name
        self._cell_id = cell_id
        self._before = durable(runs_uri, name)
        self._counted = self._progress()
        self._began_s = time.monotonic()
        self.seconds = 0.0

    def wait_for_progress(self, process: subprocess.Popen[str]) -> None:
        """Return once a commit or an outcome is there that was not, and note the seconds since the strike."""
        wait_for(lambda: self._progress() != self._counted, "anything new that counts", process)
        self.seconds = time.monotonic() - self._began_s

    def cost(self) -> Cost:
        """What the fault cost until now."""
        after = durable(self._runs_uri, self._name)
        ledger = Ledger(Storage(self._runs_uri), self._name)
        times = Counter(
            (planned.cell_id, record["tokens_seen"])
            for planned in ledger.planned_cells()
            for record in ledger.cell_folder(planned.cell_id).records()
        )
        return Cost(
            lost=sum(after.losses.get(key) != losses for key, losses in self._before.losses.items()),
            doubled=sum(count - 1 for count in times.values()),
            redone=sum(after.objects.get(name) != value for name, value in self._before.objects.items()),
        )

    def _progress(self) -> dict[str, tuple[bool, int]]:
        """Whether a cell has its outcome, and its newest commit."""
        cells = Storage(self._runs_uri).child(self._name).child("cells")
        folders = {cell_id: cells.child(cell_id) for cell_id in cells.names() if self._cell_id in (None, cell_id)}
        return {
            cell_id: (folder.exists("outcome.json"), max(Commits(folder).numbers(), default=0))
            for cell_id, folder in folders.items()
        }
