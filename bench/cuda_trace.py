"""Trace a micro-step on fake CUDA tensors: what torch's CUDA build would do on a GPU, on a machine without one.

    make cuda-trace        # makes .venv-cuda where it is missing: some 5 GB, no driver needed

For each compute capability the forward pass runs under CUDA autocast at the shape of ``published``, and the experts'
backward pass is called directly (torch's engine needs a device). Exit code 1 where attention is not in 16 bits, or
where ``grouped_mm`` is used on a GPU on which torch falls back to a loop that reads offsets on the host.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from moe.config import ModelConfig
from moe.device import Device
from moe.device_choices import GROUPED_COMPUTE_CAPABILITIES, DeviceChoices, choose
from moe.expert_products import BufferPool, SortedRows, Weights, choose_products
from moe.model import MoELanguageModel
from moe.precision import resolve_precision

CAPABILITIES = ("7.5", "8.0", "9.0")
PUBLISHED = ModelConfig(
    vocab_size=49_152, d_model=384, n_layers=6, n_heads=8, n_kv_heads=8, d_expert=1536, n_experts=8, top_k=2
)
ROWS, LENGTH = 104, 256


class Trace(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def problems(capability: tuple[int, int], counts: Mapping[str, int], attention: Mapping[str, int]) -> list[str]:
    """What is wrong with a trace: ``counts`` of operations, and of attention by its type."""
    found = [
        f"attention runs in {name} {count} times: flash and cuDNN kernels take 16 bits only"
        for name, count in attention.items()
        if name not in {"float16", "bfloat16"}
    ]
    if not attention:
        found.append("no attention was seen: the trace is blind")
    grouped = counts.get("_grouped_mm", 0)
    fast = capability in GROUPED_COMPUTE_CAPABILITIES
    if grouped and not fast:
        found.append(f"grouped_mm runs {grouped} times: here torch reads its offsets on the host and loops")
    if fast and not grouped:
        found.append("grouped_mm does not run, where it is fast")
    reads = counts.get("_local_scalar_dense", 0) + counts.get("nonzero", 0)
    if reads:
        found.append(f"the host reads {reads} numbers past moe.device.read_on_host")
    return found


@contextmanager
def _attention_noted(types: Counter[str]) -> Iterator[None]:
    attend: Callable[..., Any] = functional.scaled_dot_product_attention

    def noted(query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        types[str(query.dtype).removeprefix("torch.")] += 1
        return attend(query, *args, **kwargs)

    with mock.patch.object(functional, "scaled_dot_product_attention", noted):
        yield


@contextmanager
def _cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast("cuda")`` switches itself off where there is no driver."""
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def trace(device: Device) -> tuple[Counter[str], Counter[str]]:
    """Operations of a forward pass and of the experts' backward pass on fake CUDA tensors, and attention's types."""
    precision = resolve_precision("auto", device)
    choices = choose(device, precision)
    assert precision.autocast_dtype is not None
    model = MoELanguageModel(PUBLISHED, seed=0, choices=choices)
    types: Counter[str] = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(weight.shape, device="cuda"))
        tokens_BT = torch.zeros(ROWS, LENGTH, dtype=torch.int64, device="cuda")
        with Trace() as counting, _attention_noted(types):
            with _cuda_autocast(precision.autocast_dtype):
                model.loss(tokens_BT, tokens_BT)
            _experts_backward(choices, precision.autocast_dtype)
    return counting.counts, types


def _experts_backward(choices: DeviceChoices, dtype: torch.dtype) -> None:
    d_model, d_expert, n_experts = PUBLISHED.d_model, PUBLISHED.d_expert, PUBLISHED.n_experts
    products = choose_products(choices, dtype, BufferPool(), (d_model, d_expert))
    n_rows = ROWS * LENGTH * PUBLISHED.top_k + n_experts * products.row_multiple
    x_RD = torch.empty(n_rows, d_model, dtype=dtype, device="cuda")
    rows = SortedRows(x_RD, torch.zeros(n_experts, dtype=torch.int32, device="cuda"))
    weights = Weights(
        x_RD.new_empty(n_experts, 2 * d_expert, d_model),
        x_RD.new_empty(n_experts, d_model, d_expert),
    )
    _, kept = products.forward(rows, weights, keep=True)
    assert kept is not None
    products.backward(torch.empty_like(x_RD), rows, weights, kept, torch.float32)


def main(argv: Sequence[str] | None = None) -> int:
    """Trace every capability, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", nargs="+", default=CAPABILITIES)
    options = parser.parse_args(argv)
    if torch.version.cuda is None:
        print(f"cuda-trace needs torch's CUDA build, and {torch.__version__} is none", file=sys.stderr)
        return 1
    wrong = 0
    for capability in options.capability:
        major, minor = map(int, capability.split("."))
        device = Device(kind="cuda", name=f"a GPU of {capability}", compute_capability=(major, minor))
        counts, attention = trace(device)
        found = problems((major, minor), counts, attention)
        wrong += len(found)
        types = ", ".join(f"{count} x {name}" for name, count in attention.items())
        print(f"CUDA {capability}: attention {types}; {counts['_grouped_mm']} grouped_mm; {counts['mm']} mm")
        for problem in found:
            print(f"  wrong: {problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
