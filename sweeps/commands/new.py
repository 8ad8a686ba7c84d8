"""``sweeps new``: a commented space to start from, with arms that fill a memory where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from search_spaces import Space, parse_space, preset_text, template_text, with_shapes
from sweeps.cluster.machines import local_machine
from sweeps.errors import BadInputError
from sweeps.ledger.destinations import require_new_file
from sweeps.packing.memory import FALLBACK_VOCAB_SIZE, fit_arms
from sweeps.shown_commands import shown_command


def new_space(path: Path, preset: str | None, fit_gib: float | None, say: Callable[[str], None]) -> None:
    """Write the template, or a preset, to a new file; ``say`` tells the user.

    Raises BadInputError for a file that exists, SpaceErrors for an arm of which nothing fits.
    """
    require_new_file(path, "path")
    text = template_text() if preset is None else preset_text(preset)
    if fit_gib is not None:
        text = _fitted(text, fit_gib, say)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    say(f"Wrote {path}. Try: {shown_command('plan', '--space', str(path))}")


def _fitted(text: str, memory_gib: float, say: Callable[[str], None]) -> str:
    """The text with shapes that fill the memory of the GPU that is here, else of one that multiplies bf16."""
    if not (math.isfinite(memory_gib) and memory_gib > 0):
        raise BadInputError(f"--fit {memory_gib:g} must be a number of GiB above 0; for example --fit 16")
    space = parse_space(text)
    machine = local_machine()
    device = (machine if machine.gpus else machine.assuming(memory_gib, cpus=1)).device
    say(f"predicting the memory of micro-batches on {device.name} (up to a few minutes) ...")
    fit = fit_arms(space, memory_gib, device, vocab_size=space.tokenizer.vocab_size or FALLBACK_VOCAB_SIZE)
    written = with_shapes(text, fit.space)
    assert parse_space(written) == fit.space, "the text says what was fitted"
    say(f"{memory_gib:g} GiB hold {_shapes(fit.space)}")
    for warning in fit.warnings:
        say(f"note: {warning}")
    return written


def _shapes(space: Space) -> str:
    return ", ".join(f"{a.name} {a.micro_batch_size} x {a.seq_len} x {a.grad_accum_steps}" for a in space.strategies)
