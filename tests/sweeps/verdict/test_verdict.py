"""The five outcomes, their precedence, and the shape of verdict.json."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sweeps.ledger.results import CellResult
from sweeps.verdict.decision import decide
from tests.sweeps.planted_sweep import CLEAR_WIN, CURVES, cell, confirm, explore, sweep

TIED = {**CLEAR_WIN, "balanced": (4.402, 4.408, 4.391, 4.404, 4.397)}
NOISY = {
    "large_batch": (4.40, 4.51, 4.39, 4.41, 4.39),
    "balanced": (4.50, 4.41, 4.59, 4.40, 4.40),
    "long_seq": CLEAR_WIN["long_seq"],
}
KEYS = [
    "schema", "sweep", "outcome", "winner", "statement", "metric", "alpha", "margin", "budget_tokens", "strategies",
    "pairs", "exam", "pairing", "tie_at_chosen_rates", "excluded", "last_decided", "seeds_needed", "documents_needed",
    "looks", "context", "controls", "by_rung", "by_budget", "by_budget_tokens", "trend", "caveats",
]  # fmt: skip
STRATEGY_KEYS = [
    "name", "micro_batch_size", "seq_len", "grad_accum_steps", "tokens_per_step", "role", "differs_in", "parameters",
    "active_parameters", "flops_per_token", "best_lr", "best_lr_at_edge", "seeds", "losses",
    "mean", "ci_low", "ci_high", "bpb", "common_context_loss", "tokens_per_s", "peak_mem_allocated_gib",
    "diverged", "excluded",
]  # fmt: skip
PAIR_KEYS = [
    "a", "b", "difference", "ci_low", "ci_high", "p_value", "p_adjusted", "probability_a_better", "decision",
    "passes_win_test", "tests",
]  # fmt: skip


def with_fate(cells: Sequence[CellResult], strategy: str, seed: int, outcome: str | None) -> list[CellResult]:
    """The same cells, one of them ended otherwise, without losses."""
    return [
        replace(found, outcome=outcome, tokens_seen=400, val_loss=None, test_loss=None)
        if (found.cell.strategy, found.cell.seed) == (strategy, seed)
        else found
        for found in cells
    ]


def later(losses: Mapping[str, Sequence[float]], after: int) -> list[CellResult]:
    """Confirm cells on seeds that follow ``after`` earlier ones."""
    return [replace(found, cell=replace(found.cell, seed=found.cell.seed + after)) for found in confirm(losses)]


def test_an_arm_that_beats_every_other_on_fresh_seeds_wins() -> None:
    verdict = decide(sweep(explore() + confirm())).as_dict()
    assert (verdict["outcome"], verdict["winner"]) == ("wins", "large_batch")
    pair = verdict["pairs"][0]
    assert (pair["a"], pair["b"], pair["decision"]) == ("large_batch", "balanced", "large_batch is better")
    assert pair["difference"] == pytest.approx(-0.2)
    assert pair["ci_low"] < -0.2 < pair["ci_high"] < 0
    assert pair["probability_a_better"] > 0.99


def test_the_document_has_exactly_the_keys_of_the_contract_and_is_json_without_nan() -> None:
    for cells in ([], explore(), explore() + confirm(), explore() + with_fate(confirm(), "balanced", 102, "diverged")):
        verdict = decide(sweep(cells)).as_dict()
        assert list(verdict) == KEYS
        assert [list(row) for row in verdict["strategies"]] == [STRATEGY_KEYS] * 3
        assert [list(row) for row in verdict["pairs"]] == [PAIR_KEYS] * 3
        assert list(verdict["looks"]) == ["planned", "used"]
        assert list(verdict["by_budget"]) == ["tokens", "flops", "time", "updates"]
        json.dumps(verdict, allow_nan=False)


def test_deciding_twice_gives_the_same_document() -> None:
    results = sweep(explore() + confirm(NOISY))
    assert decide(results).as_dict() == decide(results).as_dict()


def test_arms_that_differ_by_less_than_the_margin_tie() -> None:
    verdict = decide(sweep(explore() + confirm(TIED))).as_dict()
    assert (verdict["outcome"], verdict["winner"]) == ("tie", None)
    assert verdict["pairs"][0]["decision"] == "tie"
    assert verdict["pairs"][1]["decision"] == "large_batch is better"


def test_noise_that_hides_the_order_is_undecided_and_says_how_many_seeds_would_settle_it() -> None:
    verdict = decide(sweep(explore() + confirm(NOISY)))
    assert verdict.outcome == "undecided"
    assert verdict.seeds_needed is not None
    assert verdict.command == f"sweeps extend planted --seeds {5 + verdict.seeds_needed}"


def test_every_pair_carries_holms_adjustment_and_a_pair_without_the_winner_is_decided_by_it() -> None:
    close = {**CLEAR_WIN, "long_seq": (4.612, 4.615, 4.604, 4.607, 4.606)}  # p = 0.01 against balanced
    pairs = decide(sweep(explore() + confirm(close))).as_dict()["pairs"]
    p_values = [pair["p_value"] for pair in pairs]
    assert pairs[2]["p_value"] == max(p_values)
    assert pairs[2]["p_adjusted"] == pytest.approx(pairs[2]["p_value"])  # the largest of three is multiplied by one
    assert pairs[0]["p_adjusted"] >= 2 * pairs[0]["p_value"]
    assert pairs[2]["decision"] == "balanced is better"


def test_a_pair_that_only_its_own_p_value_separates_stays_undecided_without_a_winner() -> None:
    losses = {
        "large_batch": (4.400, 4.400, 4.400, 4.400, 4.400),
        "balanced": (4.401, 4.402, 4.400, 4.404, 4.403),  # p = 0.03 against large_batch
        "long_seq": (4.41, 4.39, 4.42, 4.38, 4.41),
    }
    verdict = decide(sweep(explore() + confirm(losses), verdict={"alpha": 0.05, "margin": 0.0001, "looks": 1}))
    pair = verdict.as_dict()["pairs"][0]
    assert verdict.outcome == "undecided"
    assert pair["p_value"] < 0.05 < pair["p_adjusted"]
    assert pair["decision"] == "undecided"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_fewer_than_three_confirm_seeds_are_exploratory_whatever_they_say(seeds: int) -> None:
    few = {arm: losses[:seeds] for arm, losses in CLEAR_WIN.items()}
    verdict = decide(sweep(explore() + confirm(few), seeds={"explore": 1, "confirm": seeds}))
    assert (verdict.outcome, verdict.winner) == ("exploratory", None)
    assert verdict.command == "sweeps extend planted --seeds 3"
    assert verdict.seeds_needed == 3
    for pair in verdict.pairs:
        assert pair.decision == "not_judged"
        assert (pair.p_value, pair.p_adjusted, pair.probability_a_better) == (None, None, None)
        assert [test.p_value for test in pair.tests] == [None] * len(pair.tests)


def test_exploratory_outranks_withheld_and_both_reasons_are_told() -> None:
    rising = {arm: {0.01: 4.5, 0.02: 4.6} for arm in CURVES}
    two = {arm: losses[:2] for arm, losses in CLEAR_WIN.items()}
    verdict = decide(sweep(explore(rising) + confirm(two, lr=0.01), seeds={"explore": 1, "confirm": 2}))
    assert verdict.outcome == "exploratory"
    assert "2 seeds per arm (3 needed)" in verdict.statement
    assert "every arm was best at its lowest rate, 0.01" in verdict.statement


def test_a_best_rate_at_the_edge_withholds_and_prints_the_command() -> None:
    edge = {**CURVES, "long_seq": {0.005: 5.3, 0.01: 4.9, 0.02: 4.8, 0.04: 4.7}}
    cells = [
        *explore(edge),
        *(found for found in confirm() if found.cell.strategy != "long_seq"),
        *confirm({"long_seq": CLEAR_WIN["long_seq"]}, lr=0.04),
    ]
    verdict = decide(sweep(cells))
    assert verdict.outcome == "withheld"
    assert verdict.command == "sweeps extend planted --lr 0.08"
    assert "`sweeps extend planted --lr 0.08`" in verdict.statement
    row = verdict.as_dict()["strategies"][2]
    assert (row["name"], row["best_lr"], row["best_lr_at_edge"]) == ("long_seq", 0.04, True)


def test_a_diverged_confirm_seed_ends_its_own_arm_and_the_others_are_judged() -> None:
    verdict = decide(sweep(explore() + with_fate(confirm(), "long_seq", 103, "diverged")))
    assert (verdict.outcome, verdict.winner) == ("wins", "large_batch")
    assert "long_seq diverged on confirm seed 103 at its chosen rate 0.02" in verdict.statement
    assert "can neither win nor tie" in verdict.statement
    assert "the 4 finished seeds of long_seq do not have the lowest mean (4.8030)" in verdict.statement
    assert "a lower rate may not diverge: `sweeps extend planted --lr 0.0141`" in verdict.statement
    found = verdict.as_dict()
    row = found["strategies"][2]
    assert (row["diverged"], row["excluded"], row["seeds"]) == (1, True, [101, 102, 104, 105])
    assert found["excluded"] == [
        {
            "name": "long_seq",
            "diverged_seeds": [103],
            "lr": 0.02,
            "lower_lr": 0.0141,
            "finished_mean": pytest.approx(4.803),
        }
    ]
    assert [pair["decision"] for pair in found["pairs"]] == ["large_batch is better", "not_judged", "not_judged"]
    assert [len(row["seeds"]) for row in found["strategies"]] == [5, 5, 4]


def test_an_arm_that_diverged_is_said_to_have_the_lowest_mean_where_it_has() -> None:
    verdict = decide(sweep(explore() + with_fate(confirm(), "large_batch", 103, "diverged")))
    assert (verdict.outcome, verdict.winner) == ("wins", "balanced")
    assert "the 4 finished seeds of large_batch have the lowest mean (4.4025)" in verdict.statement


def test_with_one_arm_left_the_verdict_is_withheld() -> None:
    cells = with_fate(with_fate(confirm(), "large_batch", 103, "diverged"), "long_seq", 101, "diverged")
    verdict = decide(sweep(explore() + cells))
    assert verdict.outcome == "withheld"
    assert "only balanced is left to judge: large_batch diverged on confirm seed 103" in verdict.statement
    assert verdict.command == "sweeps extend planted --lr 0.0141"


def test_an_arm_that_diverged_at_every_rate_holds_up_no_other() -> None:
    cells = [
        replace(found, outcome="diverged", val_loss=None) if found.cell.strategy == "long_seq" else found
        for found in explore()
    ]
    judged = [found for found in confirm() if found.cell.strategy != "long_seq"]
    verdict = decide(sweep(cells + judged))
    assert (verdict.outcome, verdict.winner) == ("wins", "large_batch")
    assert "long_seq diverged at every rate that explore tried" in verdict.statement
    assert "--lr 0.0025" in verdict.statement


def test_deciding_again_with_an_arm_that_diverged_is_the_same_look() -> None:
    results = sweep(explore() + with_fate(confirm(), "long_seq", 103, "diverged"))
    before = decide(results).as_dict()
    assert decide(replace(results, earlier_verdicts=(before,))).as_dict() == before


def test_an_edge_far_behind_blocks_nothing_and_is_named() -> None:
    flat = {**CURVES, "long_seq": {0.005: 5.3, 0.01: 4.9, 0.02: 4.82, 0.04: 4.8}}
    others = [found for found in confirm() if found.cell.strategy != "long_seq"]
    verdict = decide(sweep([*explore(flat), *others, *confirm({"long_seq": CLEAR_WIN["long_seq"]}, lr=0.04)]))
    assert (verdict.outcome, verdict.winner) == ("wins", "large_batch")
    assert (
        "the best rate of long_seq (0.04) is the highest tried, but it is 0.4000 nats behind, more than 3 times the "
        "0.0200 nats that the last step of its grid gained"
    ) in verdict.statement
    assert verdict.as_dict()["strategies"][2]["best_lr_at_edge"] is True


def test_a_best_rate_that_failed_on_another_explore_seed_withholds_with_the_command() -> None:
    second = [
        replace(found, outcome="failed", val_loss=None)
        if (found.cell.strategy, found.cell.lr) == ("balanced", 0.02)
        else found
        for found in explore(seed=2)
    ]
    cells = [*explore(), *second, *confirm()]
    cells = [replace(f, cell=replace(f.cell, lr=0.01)) if _is_confirm_of(f, "balanced") else f for f in cells]
    verdict = decide(sweep(cells, seeds={"explore": 2, "confirm": 5}))
    assert verdict.outcome == "withheld"
    assert "the best rate of balanced by its finished cells (0.02) failed on another explore seed" in verdict.statement
    assert verdict.command == "sweeps resume planted --retry-failed"


def _is_confirm_of(found: CellResult, arm: str) -> bool:
    return found.cell.phase == "confirm" and found.cell.strategy == arm


def test_a_rate_that_failed_next_to_the_best_withholds_with_the_command_and_no_other() -> None:
    failed = [
        replace(found, outcome="oom", val_loss=None)
        if (found.cell.strategy, found.cell.lr) == ("balanced", 0.04)
        else found
        for found in explore()
    ]
    verdict = decide(sweep([*failed, *confirm()]))
    assert verdict.outcome == "withheld"
    assert "a rate of balanced next to its chosen one (0.04) failed in explore" in verdict.statement
    assert verdict.command == "sweeps resume planted --retry-failed"


def test_a_withheld_verdict_points_to_the_last_one_that_decided() -> None:
    first = sweep(explore() + confirm())
    before = decide(first).as_dict()
    incomplete = decide(sweep(explore() + with_fate(confirm(), "balanced", 104, None))).as_dict()
    more = [*first.cells, cell("balanced", 0.03, 1, outcome=None)]
    verdict = decide(sweep(more, verdicts=[before, incomplete])).as_dict()
    assert verdict["outcome"] == "withheld"
    assert verdict["last_decided"] == {
        "outcome": "wins",
        "winner": "large_batch",
        "statement": before["statement"],
        "verdict": "verdicts/0001.json",
    }
    assert before["last_decided"] is None


@pytest.mark.parametrize(
    ("outcome", "command"),
    [
        ("failed", "sweeps resume planted --retry-failed"),
        ("oom", "sweeps resume planted --retry-failed"),
        (None, "sweeps resume planted"),
    ],
)
def test_a_confirm_seed_without_a_loss_withholds_until_it_ran_under_its_own_seed(
    outcome: str | None, command: str
) -> None:
    verdict = decide(sweep(explore() + with_fate(confirm(), "balanced", 104, outcome)))
    assert verdict.outcome == "withheld"
    assert verdict.command == command


def test_a_confirm_seed_that_one_arm_lacks_withholds() -> None:
    cells = [f for f in confirm() if (f.cell.strategy, f.cell.seed) != ("balanced", 105)]
    verdict = decide(sweep(explore() + cells))
    assert verdict.outcome == "withheld"
    assert "balanced was not trained on confirm seed 105" in verdict.statement


def test_confirm_cells_at_a_rate_that_explore_no_longer_chooses_are_not_judged() -> None:
    better = [cell("balanced", 0.015, 1, loss=4.3)]
    verdict = decide(sweep([*explore(), *better, *confirm()]))
    assert verdict.outcome == "withheld"
    assert "the confirm seeds of balanced ran at 0.02, and explore now chooses 0.015" in verdict.statement
    assert "balanced was not trained" not in verdict.statement
    assert verdict.command == "sweeps resume planted"


def test_seeds_that_chose_a_rate_are_not_fresh_and_are_left_out() -> None:
    reused = [cell(arm, lr, 101, loss=loss) for arm, curve in CURVES.items() for lr, loss in curve.items()]
    verdict = decide(sweep([*explore(), *reused, *confirm()]))
    assert [row["seeds"] for row in verdict.as_dict()["strategies"]] == [[102, 103, 104, 105]] * 3
    assert "over 4 fresh seeds" in verdict.statement
    assert any("not fresh" in caveat for caveat in verdict.caveats)


def test_an_empty_sweep_and_one_without_confirm_cells_yet_are_withheld() -> None:
    for cells in ([], explore()):
        verdict = decide(sweep(cells))
        assert verdict.outcome == "withheld"
        assert verdict.command == "sweeps resume planted"
        assert verdict.as_dict()["looks"]["used"] == 0


def test_planned_looks_divide_alpha() -> None:
    at_three_percent = {  # p of large_batch against balanced is 0.03: below 0.05, above 0.025
        "large_batch": (4.40, 4.40, 4.40, 4.40, 4.40),
        "balanced": (4.401, 4.402, 4.400, 4.404, 4.403),
        "long_seq": CLEAR_WIN["long_seq"],
    }
    results = sweep(explore() + confirm(at_three_percent), verdict={"alpha": 0.05, "margin": 0.0001, "looks": 1})
    p_value = decide(results).as_dict()["pairs"][0]["p_value"]
    assert 0.025 < p_value < 0.05
    assert decide(results).outcome == "wins"
    halved = sweep(explore() + confirm(at_three_percent), verdict={"alpha": 0.05, "margin": 0.0001, "looks": 2})
    assert decide(halved).outcome == "undecided"


def test_an_unplanned_extension_is_judged_on_its_new_seeds_alone_at_half_the_level() -> None:
    first = sweep(explore() + confirm(NOISY))
    before = decide(first).as_dict()
    extended = sweep([*first.cells, *later(CLEAR_WIN, 5)], verdicts=[before])
    verdict = decide(extended)
    assert verdict.outcome == "wins"
    assert verdict.as_dict()["looks"] == {"planned": 1, "used": 2}
    assert verdict.looks.alpha == 0.025
    assert [row["seeds"] for row in verdict.as_dict()["strategies"]] == [[106, 107, 108, 109, 110]] * 3
    assert "unplanned look 1" in verdict.statement


def test_deciding_again_from_the_same_cells_is_the_same_look() -> None:
    first = sweep(explore() + confirm(NOISY))
    before = decide(first).as_dict()
    assert decide(sweep(first.cells, verdicts=[before, before])).as_dict() == before
    extended = sweep([*first.cells, *later(CLEAR_WIN, 5)], verdicts=[before])
    after = decide(extended).as_dict()
    again = decide(sweep(extended.cells, verdicts=[before, after, after])).as_dict()
    assert again == after


def test_another_rate_on_seeds_that_were_decided_on_is_another_look_and_needs_fresh_seeds() -> None:
    first = sweep(explore() + confirm(NOISY))
    better = [cell("balanced", 0.015, 1, loss=4.3), *confirm({"balanced": (4.2, 4.21, 4.19, 4.2, 4.2)}, lr=0.015)]
    verdict = decide(sweep([*first.cells, *better], verdicts=[decide(first).as_dict()]))
    assert verdict.outcome == "exploratory"
    assert "3 seeds that no decision has seen, of which there are 0" in verdict.statement


def test_an_unplanned_extension_by_fewer_than_three_seeds_is_exploratory() -> None:
    first = sweep(explore() + confirm(NOISY))
    two = {arm: losses[:2] for arm, losses in CLEAR_WIN.items()}
    verdict = decide(sweep([*first.cells, *later(two, 5)], verdicts=[decide(first).as_dict()]))
    assert verdict.outcome == "exploratory"
    assert verdict.command == "sweeps extend planted --seeds 8"


def test_a_second_planned_look_pools_all_seeds() -> None:
    rules = {"alpha": 0.05, "margin": 0.03, "looks": 2}
    first = sweep(explore() + confirm(NOISY), verdict=rules)
    second = sweep([*first.cells, *later(CLEAR_WIN, 5)], verdict=rules, verdicts=[decide(first).as_dict()])
    verdict = decide(second)
    assert verdict.as_dict()["looks"] == {"planned": 2, "used": 2}
    assert len(verdict.as_dict()["strategies"][0]["seeds"]) == 10
    assert verdict.looks.alpha == 0.025


def test_a_withheld_or_exploratory_verdict_spent_no_look() -> None:
    incomplete = decide(sweep(explore() + with_fate(confirm(), "balanced", 104, None))).as_dict()
    verdict = decide(sweep(explore() + confirm(), verdicts=[incomplete]))
    assert verdict.outcome == "wins"
    assert verdict.as_dict()["looks"] == {"planned": 1, "used": 1}


def test_an_arm_of_one_sweep_alone_is_exploratory() -> None:
    results = replace(sweep(explore() + confirm()), beginning={"space": {"budget_tokens": 1_000}})
    alone = replace(results, cells=tuple(c for c in results.cells if c.cell.strategy == "balanced"))
    verdict = decide(alone)
    assert verdict.outcome == "exploratory"
    assert "fewer than two arms" in verdict.statement
    assert verdict.seeds_needed is None  # more seeds would not help


def test_ten_thousand_cells_are_decided_in_under_five_seconds() -> None:
    rng = np.random.default_rng(0)
    rates = np.geomspace(0.001, 0.1, 330)
    curves = {
        arm: {float(lr): 4.5 + 0.1 * place + 0.3 * float(np.log(lr / 0.01)) ** 2 for lr in rates}
        for place, arm in enumerate(CURVES)
    }
    records: tuple[dict[str, Any], ...] = tuple(
        {"tokens_seen": tokens, "train_loss": 5.0, "val_loss": 4.9 if tokens % 250 == 0 else None}
        for tokens in range(50, 1_001, 50)
    )
    cells = [
        replace(found, records=records, val_loss=found.val_loss + 0.001 * float(rng.normal()))
        for seed in range(1, 11)
        for found in explore(curves, seed)
        if found.val_loss is not None
    ]
    losses = {arm: tuple(4.5 + 0.1 * i + 0.01 * rng.normal(size=50)) for i, arm in enumerate(CURVES)}
    chosen = {arm: decide(sweep(cells)).choices[arm].lr for arm in CURVES}
    confirmed = [c for arm in CURVES for c in confirm({arm: losses[arm]}, lr=chosen[arm], records=records)]
    results = sweep([*cells, *confirmed])
    assert len(results.cells) > 10_000
    begun_s = time.perf_counter()
    verdict = decide(results)
    assert time.perf_counter() - begun_s < 5
    assert verdict.outcome == "wins"
