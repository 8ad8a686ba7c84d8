"""What is far too large, too deep or no text at all is refused before anything of that size is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from search_spaces import Space, SpaceErrors, extended_space, load_space, parse_space, rules, with_overrides


def refusal(text: str, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(SpaceErrors) as caught:
        parse_space(text, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget_tokens=10_000_000_000_000", "budget_tokens=10000000000000 must be at most 1000000000000"),
        ("model.n_layers=100000000", "model.n_layers=100000000 must be at most 512; choose a value <= 512"),
        ("model.n_experts=100000000", "model.n_experts=100000000 must be at most 1024"),
        ("model.d_model=1000000000000", "model.d_model=1000000000000 must be at most 65536"),
        ("model.d_expert=1000000000", "model.d_expert=1000000000 must be at most 262144"),
        ("model.n_heads=1000000000", "model.n_heads=1000000000 must be at most 65536"),
        ("seeds.confirm=100000000", "seeds.confirm=100000000 must be at most 1000"),
        ("seeds.explore=101", "seeds.explore=101 must be at most 100"),
        ("strategies.long_seq.seq_len=1073741824", "strategies.long_seq.seq_len=1073741824 must be at most 1048576"),
        ("strategies.long_seq.micro_batch_size=1000000", "micro_batch_size=1000000 must be at most 65536"),
        ("strategies.long_seq.grad_accum_steps=1000000", "grad_accum_steps=1000000 must be at most 65536"),
        ("rates.max_widenings=11", "rates.max_widenings=11 must be at most 10"),
        ("rates.lr=[0.01, 1e300]", "rates.lr[1]=1e+300 must lie between 1e-12 and 1000; choose a value like 0.02"),
        ("rates.adamw_ratio=1e-300", "rates.adamw_ratio=1e-300 must lie between 1e-12 and 1000"),
        ("search={kind='optuna', trials_per_arm=1000000}", "search.trials_per_arm=1000000 must be at most 1000"),
        ("search={kind='optuna', seed=9223372036854775808}", "must be at most 9223372036854775807"),
        ("tokenizer=bpe:1000000000", "tokenizer.vocab_size=1000000000 must be at most 1048576"),
        ("exam.rows_test=100000000", "exam.rows_test=100000000 must be at most 1000000"),
        ("exam.rows_validation=100000000", "exam.rows_validation=100000000 must be at most 1000000"),
        ("resources.workers=100000", "resources.workers=100000 must be at most 10000"),
        ("resources.threads_per_trial=100000", "resources.threads_per_trial=100000 must be at most 1024"),
        ("resources.declared_gpus=100000", "resources.declared_gpus=100000 must be at most 1024"),
        ("verdict.looks=100000000", "verdict.looks=100000000 must be at most 1000"),
        (f"corpus.text_column={'x' * 5_000}", 'corpus.text_column="xxxxx'),
        ('corpus={kind="files", paths=["a\\u0000b"]}', "must not hold control characters; write it in one line"),
    ],
)
def test_a_count_beyond_its_bound_is_refused(tiny_text: str, override: str, message: str) -> None:
    assert message in refusal(tiny_text, [override])


def test_a_number_of_seven_thousand_digits_is_refused(tiny_text: str) -> None:
    assert "seeds.confirm=a number of hundreds of digits must be at most 1000" in refusal(
        tiny_text.replace("confirm = 3", f"confirm = 0x{'f' * 6_000}")
    )
    assert "is not valid TOML" in refusal(tiny_text.replace("confirm = 3", f"confirm = {'9' * 7_000}"))


def test_lists_have_a_length_that_can_be_compared(tiny_text: str) -> None:
    arm = '[[strategies]]\nname = "arm{0}"\nmicro_batch_size = {0}\nseq_len = 8\n'
    assert "must have at most 32 entries; shorten it" in refusal(
        tiny_text + "".join(arm.format(number) for number in range(1, 40))
    )
    assert "must have at most 1000 entries" in refusal(tiny_text, [f"rates.lr={[n / 1e4 for n in range(1, 1_002)]}"])
    assert "must have at most 100 entries" in refusal(tiny_text, [f"rungs_tokens={list(range(64, 8_000, 64))}"])


def test_the_whole_sweep_is_bounded_where_each_count_is_allowed(tiny_text: str) -> None:
    grid = [n / 1e4 for n in range(1, 101)]
    assert (
        "the space has about 20006 cells (arms x budgets x (rates x explore seeds + confirm seeds)), and may have 10000"
        "; leave out arms, budgets, rates or seeds"
    ) in refusal(tiny_text, [f"rates.lr={grid}", "seeds.explore=100"])
    shape = ["model.d_model=65536", "model.n_heads=512", "model.d_expert=65536", "model.n_layers=2"]
    assert refusal(tiny_text, shape).endswith(
        "model has about 137 billion parameters, and may have 100; "
        "choose a smaller d_model, n_layers, n_experts or d_expert"
    )


def test_an_extension_by_too_many_seeds_is_refused_before_a_seed_is_counted(tiny: Space) -> None:
    with pytest.raises(SpaceErrors, match=r"seeds.confirm=99999999999 must be at most 1000; choose a value <= 1000"):
        extended_space(tiny, confirm_seeds=99_999_999_999)
    with pytest.raises(SpaceErrors, match=r"--lr=1e\+300 must be a rate from 1e-12 to 1000; choose a rate like 0.02"):
        extended_space(tiny, lr=[1e300])


@pytest.mark.parametrize("deep", ["x = " + "[" * 3_000, "x = " + "{a=" * 3_000, "x = " + "[" * 400 + "]" * 400])
def test_toml_that_is_nested_without_end_is_refused(tiny_text: str, deep: str) -> None:
    assert refusal(f"{deep}\n{tiny_text}").endswith(
        "the space is nested too deeply; write tables and lists as in the template that `sweeps new` writes"
    )


def test_a_deep_key_or_a_deep_override_is_refused(tiny_text: str, tiny: Space) -> None:
    assert "is nested too deeply" in refusal(f"{'a.' * 5_000}a = 1\n{tiny_text}")
    for override in ("rates.lr=" + "[" * 3_000, "a." * 5_000 + "a=1"):
        assert "nested too deeply" in refusal(tiny_text, [override])
        with pytest.raises(SpaceErrors, match="nested too deeply"):
            with_overrides(tiny, [override])


def test_of_three_hundred_thousand_unknown_keys_the_first_and_their_number_are_reported(tiny_text: str) -> None:
    keys = "".join(f"key_{number} = 1\n" for number in range(300_000))
    lines = refusal(keys + tiny_text.replace("confirm = 3", "confirm = 0")).splitlines()
    assert lines[1] == "  seeds.confirm=0 must be at least 1; choose a value >= 1"
    assert lines[2].startswith("  key_0=1 is not a key of a space")
    assert lines[-1] == "  the space has 299,951 more problems; correct those above first"
    assert len(lines) == 52


@pytest.mark.parametrize("digits", ["²", "1__0", "9" * 5_000, "many"])
def test_what_only_looks_like_a_number_is_no_vocabulary_size(tiny_text: str, digits: str) -> None:
    assert "tokenizer.vocab_size=" in refusal(tiny_text, [f"tokenizer=bpe:{digits}"])


def test_a_superscript_is_no_index_of_an_arm(tiny_text: str) -> None:
    assert "--set strategies.² names none of the strategies" in refusal(tiny_text, ["strategies.².seq_len=8"])


def test_control_characters_of_a_file_do_not_reach_the_terminal(tiny_text: str) -> None:
    said = refusal('"\\u001b[31mred" = "\\u0007"\n' + tiny_text)
    assert '  \\x1b[31mred="\\x07" is not a key of a space' in said
    assert said.replace("\n", "").isprintable()


def test_a_byte_order_mark_is_read_over_and_a_nul_is_named(tmp_path: Path, tiny_text: str, tiny: Space) -> None:
    path = tmp_path / "space.toml"
    path.write_bytes(b"\xef\xbb\xbf" + tiny_text.encode())
    assert load_space(path=path) == tiny
    path.write_bytes(b"\0" + tiny_text.encode())
    with pytest.raises(SpaceErrors, match="is not valid TOML"):
        load_space(path=path)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere.toml")
    (tmp_path / "huge.toml").touch()
    os.truncate(tmp_path / "huge.toml", 2**40)
    for name, message in {
        "pipe": "pipe is not a regular file; save the space in a file and name that",
        "link": "link is a link to nowhere.toml, which does not exist; check the path",
        "huge.toml": "huge.toml is larger than 16 MiB; name a space, which is a few kilobytes",
        "a\0b": "cannot be read (embedded null byte)",
        "x" * 5_000: "cannot be read (File name too long)",
    }.items():
        with pytest.raises(SpaceErrors) as caught:
            load_space(path=tmp_path / name)
        assert message in str(caught.value)


def test_every_rule_runs_once_per_load(tiny_text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def counted(budget_tokens: int) -> rules.Problems:
        runs.append(budget_tokens)
        yield from ()

    monkeypatch.setattr(rules, "RULES", (*rules.RULES, (counted, ("budget_tokens",))))
    parse_space(tiny_text)
    assert runs == [4096]
    refusal(tiny_text, ["model.top_k=0", "seeds.confirm=0"])
    assert runs == [4096, 4096]
