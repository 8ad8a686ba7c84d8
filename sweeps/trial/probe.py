"""One short run per arm on a GPU before fractions are assigned: the measured peak replaces the predicted one.

Measurements are cached by device, torch, precision and the arm's shape, so that a second sweep does not repeat them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from search_spaces import Space
from sweeps.cluster.machines import Machines
from sweeps.training_data import cache_dir
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
    cache_dir: Path,
    run: Run,
) -> ProbedPeaks:
    """Measure each arm's peak on the device called ``device_name`` by ``run``, or take what was measured before.

    An arm whose probe fails keeps its prediction, with a note. ``run`` is ``Laboratory.run`` for this machine's GPU,
    ``run_on_cluster`` for one of a cluster's.
    """
    peaks_gib = dict(predicted_peaks_gib)
    notes = []
    for strategy in space.strategies:
        order = TrialOrder(
            space=space.resolved(),
            arm=strategy.name,
            precision=precision,
            steps=PROBE_STEPS,
            lr=PROBE_LEARNING_RATE,
        )
        kept = cache_dir / "probes" / f"{probe_key(order, space, device_name)}.json"
        measured_gib = _read(kept)
        if measured_gib is None:
            [facts] = run([order])
            if facts.error is not None:
                notes.append(
                    f"{strategy.name} could not be probed on {device_name} ({facts.error}); its peak is predicted"
                )
                continue
            measured_gib = facts.peak_gib
            _keep(kept, measured_gib)
        peaks_gib[strategy.name] = measured_gib
    return ProbedPeaks(peaks_gib=peaks_gib, notes=tuple(notes))


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
            cache_dir=cache_dir(),
            run=Laboratory(Path(folder)).run if is_here else run_on_cluster,
        )


def probe_key(order: TrialOrder, space: Space, device_name: str) -> str:
    """Sixteen hex digits of all that a peak depends on: nothing of the sweep's budget, rates or seeds."""
    table = space.resolved()
    decides = {
        "model": table["model"],
        "tokenizer": table["tokenizer"],
        "arm": list(space.strategy(order.arm).shape),
        "precision": order.precision,
        "device": device_name,
        "torch": version("torch"),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


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


def _read(kept: Path) -> float | None:
    try:
        return float(json.loads(kept.read_text())["peak_gib"])
    except (OSError, ValueError, KeyError):
        return None  # not measured yet, or damaged: measured again


def _keep(kept: Path, peak_gib: float) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}-{os.getpid()}")
    temporary.write_text(json.dumps({"peak_gib": peak_gib}))
    temporary.replace(kept)
