"""What a cluster's answers mean, without a cluster; tests/integration asks real nodes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.cluster import node_probe
from sweeps.cluster import preflight as preflight_module
from sweeps.cluster.node_probe import NodeAnswer, inspect_node, sources_fingerprint
from sweeps.cluster.preflight import Preflight, judge, preflight, render
from sweeps.ledger.storage import Storage

HEAD = NodeAnswer(
    node_id="h", address="10.0.0.1", cpus=4, gpus=0, is_driver=True, python="3.11.7", ray="2.60.0", torch="2.13.0",
    code="abcd1234", storage="ok", token_cache="ok",
)  # fmt: skip
WORKER = replace(HEAD, node_id="w", address="10.0.0.2", cpus=16, gpus=2, gpu_gib=24.0, is_driver=False)


def problems_with(worker: NodeAnswer) -> tuple[str, ...]:
    return judge((HEAD, worker), storage_uri="/shared/runs")[0]


def test_nodes_that_agree_have_no_problem() -> None:
    assert judge((HEAD, WORKER), storage_uri="/shared/runs") == ((), ())


@pytest.mark.parametrize(
    ("field", "there", "remedy"),
    [
        ("torch", "2.12.0", "losses are not comparable"),
        ("ray", "2.59.0", "install the same version there"),
        ("python", "3.12.1", "or Ray cannot unpickle"),
        ("code", "ffff0000", "or submit the sweep as a job, which ships the code"),
    ],
)
def test_a_node_with_another_version_is_named_with_both_versions(field: str, there: str, remedy: str) -> None:
    [problem] = problems_with(replace(WORKER, **{field: there}))  # type: ignore[arg-type]
    assert problem.startswith(f"node 10.0.0.2: {field} is {there} and on 10.0.0.1 it is {getattr(HEAD, field)}; ")
    assert problem.endswith(remedy)


def test_a_package_that_is_missing_everywhere_is_still_a_problem() -> None:
    everywhere = tuple(replace(answer, torch="missing") for answer in (HEAD, WORKER))
    assert len(judge(everywhere, storage_uri="/shared/runs")[0]) == 2


def test_storage_that_is_not_shared_is_named() -> None:
    unshared = "what the driver wrote is not visible there, so it is not shared; give --runs-dir a mount"
    assert problems_with(replace(WORKER, storage=unshared)) == (f"node 10.0.0.2: storage /shared/runs: {unshared}",)


def test_all_problems_of_all_nodes_are_named_at_once() -> None:
    silent = NodeAnswer(node_id="s", address="10.0.0.3", cpus=1, gpus=0, error="did not answer within 90 s; look")
    bad = replace(WORKER, torch="2.12.0", storage="cannot write", token_cache="/x cannot be written")
    problems, _ = judge((HEAD, bad, silent), storage_uri="s3://b")
    assert [problem.partition(": ")[0] for problem in problems] == ["node 10.0.0.3"] + ["node 10.0.0.2"] * 3


def test_a_clock_that_is_off_and_a_gpu_without_driver_are_warned_of() -> None:
    problems, warnings = judge((HEAD, replace(WORKER, clock_skew_s=31.0, gpu_gib=None)), storage_uri="/shared")
    assert problems == ()
    assert warnings[0].startswith("node 10.0.0.2: its clock is 31 s away from the driver's")
    assert "nvidia-smi shows none" in warnings[1]


def test_a_cluster_without_nodes_is_a_problem() -> None:
    assert judge((), storage_uri="/shared")[0] == ("the cluster has no live node; start one with `ray start`",)


def test_a_node_reads_what_the_driver_wrote_and_writes_where_the_driver_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "probe"))
    storage.write_bytes("driver", b"driver")
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(tmp_path / "cache"))
    said = inspect_node(storage.uri, "node-1")
    assert said["storage"] == said["token_cache"] == "ok"
    assert storage.names() == ["driver", "node-1"]
    assert said["code"] == sources_fingerprint()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_node_that_does_not_see_the_drivers_mark_says_that_storage_is_not_shared(tmp_path: Path) -> None:
    said = inspect_node(str(tmp_path / "elsewhere"), "node-1")
    assert said["storage"].startswith(
        "what the driver wrote is not visible there, so it is not shared; give --runs-dir"
    )


def test_a_token_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    said = inspect_node(str(tmp_path), "node-1")
    assert said["token_cache"].startswith(f"{tmp_path}/file/cache cannot be written (")
    assert "SWEEPS_CACHE_DIR" in said["token_cache"]


def test_a_source_that_differs_in_a_folder_below_changes_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_up_package" / "below").mkdir(parents=True)
    for name in ("__init__.py", "below/__init__.py"):
        (tmp_path / "made_up_package" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    before = sources_fingerprint(["made_up_package"])
    (tmp_path / "made_up_package" / "below" / "__init__.py").write_text("changed = True\n")
    assert sources_fingerprint(["made_up_package"]) != before != "missing"


def answering(*answers: NodeAnswer, mark: bool = True) -> object:
    """Stands in for the question to the nodes: each writes its mark, as a real one would, or somewhere else."""

    def ask(storage_uri: str, token_cache_dir: str | None, deadline_s: float) -> tuple[NodeAnswer, ...]:
        if mark:
            for answer in answers:
                Storage(storage_uri).write_bytes(answer.node_id, b"node")
        return answers

    return ask


def test_preflight_leaves_nothing_on_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_module, "ask_nodes", answering(HEAD, WORKER))
    result = preflight(storage_uri=str(tmp_path))
    assert result.problems == ()
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_writes_where_the_driver_does_not_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_module, "ask_nodes", answering(WORKER, mark=False))
    result = preflight(storage_uri=str(tmp_path))
    assert result.problems == (
        f"node 10.0.0.2: storage {tmp_path}: what it wrote is not visible to the driver, so it is not shared",
    )


def test_a_tracking_server_that_is_down_is_a_warning_and_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_module, "ask_nodes", answering(HEAD))
    result = preflight(storage_uri=str(tmp_path), tracking_uri="http://127.0.0.1:9")
    assert result.problems == ()
    [warning] = result.warnings
    assert warning.startswith("tracking server http://127.0.0.1:9 does not answer")


def test_a_storage_that_the_driver_cannot_write_is_its_own_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(preflight_module, "ask_nodes", answering(replace(HEAD, storage="cannot write"), mark=False))
    result = preflight(storage_uri=str(tmp_path / "file"))
    assert result.problems[0].startswith(f"driver: storage: cannot write {tmp_path}/file/preflight/")
    assert len(result.problems) == 2


def test_the_table_has_a_row_per_node_and_marks_a_silent_one() -> None:
    silent = NodeAnswer(node_id="s", address="10.0.0.3", cpus=1, gpus=0, error="did not answer")
    answers = (HEAD, WORKER, silent)
    with open(os.devnull, "w") as sink:  # noqa: PTH123
        console = Console(width=160, record=True, file=sink)
        console.print(render(Preflight(answers=answers, problems=(), warnings=())))
    text = console.export_text()
    assert "10.0.0.1 (driver)" in text
    assert "24.0" in text
    assert text.count("?") == 6
    assert node_probe.OK in text
