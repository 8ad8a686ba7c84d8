import json
import math
from contextlib import nullcontext

import pytest
import torch

from moe.device import Device
from moe.device_choices import choose
from moe.errors import ConfigError, Diverged
from moe.precision import resolve_precision
from moe.trainer import Trainer

VOCAB_SIZE = 32  # of the corpus in conftest


def test_a_tiny_model_overfits_one_batch(make_trainer, monkeypatch):
    """From ln(vocabulary) to nearly nothing: model, loss, gradient and both optimizers do their work."""
    trainer = make_trainer(
        **{
            "schedule.budget_tokens": 64 * 120,
            "model.lb_loss_coef": 0.0,
            "model.z_loss_coef": 0.0,
            "model.d_model": 32,
            "report_every_tokens": 64,
        }
    )
    batch = trainer.data.windows.batch(0)
    monkeypatch.setattr(trainer.data.windows, "batch", lambda *_, **__: batch)
    losses = [report.train_loss for report in trainer.run()]
    # The head starts at N(0, 0.02) over vectors of norm sqrt(32): logits of about 0.1, so a loss close to ln(32).
    assert losses[0] == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)
    # The first targets of windows that begin alike cannot be told apart; all others can.
    assert losses[-1] < 0.1


def test_the_first_loss_is_that_of_guessing_and_training_lowers_it(make_trainer):
    reports = list(make_trainer().run())
    assert reports[-1].train_loss < reports[0].train_loss - 1.0


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_every_device_learns_as_the_cpu_does_in_fp32(make_trainer, device_kind, precision):
    wanted = list(make_trainer().run())[-1].train_loss
    trainer = make_trainer(device=device_kind, precision=precision, exam_at_tokens=(2048,))
    reports = list(trainer.run())
    # 32 steps, from 3.5 to 1.5 nats; seeds differ by 0.05.
    assert reports[-1].train_loss == pytest.approx(wanted, abs=0.05)
    assert trainer.test_scores().test_loss < 2.0


def test_every_device_resumes_to_the_last_bit(make_trainer, device_kind, tmp_path):
    whole, half, resumed = (make_trainer(device=device_kind, precision="auto") for _ in range(3))
    list(whole.run())
    list(half.run(until_tokens=1024))
    half.save(tmp_path)
    resumed.load(tmp_path)
    list(resumed.run())
    for a, b in zip(whole.optimizers.params, resumed.optimizers.params, strict=True):
        assert torch.equal(a, b)


def test_reports_come_at_their_points_and_at_the_end(make_trainer):
    trainer = make_trainer(report_every_tokens=512)
    assert [report.tokens_seen for report in trainer.run(until_tokens=1216)] == [512, 1024, 1216]
    assert [report.tokens_seen for report in trainer.run()] == [1536, 2048]
    assert list(trainer.run()) == []


def test_a_report_interval_that_is_no_multiple_of_a_step_is_met_by_the_next_step(make_trainer):
    trainer = make_trainer(report_every_tokens=100)
    assert [report.tokens_seen for report in trainer.run(until_tokens=512)] == [128, 256, 320, 448, 512]


def test_the_exam_is_sat_at_its_points_only(make_trainer):
    trainer = make_trainer(exam_at_tokens=(320, 2048), report_every_tokens=1024)
    reports = {report.tokens_seen: report for report in trainer.run()}
    assert sorted(reports) == [320, 1024, 2048]
    assert reports[1024].val_loss is None
    assert reports[1024].val_bpb is None
    assert reports[1024].val_common_loss is None
    for point in (320, 2048):
        assert reports[point].val_loss > 0.0
        # 64 tokens of a document are 256 bytes here.
        assert reports[point].val_bpb == pytest.approx(reports[point].val_loss / math.log(2) / 4)
    assert reports[2048].val_loss < reports[320].val_loss
    # The common view costs as much as the own one, and only the end of the budget is compared by it.
    assert reports[320].val_common_loss is None
    assert reports[2048].val_common_loss > 0.0


def test_the_validation_loss_is_the_mean_over_the_rows_chunks(make_trainer):
    trainer = make_trainer(exam_at_tokens=(64,))
    report = next(iter(trainer.run()))
    rows_RS = torch.from_numpy(trainer.data.exam.validation.tokens_RS).long()
    logits_RSV = trainer.model(rows_RS[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits_RSV.flatten(0, 1), rows_RS[:, 1:].flatten())
    assert report.val_loss == pytest.approx(loss.item(), abs=1e-5)


def test_exams_take_no_training_time(make_trainer):
    trainer = make_trainer(exam_at_tokens=(64,))
    report = next(iter(trainer.run()))
    assert report.exam_time_s > 0.0
    assert report.tokens_per_s == pytest.approx(64 / report.train_time_s)


def test_the_test_scores_are_of_the_model_as_it_stands(make_trainer):
    trainer = make_trainer()
    before = trainer.test_scores()
    list(trainer.run())
    after = trainer.test_scores()
    assert before.test_loss == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)
    assert after.test_loss < before.test_loss - 1.0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_exam_is_scored_in_fp32_whatever_the_training_precision(make_trainer, precision):
    trained = make_trainer(precision=precision)
    list(trained.run(until_tokens=256))
    plain = make_trainer()
    plain.model.load_state_dict(trained.model.state_dict())
    assert trained.test_scores().as_dict() == plain.test_scores().as_dict()


def test_a_record_is_json_with_every_field_and_kept_in_order(make_trainer):
    trainer = make_trainer(exam_at_tokens=(2048,))
    reports = list(trainer.run())
    assert trainer.records == [report.as_record() for report in reports]
    record = json.loads(json.dumps(trainer.records[-1], allow_nan=False))
    assert record["tokens_seen"] == 2048
    assert record["step"] == 32
    assert record["precision"] == "fp32"
    assert record["loss_scale"] is None


def test_rates_follow_the_schedule_on_the_clock_of_tokens(make_trainer):
    reports = list(make_trainer(report_every_tokens=64).run())
    factors = [report.lr / 0.02 for report in reports]
    assert factors[:3] == pytest.approx([0.5, 1.0, 1.0])
    # The last step starts with 64 of the 512 tokens of decay left.
    assert factors[-1] == pytest.approx(64 / 512)
    assert all(report.adamw_lr == pytest.approx(report.lr / 2) for report in reports)


def test_expert_load_and_router_entropy_start_near_balance(make_trainer):
    report = next(iter(make_trainer().run()))
    assert 1.0 <= report.expert_load_max_over_mean < 2.0
    assert report.router_entropy == pytest.approx(math.log(4), abs=0.01)
    assert report.lb_loss == pytest.approx(1.0, abs=0.05)


def test_the_same_seed_gives_the_same_run_to_the_last_bit_and_another_seed_does_not(make_trainer):
    def losses(seed):
        return [report.train_loss for report in make_trainer(seed=seed).run()]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_at_once(make_trainer, bad):
    trainer = make_trainer(report_every_tokens=64)
    reports = trainer.run()
    next(reports)
    with torch.no_grad():
        trainer.model.norm.weight[0] = bad
    before = [param.detach().clone() for param in trainer.optimizers.params]
    with pytest.raises(Diverged, match="the training loss is nan in step 2") as caught:
        next(reports)
    assert caught.value.tokens_seen == 64
    after = [param.detach() for param in trainer.optimizers.params]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True))
    assert len(trainer.records) == 1


def break_gradient(trainer, monkeypatch, value, steps):
    """Puts ``value`` into one gradient of AdamW's in these steps, between the backward pass and the optimizers."""
    backward = trainer.accumulation.backward

    def broken(*args, **kwargs):
        sums = backward(*args, **kwargs)
        if trainer.step in steps:
            trainer.model.norm.weight.grad[0] = value
        return sums

    monkeypatch.setattr(trainer.accumulation, "backward", broken)


def test_a_gradient_that_is_not_finite_without_a_scaler_is_divergence(make_trainer, monkeypatch):
    trainer = make_trainer()
    break_gradient(trainer, monkeypatch, math.nan, {1})
    with pytest.raises(Diverged, match="the gradient norm is nan in step 2"):
        list(trainer.run())
    assert trainer.tokens_seen == 64


def test_an_overflow_in_fp16_is_skipped_and_counted_and_training_recovers(make_trainer, monkeypatch):
    trainer = make_trainer(precision="fp16", report_every_tokens=64)
    break_gradient(trainer, monkeypatch, math.inf, {2})
    reports = list(trainer.run())
    assert [report.skipped_steps for report in reports[:4]] == [0, 0, 1, 1]
    assert reports[2].grad_norm is None
    assert reports[2].tokens_seen == 3 * 64
    assert [report.loss_scale for report in reports[1:4]] == [65536.0, 32768.0, 32768.0]
    assert reports[-1].train_loss < reports[0].train_loss - 1.0
    assert reports[-1].precision == "fp16"


def test_an_overflow_that_no_scale_mends_is_divergence(make_trainer, monkeypatch):
    trainer = make_trainer(precision="fp16")
    break_gradient(trainer, monkeypatch, math.nan, range(32))
    with pytest.raises(Diverged, match="the gradient norm is nan"):
        list(trainer.run())


def test_all_problems_of_a_config_are_reported_at_once(make_config, make_data):
    config = make_config(
        **{
            "model.top_k": 9,
            "model.n_heads": 3,
            "optimizer.lr": -1.0,
            "batch.seq_len": 5,
            "model.lb_loss_coef": math.nan,
            "model.norm_eps": 0.0,
            "optimizer.adamw_betas": (0.9, 1.0),
            "optimizer.muon_weight_decay": -0.1,
            "report_every_tokens": 0,
            "schedule.warmup_tokens": 4096,
            "seed": -1,
        }
    )
    with pytest.raises(ConfigError) as caught:
        Trainer(config, make_data(make_config()))
    message = str(caught.value)
    assert "top_k=9 exceeds n_experts=4; choose top_k <= n_experts" in message
    assert "d_model=16 is not a multiple of n_heads=3" in message
    assert "lr=-1.0 must be finite and above 0" in message
    assert "block_len=16 is not a multiple of seq_len=5" in message
    assert "lb_loss_coef=nan must be finite" in message
    assert "norm_eps=0.0 must be finite and above 0" in message
    assert "adamw_betas=(0.9, 1.0) are not in [0, 1)" in message
    assert "muon_weight_decay=-0.1 must be finite and not negative" in message
    assert "report_every_tokens=0 must be at least 1" in message
    assert "warmup_tokens=4096 and decay_tokens=512 must not be negative" in message
    assert "seed=-1 is not from 0 to 2^63 - 1" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule.budget_tokens": 2000},
            "^budget_tokens=2000 is not a positive multiple of the 64 tokens of a step; choose 1984 or 2048$",
        ),
        (
            {"schedule.budget_tokens": 2000, "exam_at_tokens": (2000,)},
            "^budget_tokens=2000 is not a positive multiple of the 64 tokens of a step; choose 1984 or 2048$",
        ),
        ({"exam_at_tokens": (0,)}, r"exam_at_tokens\[0\]=0 is not a positive multiple .* choose 64$"),
        ({"exam_at_tokens": (100,)}, r"exam_at_tokens\[0\]=100 is not a positive multiple .* choose 64 or 128"),
        ({"exam_at_tokens": (4096,)}, r"exam_at_tokens\[0\]=4096 exceeds budget_tokens=2048"),
        ({"schedule.warmup_tokens": 1600}, "warmup_tokens=1600 and decay_tokens=512 must not be negative"),
        ({"report_every_tokens": 0}, "report_every_tokens=0 must be at least 1"),
    ],
)
def test_points_that_no_step_can_hit_are_refused(make_config, make_data, changes, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(make_config(**changes), make_data(make_config()))


def test_training_beyond_the_budget_is_refused(make_trainer):
    with pytest.raises(ConfigError, match="until_tokens=4096 exceeds budget_tokens=2048"):
        next(make_trainer().run(until_tokens=4096))


def test_attention_within_documents_is_used_in_training_and_in_the_exam(make_trainer, monkeypatch):
    plain, bounded = (
        make_trainer(document_attention=value, block_len=16, exam_at_tokens=(64,)) for value in (False, True)
    )
    scored = []
    token_losses = bounded.model.token_losses

    def listening(*args, document_ids_BT=None):
        scored.append(document_ids_BT)
        return token_losses(*args, document_ids_BT=document_ids_BT)

    monkeypatch.setattr(bounded.model, "token_losses", listening)
    assert next(iter(plain.run())).train_loss != next(iter(bounded.run())).train_loss
    n_validation = len(scored)
    bounded.test_scores()
    assert 0 < n_validation < len(scored)
    assert all(ids_BT is not None for ids_BT in scored)


def test_peak_memory_is_measured_and_holds_at_least_the_weights_and_the_optimizers_state(make_trainer):
    trainer = make_trainer()
    report = next(iter(trainer.run()))
    n_weights = sum(param.numel() for param in trainer.model.parameters())
    # fp32 weights, gradients and momenta, and activations of 64 tokens beside them: less than a MiB in all.
    assert 3 * 4 * n_weights < report.peak_mem_allocated_gib * 2**30 < 2**20


def test_utilisation_is_not_guessed_on_hardware_without_a_known_peak(make_trainer):
    assert next(iter(make_trainer().run())).mfu_pct is None


def test_a_run_paused_between_two_reports_goes_on_with_the_same_records(make_trainer, tmp_path):
    whole = make_trainer(report_every_tokens=512)
    whole_records = [report.as_record() for report in whole.run()]
    paused = make_trainer(report_every_tokens=512)
    steps = iter(range(100))
    assert list(paused.run(pause=lambda: next(steps) == 4)) == []
    assert 0 < paused.tokens_seen < 512
    paused.save(tmp_path)
    again = make_trainer(report_every_tokens=512)
    again.load(tmp_path)
    records = [report.as_record() for report in again.run()]
    clocks = {"timestamp_s", "tokens_per_s", "train_time_s", "exam_time_s", "mfu_pct", "peak_mem_allocated_gib"}
    without_clocks = [{key: value for key, value in record.items() if key not in clocks} for record in records]
    assert without_clocks == [
        {key: value for key, value in record.items() if key not in clocks} for record in whole_records
    ]


def count_host_reads(monkeypatch):
    """Every read goes through one function; torch's other ways to a number raise while a step runs."""
    reads = []
    for module in ("moe.optim", "moe.expert_products"):
        monkeypatch.setattr(f"{module}.read_on_host", lambda tensor: reads.append(tensor.shape) or as_list(tensor))
    as_list = torch.Tensor.tolist

    def refuse(*_):
        raise AssertionError("a number was read past moe.device.read_on_host")

    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    return reads


@pytest.mark.parametrize(("capability", "reads_a_layer"), [((7, 5), 1), ((8, 0), 1), ((9, 0), 0), ((10, 0), 0)])
@pytest.mark.parametrize("n_micro_steps", [1, 2])
def test_the_host_reads_once_a_step_and_below_9_once_a_layer(
    make_config, make_data, monkeypatch, capability, reads_a_layer, n_micro_steps
):
    gpu = Device(kind="cuda", name="a GPU", compute_capability=capability)
    precision = resolve_precision("auto", gpu)
    # without the counting pass, which reads a layer's loads once more for each later micro-step
    config = make_config(
        precision=precision.name, **{"batch.grad_accum_steps": n_micro_steps, "model.lb_loss_coef": 0.0}
    )
    trainer = Trainer(config, make_data(config), choices=choose(gpu, precision))
    monkeypatch.setattr(trainer, "_peak_memory", nullcontext)  # on a GPU its allocator is asked
    trainer.scaler = None  # on CPU tensors torch's scaler reads what on CUDA stays on the device
    trainer.run(until_tokens=64)
    reads = count_host_reads(monkeypatch)
    trainer._train_one_step()
    monkeypatch.undo()
    assert len(reads) == 1 + reads_a_layer * config.model.n_layers * n_micro_steps


def test_counting_experts_beforehand_is_no_training_time(make_trainer):
    one, several = (make_trainer(**{"batch.micro_batch_size": 4 // n, "batch.grad_accum_steps": n}) for n in (1, 2))
    alone, together = (list(trainer.run())[-1] for trainer in (one, several))
    assert alone.counting_time_s == 0.0
    assert together.counting_time_s > 0.0
    assert several.records[-1]["counting_time_s"] == several.counting_time_s


def test_time_spent_counting_is_kept_out_of_the_speed(make_trainer, monkeypatch):
    """Had counting taken -100 s, training took 100 s more than the clock says."""
    trainer = make_trainer(report_every_tokens=64, **{"batch.micro_batch_size": 2, "batch.grad_accum_steps": 2})
    monkeypatch.setattr("moe.stopwatch.Stopwatch.seconds", property(lambda _: -100.0))
    report = next(iter(trainer.run()))
    assert report.train_time_s > 100.0
    assert report.tokens_per_s < 0.64
    assert report.counting_time_s == -100.0
