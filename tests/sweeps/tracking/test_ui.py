"""MLflow's UI: a free port, addresses that open on curves, and an end that leaves no process behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import BadInputError
from sweeps.ledger.results import SweepResults
from sweeps.tracking.projection import SweepView
from sweeps.tracking.projector import sync
from sweeps.tracking.store import TrackingStore, tracking_store
from sweeps.tracking.ui import HOST, listening, pages, run_ui
from sweeps.tracking.views import COLUMNS, VIEW_TAG_PREFIX, view_tags
from tests.sweeps import made_up_sweep as made_up

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

SERVE = """
import signal, sys
sys.path.append(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this test runs in the background of a shell
from sweeps.tracking.store import tracking_store
from sweeps.tracking.ui import run_ui
run_ui(tracking_store(sys.argv[2], {}), lambda line: print(line, flush=True), sweep="first")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingStore:
    made = tracking_store(str(tmp_path_factory.mktemp("runs")), {})
    report = b"<html><body><h1>Report of the first sweep</h1></body></html>"
    view = SweepView(results=made_up.finished_sweep(), verdict=made_up.verdict(), attachments={"report.html": report})
    sync(view, made)
    return made


class Served:
    """The UI in a process of its own, as ``sweeps ui`` runs it."""

    def __init__(self, store: TrackingStore) -> None:
        assert store.artifacts_dir is not None
        root = str(Path(__file__).parents[3])
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, root, str(store.artifacts_dir.parent)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if "Ctrl-C" in line:
                break
        assert self.lines, "the UI did not start"
        self.pages = dict(line.split(": http", 1) for line in self.lines if ": http" in line)
        self.base_url = "http" + next(iter(self.pages.values())).split("/#")[0]

    def end(self, sign: signal.Signals = signal.SIGINT) -> int:
        """Send the signal, wait and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def served(store: TrackingStore) -> Iterator[Served]:
    running = Served(store)
    yield running
    running.end()


def test_a_port_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(BadInputError, match=f"port {taken} of 127.0.0.1 is taken; give another --port"):
            listening(taken)
        monkeypatch.setattr("sweeps.tracking.ui.FIRST_PORT", taken)
        with listening() as picked:
            assert picked.getsockname()[1] not in (taken, 0)
    with listening(taken) as wanted:
        assert wanted.getsockname()[1] == taken


def test_the_first_page_of_a_sweep_is_the_curves_and_each_opens_a_saved_view_or_the_report(
    store: TrackingStore,
) -> None:
    found = pages(store, "http://127.0.0.1:5000", "first")
    assert list(found) == ["first, curves by strategy", "first, mean curves of the confirm seeds", "first, report"]
    curves, means, report = found.values()
    keys = [key.removeprefix(VIEW_TAG_PREFIX) for key in view_tags(made_up.finished_sweep())]
    assert [url.partition("viewStateShareKey=")[2] for url in (curves, means)] == [
        f"{key}&compareRunsMode=CHART" for key in keys
    ]
    assert "/artifacts/report.html" in report


def test_without_a_sweep_the_newest_are_listed_and_an_empty_store_opens_its_list(
    store: TrackingStore, tmp_path: Path
) -> None:
    assert list(pages(store, "http://h")) == ["first, curves by strategy"]
    assert list(pages(store, "http://h", "never-was")) == ["experiments"]
    assert pages(tracking_store(str(tmp_path), {}), "http://h") == {"experiments": "http://h/#/experiments"}


def test_a_sweep_without_a_verdict_has_no_report_yet(tmp_path: Path) -> None:
    made = tracking_store(str(tmp_path), {})
    sync(SweepView(results=made_up.results([made_up.finished(made_up.cell())])), made)
    assert list(pages(made, "http://h", "first")) == [
        "first, curves by strategy",
        "first, mean curves of the confirm seeds",
    ]


def test_a_saved_view_has_the_columns_and_charts_that_matter_as_the_ui_reads_them() -> None:
    saved = json.loads(view_tags(made_up.finished_sweep())[f"{VIEW_TAG_PREFIX}confirm"])
    assert saved.keys() == {"name", "createdAt", "updatedAt", "state"}
    state = json.loads(saved["state"])
    assert state["selectedColumns"] == list(COLUMNS)
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "strategy"}]
    assert state["compareRunCharts"][0]["metricKey"] == "val_loss"


def state_of(results: SweepResults, view: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.loads(view_tags(results)[VIEW_TAG_PREFIX + view])["state"])
    return found


def test_no_strategy_is_missing_from_a_view_because_the_ui_loads_a_hundred_runs() -> None:
    few = made_up.finished_sweep()
    assert state_of(few, "cells")["orderByKey"] == "metrics.`test_loss`"
    judged = [made_up.finished(made_up.cell(seed=100 + n, phase="confirm")) for n in range(101)]
    for view in ("cells", "confirm"):
        state = state_of(made_up.results(judged), view)
        assert (state["searchFilter"], state["orderByKey"]) == ("tags.phase = 'confirm'", "tags.`seed`")


@pytest.mark.slow
def test_the_ui_serves_the_sweep_and_its_report(served: Served) -> None:
    with urllib.request.urlopen(f"{served.base_url}/health", timeout=60) as answer:  # it still imports
        assert answer.status == 200
    query = json.dumps({"experiment_ids": ["1"], "filter": "tags.phase = 'sweep'"}).encode()
    request = urllib.request.Request(
        f"{served.base_url}/api/2.0/mlflow/runs/search", query, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        runs: Any = json.load(answer)["runs"]
    assert [run["info"]["run_name"] for run in runs] == ["first"]
    report = f"{served.base_url}/get-artifact?path=report.html&run_uuid={runs[0]['info']['run_id']}"
    with urllib.request.urlopen(report, timeout=10) as answer:
        assert b"Report of the first sweep" in answer.read()


@pytest.mark.slow
def test_the_ui_answers_no_other_site_and_collects_no_usage_data(served: Served) -> None:
    search = f"{served.base_url}/api/2.0/mlflow/experiments/search?max_results=1"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(search, headers={"Host": "evil.example"}), timeout=10)
    usage = f"{served.base_url}/ajax-api/3.0/mlflow/ui-telemetry"
    with urllib.request.urlopen(usage, timeout=10) as answer:
        assert json.load(answer)["disable_ui_telemetry"] is True
    record = {"event_name": "a", "timestamp_ns": 1, "params": {}, "installation_id": "b", "session_id": "c"}
    sent = urllib.request.Request(
        usage, json.dumps({"records": [record]}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=10) as answer:
        assert json.load(answer) == {"status": "disabled"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_curves_by_strategy_at_the_first_address_and_the_report(served: Served) -> None:
    from playwright.sync_api import sync_playwright

    curves, means, report = ("http" + rest for rest in served.pages.values())
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1900, "height": 1200})
        page.set_default_timeout(60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(curves)
        page.get_by_text("Which batch shape does").wait_for()
        page.get_by_text("balanced lr=0.02 seed=101 confirm").first.wait_for()
        page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached")
        n_strategies = len(made_up.finished_sweep().arm_names)
        assert len(line_colours(page)) == n_strategies
        page.goto("about:blank")
        page.goto(means)
        page.get_by_text("Group: balanced").first.wait_for()
        page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached")
        page.goto("about:blank")
        page.goto(report)
        page.frame_locator("iframe").get_by_text("Report of the first sweep").wait_for()
        page.goto("about:blank")
        page.goto(f"{served.base_url}/#/")
        page.get_by_text("MLflow collects usage data").wait_for()
        browser.close()
    assert [url for url in asked if not url.startswith((served.base_url, "about:", "data:", "blob:"))] == []


def line_colours(page: Any) -> set[str]:
    """The colours of the lines in the first chart."""
    colours = "lines => lines.map(line => line.style.stroke)"
    first = page.locator(".js-plotly-plot").first
    return set(first.locator(".scatterlayer .trace path.js-line").evaluate_all(colours))


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_a_ui_that_is_ended_or_killed_leaves_no_server(store: TrackingStore, sign: signal.Signals, code: int) -> None:
    running = Served(store)
    with urllib.request.urlopen(f"{running.base_url}/health", timeout=60):
        pass
    assert running.end(sign) == code
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{running.base_url}/health", timeout=2)


def test_a_server_has_a_ui_already_and_only_its_pages_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.tracking.ui.pages", lambda _, base_url, sweep: {str(sweep): base_url})
    said: list[str] = []
    run_ui(TrackingStore(uri="https://ada:secret@tracking.example", artifacts_dir=None), said.append, sweep="first")
    assert said == ["first: https://tracking.example"]
