"""One short run per arm on a GPU before fractions are assigned: the measured peak replaces the predicted one.

Measurements are remembered, so that a second sweep of the same arms on such a device does not repeat them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from search_spaces import Space
from sweeps.cluster.machines import Machines
from sweeps.packing.remembered import remembered
from sweeps.trial.gpu_experiments import TRIAL_DEADLINE_S, Laboratory
from sweeps.trial.gpu_trial import TrialFacts, TrialOrder, train

if TYPE_CHECKING:
    from moe.config import PrecisionName

PROBE_STEPS = 2
"""The first step makes the optimizers' state, the second holds it: the peak is the second's."""

PROBE_LEARNING_RATE = 1e-3

Run = Callable[[Sequence[TrialOrder]], Sequence[TrialFacts]]


@dataclass(frozen=True, kw_only=True)
class ProbedPeaks:
    """Peak GiB of tensors per arm, measured where that was possible; ``notes`` name the failures."""

    peaks_gib: Mapping[str, float]
    notes: tuple[str, ...]


def probed_peaks(
    space: Space,
    predicted_peaks_gib: Mapping[str, float],
    *,
    precision: PrecisionName,
    device_name: str,
    run: Run,
) -> ProbedPeaks:
    """Measure each arm's peak on the device called ``device_name`` by ``run``, or take what was measured before.

    An arm whose probe fails keeps its prediction, with a note. ``run`` is ``Laboratory.run`` for this machine's GPU,
    ``run_on_cluster`` for one of a cluster's.
    """
    peaks_gib = dict(predicted_peaks_gib)
    notes: list[str] = []
    for strategy in space.strategies:
        order = TrialOrder(
            space=space.resolved(),
            arm=strategy.name,
            precision=precision,
            steps=PROBE_STEPS,
            lr=PROBE_LEARNING_RATE,
        )
        measured_gib = remembered(
            "peaks", what_decides(order, space, device_name), partial(_measured, order, run, notes)
        )
        if measured_gib is not None:
            peaks_gib[strategy.name] = measured_gib
    told = tuple(f"{note} on {device_name}; its peak is predicted" for note in notes)
    return ProbedPeaks(peaks_gib=peaks_gib, notes=told)


def calibrated_peaks(space: Space, predicted_peaks_gib: Mapping[str, float], machines: Machines) -> ProbedPeaks:
    """Peaks measured on a GPU of these machines; the predictions where trials run on CPUs or shares were given.

    A cluster whose GPUs are all still to be started is not waited for.
    """
    device, requested = machines.device, space.resources
    gpus_gib = [node.gpu_gib or 0.0 for node in machines.nodes if node.gpus]
    if device.kind == "cpu" or not gpus_gib or requested.declared_gpus is not None or requested.gpu_per_trial != "auto":
        return ProbedPeaks(peaks_gib=predicted_peaks_gib, notes=())
    from moe.precision import resolve_precision

    is_here = machines.address is None
    with TemporaryDirectory(prefix="moe-sweeps-probe-") as folder:
        return probed_peaks(
            space,
            predicted_peaks_gib,
            precision=resolve_precision(space.precision, device).name,
            device_name=device.name if is_here else f"a GPU of {min(gpus_gib):.0f} GiB",
            run=Laboratory(Path(folder)).run if is_here else run_on_cluster,
        )


def what_decides(order: TrialOrder, space: Space, device_name: str) -> Mapping[str, Any]:
    """All that a measured peak depends on: nothing of the sweep's budget, rates or seeds."""
    table = space.of_arm(order.arm).resolved()
    return {
        "model": table["model"],
        "optimizer": table["optimizer"]["kind"],
        "tokenizer": table["tokenizer"],
        "arm": list(space.strategy(order.arm).shape),
        "precision": order.precision,
        "device": device_name,
    }


def _measured(order: TrialOrder, run: Run, notes: list[str]) -> float | None:
    [facts] = run([order])
    if facts.error is None:
        return facts.peak_gib
    notes.append(f"{order.arm} could not be probed ({facts.error})")
    return None


def run_on_cluster(orders: Sequence[TrialOrder]) -> Sequence[TrialFacts]:
    """Carry the orders out on whole GPUs of the cluster that Ray is connected to; an error is in the facts."""
    import ray

    # max_calls ends the worker with its task, so that no context stays on the GPU
    task = ray.remote(num_gpus=1, num_cpus=1, max_retries=0, max_calls=1)(train)
    return [_fetched(order, task.remote(order)) for order in orders]


def _fetched(order: TrialOrder, pending: object) -> TrialFacts:
    import ray

    try:
        facts: TrialFacts = ray.get(pending, timeout=TRIAL_DEADLINE_S)
    except Exception as error:  # noqa: BLE001 - a probe that fails leaves the prediction in force, with a note
        ray.cancel(pending, force=True)  # one that is still waiting for a GPU must not take it from the trials
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return TrialFacts(arm=order.arm, precision=order.precision, error=reason)
    return facts
