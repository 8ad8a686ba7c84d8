"""What gpu-check concludes from what trials measured; the trials themselves on a CPU, where they can run too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces import Space, load_space, parse_space, preset_text
from sweeps.commands.gpu_check import gpu_check, run_checks, write_report
from sweeps.errors import NoDeviceError
from sweeps.packing.shares import allocator_share
from sweeps.trial.gpu_experiments import Check, Laboratory, arm_checks, kill_and_resume, packing
from sweeps.trial.gpu_trial import TrialFacts, TrialOrder

FACTS = TrialFacts(
    arm="balanced",
    precision="bf16",
    losses=(9.0, 8.5, 8.0, 7.5),
    tokens_per_s=1000.0,
    peak_gib=3.0,
    predicted_peak_gib=3.1,
    device="a GPU",
    reserved_gib=3.3,
    context_gib=0.5,
    gpu_gib=24.0,
)


class Pretended(Laboratory):
    """Runs nothing: answers each order as a GPU might, with ``wrong`` changed."""

    def __init__(self, folder: Path, **wrong: Any) -> None:
        super().__init__(folder)
        self.orders: list[TrialOrder] = []
        self.wrong = wrong
        self.saved = True

    def run(self, orders: Sequence[TrialOrder]) -> list[TrialFacts]:
        self.orders += orders
        return [self._answer(order, together=len(orders)) for order in orders]

    def run_and_kill(self, order: TrialOrder) -> bool:
        return self.saved

    def _answer(self, order: TrialOrder, *, together: int) -> TrialFacts:
        peak_gib = {"large_batch": 4.0, "balanced": 3.5, "long_seq": 3.0}[order.arm]
        facts = replace(FACTS, arm=order.arm, precision=order.precision, peak_gib=peak_gib, predicted_peak_gib=peak_gib)
        if together > 1:
            facts = replace(facts, tokens_per_s=400.0)
        if order.gpu_share is not None and together == 1:
            facts = replace(facts, micro_batch_splits=1)
        if order.resumes:
            facts = replace(facts, losses=facts.losses[order.steps // 2 :])
        return replace(facts, **self.wrong)


@pytest.fixture
def matched() -> Space:
    return load_space(preset="matched", path=None, overrides=[])


def run_pretended(laboratory: Pretended, space: Space) -> tuple[list[TrialFacts], dict[str, Check]]:
    trials, checks = run_checks(laboratory, space, ["fp16", "bf16"], lambda line: None, steps=4)
    return trials, {check.what: check for check in checks}


def test_without_cuda_nothing_is_measured_and_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(NoDeviceError, match="torch sees no CUDA device here; run it on a machine with a GPU") as error:
        gpu_check(tmp_path / "gpu-check.json", lambda line: None, lambda table: None)
    assert error.value.exit_code == 4
    assert not (tmp_path / "gpu-check.json").exists()


def test_every_arm_is_measured_in_both_precisions_then_packed_starved_and_killed(
    tmp_path: Path, matched: Space
) -> None:
    laboratory = Pretended(tmp_path)
    trials, checks = run_pretended(laboratory, matched)
    assert [(order.arm, order.precision) for order in laboratory.orders[:6]] == [
        (arm, precision) for precision in ("fp16", "bf16") for arm in ("large_batch", "balanced", "long_seq")
    ]
    packed, starved, resumed = laboratory.orders[6:10], laboratory.orders[10], laboratory.orders[11]
    assert {order.arm for order in packed} == {"long_seq"}, "the lightest arm packs best"
    assert {order.gpu_share for order in packed} == {allocator_share(1 / 4, 24.0)}
    assert starved.arm == "large_batch"
    assert starved.gpu_share == pytest.approx(0.75 * 4.0 / 24.0), "of the peak alone, so that it cannot fit"
    assert resumed.resumes
    assert len(trials) == 12
    assert all(check.held is not False for check in checks.values())
    assert checks["4 x long_seq packed: throughput"].found == "1,600 tokens/s together, 1,000 alone (1.60x)"


def test_a_peak_that_was_not_predicted_a_loss_that_rises_and_a_large_context_break() -> None:
    facts = replace(FACTS, predicted_peak_gib=2.5, losses=(8.0, 8.1), context_gib=1.5)
    assert [(check.what, check.held) for check in arm_checks(facts)] == [
        ("balanced bf16: loss falls", False),
        ("balanced bf16: peak memory", False),
        ("balanced bf16: context", False),
    ]
    assert arm_checks(facts)[1].found == "predicted 2.50 GiB, measured 3.00 (-16.7%)"


def test_packed_losses_that_differ_and_a_packed_trial_that_fails_break(tmp_path: Path) -> None:
    order = TrialOrder(space={}, arm="long_seq", precision="bf16", steps=4, lr=0.01)
    _, checks = packing(Pretended(tmp_path, losses=(9.0, 8.5, 8.1, 7.5)), order, FACTS)
    assert [check.held for check in checks] == [None, False, None]
    (tmp_path / "again").mkdir()
    _, [failed] = packing(Pretended(tmp_path / "again", error="CUDA out of memory"), order, FACTS)
    assert (failed.found, failed.held) == ("4 failed: CUDA out of memory", False)


def test_a_memory_shortage_that_splits_nothing_breaks(tmp_path: Path, matched: Space) -> None:
    _, checks = run_pretended(Pretended(tmp_path, micro_batch_splits=0), matched)
    assert checks["large_batch short of memory"].held is False


def test_a_resume_from_another_state_breaks_and_so_does_a_checkpoint_that_never_came(tmp_path: Path) -> None:
    order = TrialOrder(space={}, arm="long_seq", precision="bf16", steps=4, lr=0.01)
    _, [other] = kill_and_resume(Pretended(tmp_path, losses=(8.2, 7.5)), order, FACTS)
    assert (other.found, other.held) == ("2 steps after it, losses differ by 0.2 at most", False)
    (tmp_path / "again").mkdir()
    laboratory = Pretended(tmp_path / "again")
    laboratory.saved = False
    _, [never] = kill_and_resume(laboratory, order, FACTS)
    assert (never.found, never.held) == ("it ended before its checkpoint was whole", False)


def test_where_no_trial_ran_the_rest_is_not_claimed(tmp_path: Path, matched: Space) -> None:
    _, checks = run_pretended(Pretended(tmp_path, error="no kernel image"), matched)
    assert checks["large_batch bf16"].held is False
    assert checks["packing, out of memory, resume"].held is None


def test_the_report_holds_every_number(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "gpu-check.json"
    write_report(out, "a GPU", [FACTS], arm_checks(FACTS))
    report = json.loads(out.read_text())
    assert report["device"] == "a GPU"
    assert report["trials"][0]["losses"] == [9.0, 8.5, 8.0, 7.5]
    assert [check["held"] for check in report["checks"]] == [True, True, True]
    assert [path.name for path in out.parent.iterdir()] == ["gpu-check.json"]


@pytest.mark.slow
def test_real_trials_on_this_machine_are_packed_killed_and_resumed_to_the_same_losses(tmp_path: Path) -> None:
    """Two processes at a time on a CPU; one thread each, so losses are equal to the last bit."""
    space = parse_space(preset_text("smoke"))
    arm = space.strategies[0].name
    order = TrialOrder(space=space.resolved(), arm=arm, precision="fp32", steps=4, lr=0.01)
    laboratory = Laboratory(tmp_path)
    [alone] = laboratory.run([order])
    assert alone.error is None
    assert alone.gpu_gib is None
    assert alone.losses[-1] < alone.losses[0]
    assert alone.predicted_peak_gib == pytest.approx(alone.peak_gib, rel=0.1)
    (tmp_path / "gate").mkdir()
    pair = laboratory.run([replace(order, gate_dir=str(tmp_path / "gate"), gate_count=2)] * 2)
    assert [facts.losses for facts in pair] == [alone.losses] * 2
    trials, [resumed] = kill_and_resume(laboratory, order, alone)
    assert trials[0].losses == alone.losses[2:]
    assert resumed.held
