import pytest
import torch

from moe.errors import OutOfMemory


def out_of_memory_at_calls(trainer, monkeypatch, calls, *, error=None):
    """The model's forward fails at these calls (counted from 0); returns the row counts of all calls."""
    loss, rows = trainer.model.loss, []

    def failing(tokens_BT, *args, **kwargs):
        rows.append(tokens_BT.shape[0])
        if len(rows) - 1 in calls:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(tokens_BT, *args, **kwargs)

    monkeypatch.setattr(trainer.model, "loss", failing)
    return rows


def weights(trainer):
    return torch.cat([param.detach().flatten() for param in trainer.optimizers.params])


def test_once_out_of_memory_the_step_is_done_again_in_halves(make_trainer, monkeypatch):
    undisturbed, trainer = make_trainer(), make_trainer()
    rows = out_of_memory_at_calls(trainer, monkeypatch, {2})
    reports = list(trainer.run(until_tokens=256))
    expected = list(undisturbed.run(until_tokens=256))
    assert rows == [4, 4, 4, 2, 2, 2, 2]
    assert [report.micro_batch_splits for report in reports] == [1]
    assert trainer.records[-1]["micro_batch_splits"] == 1
    assert reports[-1].tokens_seen == expected[-1].tokens_seen
    # The same gradient summed in another order, through four steps.
    assert reports[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=1e-5)
    assert reports[-1].expert_load_max_over_mean == expected[-1].expert_load_max_over_mean
    torch.testing.assert_close(weights(trainer), weights(undisturbed), atol=1e-5, rtol=0)


def test_twice_out_of_memory_splits_twice(make_trainer, monkeypatch):
    trainer = make_trainer()
    rows = out_of_memory_at_calls(trainer, monkeypatch, {0, 2})
    list(trainer.run(until_tokens=64))
    assert rows == [4, 2, 2, 1, 1, 1, 1]
    assert trainer.accumulation.splits == 2


def test_an_error_in_the_middle_of_an_accumulation_leaves_nothing_behind(make_trainer, monkeypatch):
    """Gradients of the micro-steps before the error are thrown away: the step counts each token once."""
    shape = {"batch.micro_batch_size": 2, "batch.grad_accum_steps": 2}
    undisturbed, trainer = make_trainer(**shape), make_trainer(**shape)
    rows = out_of_memory_at_calls(trainer, monkeypatch, {1})
    list(trainer.run(until_tokens=64))
    list(undisturbed.run(until_tokens=64))
    assert rows == [2, 2, 1, 1, 1, 1]
    torch.testing.assert_close(weights(trainer), weights(undisturbed), atol=1e-5, rtol=0)


def test_always_out_of_memory_ends_the_run_at_one_row(make_trainer, monkeypatch):
    trainer = make_trainer()
    list(trainer.run(until_tokens=64))
    before = weights(trainer).clone()
    rows = out_of_memory_at_calls(trainer, monkeypatch, range(1000))
    with pytest.raises(OutOfMemory, match=r"no memory for one row of seq_len=16 on cpu .*choose a shorter") as caught:
        list(trainer.run())
    assert caught.value.tokens_seen == 64
    assert rows == [4, 2, 1]
    assert torch.equal(weights(trainer), before)


def test_running_out_in_the_backward_pass_is_the_same(make_trainer, monkeypatch):
    trainer = make_trainer()
    backward, calls = torch.Tensor.backward, []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", failing)
    list(trainer.run(until_tokens=64))
    assert trainer.accumulation.n_parts == 2
    assert trainer.tokens_seen == 64


def test_no_room_for_the_optimizers_is_final(make_trainer, monkeypatch):
    trainer = make_trainer()

    def failing():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.optimizers, "step", failing)
    with pytest.raises(OutOfMemory, match="no memory for the optimizers' step on cpu"):
        list(trainer.run())


def test_other_errors_are_not_mistaken_for_memory(make_trainer, monkeypatch):
    trainer = make_trainer()
    out_of_memory_at_calls(trainer, monkeypatch, {0}, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(trainer.run())
    assert trainer.accumulation.splits == 0


def test_a_resumed_run_keeps_to_the_smaller_parts(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer()
    out_of_memory_at_calls(trainer, monkeypatch, {0})
    list(trainer.run(until_tokens=64))
    trainer.save(tmp_path)
    resumed = make_trainer()
    resumed.load(tmp_path)
    rows = out_of_memory_at_calls(resumed, monkeypatch, set())
    list(resumed.run(until_tokens=128))
    assert rows == [2, 2]
    assert resumed.accumulation.splits == 1


def exam_out_of_memory_above(trainer, monkeypatch, most_rows):
    """Scoring fails on more rows than these; returns the row counts of all passes."""
    token_losses, rows = trainer.model.token_losses, []

    def failing(tokens_BT, *args, **kwargs):
        rows.append(tokens_BT.shape[0])
        if rows[-1] > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return token_losses(tokens_BT, *args, **kwargs)

    monkeypatch.setattr(trainer.model, "token_losses", failing)
    return rows


def test_an_exam_that_runs_out_of_memory_goes_on_in_halves(make_trainer, monkeypatch):
    undisturbed, trainer = make_trainer(exam_at_tokens=(64,)), make_trainer(exam_at_tokens=(64,))
    rows = exam_out_of_memory_above(trainer, monkeypatch, 1)
    report = next(iter(trainer.run()))
    assert rows == [3, 2, 1, 1, 1]  # passes of 4, 2 and 1 windows
    # The same losses from passes of other sizes: fp32 rounding only.
    assert report.val_loss == pytest.approx(next(iter(undisturbed.run())).val_loss, rel=1e-6)


def test_no_memory_for_one_window_of_the_exam_is_final(make_trainer, monkeypatch):
    trainer = make_trainer(exam_at_tokens=(64,))
    exam_out_of_memory_above(trainer, monkeypatch, 0)
    with pytest.raises(OutOfMemory, match="no memory for the exam on cpu"):
        list(trainer.run())
