"""A corpus of the tests' own: three small splits of tokens that can be learned, and nothing read from disk."""

# S block length, R rows, T time

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.config import BatchConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from moe.exam import Exam, ExamRows, TrainingData
from moe.token_file import TokenFile
from moe.trainer import Trainer
from moe.windows import Windows

VOCAB_SIZE = 32
BLOCK_LEN = 16
EXAM_ROWS = 3


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", "cuda"])
def device_kind(request) -> str:
    """Each kind of device that is here: a test that takes it runs on a GPU too where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    return request.param


@pytest.fixture
def torch_settings():
    """Torch's settings of arithmetic as they were before the test, afterwards."""
    matmul = torch.backends.cuda.matmul
    names = "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    sums = [getattr(matmul, name) for name in names]
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
    for name, value in zip(names, sums, strict=True):
        setattr(matmul, name, value)


def make_token_file(split: str, *, n_tokens: int = 4096, seed: int = 0) -> TokenFile:
    """Tokens that mostly count upwards, so that the next one can be learned; a document every 64."""
    rng = np.random.default_rng([seed, len(split)])
    jumps = np.where(rng.random(n_tokens) < 0.1, rng.integers(0, VOCAB_SIZE, n_tokens), 1)
    starts = np.arange(0, n_tokens, 64, dtype=np.int64)
    return TokenFile(
        folder=Path(split),
        split=split,
        tokens=(np.cumsum(jumps) % VOCAB_SIZE).astype(np.uint16),
        document_starts=starts,
        document_bytes=np.full(starts.size, 256, dtype=np.int64),
        document_names=tuple(f"{split}-{i}" for i in range(starts.size)),
    )


def make_rows(split: str, *, n_rows: int = EXAM_ROWS, block_len: int = BLOCK_LEN) -> ExamRows:
    file = make_token_file(split, n_tokens=n_rows * 64)
    positions_RS = file.document_starts[:n_rows, None] + np.arange(block_len + 1)
    return ExamRows(
        split=split,
        tokens_RS=file.tokens[positions_RS].astype(np.int32),
        documents_RS=file.documents_of(positions_RS).astype(np.int32),
        document_names=file.document_names,
        bytes_of_document=file.document_bytes / file.document_lengths,
    )


def build_config(**changes) -> TrainConfig:
    """A model of 8,000 weights and 32 steps of 64 tokens; a dotted name reaches a nested field: ``model.top_k=1``."""
    config = TrainConfig(
        model=ModelConfig(
            vocab_size=VOCAB_SIZE,
            d_model=16,
            n_layers=2,
            n_heads=2,
            n_kv_heads=1,
            d_expert=16,
            n_experts=4,
            top_k=2,
            lb_loss_coef=0.01,
            z_loss_coef=0.001,
        ),
        batch=BatchConfig(micro_batch_size=4, seq_len=16),
        optimizer=OptimizerConfig(lr=0.02, adamw_lr=0.01),
        schedule=ScheduleConfig(budget_tokens=2048, warmup_tokens=128, decay_tokens=512),
        seed=1,
        block_len=BLOCK_LEN,
        precision="fp32",
        device="cpu",
        report_every_tokens=256,
    )
    for name, value in changes.items():
        config = _replaced(config, name.split("."), value)
    return config


def _replaced(holder, path, value):
    if len(path) > 1:
        value = _replaced(getattr(holder, path[0]), path[1:], value)
    return replace(holder, **{path[0]: value})


def build_data(config: TrainConfig, *, n_tokens: int = 4096) -> TrainingData:
    windows = Windows(
        make_token_file("train", n_tokens=n_tokens),
        block_len=config.block_len,
        budget_tokens=config.schedule.budget_tokens,
        seed=config.seed,
        batch=config.batch,
        arrangement=config.arrangement,
    )
    exam = Exam(
        validation=make_rows("validation"),
        test=make_rows("test"),
        block_len=BLOCK_LEN,
        common_len=8,
        eval_lens=(8, 16),
        packed=False,
        single_documents=EXAM_ROWS,
        single_document_share=1.0,
        fingerprint="the tests' own exam",
    )
    return TrainingData(windows=windows, exam=exam, bytes_per_token=4.0)


def build_trainer(*, n_tokens: int = 4096, **changes) -> Trainer:
    config = build_config(**changes)
    return Trainer(config, build_data(config, n_tokens=n_tokens))


@pytest.fixture
def make_config():
    return build_config


@pytest.fixture
def make_data():
    return build_data


@pytest.fixture(scope="session")
def make_trainer():
    return build_trainer
