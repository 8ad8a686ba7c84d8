"""How fast a training step is: ours beside ``transformers`` and a loop over masks, on one thread of this machine.

    python -m bench.step [--repeats 3] [--seq-len 128 ...] [--vocab 4096 ...] [--precision fp32 ...]

A step is 4,096 tokens forward, cross-entropy, load-balancing loss, backward, clipping and both optimizers; the model is
128 wide with 4 layers, 4 heads and 8 experts of 512, top-2. All sides start from the same weights (but Mixtral, which
has no q/k norm), must find the same loss, and step with the same optimizers. Implementations take turns; ``ms`` is the
median of ours and a ratio is the median over turns of the other's time over ours. ``transformers`` is the fastest at
that length, vocabulary and precision of Qwen3-MoE and Mixtral, each eager and grouped, each at torch's matmul
precisions that are true fp32 here. Prints a table and writes ``bench/step.json``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.contestants import make_ours, mask_loop, model_config
from bench.results import write_json
from moe.config import ModelConfig
from moe.contestants import CPU, Contestant, ours, transformers_model
from moe.flops import flops_per_token
from moe.matmul import onednn_keeps_fp32
from moe.muon import Muon
from moe.precision import Precision, resolve_precision

OUT = Path(__file__).with_name("step.json")
TOKENS_PER_STEP = 4096
SEQ_LENS = (128, 512, 2048)
VOCABS = (4096, 256)


def exact_settings() -> list[str]:
    """Torch's settings for fp32 products that are still fp32 on this CPU."""
    return ["highest", "medium"] if onednn_keeps_fp32() else ["highest"]


def random_batch(seq_len: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    shape = (2, TOKENS_PER_STEP // seq_len, seq_len)
    tokens_BT, targets_BT = torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(1)).unbind()
    return tokens_BT, targets_BT


def take_turns(contestants: Sequence[Contestant], batch: tuple[Tensor, Tensor], repeats: int) -> list[list[float]]:
    """Milliseconds of each contestant in each turn, after one step each that is not counted."""
    for contestant in contestants:
        contestant.step(*batch)
    return [[1e3 * contestant.step(*batch) for contestant in contestants] for _ in range(repeats)]


def fastest_rival(config: ModelConfig, precision: Precision, seq_len: int) -> Callable[[ModelConfig], Contestant]:
    """The fastest way of ``transformers``, tried on ``config``."""
    ways = [
        functools.partial(transformers_model, precision=precision, family=family, experts=experts, matmul_precision=way)
        for family in ("qwen3_moe", "mixtral")
        for experts in ("eager", "grouped_mm")
        for way in (exact_settings() if precision.name == "fp32" else ["highest"])
    ]
    rivals = [way(config) for way in ways]
    turns = take_turns(rivals, random_batch(seq_len, config.vocab_size), repeats=2)
    best = min(range(len(ways)), key=lambda i: min(turn[i] for turn in turns))
    return ways[best]


def fastest_mask_loop(config: ModelConfig, precision: Precision, seq_len: int) -> str:
    """The matmul precision at which the mask loop is fastest."""
    settings = exact_settings() if precision.name == "fp32" else ["highest"]
    if len(settings) == 1:
        return settings[0]
    turns = take_turns(
        [mask_loop(config, precision, way) for way in settings], random_batch(seq_len, config.vocab_size), repeats=2
    )
    return min(settings, key=lambda way: min(turn[settings.index(way)] for turn in turns))


def matmul_rate(precision: Precision) -> float:
    """FLOP/s of this machine's products in a precision, at its faster setting, on squares that stay in cache."""
    dtype = precision.autocast_dtype or torch.float32
    best_s = float("inf")
    for way in exact_settings() if precision.name == "fp32" else ["highest"]:
        torch.set_float32_matmul_precision(way)
        a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
        a @ b
        times = []
        for _ in range(20):
            started_s = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started_s)
        best_s = min(best_s, statistics.median(times))
    torch.set_float32_matmul_precision("highest")
    return 2 * 1024**3 / best_s


def row(seq_len: int, vocab: int, precision: Precision, repeats: int, choice: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: ours, the fastest rival and the mask loop in turns."""
    config = model_config(vocab)
    contestants = [
        ours(config, precision),
        choice["rival"](config),
        mask_loop(config, precision, choice["mask loop"]),
    ]
    batch = random_batch(seq_len, vocab)
    assert_same_loss(contestants, batch)
    rates = [matmul_rate(precision)]
    times = take_turns(contestants, batch, repeats)
    rates += [matmul_rate(precision), matmul_rate(precision)]
    rate = max(rates)
    ms = statistics.median(turn[0] for turn in times)
    flops = TOKENS_PER_STEP * flops_per_token(config, seq_len)
    return {
        "seq_len": seq_len,
        "vocab": vocab,
        "precision": precision.name,
        "ms": ms,
        "ratio_vs_transformers": statistics.median(turn[1] / turn[0] for turn in times),
        "ratio_vs_mask_loop": statistics.median(turn[2] / turn[0] for turn in times),
        "share_of_matmul": flops / (ms / 1e3) / rate,
        "transformers": contestants[1].name,
        "transformers_ms": statistics.median(turn[1] for turn in times),
        "mask_loop_ms": statistics.median(turn[2] for turn in times),
        "matmul_gflops": rate / 1e9,
        "repeats": repeats,
    }


def assert_same_loss(contestants: Sequence[Contestant], batch: tuple[Tensor, Tensor]) -> None:
    """All compute the same thing. (Mixtral has other weights.)"""
    with torch.no_grad():
        losses = {}
        for contestant in contestants:
            with contestant.precision.autocast():
                losses[contestant.name] = float(contestant.loss_of(*batch)[0])
    tolerance = 1e-4 if contestants[0].precision.name == "fp32" else 1e-2
    for name, loss in losses.items():
        assert name.startswith("mixtral") or abs(loss - losses["ours"]) < tolerance, losses


def muon_rows(repeats: int) -> dict[str, Any]:
    """``torch.optim.Muon`` beside ours on the same matrices, one tensor each for torch's, which takes no stacks."""
    config = model_config(VOCABS[0])
    stacked = [parameter for _, parameter in make_ours(config).weight_groups().muon]
    flat = [
        nn.Parameter(matrix.clone())
        for weight in stacked
        for matrix in (weight.detach().unbind() if weight.ndim == 3 else [weight.detach()])
    ]
    contestants: dict[str, torch.optim.Optimizer] = {
        "torch": torch.optim.Muon(flat, lr=1e-3),
        "ours_fp32": Muon(stacked, lr=1e-3),
        "ours_bf16": Muon(stacked, lr=1e-3, newton_schulz_dtype=torch.bfloat16),
    }
    for parameter in (*stacked, *flat):
        parameter.grad = torch.randn_like(parameter)
    turns: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        turn = {}
        for name, optimizer in contestants.items():
            started_s = time.perf_counter()
            optimizer.step()
            turn[name] = 1e3 * (time.perf_counter() - started_s)
        turns.append(turn)
    ms = {f"{name}_ms": statistics.median(turn[name] for turn in turns[1:]) for name in contestants}
    best = min(("ours_fp32", "ours_bf16"), key=lambda name: ms[f"{name}_ms"])
    return {
        "matrices": len(flat),
        "parameters": sum(parameter.numel() for parameter in flat),
        **ms,
        "ratio_vs_torch": statistics.median(turn["torch"] / turn[best] for turn in turns[1:]),
    }


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": 1,
        "onednn_keeps_fp32": onednn_keeps_fp32(),
        "load_average": os.getloadavg()[0],
    }


def show(rows: Sequence[dict[str, Any]], muon: dict[str, Any]) -> None:
    heads = ("T", "vocab", "", "ours ms", "vs transformers", "vs mask loop", "of matmul")
    print("{:>5} {:>6} {:5} {:>8} {:>16} {:>13} {:>10}".format(*heads))
    for r in rows:
        print(
            f"{r['seq_len']:>5} {r['vocab']:>6} {r['precision']:5} {r['ms']:>8.0f} "
            f"{r['ratio_vs_transformers']:>15.2f}x {r['ratio_vs_mask_loop']:>12.2f}x {r['share_of_matmul']:>10.2f}"
            f"   ({r['transformers']})"
        )
    print("Muon: " + ", ".join(f"{key} {value:,.4g}" for key, value in muon.items()))


def main(argv: Sequence[str] | None = None) -> None:
    """Run every row, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns per row (more for figures to publish)")
    parser.add_argument("--seq-len", type=int, nargs="+", default=SEQ_LENS)
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABS)
    parser.add_argument("--precision", nargs="+", default=("fp32", "bf16"), choices=("fp32", "bf16"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    for name in options.precision:
        precision = resolve_precision(name, CPU)
        for seq_len, vocab in itertools.product(options.seq_len, options.vocab):
            config = model_config(vocab)
            choice = {
                "rival": fastest_rival(config, precision, seq_len),
                "mask loop": fastest_mask_loop(config, precision, seq_len),
            }
            rows.append(row(seq_len, vocab, precision, options.repeats, choice))
    muon = muon_rows(options.repeats)
    found = {"machine": machine(), "rows": rows, "muon": muon}
    show(rows, muon)
    write_json(options.out, found)


if __name__ == "__main__":
    main()
