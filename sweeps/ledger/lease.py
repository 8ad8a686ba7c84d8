"""A lease: exclusive ownership on storage without locks, with a number that fences off earlier holders.

A lease is a folder of claims ``NNNNNN.json``. The highest number holds it; a claim is created exclusively, so only one
of two contenders for a number succeeds. The holder rewrites its claim every ``HEARTBEAT_S`` as a heartbeat. The last
claim stays in place on release, so that numbers only rise.

A claim may be superseded when its process is known not to run (same boot, same PID namespace), when the driver has
given its holder up, or when it stood unchanged for ``STALE_AFTER_S`` of the taker's own clock: clocks of two hosts are
never compared. A holder trusts its lease for ``TRUSTED_S`` after the last look that found no higher claim; after a
longer silence it looks again first.

A holder that slept may still write after it was superseded. Its ``token``, which begins with the claim's number, is in
the names of its segments and checkpoints, and it cannot commit them any more (``sweeps.ledger.commits``).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Final

from sweeps.errors import DamagedError, StorageError, SweepHeldError
from sweeps.ledger.models import ObjectModel, validated
from sweeps.ledger.storage import Storage
from sweeps.ledger.world import Event, Process, Task

DRIVER_LEASE: Final = "driver"  # of a sweep, in its folder
CELL_LEASE: Final = "lease"  # of a cell, in its folder
HEARTBEAT_S: Final = 5.0
STALE_AFTER_S: Final = 30.0
TRUSTED_S: Final = 20.0
_FIRST_LOOK_S: Final = 0.25
_LOOK_EVERY_S: Final = 2.0
_CLAIM: Final = re.compile(r"(\d{6,})\.json")


class Holder(ObjectModel):
    """A claim: who made it, and its last heartbeat."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int
    began_s: float
    token: str
    heartbeat: int
    heartbeat_s: float
    released: bool

    @property
    def process(self) -> Process:
        """The process that made the claim."""
        return Process(
            host=self.host,
            boot_id=self.boot_id,
            pid_namespace=self.pid_namespace,
            pid=self.pid,
            start_ticks=self.start_ticks,
        )

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


class Lease:
    """Held from ``acquire`` to ``release``, or as a context manager, once; a background task sends the heartbeat."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._beating = storage.patient(0)  # no retries: a late heartbeat is worth nothing
        self._name = name
        self._world = storage.world
        self._secret = self._world.random_token(4)
        self._began_s = self._world.time_s()
        self._number = 0
        self._beats = 0
        self._confirmed_s = 0.0
        self._taken_by: str | None = None
        self._ended: Event = self._world.event()
        self._task: Task | None = None

    @property
    def token(self) -> str:
        """Number and random digits; the tokens of later holders sort after those of earlier ones."""
        return f"{self._number:06d}-{self._secret}"

    def acquire(self, *, wait_s: float = 0.0, given_up: int = 0) -> Holder | None:
        """Take the lease and return the dead holder that it was taken over from, if any.

        Waits as long as it takes to tell whether the holder is alive, and up to ``wait_s`` for a living one to
        release. A claim up to number ``given_up`` is superseded at once, alive or not. Raises SweepHeldError, naming
        host and pid, if another one is still alive then.
        """
        deadline_s = self._world.monotonic_s() + wait_s
        watch = LeaseWatch(self._storage, self._name)
        pause_s = _FIRST_LOOK_S
        while True:
            look = watch.look()
            if look.may_be_taken or look.number <= given_up:
                if self._claim(look.number + 1):
                    self._task = self._world.spawn(self._keep_beating, f"lease {self._name}")
                    return None if look.holder is None or look.holder.released else look.holder
            elif look.is_alive and self._world.monotonic_s() >= deadline_s:
                raise SweepHeldError(
                    f"{self._storage.uri} is held by {look.holder or 'another process'}: two cannot work on it at "
                    "once; wait until that one ends, or end it"
                )
            self._world.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_EVERY_S)

    def require_held(self) -> None:
        """Raises SweepHeldError if the lease was taken over; looks again after ``TRUSTED_S``."""
        if self._taken_by is None and self._world.monotonic_s() - self._confirmed_s > TRUSTED_S:
            self._check_held(self._storage)
        self._raise_if_taken()

    def confirm(self) -> None:
        """Look now; raises SweepHeldError if the lease was taken over.

        Call it before writing or deleting anything that fencing does not protect.
        """
        self._check_held(self._storage)
        self._raise_if_taken()

    def release(self) -> None:
        """Release the lease, unless it was taken over."""
        self._ended.set()
        if self._task is None:
            return
        self._task.join(timeout=HEARTBEAT_S)
        self._task = None
        try:
            if self._check_held(self._beating):
                self._write(released=True)
        except StorageError:
            return  # harmless: the claim goes stale

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _claim(self, number: int) -> bool:
        """Create the claim of this number; returns whether it is now the highest."""
        now_s = self._world.monotonic_s()
        self._number = number
        try:
            self._storage.create_json(self._claim_name(), self._entry(released=False))
        except FileExistsError:
            return False
        older = claims(self._storage, self._name)
        if older and older[-1] > number:  # a long pause between looking and claiming: newer claims exist
            self._storage.delete(self._claim_name())
            return False
        self._confirmed_s = now_s
        for past in older:
            if past < number:
                self._storage.delete(f"{self._name}/{past:06d}.json")
        return True

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if not self._check_held(self._beating):
                    return
                self._write(released=False)
            except StorageError:
                continue  # a missed beat is not a lost lease: ``require_held`` looks again before it is relied on

    def _check_held(self, storage: Storage) -> bool:
        """Look for a higher claim, or for one of the same number by somebody else where creation is not exclusive."""
        now_s = self._world.monotonic_s()
        newest = max([*claims(storage, self._name), self._number])
        try:
            holder = _read_claim(storage, self._name, newest)
        except FileNotFoundError:  # only its successor, or deleting the sweep, deletes a claim
            self._taken_by = "another process"
            return False
        except DamagedError:
            holder = None  # a damaged claim is still ours; the next heartbeat repairs it
        if newest > self._number or (holder is not None and holder.token != self.token):
            self._taken_by = "another process" if holder is None else str(holder)
            return False
        self._confirmed_s = now_s
        return True

    def _raise_if_taken(self) -> None:
        if self._taken_by is not None:
            own = self._world.process()
            raise SweepHeldError(
                f"{self._storage.uri} was taken over by {self._taken_by} while this process (pid {own.pid} on "
                f"{own.host}) was silent for more than {STALE_AFTER_S:.0f} s; leave it to that one"
            )

    def _write(self, *, released: bool) -> None:
        self._beats += 1
        self._beating.write_json(self._claim_name(), self._entry(released=released))

    def _entry(self, *, released: bool) -> dict[str, object]:
        return {
            "schema": 1,
            **asdict(self._world.process()),
            "began_s": self._began_s,
            "token": self.token,
            "heartbeat": self._beats,
            "heartbeat_s": self._world.time_s(),
            "released": released,
        }

    def _claim_name(self) -> str:
        return f"{self._name}/{self._number:06d}.json"


@dataclass(frozen=True, kw_only=True)
class _Observation:
    """What a look at a lease found."""

    number: int
    holder: Holder | None
    may_be_taken: bool
    is_alive: bool


class LeaseWatch:
    """Looks at a lease again and again, and remembers for how long its claim has stood unchanged."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._world = storage.world
        self._name = name
        self._seen: bytes | None = None
        self._since_s = self._world.monotonic_s()
        self._has_beaten = False

    def unchanged_s(self) -> float:
        """Look now; seconds since the newest claim, or that there is none, was seen to be another than now."""
        self.look()
        return self._world.monotonic_s() - self._since_s

    def look(self) -> _Observation:
        """Read the newest claim and judge it."""
        numbers = claims(self._storage, self._name)
        if not numbers:
            return _Observation(number=0, holder=None, may_be_taken=True, is_alive=False)
        number = numbers[-1]
        where = f"{self._name}/{number:06d}.json"
        try:
            data = self._storage.read_bytes(where)
        except FileNotFoundError:  # superseded at this moment
            return _Observation(number=number, holder=None, may_be_taken=False, is_alive=False)
        self._note(data)
        holder = self._parsed(where, data)
        runs = None if holder is None else self._world.is_running(holder.process)
        is_stale = self._world.monotonic_s() - self._since_s > STALE_AFTER_S
        is_free = holder is not None and (holder.released or runs is False)
        return _Observation(
            number=number,
            holder=holder,
            may_be_taken=is_free or is_stale,
            is_alive=not is_stale and (runs is True or self._has_beaten),
        )

    def _note(self, data: bytes) -> None:
        if data != self._seen:
            self._has_beaten = self._seen is not None
            self._seen = data
            self._since_s = self._world.monotonic_s()

    def _parsed(self, where: str, data: bytes) -> Holder | None:
        """The claim; None where it is damaged, which a living holder repairs with its next heartbeat."""
        try:
            return validated(self._storage, where, self._storage.parse_json(where, data), Holder)
        except DamagedError:
            return None


def claims(storage: Storage, name: str) -> list[int]:
    """Numbers of a lease's claims, ascending."""
    return sorted(int(found[1]) for entry in storage.names(name) if (found := _CLAIM.fullmatch(entry)))


def living_holder(storage: Storage, name: str) -> Holder | None:
    """Who seems to hold a lease, for display, or None; of a process of another host the wall clocks are compared."""
    numbers = claims(storage, name)
    try:
        holder = _read_claim(storage, name, numbers[-1]) if numbers else None
    except (FileNotFoundError, DamagedError):
        return None
    if holder is None or holder.released:
        return None
    runs = storage.world.is_running(holder.process)
    if runs is None:
        runs = abs(storage.world.time_s() - holder.heartbeat_s) < STALE_AFTER_S
    return holder if runs else None


def _read_claim(storage: Storage, name: str, number: int) -> Holder:
    where = f"{name}/{number:06d}.json"
    return validated(storage, where, storage.read_json(where), Holder)
