"""What a space accepts is what ``moe`` trains: nothing passes when it is planned and is refused by a worker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from moe.config import TrainConfig, check_config
from moe.corpus import CorpusConfig
from moe.errors import MoeError
from moe.tokenizer import TokenizerConfig
from search_spaces import Cell, Identity, Rate, Space, SpaceErrors, cell_at, explore_cells, load_space, rates_at
from search_spaces.extension import widened_rate
from search_spaces.fields import MAX_RATE, MIN_RATE
from sweeps.cluster.machines import Machines
from sweeps.packing.shares import pack
from sweeps.training_config import corpus_config, tokenizer_config, train_config

Place = tuple[str | int, ...]
IDENTITY = Identity(corpus_fingerprint="corpus", tokenizer_fingerprint="tokenizer", exam_fingerprint="exam")
COUNTS = (0, 1, 2, 3, 63, 64, 256, 257, 512, 1_000, 1_024, 65_536, 1_048_576, 10**12, 2**63 - 1, 2**63, -1)
REALS = (0.0, 5e-324, 1e-300, 1e-12, 0.25, 0.49, 0.5, 0.6, 0.95, 1.0, 2.0, 1e3, 1e4, 1e300, math.inf, math.nan, -0.1)


def numbers_of(table: Mapping[str, Any] | Sequence[Any], prefix: Place = ()) -> Iterator[Place]:
    """Every place of a resolved space but texts and switches: numbers, and keys that are unset or automatic."""
    items = table.items() if isinstance(table, Mapping) else enumerate(table)
    for key, value in items:
        if isinstance(value, Mapping | list | tuple):
            yield from numbers_of(value, (*prefix, key))
        elif value in (None, "auto") or not isinstance(value, str | bool):
            yield (*prefix, key)


def put(table: Mapping[str, Any], place: Place, value: object) -> dict[str, Any]:
    changed: dict[str, Any] = deepcopy(dict(table))
    here: Any = changed
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    return changed


def configs_of(space: Space, cells: Sequence[Cell]) -> list[TrainConfig]:
    return [train_config(space, cell, vocab_size=space.tokenizer.vocab_size or 257) for cell in cells]


def require_trainable(space: Space) -> None:
    """Ask ``moe`` and the packing for everything that they refuse before they start."""
    corpus_config(space)
    tokenizer_config(space)
    for config in configs_of(space, explore_cells(space, IDENTITY)):
        check_config(config)
    machines = Machines.of(cpus=2_048, gpus=1_024, gpu_gib=80.0)
    peaks = {arm.name: 1.0 for arm in space.strategies}
    assert pack(space, peaks, machines).problems == ()


@pytest.mark.parametrize(
    ("rates", "gpus"),
    [
        ("adamw_ratio=0.3", "auto"),
        ("adamw_fixed=0.003", "0.5"),
        ("adamw_grid=[0.003]", "{large_batch=1, balanced=1, long_seq=1}"),
    ],
)
def test_every_value_that_a_space_accepts_can_be_trained(rates: str, gpus: str) -> None:
    plain = ["rungs_tokens=[]", "early_stopping=none", f"rates.{rates}", f"resources.gpu_per_trial={gpus}"]
    table = load_space(preset="laptop", overrides=plain).resolved()
    accepted: set[Place] = set()
    n_refused = 0
    for place in numbers_of(table):
        for value in (*COUNTS, *REALS):
            try:
                space = Space.from_resolved(put(table, place, value))
            except SpaceErrors:
                n_refused += 1
                continue
            accepted.add(place)
            require_trainable(space)
    assert accepted >= {("model", "d_model"), ("rates", "lr", 0), ("optimizer", "adamw_eps"), ("seeds", "confirm")}
    assert len(accepted) > 35
    assert n_refused > 800


@pytest.mark.parametrize("adamw", ["adamw_ratio", "adamw_fixed"])
@pytest.mark.parametrize("other", [MIN_RATE, MAX_RATE])
def test_the_extreme_rates_can_be_trained_after_the_grid_was_widened_as_often_as_it_may_be(
    adamw: str, other: float
) -> None:
    overrides = [f"rates.lr=[{MIN_RATE}, {MAX_RATE}]", f"rates.{adamw}={other}", "rates.max_widenings=10"]
    space = load_space(preset="laptop", overrides=overrides)
    rates = list(space.rates.lr)
    for _ in range(space.rates.max_widenings):
        rates += [widened_rate(rates, "low"), widened_rate(rates, "high")]
    cells = [
        cell_at(space, None, phase="explore", strategy="balanced", rate=pair, seed=1)
        for lr in rates
        for pair in rates_at(space, "balanced", lr)
    ]
    for config in configs_of(space, cells):
        check_config(config)


@pytest.mark.parametrize(("share", "budget"), [(0.5, 3), (0.3, 5), (0.05, 30), (0.9, 7)])
def test_warm_up_and_decay_that_fill_the_schedule_fit_into_an_odd_budget(share: float, budget: int) -> None:
    overrides = [f"schedule.warmup_share={share}", f"schedule.decay_share={1 - share}", "rungs_tokens=[]"]
    space = load_space(preset="laptop", overrides=[*overrides, "early_stopping=none"])
    cell = cell_at(space, None, phase="time", strategy="balanced", rate=Rate(lr=0.01, adamw_lr=0.01), seed=1)
    odd = replace(cell, budget_tokens=budget * 2_048 + budget)
    schedule = train_config(space, odd, vocab_size=257).schedule
    assert 0 <= schedule.warmup_tokens + schedule.decay_tokens <= odd.budget_tokens
    assert schedule.warmup_tokens == round(odd.budget_tokens * share)


def refused_config(**changes: object) -> Callable[[], object]:
    """A training config of the preset ``laptop`` in which ``model`` or ``optimizer`` has other values."""

    def check() -> None:
        space = load_space(preset="laptop")
        (config,) = configs_of(space, explore_cells(space, IDENTITY)[:1])
        names = vars(config.model).keys()
        changed: Any = {
            section: replace(getattr(config, section), **{key: value})
            for key, value in changes.items()
            for section in ("model" if key in names else "optimizer",)
        }
        check_config(replace(config, **changed))

    return check


@pytest.mark.parametrize(
    ("override", "refused_by_moe"),
    [
        ("corpus.validation_share=0.6", lambda: CorpusConfig(validation_share=0.6)),
        ("corpus.test_share=0.5", lambda: CorpusConfig(test_share=0.5)),
        ("corpus.max_overlap_share=1.1", lambda: CorpusConfig(max_overlap_share=1.1)),
        ("corpus.max_common_run_tokens=63", lambda: CorpusConfig(max_common_run_tokens=63)),
        ("corpus.max_epochs=0.0", lambda: CorpusConfig(max_epochs=0.0)),
        ("corpus.duplicates=drop", lambda: CorpusConfig(duplicates="drop")),
        ("corpus=files", lambda: CorpusConfig(kind="files")),
        ("corpus=hub", lambda: CorpusConfig(kind="hub")),
        ("tokenizer=bpe:256", lambda: TokenizerConfig(vocab_size=256)),
        ("tokenizer=hub", lambda: TokenizerConfig(kind="hub")),
        ("tokenizer=directory", lambda: TokenizerConfig(kind="directory")),
        ("model.n_layers=0", refused_config(n_layers=0)),
        ("model.n_heads=3", refused_config(n_heads=3)),
        ("model.n_heads=64", refused_config(n_heads=64)),
        ("model.n_kv_heads=3", refused_config(n_kv_heads=3)),
        ("model.top_k=9", refused_config(top_k=9)),
        ("model.rope_theta=0.0", refused_config(rope_theta=0.0)),
        ("model.lb_loss_coef=-0.1", refused_config(lb_loss_coef=-0.1)),
        ("optimizer.muon_momentum=1.0", refused_config(muon_momentum=1.0)),
        ("optimizer.adamw_betas=[0.9, 1.0]", refused_config(adamw_betas=(0.9, 1.0))),
        ("optimizer.adamw_eps=0.0", refused_config(adamw_eps=0.0)),
        ("optimizer.adamw_weight_decay=-0.1", refused_config(adamw_weight_decay=-0.1)),
        ("optimizer.clip_grad_norm=0.0", refused_config(clip_grad_norm=0.0)),
    ],
)
def test_a_space_refuses_what_moe_refuses(override: str, refused_by_moe: Callable[[], object]) -> None:
    with pytest.raises(MoeError):
        refused_by_moe()
    with pytest.raises(SpaceErrors, match=override.partition("=")[0].replace(".", r"\.")):
        load_space(preset="laptop", overrides=[override])


@pytest.mark.parametrize("gpus", ["2", "1.5", "-0.5", "5e-324", "{large_batch=2, balanced=1, long_seq=1}"])
def test_a_space_refuses_a_share_of_more_than_the_one_gpu_that_a_trial_trains_on(gpus: str) -> None:
    rule = r'must be "auto", 0, a share of one GPU from 0.01 to 1 \(a trial trains on one GPU\), or a table of shares'
    with pytest.raises(SpaceErrors, match=rf"resources\.gpu_per_trial=.* {rule}"):
        load_space(preset="laptop", overrides=[f"resources.gpu_per_trial={gpus}"])
