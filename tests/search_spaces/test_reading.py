"""Presets, files, shorthand and overrides become spaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from search_spaces import (
    OptunaSearch,
    Space,
    SpaceErrors,
    confirm_cells,
    explore_cells,
    load_space,
    parse_space,
    planned_cells,
    preset_names,
    template_text,
    with_overrides,
)


def shapes(space: Space) -> list[tuple[str, int, int, int]]:
    return [(arm.name, arm.micro_batch_size, arm.seq_len, arm.grad_accum_steps) for arm in space.strategies]


def test_every_preset_is_a_valid_space_that_survives_json() -> None:
    assert preset_names() == ("smoke", "laptop", "routing", "schedule", "matched", "tutorial", "published")
    for name in preset_names():
        space = load_space(preset=name)
        assert space.description, name
        assert Space.from_resolved(json.loads(json.dumps(space.resolved()))) == space, name


def test_tutorial_has_the_studys_shapes_and_nine_cells_per_phase() -> None:
    space = load_space(preset="tutorial")
    assert shapes(space) == [("large_batch", 64, 256, 2), ("balanced", 24, 512, 4), ("long_seq", 8, 1024, 8)]
    assert [arm.tokens_per_step for arm in space.strategies] == [32_768, 49_152, 65_536]
    assert space.budget_tokens == 3_145_728
    assert space.rates.lr == (0.005, 0.01, 0.02)
    assert space.rates.adamw_fixed == 0.001
    assert (space.corpus.dataset, space.corpus.name) == ("HuggingFaceTB/smollm-corpus", "cosmopedia-v2")
    assert space.tokenizer.id == "HuggingFaceTB/SmolLM-135M"
    assert (len(explore_cells(space, None)), len(confirm_cells(space, None))) == (9, 9)


def test_published_hits_its_budget_in_96_and_104_steps() -> None:
    space = load_space(preset="published")
    assert shapes(space) == [("large_batch", 104, 256, 1), ("balanced", 26, 1024, 1), ("long_seq", 6, 4096, 1)]
    assert [space.budget_tokens / arm.tokens_per_step for arm in space.strategies] == [96, 96, 104]
    assert space.rates.lr == (0.01, 0.02, 0.03, 0.04)
    assert (len(explore_cells(space, None)), len(confirm_cells(space, None))) == (12, 9)


def test_matched_has_the_tutorials_lengths_and_model_with_equal_steps_and_needs_no_download() -> None:
    matched, tutorial = load_space(preset="matched"), load_space(preset="tutorial")
    assert [arm.seq_len for arm in matched.strategies] == [arm.seq_len for arm in tutorial.strategies]
    assert {arm.tokens_per_step for arm in matched.strategies} == {32_768}
    assert {arm.grad_accum_steps for arm in matched.strategies} == {1}, "no arm counts its experts beforehand"
    assert matched.budget_tokens == 3_145_728
    assert matched.model == tutorial.model
    assert (matched.corpus.kind, matched.tokenizer.kind) == ("embedded", "bpe")


def test_smoke_has_two_rates_two_confirm_seeds_and_no_widening() -> None:
    space = load_space(preset="smoke")
    assert (len(space.rates.lr), space.seeds.confirm, space.rates.max_widenings) == (2, 2, 0)
    assert len(planned_cells(space)) == 12
    assert "seeds.confirm=2 is below 3, so the verdict will be exploratory" in space.warnings()


def test_laptop_compares_equal_steps_and_warns_of_nothing() -> None:
    space = load_space(preset="laptop")
    assert {arm.tokens_per_step for arm in space.strategies} == {2_048}
    assert space.rungs_tokens == (space.budget_tokens // 4, space.budget_tokens // 2)
    assert space.early_stopping.keep_counts(4) == (3, 2)
    assert space.warnings() == []


def test_the_template_is_valid_as_it_stands_and_shows_every_key() -> None:
    text = template_text()
    space = parse_space(text)
    assert space.budget_tokens == 524_288
    keys = {
        key for section in (space, *(getattr(space, name) for name in Space.model_fields)) for key in _keys(section)
    }
    hidden = {"fitted", "adamw_ratio_low", "adamw_ratio_high", "id", "name", "split", "revision"}
    assert sorted(key for key in keys - hidden if key not in text) == []


def _keys(section: object) -> list[str]:
    return list(getattr(type(section), "model_fields", {}))


def test_what_the_template_comments_out_as_a_default_is_one() -> None:
    text = template_text()
    defaults = ["precision", "keep", "controls", "time_view", "lb_loss_coef", "z_loss_coef", "rope_theta", "norm_eps"]
    defaults += ["init_std", "document_attention", "text_column", "split_column", "validation_share", "test_share"]
    defaults += [
        "longer_windows",
        "duplicates",
        "max_overlap_share",
        "max_common_run_tokens",
        "max_epochs",
        "[optimizer]",
        "muon_momentum",
        "muon_weight_decay",
        "adamw_betas",
        "adamw_eps",
    ]
    defaults += ["adamw_weight_decay", "clip_grad_norm", "n_kv_heads"]
    for key in defaults:
        assert f"\n# {key}" in text, key
        text = text.replace(f"\n# {key}", f"\n{key}")
    assert parse_space(text) == parse_space(template_text())


def test_a_misspelt_preset_is_told_the_nearest() -> None:
    with pytest.raises(
        SpaceErrors, match="preset=\"labtop\" is not a preset; did you mean 'laptop'\\? Presets: smoke,"
    ):
        load_space(preset="labtop")


def test_a_space_comes_from_a_preset_or_a_file_and_not_from_both(tmp_path: Path) -> None:
    with pytest.raises(SpaceErrors, match="space is a preset or a file, and both were given; name exactly one"):
        load_space(preset="smoke", path=tmp_path)
    with pytest.raises(SpaceErrors, match="neither was given"):
        load_space()


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(SpaceErrors, match=r"missing\.toml does not exist; check the path"):
        load_space(path=tmp_path / "missing.toml")
    with pytest.raises(SpaceErrors, match=r"cannot be read \(Is a directory\)"):
        load_space(path=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'description = "\xe9"')
    with pytest.raises(SpaceErrors, match=r"latin\.toml is not UTF-8 text; save it as UTF-8"):
        load_space(path=tmp_path / "latin.toml")


def test_a_file_is_read_like_a_text(tmp_path: Path, tiny_text: str, tiny: Space) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_text, encoding="utf-8")
    assert load_space(path=tmp_path / "tiny.toml") == tiny


def test_overrides_take_toml_values_and_bare_words(tiny_text: str) -> None:
    space = parse_space(
        tiny_text,
        [
            "seeds.confirm=5",
            "corpus=files:novels/*.txt",
            "rates.lr=[0.1, 0.2]",
            "precision=bf16",
            "strategies.long_seq.micro_batch_size = 2",
            "strategies.0.grad_accum_steps=2",
            'description="a = b"',
            "time_view=true",
        ],
    )
    assert space.seeds.confirm == 5
    assert (space.corpus.kind, space.corpus.paths) == ("files", ("novels/*.txt",))
    assert space.rates.lr == (0.1, 0.2)
    assert space.precision == "bf16"
    assert shapes(space) == [("large_batch", 8, 8, 2), ("long_seq", 2, 64, 1)]
    assert space.description == "a = b"
    assert space.time_view is True


def test_a_later_override_wins_and_a_shorthand_can_be_refined(tiny_text: str) -> None:
    overrides = ["corpus=hub:a/b/c", "corpus.revision=main", "tokenizer.vocab_size=300", "tokenizer.vocab_size=400"]
    space = parse_space(tiny_text, overrides)
    corpus = space.corpus
    assert (corpus.kind, corpus.dataset, corpus.name, corpus.revision) == ("hub", "a/b", "c", "main")
    assert (space.tokenizer.kind, space.tokenizer.vocab_size) == ("bpe", 400)


def test_choosing_adamws_rate_by_override_replaces_the_files_choice(tiny_text: str) -> None:
    rates = parse_space(tiny_text, ["rates.adamw_fixed=0.001"]).rates
    assert (rates.adamw_ratio, rates.adamw_fixed, rates.adamw_grid) == (None, 0.001, None)


def test_an_arm_whose_name_has_dots_can_be_addressed(tiny_text: str) -> None:
    space = parse_space(tiny_text.replace('"long_seq"', '"v1.0"'), ["strategies.v1.0.micro_batch_size=2"])
    assert space.strategy("v1.0").micro_batch_size == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds", "--set=seeds must be key=value; write it like --set seeds.confirm=3"),
        ("=3", "--set==3 must be key=value"),
        ("a..b=3", "must be key=value"),
        ("rates.lr=[0.1", "--set rates.lr=[0.1 is not a TOML value"),
        (
            "strategies.long_sec.seq_len=8",
            "--set strategies.long_sec names none of the strategies; did you mean 'long_seq'?",
        ),
        ("strategies.9.seq_len=8", "--set strategies.9 names none of the strategies; there are large_batch, long_seq"),
        ("strategies.long_seq=8", "--set strategies.long_seq names a whole arm; set one of its keys"),
        ("precision.kind=3", "precision={kind = 3} must be one of auto, fp32, bf16, fp16"),
        ("budget_tokens.x=3", "--set budget_tokens is a value and has no keys; set budget_tokens itself"),
        ("budget_tokens=1\nseeds.confirm=2", "must be a whole number"),
    ],
)
def test_an_override_that_cannot_be_applied_says_so(tiny_text: str, override: str, message: str) -> None:
    with pytest.raises(SpaceErrors) as caught:
        parse_space(tiny_text, [override])
    assert message in str(caught.value)


def test_a_wrong_override_does_not_hide_the_problems_of_the_file(tiny_text: str) -> None:
    with pytest.raises(SpaceErrors) as caught:
        parse_space(tiny_text.replace("top_k = 2", "top_k = 9"), ["oops"])
    assert [problem.where for problem in caught.value.problems] == ["--set", "model.top_k"]


def test_optuna_takes_its_bounds_from_the_grid_that_it_replaces(tiny_text: str) -> None:
    search = parse_space(tiny_text, ["search=optuna", "search.trials_per_arm=6"]).search
    assert isinstance(search, OptunaSearch)
    assert (search.trials_per_arm, search.seed, search.lr_low, search.lr_high) == (6, 0, 0.01, 0.02)
    assert not search.searches_adamw_ratio


def test_optuna_without_bounds_or_grid_misses_them(tiny_text: str) -> None:
    with pytest.raises(SpaceErrors, match=r"search\.lr_low is missing; add 'lr_low' under \[search\]"):
        parse_space(tiny_text.replace("lr = [0.01, 0.02]", ""), ["search=optuna"])


def test_optuna_may_search_adamws_ratio_when_the_rates_name_none(tiny_text: str) -> None:
    ratio = "search={kind='optuna', adamw_ratio_low=0.1, adamw_ratio_high=1.0}"
    search = parse_space(tiny_text.replace("adamw_ratio = 0.3", ""), [ratio]).search
    assert isinstance(search, OptunaSearch)
    assert search.searches_adamw_ratio


def test_kv_heads_are_heads_unless_given(tiny_text: str) -> None:
    assert parse_space(tiny_text).model.n_kv_heads == 2
    assert parse_space(tiny_text, ["model.n_kv_heads=1"]).model.n_kv_heads == 1


def test_keep_fractions_round_down_and_keep_at_least_one(tiny_text: str) -> None:
    space = parse_space(tiny_text, ["early_stopping.keep=[0.75, 0.1]"])
    assert space.early_stopping.keep_counts(4) == (3, 1)
    assert space.early_stopping.keep_counts(1) == (1, 1)
    assert parse_space(tiny_text, ["early_stopping=none"]).early_stopping.keep_counts(4) == ()


def test_a_space_is_frozen(tiny: Space) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny.budget_tokens = 1


def test_a_space_built_by_hand_keeps_the_rules_too(tiny: Space) -> None:
    with pytest.raises(ValidationError, match=r"budget_tokens=100 must be a multiple of 64"):
        Space.model_validate({**tiny.resolved(), "budget_tokens": 100})


def test_resources_of_a_running_sweep_can_be_overridden(tiny: Space) -> None:
    assert with_overrides(tiny, ["resources.workers=3"]).resources.workers == 3
    with pytest.raises(SpaceErrors, match=r"resources.workers=0 must be"):
        with_overrides(tiny, ["resources.workers=0"])


def test_arms_that_differ_in_tokens_per_step_are_allowed_with_a_warning(tiny_text: str) -> None:
    space = parse_space(tiny_text, ["strategies.long_seq.micro_batch_size=2"])
    assert space.warnings() == [
        "arms differ in tokens per step (large_batch 64, long_seq 128), so at equal tokens they differ in updates too",
        "long_seq makes only 32 updates in 4096 tokens",
    ]


def test_an_early_rung_and_a_grid_that_is_all_edge_are_warned_of(tiny_text: str) -> None:
    warnings = parse_space(tiny_text, ["rungs_tokens=[512, 2048]", "rates.max_widenings=0"]).warnings()
    assert warnings == [
        "every rate of rates.lr (2 given) is at the edge of its grid and rates.max_widenings=0, "
        "so no arm's best rate can be shown to be one",
        "the rung at 512 tokens is 12% of the budget, too early for losses to rank rates",
    ]
