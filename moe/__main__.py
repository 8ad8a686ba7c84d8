"""``python -m moe``: trains one model alone, exports a trained one, or checks a GPU. No sweep, cluster or tracking."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moe.errors import Diverged, MoeError, OutOfMemory

EXIT_DONE, EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NO_DEVICE, EXIT_INTERRUPTED = 0, 2, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 2 bad input, 3 diverged, out of memory or a failed check, 4 no CUDA device to check, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "train":
            # torch takes seconds to import: --help must not wait for it.
            from moe.single_run import train

            train(options)
        elif options.command == "gpu-check":
            from moe.gpu_check import gpu_check

            passed = gpu_check(options.corpus, options.out, options.steps)
            return {True: EXIT_DONE, False: EXIT_FAILED, None: EXIT_NO_DEVICE}[passed]
        else:
            from moe.single_run import export

            export(options)
    except (Diverged, OutOfMemory) as end:
        print(f"ended at {end.tokens_seen:,} tokens: {end}", file=sys.stderr)
        return EXIT_FAILED
    except MoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        print(f"error: {error}; check the paths of the command and the space on their disks", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        resumable = options.command == "train" and options.out is not None
        resume = "the same command resumes from its last report" if resumable else "nothing is kept"
        print(f"interrupted; {resume}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moe", description=__doc__.replace("``", ""))
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands.add_parser("train", help="train one model", formatter_class=_Formatter))
    _add_export(commands.add_parser("export", help="write trained weights as a checkpoint that transformers loads"))
    _add_gpu_check(
        commands.add_parser(
            "gpu-check", help="measure a GPU in minutes (exit code 4 without one)", formatter_class=_Formatter
        )
    )
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, and nothing where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains one MoE language model (on SymPy's sources, which come with torch, by default), prints its "
        "loss curve and scores it on held-out text. With --out, the same command resumes an interrupted run."
    )
    text = parser.add_argument_group("text")
    text.add_argument("--corpus", default="embedded", help="embedded, files:GLOB or hub:ID[/NAME]")
    text.add_argument("--tokenizer", default="bpe:2048", help="bpe:VOCAB, bytes, directory:PATH or hub:ID")
    text.add_argument("--cache-dir", type=Path, default=Path("runs/cache"), help="where tokenized text is kept")
    shape = parser.add_argument_group("batch shape")
    shape.add_argument("--micro-batch-size", type=int, default=8, help="windows of one forward and backward")
    shape.add_argument("--seq-len", type=int, default=256, help="tokens of one window")
    shape.add_argument("--grad-accum-steps", type=int, default=1, help="micro-steps of one optimizer step")
    shape.add_argument("--block-len", type=int, help="tokens of an exam row, a multiple of seq-len; default: seq-len")
    shape.add_argument("--document-attention", action="store_true", help="no attention from one document to another")
    model = parser.add_argument_group("model")
    for name, default in (
        ("d-model", 64),
        ("n-layers", 3),
        ("n-heads", 2),
        ("d-expert", 128),
        ("n-experts", 8),
        ("top-k", 2),
    ):
        model.add_argument(f"--{name}", type=int, default=default, help=" ")
    model.add_argument(
        "--n-kv-heads", type=int, help="fewer than n-heads for grouped-query attention; default: n-heads"
    )
    model.add_argument("--lb-loss-coef", type=float, default=0.01, help="weight of the load-balancing loss")
    model.add_argument("--z-loss-coef", type=float, default=0.0, help="weight of the router's z-loss")
    training = parser.add_argument_group("training")
    training.add_argument("--lr", type=float, default=0.02, help="Muon's rate")
    training.add_argument("--adamw-lr", type=float, help="AdamW's rate; default: 0.3 of lr")
    training.add_argument("--budget-tokens", type=int, default=524_288, help="tokens to train on")
    training.add_argument("--warmup-share", type=float, default=0.05, help="share of the budget")
    training.add_argument("--decay-share", type=float, default=0.2, help="share of the budget")
    training.add_argument("--seed", type=int, default=1, help="decides initial weights, windows and their order")
    training.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help=" ")
    training.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help=" ")
    training.add_argument("--threads", type=int, default=1, help="CPU threads; the same count gives the same numbers")
    output = parser.add_argument_group("output")
    output.add_argument("--exam-tokens", type=int, default=32_768, help="held-out tokens, of validation and of test")
    output.add_argument("--report-every-tokens", type=int, default=16_384, help=" ")
    output.add_argument("--out", type=Path, help="folder for checkpoints, records and scores; nothing is kept without")


def _add_gpu_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a few steps of three shapes on a GPU and writes what it found; torch and numpy suffice."
    )
    parser.add_argument("--corpus", type=Path, help="a file whose bytes are trained on; default: Python's own sources")
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, 4 or more")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the file to write")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = "Writes a trained model as a Qwen3-MoE checkpoint that stock transformers loads."
    parser.add_argument("run", type=Path, help="the --out folder of a training run")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")


if __name__ == "__main__":
    sys.exit(main())
