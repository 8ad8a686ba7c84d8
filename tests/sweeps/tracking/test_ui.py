"""MLflow's UI: a free port, links that open the sweep's pages, and an end that leaves no process behind."""

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
from sweeps.tracking.projection import SweepView
from sweeps.tracking.projector import sync
from sweeps.tracking.store import TrackingStore, tracking_store
from sweeps.tracking.ui import HOST, free_port, links, run_ui
from sweeps.tracking.views import COLUMNS, VIEW_TAG_PREFIX, view_tags
from tests.sweeps import made_up_sweep as made_up

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

SERVE = """
import signal, sys
sys.path.append(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this test runs in the background of a shell
from sweeps.tracking.store import tracking_store
from sweeps.tracking.ui import free_port, run_ui
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
        self.base_url = self.lines[0].split(": ")[-1].split("/#")[0]

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
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(BadInputError, match=f"port {taken} of 127.0.0.1 is taken; name another"):
            free_port(taken)
        monkeypatch.setattr("sweeps.tracking.ui.FIRST_PORT", taken)
        assert free_port() not in (taken, 0)
    assert free_port(taken) == free_port() == taken


def test_the_links_of_a_sweep_open_its_saved_views(store: TrackingStore) -> None:
    pages = links(store, "http://127.0.0.1:5000", "first")
    assert [page.text for page in pages] == [
        "first: the sweep and its cells",
        "first: cells, best test loss first",
        "first: loss by tokens, confirm",
        "first: loss by tokens, explore",
    ]
    keys = {key.removeprefix(VIEW_TAG_PREFIX) for key in view_tags(made_up.finished_sweep())}
    assert {page.url.split("viewStateShareKey=")[1].split("&")[0] for page in pages} == keys


def test_without_a_sweep_the_newest_are_linked_and_an_empty_store_links_to_the_list(
    store: TrackingStore, tmp_path: Path
) -> None:
    assert [page.text for page in links(store, "http://h")] == ["first: the sweep and its cells"]
    assert [page.text for page in links(store, "http://h", "never-was")] == ["experiments"]
    assert links(tracking_store(str(tmp_path), {}), "http://h")[0].url == "http://h/#/experiments"


def test_a_saved_view_has_the_columns_and_charts_that_matter_as_the_ui_reads_them() -> None:
    saved = json.loads(view_tags(made_up.finished_sweep())[f"{VIEW_TAG_PREFIX}confirm"])
    assert saved.keys() == {"name", "createdAt", "updatedAt", "state"}
    state = json.loads(saved["state"])
    assert state["selectedColumns"] == list(COLUMNS)
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "strategy"}]
    assert state["compareRunCharts"][0]["metricKey"] == "val_loss"


@pytest.mark.slow
def test_the_ui_serves_the_sweep_and_its_report(served: Served) -> None:
    with urllib.request.urlopen(f"{served.base_url}/health", timeout=10) as answer:
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
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_the_cells_the_statement_and_the_curves(served: Served) -> None:
    from playwright.sync_api import sync_playwright

    addresses = {line.split(": http")[0]: "http" + line.split(": http")[1] for line in served.lines if ": http" in line}
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1900, "height": 1200})
        page.set_default_timeout(60_000)
        page.goto(addresses["first: cells, best test loss first"])
        page.get_by_text("Which batch shape does").wait_for()
        page.get_by_text("balanced lr=0.02 seed=101 confirm").first.wait_for()
        page.get_by_text("stopped_early").first.wait_for()
        page.goto("about:blank")
        page.goto(addresses["first: loss by tokens, confirm"])
        page.get_by_text("Group: balanced").first.wait_for()
        page.get_by_text("val_loss").first.wait_for()
        page.locator(".js-plotly-plot").first.wait_for()
        page.goto("about:blank")
        page.goto(addresses["first: the sweep and its cells"])
        page.locator(".ag-row a", has_text="first").first.click()
        page.get_by_text("balanced learns best at 4,096 tokens.").first.wait_for()
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_ui_cleanly_and_nothing_listens_any_more(store: TrackingStore, sign: signal.Signals) -> None:
    running = Served(store)
    assert running.end(sign) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{running.base_url}/health", timeout=2)


def test_a_server_has_a_ui_already_and_only_its_links_are_said(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sweeps.tracking.ui

    monkeypatch.setattr(
        sweeps.tracking.ui, "links", lambda _, base_url, sweep: [sweeps.tracking.ui.Link(text=str(sweep), url=base_url)]
    )
    said: list[str] = []
    run_ui(TrackingStore(uri="https://ada:secret@tracking.example", artifacts_dir=None), said.append, sweep="first")
    assert said == ["first: https://tracking.example"]
