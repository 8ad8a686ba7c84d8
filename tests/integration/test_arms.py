"""Arms that differ in more than shape, for real: another optimizer, another model, and a control."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from tests.integration.conftest import sweeps_in
from tests.integration.sweeping import Sweeps

pytestmark = pytest.mark.slow

ARMS = (
    "strategies.long.optimizer.kind=adamw",
    "strategies.long.rates.lr=[0.002, 0.004]",
    "strategies.long.model.top_k=2",
    "controls=true",
    "flops_view=true",
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path) -> Iterator[Sweeps]:
    """A sweep of an arm of Muon and one of AdamW with another model, with a control and the view at equal FLOPs."""
    with sweeps_in(tmp_path_factory.mktemp("arms"), corpus, token_cache) as made:
        options = [word for value in ARMS for word in ("--set", value)]
        made("run", "--space", "space.toml", "--name", "first", *options)
        yield made


def test_each_arm_is_tried_and_judged_as_it_says(compared: Sweeps) -> None:
    results = LedgerReader(Ledger(Storage(str(compared.runs)), "first")).results()
    assert {cell.outcome for cell in results.cells} <= {"completed", "stopped_early"}
    tried = {arm.name: {r.cell.lr for r in results.of("explore", arm.name)} for arm in results.every_arm}
    assert tried == {"short": {0.01, 0.02}, "long": {0.002, 0.004}, "short_grouped": {0.01, 0.02}}
    assert {name: len(results.of("confirm", name)) for name in tried} == dict.fromkeys(tried, 3)
    assert [r.cell.strategy for r in results.cells if r.cell.phase == "flops"] == ["long"] * 3


def test_the_verdict_says_what_sets_arms_apart(compared: Sweeps) -> None:
    verdict = json.loads((compared.runs / "first" / "verdict.json").read_text())
    short, long = verdict["strategies"]
    assert (short["differs_in"], long["differs_in"]["model.top_k"]) == ({}, 2)
    assert long["active_parameters"] > short["active_parameters"]
    assert long["flops_per_token"] > short["flops_per_token"]
    assert verdict["controls"] is None, "the long arm has another model: a lead over it is not of length alone"
    tokens = verdict["by_budget"]["flops"]["budgets_tokens"]
    assert tokens["long"] < tokens["short"] == verdict["budget_tokens"]
    report = (compared.runs / "first" / "report.md").read_text()
    assert "differs in" in report
    assert "optimizer.kind adamw" in report


def test_records_judged_again_are_the_same_verdict(compared: Sweeps) -> None:
    compared("records", "first", "--out", "records.csv")
    again = json.loads(compared("verdict", "--records", "records.csv", "--json"))
    verdict = json.loads((compared.runs / "first" / "verdict.json").read_text())
    shared = ("outcome", "pairs", "context")
    assert {key: again[key] for key in shared} == {key: verdict[key] for key in shared}


def test_an_arm_of_another_model_is_exported_as_transformers_reads_it(compared: Sweeps) -> None:
    results = LedgerReader(Ledger(Storage(str(compared.runs)), "first")).results()
    folders = {
        r.cell.cell_id: compared.runs / "first" / "cells" / str(r.cell.cell_id) for r in results.of("confirm", "long")
    }
    kept = next(cell_id for cell_id, folder in folders.items() if any(folder.glob("checkpoint-*")))
    compared("export", "first", "--cell", str(kept), "--out", "weights")
    config = json.loads((compared.folder / "weights" / "config.json").read_text())
    assert config["num_experts_per_tok"] == 2
