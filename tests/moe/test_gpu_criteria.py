"""Every criterion of the GPU check, held by a measurement as it should be and failed by one that is not."""

from dataclasses import replace

import pytest

from moe.gpu_criteria import (
    ContestFacts,
    DeterminismFacts,
    OverflowFacts,
    ProfileFacts,
    ResumeFacts,
    StepFacts,
    agreement_rows,
    compile_rows,
    contest_row,
    determinism_row,
    host_reads_of_step,
    launch_budget,
    overflow_row,
    profile_rows,
    resume_row,
    shortage_rows,
    step_facts,
    step_rows,
)

STEPS = StepFacts(
    arm="matched balanced",
    precision="bf16",
    losses=(9.0, 8.5, 8.0),
    tokens_per_s=500_000.0,
    ms_per_step=65.5,
    mfu_pct=23.4,
    peak_gib=3.0,
    predicted_peak_gib=3.1,
)
PROFILE = ProfileFacts(
    arm="matched balanced",
    launches=1500,
    host_reads=1,
    attention=("flash",),
    expected_attention=("flash", "cuDNN"),
    most_launches=3000,
    expected_host_reads=1,
)
OVERFLOW = OverflowFacts(
    arm="matched balanced", losses=(9.0, 9.0, 8.9), skipped_steps=2, scale_before=2.0**33, scale_after=2.0**31
)
CONTEST = ContestFacts(arm="matched balanced", ours_ms=60.0, others_ms={"eager": 150.0, "grouped": 90.0})


def held(rows):
    return {row.what.partition(": ")[2]: row.held for row in rows}


def test_a_run_as_it_should_be_says_its_speed_and_holds():
    learned, peak = step_rows(STEPS)
    assert learned.found == "9.000 to 8.000; 65.5 ms a step, 500,000 tokens/s, MFU 23.4%"
    assert peak.found == "predicted 3.10 GiB, measured 3.00 (+3.3%)"
    assert learned.held
    assert peak.held


@pytest.mark.parametrize(
    ("wrong", "failed"),
    [
        ({"losses": (9.0, 9.1)}, {"loss falls": False, "peak memory": True}),
        ({"losses": (9.0, float("nan"))}, {"loss falls": False, "peak memory": True}),
        ({"predicted_peak_gib": 2.6}, {"loss falls": True, "peak memory": False}),
        ({"predicted_peak_gib": 3.4}, {"loss falls": True, "peak memory": False}),
        ({"error": "no kernel image is available"}, {"loss falls": False}),
    ],
)
def test_a_loss_that_does_not_fall_a_peak_that_was_not_predicted_and_an_error_fail(wrong, failed):
    assert held(step_rows(replace(STEPS, **wrong))) == failed


def test_speed_leaves_out_the_first_two_steps():
    record = {"train_loss": 9.0, "mfu_pct": None, "peak_mem_allocated_gib": 1.0, "micro_batch_splits": 0}
    record |= {"skipped_steps": 0, "exam_time_s": 0.5}
    records = [{**record, "tokens_per_s": speed} for speed in (1.0, 2.0, 1000.0, 1000.0, 500.0)]
    facts = step_facts("matched balanced", "bf16", records, tokens_per_step=100)
    assert facts.ms_per_step == pytest.approx(100.0)
    assert facts.tokens_per_s == pytest.approx(750.0)
    assert facts.mfu_pct is None


@pytest.mark.parametrize(("loss", "holds"), [(8.04, True), (8.06, False), (float("nan"), False)])
def test_a_precision_that_trains_to_another_loss_than_fp32_fails(loss, holds):
    exact = replace(STEPS, precision="fp32")
    half = replace(STEPS, precision="fp16", losses=(9.0, loss))
    alone = replace(STEPS, arm="matched long_seq")
    [row] = agreement_rows([exact, half, alone])
    assert (row.what, row.held) == ("matched balanced: loss in fp16 against fp32", holds)
    assert agreement_rows([replace(exact, error="out of memory"), half]) == []


@pytest.mark.parametrize(
    ("wrong", "failed"),
    [
        ({}, None),
        ({"launches": 8291}, "launches a step"),
        ({"host_reads": 37}, "host reads a step"),
        ({"attention": ("math",)}, "attention"),
        ({"attention": ("flash", "memory-efficient")}, "attention"),
        ({"attention": ()}, "attention"),
    ],
)
def test_launches_host_reads_and_kernels_beyond_what_is_expected_fail(wrong, failed):
    found = held(profile_rows(replace(PROFILE, **wrong)))
    assert found == {name: name != failed for name in ("launches a step", "host reads a step", "attention")}


def test_the_launch_budget_is_above_what_is_counted_on_paper_and_below_what_a_cpus_head_would_launch():
    """``published``, large_batch: docs/performance.md."""
    budget = launch_budget(n_layers=6, grad_accum_steps=1, head_chunks=4)
    assert 1522 + 227 < budget < 8291
    assert launch_budget(n_layers=6, grad_accum_steps=2, head_chunks=4) > budget


def test_the_host_reads_once_a_step_and_where_experts_are_not_grouped_once_a_layer():
    assert host_reads_of_step(n_layers=6, grad_accum_steps=4, grouped=True) == 1
    assert host_reads_of_step(n_layers=6, grad_accum_steps=1, grouped=False) == 7
    assert host_reads_of_step(n_layers=6, grad_accum_steps=2, grouped=False) == 19


def test_a_resume_to_other_numbers_or_with_an_error_fails():
    facts = ResumeFacts(arm="matched balanced", steps_after=6)
    assert resume_row(facts).found == "6 steps after it, equal to the last bit"
    assert resume_row(facts).held
    other = resume_row(replace(facts, differences=("losses", "weights")))
    assert (other.found, other.held) == ("another result: losses, weights", False)
    broken = resume_row(replace(facts, error="its worker died"))
    assert (broken.found, broken.held) == ("its worker died", False)


@pytest.mark.parametrize(("with_ms", "holds"), [(110.0, True), (90.0, True), (126.0, False)])
def test_determinism_that_costs_a_lot_fails(with_ms, holds):
    assert determinism_row(DeterminismFacts(arm="a", with_ms=with_ms, without_ms=100.0)).held is holds


@pytest.mark.parametrize(
    ("wrong", "holds"),
    [
        ({}, True),
        ({"skipped_steps": 0}, False),
        ({"skipped_steps": 3}, False),
        ({"scale_after": 2.0**33}, False),
        ({"losses": (9.0, float("inf"), 8.9)}, False),
    ],
)
def test_an_overflow_that_is_not_skipped_or_from_which_training_does_not_recover_fails(wrong, holds):
    assert overflow_row(replace(OVERFLOW, **wrong)).held is holds


@pytest.mark.parametrize(
    ("short", "held_rows"),
    [
        ({"micro_batch_splits": 1}, [True, True]),
        ({}, [False, True]),
        ({"micro_batch_splits": 1, "losses": (9.0, 8.5, 8.05)}, [True, False]),
        ({"error": "no memory for one row"}, [False]),
    ],
)
def test_a_shortage_that_splits_nothing_changes_losses_or_ends_the_run_fails(short, held_rows):
    assert [row.held for row in shortage_rows(STEPS, replace(STEPS, **short))] == held_rows


def test_the_best_of_transformers_is_the_one_to_beat():
    row = contest_row(CONTEST)
    assert row.found == "60.0 ms; grouped 90.0 (1.50 times as long)"
    assert row.held
    assert contest_row(replace(CONTEST, ours_ms=91.0)).held is False
    absent = contest_row(ContestFacts(arm="a", ours_ms=60.0, failures={"eager": "No module named 'transformers'"}))
    assert (absent.found, absent.held) == ("not measured: eager: No module named 'transformers'", None)


def test_what_compilation_would_bring_is_measured_and_not_judged():
    faster, absent = compile_rows(
        ContestFacts(arm="a", ours_ms=60.0, others_ms={"torch.compile": 54.0}, failures={"graphs": "no Triton"})
    )
    assert (faster.found, faster.held) == ("54.0 ms instead of 60.0 (-10%)", None)
    assert (absent.what, absent.found) == ("a: graphs", "not measured: no Triton")
