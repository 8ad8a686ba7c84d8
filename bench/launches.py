"""What one micro-step and one optimizer step ask of a GPU, counted without one: operations by part, and host reads.

    python -m bench.launches [--capability 9.0 ...] [--preset published ...]

A whole micro-step (forward and backward) and the optimizers' step run on fake CPU tensors under a GPU's choices, at the
shapes of a preset. Counted is every operation that starts work on a device: views and empty tensors are not. A product
of 16-bit factors that is summed in fp32 is one operation, as it is on CUDA. Bytes are those of operands and results, as
if each operation read the ones from memory and wrote the others there.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from moe.attention import Attention
from moe.config import BatchConfig, ModelConfig, OptimizerConfig
from moe.device import Device
from moe.device_choices import choose
from moe.experts import Experts, _MixtureOfExperts
from moe.flops import flops_per_token
from moe.loss import _LinearCrossEntropySum
from moe.matmul import _Linear
from moe.model import MoELanguageModel
from moe.norm import RmsNorm, _RmsNorm
from moe.optim import build_optimizers
from moe.precision import resolve_precision
from moe.rotary import _PositionedHeads
from moe.router import Router

PARTS = ("attention", "experts", "router", "norms", "head", "rest", "optimizer")
CAPABILITIES = ("7.5", "8.0", "9.0")
PRESETS = ("tutorial", "published", "matched")
VOCABULARIES = {"tutorial": 49_152, "published": 49_152, "matched": 8192}

# These give another view of memory that is there, or memory with nothing in it: no work on the device.
_NO_WORK = frozenset(
    {"view", "_unsafe_view", "view_as", "slice", "transpose", "expand", "unsqueeze", "squeeze", "split", "chunk"}
    | {"split_with_sizes", "permute", "detach", "t", "select", "unbind", "alias", "narrow", "diagonal", "as_strided"}
    | {"empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "device"}
)
# Of their first operand these read, or write, no more than what an index names.
_LOOKUPS = frozenset({"gather", "index_select", "embedding", "index"})
_PARTIAL_WRITES = frozenset({"scatter_", "index_fill_", "index_put_"})
# What the host cannot go on without: a number, or a shape that depends on numbers.
_HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount")


@dataclass(frozen=True, kw_only=True)
class Launches:
    """Operations by part of a micro-step and of an optimizer step, and how often the host waits in each.

    ``bytes_by_part`` is what they read and write; ``flops`` are the products' of both, a micro-step's by ``moe.flops``.
    """

    by_part: Counter[str]
    by_name: Counter[str]
    bytes_by_part: Counter[str]
    flops: float
    reads_in_micro_step: int
    reads_in_step: int

    @property
    def micro_step(self) -> int:
        """All operations of a forward and a backward pass."""
        return sum(count for part, count in self.by_part.items() if part != "optimizer")


class Counting(TorchDispatchMode):
    """Counts operations under the name of the part that is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.by_part: Counter[str] = Counter()
        self.by_name: Counter[str] = Counter()
        self.bytes_by_part: Counter[str] = Counter()
        self.flops_by_part: Counter[str] = Counter()
        self.reads = 0
        self.part = "rest"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        part = "attention" if "scaled_dot_product" in name else self.part
        if any(name.startswith(read) for read in _HOST_READS):
            self.reads += 1
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if name not in _NO_WORK:
            self.by_part[part] += 1
            self.by_name[f"{part} {name}"] += 1
            self.bytes_by_part[part] += _bytes_moved(name, args, kwargs, out)
        if func.overloadpacket in flop_registry:
            self.flops_by_part[part] += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What happens inside is ``part``'s; within another part, the inner one's."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def named(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, counted as ``part``."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.of(part):
                return function(*args, **kwargs)

        return counted


def _bytes_moved(name: str, args: Any, kwargs: dict[str, Any], out: Any) -> int:
    operands = _tensors((args, {key: value for key, value in kwargs.items() if key != "out"}))
    results = _tensors(out)
    if name in _LOOKUPS:
        operands = [*operands[1:], *results]
    elif name in _PARTIAL_WRITES:
        operands, results = operands[1:], operands[1:]
    return sum(min(each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in operands + results)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


# Whose forward and backward passes belong to which part.
_MODULES = {Attention: "attention", Experts: "experts", Router: "router", RmsNorm: "norms"}
_FUNCTIONS: dict[Any, str] = {
    _Linear: "attention",
    _PositionedHeads: "attention",
    _MixtureOfExperts: "experts",
    _RmsNorm: "norms",
    _LinearCrossEntropySum: "head",
}


@contextlib.contextmanager
def _attributed(counting: Counting) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, part in _MODULES.items():
            stack.enter_context(mock.patch.object(module, "forward", counting.named(part, module.forward)))
        for function, part in _FUNCTIONS.items():
            for name in ("forward", "backward") if function is _LinearCrossEntropySum else ("backward",):
                counted = staticmethod(counting.named(part, getattr(function, name)))
                stack.enter_context(mock.patch.object(function, name, counted))
        yield


def count_launches(model_config: ModelConfig, batch: BatchConfig, device: Device) -> Launches:
    """Operations of one micro-step of ``batch`` and one step of the optimizers, as ``device`` would be asked."""
    precision = resolve_precision("auto", device)
    choices = choose(device, precision)
    ends_read: list[int] = []
    with FakeTensorMode(), torch.device("cpu"):
        model = MoELanguageModel(model_config, seed=0, choices=choices)
        optimizers = build_optimizers(model.weight_groups(), OptimizerConfig(lr=0.01, adamw_lr=0.003), choices)
        tokens_BT = torch.zeros(batch.micro_batch_size, batch.seq_len, dtype=torch.int64)
        model.rotary(batch.seq_len, tokens_BT.device)  # made once in a run
        counting = Counting()
        with counting, _attributed(counting), _reads_noted(ends_read):
            with torch.autocast("cpu", precision.autocast_dtype):
                loss = model.loss(tokens_BT, tokens_BT)
            total = loss.ce_sum / loss.n_tokens + 0.01 * loss.lb_loss
            total.backward()  # type: ignore[no-untyped-call]
            reads_in_micro_step = len(ends_read) + counting.reads
            counting.part, counting.reads = "optimizer", 0
            with mock.patch("moe.optim.read_on_host", return_value=[2.0]) as read:
                optimizers.step_or_skip(None, 1.0)
    return Launches(
        by_part=counting.by_part,
        by_name=counting.by_name,
        bytes_by_part=counting.bytes_by_part,
        flops=tokens_BT.numel() * flops_per_token(model_config, batch.seq_len) + counting.flops_by_part["optimizer"],
        reads_in_micro_step=reads_in_micro_step,
        reads_in_step=read.call_count + counting.reads,
    )


@contextlib.contextmanager
def _reads_noted(ends_read: list[int]) -> Iterator[None]:
    """Fake tensors have no numbers: where the host would read the experts' loads, equal ones are assumed."""
    from moe import expert_products

    assume = expert_products._ends_on_host

    def noted(rows: Any) -> list[int]:
        ends_read.append(1)
        return assume(rows)

    with mock.patch.object(expert_products, "_ends_on_host", noted):
        yield


def gpu(capability: str) -> Device:
    major, minor = map(int, capability.split("."))
    return Device(kind="cuda", name=f"a GPU of {capability}", compute_capability=(major, minor))


def shapes(preset: str) -> dict[str, tuple[ModelConfig, BatchConfig]]:
    """Every arm of a preset."""
    from search_spaces import load_space
    from sweeps.training_config import batch_configs, model_config

    space = load_space(preset=preset)
    vocab_size = VOCABULARIES[preset]
    return {
        arm: (model_config(space, arm, vocab_size=vocab_size), batch) for arm, batch in batch_configs(space).items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", nargs="+", default=CAPABILITIES)
    parser.add_argument("--preset", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--names", action="store_true", help="the most frequent operations, and bytes by part, too")
    options = parser.parse_args(argv)
    print(
        f"{'preset':10} {'arm':12} {'CUDA':>5} {'step':>6} "
        + " ".join(f"{part:>9}" for part in PARTS)
        + "  reads  TFLOP     GB"
    )
    for preset in options.preset:
        for arm, (model, batch) in shapes(preset).items():
            for capability in options.capability:
                found = count_launches(model, batch, gpu(capability))
                parts = " ".join(f"{found.by_part[part]:>9}" for part in PARTS)
                reads = f"{found.reads_in_micro_step} + {found.reads_in_step}"
                work = f"{found.flops / 1e12:>5.1f} {found.bytes_by_part.total() / 1e9:>6.1f}"
                print(
                    f"{preset:10} {arm:12} {capability:>5} {found.micro_step:>6} {parts}  {reads}  {work}", flush=True
                )
                if options.names:
                    print("\n".join(f"{moved / 1e9:6.1f} GB {part}" for part, moved in found.bytes_by_part.items()))
                    print("\n".join(f"{count:6} {name}" for name, count in found.by_name.most_common(90)))


if __name__ == "__main__":
    main()
