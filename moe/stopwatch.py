"""Seconds of work on a device, measured without waiting for it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import torch

from moe.device import Device


class Stopwatch:
    """Context manager that times what is done inside; ask for ``seconds`` once the host has waited for the device.

    On CUDA the device notes its own time at both ends (events), so nothing waits here. Where the device has not come
    as far as the end, ``seconds`` waits for it. What was never entered took none.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._started_s = 0.0
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._device.kind == "cuda":
            self._events = _timing_event(), _timing_event()
            self._events[0].record()
        self._started_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._seconds = time.perf_counter() - self._started_s
        if self._events is not None:
            self._events[1].record()

    @property
    def seconds(self) -> float:
        """How long it took."""
        if self._events is None:
            return self._seconds
        started, ended = self._events
        ended.synchronize()
        return float(started.elapsed_time(ended)) / 1e3


def _timing_event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
