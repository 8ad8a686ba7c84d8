"""Training windows: every arm cuts the same targets, each into windows of its own length.

A seed cuts the train split into disjoint blocks of S+1 tokens (S is the longest arm's ``seq_len``) and permutes them; a
budget takes the first ones, so that what a smaller budget trains on, a larger one trains on too. A block has S targets;
an arm with ``seq_len`` T cuts it into S/T windows, so that at full budget all arms have trained on the same targets
equally often. Offset, pool and order come from the seed alone, and a batch is a pure function of seed and step: a
resumed run needs nothing but its step number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from moe.config import Arrangement, BatchConfig
from moe.errors import ConfigError, CorpusError
from moe.token_file import TokenFile

# B windows of a micro-batch, T = seq_len, S = block_len

# Independent streams of one seed. The numbers are arbitrary; changing one changes every run.
_POOL_STREAM = 0
_ORDER_STREAM = 1


class Batch(NamedTuple):
    """int64 tensors [B, T]. ``document_ids_BT`` is None unless asked for; it counts documents within a window."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    document_ids_BT: torch.Tensor | None


class Windows:
    """The windows that one arm trains on with one seed.

    ``shuffled`` shuffles the arm's own windows over the whole pool; ``grouped`` keeps the windows of a block together,
    in the order in which the longest arm sees the blocks (the control for batch diversity). Where the corpus is
    shorter than the budget, the pool is gone through again in a new order, epoch by epoch.

    Raises:
        ConfigError: ``seq_len`` does not divide ``block_len``, or ``budget_tokens`` is not a multiple of both.
        CorpusError: the train split has no whole block.
    """

    def __init__(
        self,
        train: TokenFile,
        *,
        block_len: int,
        budget_tokens: int,
        seed: int,
        batch: BatchConfig,
        arrangement: Arrangement = "shuffled",
    ) -> None:
        _require_divisible(block_len=block_len, budget_tokens=budget_tokens, batch=batch)
        self._train = train
        self._batch = batch
        self.block_len = block_len
        self.seq_len = batch.seq_len
        self.n_blocks = budget_tokens // block_len
        self.n_steps = budget_tokens // batch.tokens_per_step
        self._block_starts = draw_pool(train, block_len=block_len, n_blocks=self.n_blocks, seed=seed)
        self._window_starts = self._order(seed, arrangement)
        self._positions_T = np.arange(batch.seq_len + 1, dtype=np.int64)

    def batch(self, step: int, micro_step: int = 0, *, document_ids: bool = False) -> Batch:
        """Inputs and targets of one micro-step, shifted by one against each other."""
        starts_B = self.starts_of(step, micro_step)
        positions_BT = starts_B[:, None] + self._positions_T
        tokens_BT = torch.from_numpy(self._train.tokens[positions_BT].astype(np.int64))
        documents_BT = self._document_ids(positions_BT[:, :-1]) if document_ids else None
        return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], documents_BT)

    @property
    def train(self) -> TokenFile:
        """The split that the windows are cut from."""
        return self._train

    @property
    def block_starts(self) -> npt.NDArray[np.int64]:
        """Where the pool's blocks of ``block_len`` + 1 tokens begin, ascending."""
        return self._block_starts

    def starts_of(self, step: int, micro_step: int) -> npt.NDArray[np.int64]:
        """Where the windows of one micro-step begin."""
        assert 0 <= step < self.n_steps
        assert 0 <= micro_step < self._batch.grad_accum_steps
        first = (step * self._batch.grad_accum_steps + micro_step) * self._batch.micro_batch_size
        return self._window_starts[first : first + self._batch.micro_batch_size]

    def target_positions(self) -> npt.NDArray[np.int64]:
        """Positions in the train split of every target of the whole budget, in the order of training."""
        return (self._window_starts[:, None] + self._positions_T[1:]).ravel()

    def _document_ids(self, positions_BT: npt.NDArray[np.int64]) -> torch.Tensor:
        documents_BT = self._train.documents_of(positions_BT)
        return torch.from_numpy(documents_BT - documents_BT[:, :1])

    def _order(self, seed: int, arrangement: Arrangement) -> npt.NDArray[np.int64]:
        """Start of every window of the budget, in the order of training."""
        windows_per_block = self.block_len // self._batch.seq_len
        offsets = np.arange(windows_per_block, dtype=np.int64) * self._batch.seq_len
        epochs: list[npt.NDArray[np.int64]] = []
        for epoch, blocks in enumerate(self._blocks_by_epoch(seed)):
            generator = np.random.default_rng([seed, _ORDER_STREAM, epoch])
            if arrangement == "grouped":
                # The longest arm's windows are the blocks, so that its permutation is the one of the blocks.
                blocks = blocks[generator.permutation(blocks.size)]  # noqa: PLW2901
                starts = (blocks[:, None] + offsets).ravel()
            else:
                starts = (blocks[:, None] + offsets).ravel()
                starts = starts[generator.permutation(starts.size)]
            epochs.append(starts)
        return np.concatenate(epochs)

    def _blocks_by_epoch(self, seed: int) -> list[npt.NDArray[np.int64]]:
        """Block starts of each epoch: whole pools, and of the last one the part that the budget still needs."""
        pool = self._block_starts
        whole, rest = divmod(self.n_blocks, pool.size)
        epochs = [pool] * whole
        if rest:
            generator = np.random.default_rng([seed, _POOL_STREAM, whole])
            epochs.append(pool[np.sort(generator.permutation(pool.size)[:rest])])
        return epochs


class WindowsOnDevice:
    """The same windows, gathered on a device that holds the pool's tokens: 4 bytes a token, sent there once.

    Of a micro-step only where its windows begin is sent, from pinned memory, so that the host does not wait.
    """

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self._windows, self._device = windows, device
        size = windows.block_len + 1
        positions_PS = windows.block_starts[:, None] + np.arange(size, dtype=np.int64)
        self._tokens = torch.from_numpy(windows.train.tokens[positions_PS].astype(np.int32).ravel()).to(device)
        self._documents = torch.from_numpy(windows.train.documents_of(positions_PS).astype(np.int32).ravel())
        self._positions_T = torch.arange(windows.seq_len + 1, device=device)
        self._size = size

    def batch(self, step: int, micro_step: int = 0, *, document_ids: bool = False) -> Batch:
        """As ``Windows.batch``, on the device."""
        starts_B, pool = self._windows.starts_of(step, micro_step), self._windows.block_starts
        blocks_B = np.searchsorted(pool, starts_B, side="right") - 1
        in_pool_B = torch.from_numpy(blocks_B * self._size + (starts_B - pool[blocks_B]))
        if self._device.type == "cuda":
            in_pool_B = in_pool_B.pin_memory()
        positions_BT = in_pool_B.to(self._device, non_blocking=True)[:, None] + self._positions_T
        tokens_BT = self._tokens[positions_BT].long()
        documents_BT = None
        if document_ids:
            self._documents = self._documents.to(self._device)
            found_BT = self._documents[positions_BT[:, :-1]].long()
            documents_BT = found_BT - found_BT[:, :1]
        return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], documents_BT)


def draw_pool(train: TokenFile, *, block_len: int, n_blocks: int, seed: int) -> npt.NDArray[np.int64]:
    """Starts, ascending, of up to ``n_blocks`` disjoint blocks of ``block_len`` + 1 tokens; the same for every arm.

    The seed decides where the cutting begins and in which order blocks are drawn: fewer blocks are a part of more.
    Fewer than ``n_blocks`` come back only where the whole split has fewer.
    """
    size = block_len + 1
    available = train.n_tokens // size
    if available == 0:
        raise CorpusError(
            f"the train split has {train.n_tokens} tokens, fewer than one block of {size}; "
            "choose a shorter seq_len or a larger corpus"
        )
    generator = np.random.default_rng([seed, _POOL_STREAM])
    offset = int(generator.integers(0, min(train.n_tokens - size, block_len), endpoint=True))
    drawn = generator.permutation((train.n_tokens - offset) // size)[:n_blocks]
    return offset + np.sort(drawn).astype(np.int64) * size


def _require_divisible(*, block_len: int, budget_tokens: int, batch: BatchConfig) -> None:
    if block_len % batch.seq_len:
        raise ConfigError(
            f"seq_len={batch.seq_len} does not divide the longest arm's seq_len {block_len}; arms cut the same blocks, "
            "so choose lengths that divide the longest"
        )
    for what, unit in (("tokens per step", batch.tokens_per_step), ("longest seq_len", block_len)):
        if budget_tokens % unit:
            below = budget_tokens // unit * unit
            nearest = f"{below} or {below + unit}" if below else str(unit)
            raise ConfigError(f"budget_tokens={budget_tokens} is not a multiple of the {what} {unit}; choose {nearest}")
