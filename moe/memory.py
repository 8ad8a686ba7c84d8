"""Peak memory of training in bytes of tensors: measured while it runs, and predicted before it does."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe.config import PrecisionName, TrainConfig
from moe.device import Device
from moe.device_choices import choose
from moe.model import MoELanguageModel
from moe.optim import Optimizers, build_optimizers
from moe.precision import Precision, resolve_precision

GIB = 2**30


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that live while it is entered, and remembers the most there were.

    A storage counts once however many views it has, from the operation that first meets it until it is freed. Real
    and fake tensors alike. Memory that an operation allocates and frees within itself is not seen.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in tensors:
            self._meet(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under it; yes would import torch's compiler for that, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at what went in and came out."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                self._meet(leaf)
        return out

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._storages[key]
            self.live_bytes -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


class PeakMemory:
    """Context manager that measures the peak of tensor bytes inside it: ``peak_gib`` after leaving.

    On CUDA it asks the caching allocator, which costs nothing. On CPU it watches every operation, which costs some
    20 microseconds each: measure a few steps, not all. ``tensors`` are those that live already and will not be used
    before the peak (weights, optimizer state); others are met when they are used.
    """

    def __init__(self, device: Device, tensors: Iterable[Tensor] = ()) -> None:
        self._device = device
        self._watch = TensorBytes(tensors if device.kind == "cpu" else ())
        self.peak_gib = 0.0

    def __enter__(self) -> Self:
        if self._device.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._watch.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._device.kind == "cuda":
            peak_bytes = torch.cuda.max_memory_allocated()
        else:
            self._watch.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
            peak_bytes = self._watch.peak_bytes
        self.peak_gib = peak_bytes / GIB


def training_tensors(model: MoELanguageModel, optimizers: Optimizers) -> list[Tensor]:
    """Weights, their gradients and the optimizers' state: what lives between the steps of training."""
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    states = [optimizer.state.values() for optimizer in (optimizers.hidden, optimizers.rest)]
    state_tensors = [leaf for leaf in tree_leaves([list(values) for values in states]) if isinstance(leaf, Tensor)]
    return [*model.parameters(), *gradients, *state_tensors]


def predict_peak_gib(config: TrainConfig, *, precision: PrecisionName, device: Device | None = None) -> float:
    """Peak GiB of tensors of one optimizer step of ``config``, predicted with fake tensors: nothing is allocated.

    Runs two whole steps, optimizers included, on tensors that have shapes and no numbers. Expert loads, which nobody
    knows beforehand, are taken as balanced; memory depends on them only by the padding of segments. ``device`` is
    where the training will run: ``config.device`` if not given. What that device chooses is what is run, on fake
    tensors of a CPU: the same on machines with and without a GPU.
    """
    device = device or Device.resolve(config.device)
    resolved = resolve_precision(precision, device)
    choices = choose(device, resolved)
    with FakeTensorMode(), torch.device("cpu"):
        resolved = replace(resolved, device_kind="cpu")
        model = MoELanguageModel(config.model, seed=0, choices=choices)
        optimizers = build_optimizers(model.weight_groups(), config.optimizer, choices)
        with TensorBytes(training_tensors(model, optimizers)) as watch:
            for _ in range(2):  # the first creates the optimizers' state
                _fake_step(model, optimizers, config, resolved)
    peak_bytes: int = watch.peak_bytes
    return peak_bytes / GIB


def _fake_step(model: MoELanguageModel, optimizers: Optimizers, config: TrainConfig, precision: Precision) -> None:
    batch = config.batch
    shape = (batch.micro_batch_size, batch.seq_len)
    for _ in range(min(2, batch.grad_accum_steps)):  # a second micro-step meets gradients; a third meets no more
        tokens_BT = torch.zeros(shape, dtype=torch.int64)
        targets_BT = torch.zeros_like(tokens_BT)
        ids_BT = torch.zeros_like(tokens_BT) if config.document_attention else None
        with precision.autocast():
            loss = model.loss(tokens_BT, targets_BT, document_ids_BT=ids_BT)
        (loss.ce_sum + loss.lb_loss + loss.z_loss).backward()  # type: ignore[no-untyped-call]
    optimizers.step()
    optimizers.zero_grad()
