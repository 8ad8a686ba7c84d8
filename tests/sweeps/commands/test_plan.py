"""What a plan says of these machines, of a cluster, and of a GPU that is not here; and what it refuses."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from moe.errors import CorpusAway
from moe.flops import active_parameters
from search_spaces import Space, load_space, preset_names
from sweeps.cluster.machines import Machines, Node
from sweeps.commands.plan import SweepPlan, make_plan, render
from sweeps.errors import BadInputError
from sweeps.packing.duration import Speed
from sweeps.training_config import model_config

HERE = Machines.of(cpus=2)
CLUSTER = Machines(
    nodes=(Node(cpus=0), *(Node(cpus=8, gpus=2, gpu_gib=gib, name=f"node of {gib}") for gib in (24.0, 40.0))),
    address="auto",
    gpu_name="a GPU of the cluster",
    compute_capability=(8, 0),
)


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Space:
    """One whose corpus is not read, and whose time is not measured."""
    data = SimpleNamespace(identity=None, tokens=SimpleNamespace(vocab_size=512))
    monkeypatch.setattr("sweeps.commands.plan._from_corpus", lambda *_, **__: data)
    monkeypatch.setattr("sweeps.commands.plan.audit_table", lambda *_: audit_of(0.5))
    speed = Speed(seconds_per_token={}, processes=1, source="measured")
    monkeypatch.setattr("sweeps.commands.plan.find_speed", lambda *_: speed)
    monkeypatch.setattr("sweeps.commands.plan.expected_seconds", lambda *_: 3600.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return load_space(preset="smoke")


def fractions(plan: SweepPlan) -> set[float | None]:
    return {arm.gpu_fraction for arm in plan.arms}


def said(plan: SweepPlan) -> str:
    return " ".join(plan.warnings)


def shown(plan: SweepPlan) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(render(plan))
    return console.export_text()


def test_a_plan_for_this_machine_has_hours_and_a_cost(space: Space) -> None:
    plan = make_plan(space, HERE, price_per_hour=1.5)
    assert (plan.workers, fractions(plan), plan.hours, plan.cost) == (2, {None}, 1.0, 1.5)
    assert "2 at once" in shown(plan)
    assert "about 1 h here (measured), at a cost of 1.50" in shown(plan)


def test_a_plan_for_a_cluster_has_hours_where_its_speed_is_known(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_plan(space, CLUSTER).hours == 1.0
    monkeypatch.setattr("sweeps.commands.plan.find_speed", lambda *_: None)
    plan = make_plan(space, CLUSTER)
    assert fractions(plan) == {1 / 8}, "of 24 GiB, the memory of the cluster's smallest GPU"
    assert plan.workers == 16, "eight CPUs on each of two nodes"
    assert plan.hours is None
    assert "hours and cost are unknown: no training step could be timed on this cluster" in said(plan)


def test_an_assumed_memory_is_that_of_the_clusters_gpus(space: Space) -> None:
    plan = make_plan(space, CLUSTER, assume_gpu_gib=1.0)
    assert fractions(plan) == {1.0}
    assert plan.workers == 4, "one trial on each of the cluster's GPUs, and not on one assumed GPU"


def test_a_gpu_that_is_not_here_has_no_hours_and_the_plan_says_how_many_would_help(space: Space) -> None:
    plan = make_plan(space, HERE, assume_gpu_gib=80.0, price_per_hour=1.5)
    assert (plan.hours, plan.cost) == (None, None)
    assert "hours and cost are unknown for a GPU that is not here: its speed has to be measured" in said(plan)
    assert (plan.workers, plan.most_at_once, plan.most_gpus) == (8, 6, 1)
    assert "6 at once, for which 1 GPU is enough; more would stay idle" in shown(plan)
    tight = make_plan(space, HERE, assume_gpu_gib=1.0)
    assert (tight.workers, tight.most_at_once, tight.most_gpus) == (1, 6, 6)
    assert "1 at once; up to 6 such GPUs would shorten the sweep" in shown(tight)


def test_an_arm_that_does_not_fit_an_assumed_gpu_is_a_warning_and_one_that_fits_no_gpu_here_is_refused(
    space: Space,
) -> None:
    plan = make_plan(space, HERE, assume_gpu_gib=0.1)
    assert fractions(plan) == {None}
    assert "halve its micro_batch_size" in said(plan)
    with pytest.raises(BadInputError, match="halve its micro_batch_size"):
        make_plan(space, replace(CLUSTER, nodes=(Node(cpus=8, gpus=1, gpu_gib=0.1),)))


def test_threads_that_this_machine_lacks_are_refused_as_a_run_would(space: Space) -> None:
    resources = space.resources.model_copy(update={"threads_per_trial": 100_000})
    with pytest.raises(BadInputError, match="needs 100,000 CPU, and this machine has 2 CPU"):
        make_plan(space.model_copy(update={"resources": resources}), HERE)


def test_a_corpus_that_cannot_be_read_is_refused_except_for_a_machine_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise CorpusAway("nowhere.txt matches no file")

    monkeypatch.setattr("sweeps.training_data.load_training_data", missing)
    space = load_space(preset="smoke")
    with pytest.raises(BadInputError, match="matches no file"):
        make_plan(space, HERE)
    plan = make_plan(space, HERE, assume_gpu_gib=24.0)
    assert "planned without the corpus (no cell ids, no audit): nowhere.txt matches no file" in said(plan)


def without_dry_runs(monkeypatch: pytest.MonkeyPatch, space: Space) -> None:
    """A step on fake tensors takes seconds."""
    peaks_gib = {arm.name: 1.0 for arm in space.strategies}
    monkeypatch.setattr("sweeps.commands.plan.predicted_peaks", lambda *_, **__: peaks_gib)


def audit_of(epochs: float) -> dict[str, Any]:
    return {"findings": [{"rule": "epochs", "value": epochs, "threshold": 4.0, "level": "ok", "message": "few"}]}


@pytest.mark.parametrize("preset", preset_names())
def test_every_presets_plan_states_updates_epochs_and_tokens_per_active_parameter(
    monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    chosen = load_space(preset=preset)
    data = SimpleNamespace(identity=None, tokens=SimpleNamespace(vocab_size=chosen.tokenizer.vocab_size or 49_152))
    monkeypatch.setattr("sweeps.commands.plan._from_corpus", lambda *_, **__: data)
    monkeypatch.setattr("sweeps.commands.plan.audit_table", lambda *_: audit_of(0.5))
    without_dry_runs(monkeypatch, chosen)
    plan = make_plan(chosen, HERE, assume_gpu_gib=80.0)
    models = [model_config(chosen, arm.name, vocab_size=data.tokens.vocab_size) for arm in chosen.strategies]
    active = max(map(active_parameters, models))
    assert plan.epochs == 0.5
    assert plan.tokens_per_active_parameter == chosen.budget_tokens / active
    assert {arm.updates * arm.tokens_per_step for arm in plan.arms} == {chosen.budget_tokens}
    said_of_a_cell = f"{plan.tokens_per_active_parameter:.3g} tokens per active parameter"
    most = f"{8 * chosen.budget_tokens / 1e6:.3g} M tokens"
    each = "each cell" if len(chosen.budgets_tokens) == 1 else "each of the largest cells"
    assert f"{each}: 0.5 epochs of at most 4 ({most}), {said_of_a_cell}" in shown(plan)
    assert f"{each}: {said_of_a_cell}" in shown(replace(plan, epochs=None, audit=None)), "without the corpus"
    for arm in plan.arms:
        assert f" {arm.updates:,} " in shown(plan)


@pytest.mark.slow
def test_the_plan_of_matched_says_that_it_is_small_and_its_text_is_as_long_as_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(tmp_path))
    matched = load_space(preset="matched")
    without_dry_runs(monkeypatch, matched)
    plan = make_plan(matched, HERE, assume_gpu_gib=80.0)
    assert "minutes of an H100, for four epochs of its train split are 11.7 M tokens" in shown(plan)
    assert "each cell: 1.1 epochs of at most 4 (11.7 M tokens)" in shown(plan)


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_price_or_memory_that_is_not_finite_is_refused(space: Space, number: float) -> None:
    with pytest.raises(BadInputError, match=r"--price-per-hour=.* must be a finite number"):
        make_plan(space, HERE, price_per_hour=number)
    with pytest.raises(BadInputError, match=r"--assume-gpu-gib=.* must be a finite number"):
        make_plan(space, HERE, assume_gpu_gib=number)


def test_a_job_server_cannot_be_seen_behind_and_the_plan_says_whose_it_is(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    plan = make_plan(space, HERE)
    assert "RAY_ADDRESS=http://head:8265 is a job server, whose nodes cannot be seen from here" in said(plan)


@pytest.mark.parametrize(("hours", "words"), [(0.01, "36 s"), (1 / 59, "1 min 1 s"), (0.51, "31 min"), (30.0, "30 h")])
def test_hours_are_shown_as_precisely_as_they_are_known(space: Space, hours: float, words: str) -> None:
    plan = replace(make_plan(space, HERE), hours=hours)
    assert f"about {words} here" in shown(plan)
