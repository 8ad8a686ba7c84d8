"""A search with Optuna: the same suggestions with and without an interruption, and a study that Optuna opens."""

import json
import signal

import pytest

from tests.integration.sweeping import AT_ONCE, Sweeps, wait_for

pytestmark = pytest.mark.slow

SEARCH = [*AT_ONCE, "--set", "search=optuna", "--set", "search.trials_per_arm=4", "--set", "resources.workers=1"]


def suggestions(sweeps: Sweeps, name: str) -> dict[str, list[float]]:
    """The rates that each arm explored, in the order in which they stand in the plan."""
    pages = sorted((sweeps.runs / name / "plan").glob("*.json"))
    cells = [cell for page in pages for cell in json.loads(page.read_text())["cells"]]
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell["phase"] == "explore":
            found.setdefault(cell["strategy"], []).append(cell["lr"])
    assert {len(rates) for rates in found.values()} == {4}
    return found


def test_an_interrupted_search_suggests_what_an_uninterrupted_one_does(sweeps: Sweeps) -> None:
    sweeps("run", "--space", "space.toml", "--name", "undisturbed", *SEARCH)
    process = sweeps.start("run", "--space", "space.toml", "--name", "first", *SEARCH)
    wait_for(lambda: len(list((sweeps.runs / "first" / "plan").glob("*.json"))) >= 4, "four suggestions", process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    sweeps("resume", "first")
    assert suggestions(sweeps, "first") == suggestions(sweeps, "undisturbed")
    assert sweeps.end_of("first") == sweeps.end_of("undisturbed")
    the_study_opens_in_optuna(sweeps)


def the_study_opens_in_optuna(sweeps: Sweeps) -> None:
    import optuna

    storage = f"sqlite:///{sweeps.runs}/first/optuna.db"
    told = {
        study.study_name: optuna.load_study(study_name=study.study_name, storage=storage).trials
        for study in optuna.get_all_study_summaries(storage)
    }
    assert told.keys() == {"short", "long"}
    outcomes = sweeps.outcomes("first")
    for trials in told.values():
        assert [trial.state.name for trial in trials] == [
            {"completed": "COMPLETE", "stopped_early": "PRUNED"}[outcomes[trial.user_attrs["cell_id"]]["outcome"]]
            for trial in trials
        ]
        assert "COMPLETE" in {trial.state.name for trial in trials}
