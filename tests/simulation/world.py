"""A world of several hosts in one thread, with virtual time and faults at every operation of the storage.

Everything that happens is decided by one seed. A process is a few greenlets; it can be killed or paused at any
operation, before or after its effect, and what its host sees of the storage can fail.
"""

from __future__ import annotations

import errno
import heapq
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from sweeps.ledger.backends import Backend
from sweeps.ledger.world import Event, Process, Task

RUNS = "sim://runs"


class Killed(BaseException):
    """The process is no more: nothing that it still does has any effect."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How likely each fault is at one operation of the storage, and which clocks are wrong."""

    kill: float = 0.0
    pause: float = 0.0
    lost_answer: float = 0.0
    slow: float = 0.0
    partial_listing: float = 0.0
    outages: int = 0
    clock_steps: bool = False
    frozen_clocks: bool = False
    namespaces: bool = False
    hang: float = 0.0
    until_s: float = 1_200.0

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        """One of many worlds, some of them calm in most ways."""

        def maybe(value: float) -> float:
            return value if rng.random() < 0.6 else 0.0

        return cls(
            kill=maybe(0.0015),
            pause=maybe(0.003),
            lost_answer=maybe(0.01),
            slow=maybe(0.01),
            partial_listing=0.2 if rng.random() < 0.2 else 0.0,
            outages=rng.choice([0, 0, 1, 3]),
            clock_steps=rng.random() < 0.5,
            frozen_clocks=rng.random() < 0.5,
            namespaces=rng.random() < 0.3,
        )


@dataclass(eq=False)
class SimProcess:
    """A process on a host."""

    identity: Process
    alive: bool = True
    paused_until_s: float = 0.0
    lost_clock_s: float = 0.0
    last_operation_s: float = 0.0
    tasks: list[greenlet] = field(default_factory=list)
    ended: bool = False
    error: BaseException | None = None
    result: Any = None
    reports: list[Any] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.identity.host


class Simulation:
    """The clock, the queue of what happens next, the processes, and the objects that are stored."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.now_s = 0.0
        self.objects: dict[str, bytes] = {}
        self.created_s: dict[str, float] = {}
        self.on_effect: list[Callable[[str, str], None]] = []
        self.outages: list[tuple[float, float, str | None]] = []
        self.wall_offset_s: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.struck_s: list[float] = []
        self.events = 0
        self._queue: list[tuple[float, int, greenlet | SimProcess, int]] = []
        self._sequence = 0
        self._tickets: dict[greenlet, int] = {}
        self._owner: dict[greenlet, SimProcess] = {}
        self._processes: list[SimProcess] = []
        self._hub = getcurrent()
        for _ in range(faults.outages):
            began_s = self.rng.uniform(0, 400)
            where = self.rng.choice([None, "host-0", "host-1", "host-2"])
            self.outages.append((began_s, began_s + self.rng.choice([5.0, 25.0, 70.0, 150.0]), where))
            self.struck_s.append(began_s)

    # processes

    def start(self, host: str, main: Callable[[SimWorld], Any]) -> SimProcess:
        pid = len(self._processes) + 100
        namespace = f"pid:[{self.rng.randrange(3)}]" if self.faults.namespaces else "pid:[0]"
        process = SimProcess(Process(host=host, boot_id=host, pid_namespace=namespace, pid=pid, start_ticks=pid))
        self._processes.append(process)
        world = SimWorld(self, process)

        def run() -> None:
            try:
                process.result = main(world)
            except (Killed, GreenletExit):
                pass
            except Exception as error:  # noqa: BLE001 - whoever started it looks at it
                process.error = error
            process.ended = True

        self.add_task(process, run)
        return process

    def add_task(self, process: SimProcess, work: Callable[[], None]) -> greenlet:
        def until_killed() -> None:
            with suppress(Killed):
                work()

        task = greenlet(until_killed, parent=self._hub)
        process.tasks.append(task)
        self._owner[task] = process
        self._push(self.now_s, task)
        return task

    def kill(self, process: SimProcess) -> None:
        """From the hub alone: end all greenlets of the process."""
        process.alive = False
        process.ended = True
        for task in process.tasks:
            if task and not task.dead:
                task.throw(Killed)

    def kill_soon(self, process: SimProcess) -> None:
        """From anywhere."""
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_s, self._sequence, process, 0))

    def is_running(self, identity: Process) -> bool:
        return any(p.identity == identity and p.alive and not p.ended for p in self._processes)

    # time

    def _push(self, at_s: float, what: greenlet | SimProcess) -> None:
        ticket = self._tickets.get(what, 0) if isinstance(what, greenlet) else 0
        self._sequence += 1
        heapq.heappush(self._queue, (at_s, self._sequence, what, ticket))

    def sleep(self, seconds: float) -> None:
        """Of the current greenlet."""
        task = getcurrent()
        if not self._owner[task].alive:
            raise Killed
        self._push(self.now_s + max(seconds, 0.0), task)
        self._hub.switch()

    def wake(self, task: greenlet) -> None:
        self._push(self.now_s, task)

    def block(self) -> None:
        """Until ``wake``, or a timer that was set before."""
        self._hub.switch()

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        """Let things happen until the condition holds; raises AssertionError where it never does."""
        while not until():
            assert self._queue, "nothing is left to happen"
            at_s, _, what, ticket = heapq.heappop(self._queue)
            self.now_s = max(self.now_s, at_s)
            self.events += 1
            assert self.now_s < limit_s, f"still not over after {limit_s:,.0f} s"
            if isinstance(what, SimProcess):
                if what.alive:
                    self.count("killed")
                    self.kill(what)
                continue
            process = self._owner[what]
            if what.dead or not process.alive or self._tickets.get(what, 0) != ticket:
                continue
            if process.paused_until_s > self.now_s:
                self._push(process.paused_until_s, what)
                continue
            self._tickets[what] = ticket + 1
            what.switch()

    def close(self) -> None:
        """End whatever still runs."""
        for process in self._processes:
            if process.alive:
                self.kill(process)

    def count(self, what: str) -> None:
        """Note a fault that strikes now."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self.struck_s.append(self.now_s)

    # faults

    def happens(self, probability: float) -> bool:
        return self.now_s < self.faults.until_s and self.rng.random() < probability

    def strike(self, process: SimProcess) -> None:
        """Let a kill or a pause hit the process that is at an operation."""
        if self.happens(self.faults.kill):
            self.kill_soon(process)
            self.sleep(0.0)
        if self.faults.hang and self.happens(self.faults.hang):  # no draw where nothing hangs: kept seeds stay the same
            self.count("hung")
            process.paused_until_s = self.now_s + 1e9
            self.sleep(0.0)
        if self.happens(self.faults.pause):
            self.pause(process, self.rng.choice([2.0, 200.0, *[self.rng.uniform(11.0, 60.0)] * 4]))
            self.sleep(0.0)

    def pause(self, process: SimProcess, seconds: float) -> None:
        self.count("paused")
        process.paused_until_s = self.now_s + seconds
        if self.faults.frozen_clocks and self.rng.random() < 0.5:  # a machine that is moved: its clocks stand still
            process.lost_clock_s += seconds

    def is_out(self, host: str) -> bool:
        return any(began <= self.now_s < ended and where in (None, host) for began, ended, where in self.outages)

    # the storage's own state, without faults

    def effect(self, verb: str, key: str, data: bytes | None = None) -> None:
        if verb == "delete":
            self.objects.pop(key, None)
        else:
            assert data is not None
            if key not in self.objects:
                self.created_s[key] = self.now_s
            self.objects[key] = data
        for listener in self.on_effect:
            listener(verb, key)

    def listing(self, folder: str) -> set[str]:
        prefix = f"{folder}/" if folder else ""
        return {key[len(prefix) :].partition("/")[0] for key in self.objects if key.startswith(prefix)}


class SimEvent:
    """``threading.Event`` in virtual time."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._is_set = False
        self._waiting: list[greenlet] = []

    def set(self) -> None:
        self._is_set = True
        for task in self._waiting:
            self._sim.wake(task)
        self._waiting.clear()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._waiting.append(getcurrent())
            if timeout is None:
                self._sim.block()
            else:
                self._sim.sleep(timeout)
        return self._is_set


class SimTask:
    """A greenlet that can be waited for."""

    def __init__(self, sim: Simulation, task: greenlet) -> None:
        self._sim = sim
        self._task = task

    def join(self, timeout: float | None = None) -> None:
        deadline_s = self._sim.now_s + (timeout or 1e9)
        while not self._task.dead and self._sim.now_s < deadline_s:
            self._sim.sleep(0.05)


class SimWorld:
    """What one process sees of the simulation."""

    def __init__(self, sim: Simulation, process: SimProcess) -> None:
        self.sim = sim
        self.me = process

    def time_s(self) -> float:
        offset_s = self.sim.wall_offset_s.get(self.me.host, 0.0)
        if self.sim.faults.clock_steps and self.sim.rng.random() < 0.01:
            self.sim.count("clock steps")
            offset_s = self.sim.wall_offset_s[self.me.host] = self.sim.rng.choice([-3_600.0, -40.0, 0.0, 40.0, 1e6])
        return 1.7e9 + self.sim.now_s + offset_s

    def monotonic_s(self) -> float:
        return self.sim.now_s - self.me.lost_clock_s

    def sleep(self, seconds: float) -> None:
        self.sim.sleep(seconds)

    def spawn(self, work: Callable[[], None], name: str) -> Task:
        return SimTask(self.sim, self.sim.add_task(self.me, work))

    def event(self) -> Event:
        return SimEvent(self.sim)

    def random_token(self, n_bytes: int) -> str:
        return f"{self.sim.rng.getrandbits(8 * n_bytes):0{2 * n_bytes}x}"

    def process(self) -> Process:
        return self.me.identity

    def is_running(self, process: Process) -> bool | None:
        mine = self.me.identity
        if (process.boot_id, process.pid_namespace) != (mine.boot_id, mine.pid_namespace):
            return None
        return self.sim.is_running(process)

    def backend(self, uri: str) -> Backend:
        return SimBackend(self.sim, self.me)


class SimBackend(Backend):
    """The stored objects as one process reaches them."""

    def __init__(self, sim: Simulation, process: SimProcess) -> None:
        self._sim = sim
        self._me = process

    def read(self, key: str) -> bytes:
        self._begin()
        data = self._sim.objects.get(key)
        self._end()
        if data is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", key)
        return data

    def write(self, key: str, data: bytes) -> None:
        self._begin()
        self._sim.effect("write", key, data)
        self._end()

    def create(self, key: str, data: bytes) -> None:
        self._begin()
        if key in self._sim.objects:
            raise FileExistsError(errno.EEXIST, "there is an object of this name", key)
        self._sim.effect("create", key, data)
        self._end()

    def exists(self, key: str) -> bool:
        self._begin()
        found = key in self._sim.objects or bool(self._sim.listing(key))
        self._end()
        return found

    def names(self, key: str) -> list[str]:
        self._begin()
        found = self._sim.listing(key)
        if self._sim.happens(self._sim.faults.partial_listing):
            recent_s = self._sim.now_s - 3.0
            shown = {n for n in found if self._sim.created_s.get(f"{key}/{n}", 0.0) < recent_s}
            if shown != found:
                self._sim.count("late listings")
            found = shown
        self._end()
        return list(found)

    def delete(self, key: str) -> None:
        self._begin()
        if key in self._sim.objects:
            self._sim.effect("delete", key)
        else:
            for inner in [found for found in self._sim.objects if found.startswith(f"{key}/")]:
                self._sim.effect("delete", inner)
                self._sim.strike(self._me)
        self._end()

    def is_away(self, error: OSError) -> bool:
        return error.errno == errno.ETIMEDOUT

    def _begin(self) -> None:
        sim = self._sim
        if not self._me.alive:
            raise Killed
        self._me.last_operation_s = sim.now_s
        sim.strike(self._me)
        slow_s = 0.0
        if sim.happens(sim.faults.slow):
            sim.count("slow operations")
            slow_s = sim.rng.uniform(0.2, 40.0)
        sim.sleep(0.002 + slow_s)
        if sim.is_out(self._me.host):
            sim.sleep(1.0)
            raise OSError(errno.ETIMEDOUT, "no answer from the storage")

    def _end(self) -> None:
        sim = self._sim
        sim.strike(self._me)
        if sim.happens(sim.faults.lost_answer):
            sim.count("answers lost")
            sim.sleep(1.0)
            raise OSError(errno.ETIMEDOUT, "the answer of the storage was lost")
