"""The HTML report: what it says, what it leaves out, and that nothing in the data can become markup."""

from __future__ import annotations

import html
import math
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.report.report import render, write_report
from sweeps.report.tables import cell_table
from sweeps.verdict.decision import decide
from tests.sweeps.report_data import RUNGS, changed, judged, many_cells, results


@pytest.fixture(scope="module")
def report(finished: SweepResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(finished, decide(finished), folder)
    return folder


def page_of(sweep: SweepResults, folder: Path) -> str:
    return write_report(sweep, decide(sweep), folder).html.read_text()


def text_of(sweep: SweepResults) -> str:
    """The page without its pictures, which take most of the time."""
    return render(judged(sweep), [])


class _Texts(HTMLParser):
    """Collects the tags, the text of the title and that of the statement."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.statement = ""
        self._open: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append((tag, dict(attrs).get("id")))
        if tag == "h1":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if ("h1", None) in self._open:
            self.headings[-1] += data
        if ("p", "statement") in self._open:
            self.statement += data


def parsed(page: str) -> _Texts:
    texts = _Texts()
    texts.feed(page)
    return texts


def test_the_page_begins_with_the_outcome_and_has_the_statement_word_for_word(
    finished: SweepResults, report: Path
) -> None:
    page = parsed((report / "report.html").read_text())
    assert page.headings == [decide(finished).headline]
    assert page.statement == decide(finished).statement


def test_the_first_screen_of_a_win_has_the_leads_with_their_intervals_and_one_picture(report: Path) -> None:
    page = (report / "report.html").read_text()
    first = page[: page.index("<nav")]
    lead = r"0\.0\d{3} nats below long_seq \(95% interval 0\.\d{4} to 0\.\d{4}, paired over 5 seeds and 32 documents"
    assert re.search(lead, first)
    assert "Bars are 95% intervals, of means over seeds, of differences over seeds and documents of the exam." in first
    assert re.findall(r'<figure id="([\w-]+)"', first) == ["plot-confirm"]
    assert page.count('id="plot-confirm"') == 1


def test_a_sweep_without_a_verdict_begins_with_what_was_seen_then_the_reason_then_the_command() -> None:
    page = text_of(replace(results(seeds=2), folder="/runs/first"))
    order = [
        "balanced has the lowest mean so far",
        "nats below long_seq",
        "2 seeds per arm (3 needed).",
        "extend first --seeds 3",
    ]
    places = [page.index(words) for words in order]
    assert places == sorted(places)
    assert "p adjusted" not in page


def test_kept_checks_are_folded_and_the_others_are_not(finished: SweepResults) -> None:
    page = text_of(finished)
    limits = page[page.index('<section id="checks">') : page.index("</section>", page.index('<section id="checks">'))]
    shown, _, folded = limits.partition("<details>")
    assert "measured on a CPU" in shown.replace("Measured", "measured")
    assert "explore and confirm share no seed" in folded
    assert "explore and confirm share no seed" not in shown


def test_the_space_of_a_sweep_lies_beside_its_report_and_is_what_reproduce_names(
    finished: SweepResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "first"
    write_report(replace(finished, folder=str(folder)), decide(finished), folder)
    assert tomllib.loads((folder / "space.toml").read_text())["budget_tokens"] == finished.budget_tokens
    assert "run --space runs/first/space.toml" in (folder / "report.html").read_text()


def test_the_page_asks_for_nothing_outside_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    targets = [
        value for _, attrs in parsed(page).tags for key, value in attrs.items() if key in ("src", "href", "action")
    ]
    assert all(target and target.startswith(("#", "data:")) for target in targets)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_cell_of_the_sweep_has_a_row(finished: SweepResults, report: Path) -> None:
    page = (report / "report.html").read_text()
    assert all(str(result.cell.cell_id) in page for result in finished.cells)
    assert len(cell_table(judged(finished)).rows) == len(finished.cells)


def test_files_are_written_whole_beside_each_other(report: Path) -> None:
    names = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    plots = {name for name in names if name.startswith("plots/")}
    assert names - plots == {"report.html", "report.md", "space.toml"}
    assert {Path(name).stem for name in plots if name.endswith(".png")} == {
        Path(name).stem for name in plots if name.endswith(".svg")
    }
    assert {"plots/confirm.png", "plots/rates.svg", "plots/timeline.png"} <= plots


def test_an_arm_named_like_a_script_shows_as_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    sweep = results({name: (32, 64), "$x^2$ _a": (8, 256), "_b": (2, 1024)}, seeds=3, points=6)
    page = page_of(sweep, tmp_path)
    assert name not in page
    assert html.escape(name) in page
    assert [tag for tag, _ in parsed(page).tags].count("script") == 1
    assert r"\<script>" in (tmp_path / "report.md").read_text()


def test_a_reason_with_markup_stays_text(finished: SweepResults) -> None:
    def fail(result: CellResult) -> CellResult:
        return replace(result, outcome="failed", reason="<img src=x onerror=alert(1)>", test_loss=None)

    sweep = changed(finished, lambda r: fail(r) if r.cell.seed == 103 else r)
    page = text_of(sweep)
    assert "img" not in [tag for tag, _ in parsed(page).tags]
    assert "&lt;img src=x" in page


def test_a_sweep_that_was_only_begun_gives_a_report(finished: SweepResults, tmp_path: Path) -> None:
    sweep = changed(
        finished,
        lambda r: replace(r, outcome=None, tokens_seen=0, val_loss=None, test_loss=None, scores=None, records=()),
    )
    page = page_of(changed(sweep, lambda r: r if r.cell.phase == "explore" else None), tmp_path)
    assert "resume first" in page
    assert "No confirm cell has been scored yet" in page
    assert not (tmp_path / "plots").exists()


def test_a_sweep_without_a_single_cell_gives_a_report(finished: SweepResults, tmp_path: Path) -> None:
    assert "Every cell" in page_of(changed(finished, lambda _: None), tmp_path)


def test_a_sweep_in_the_middle_of_explore_says_what_is_missing(finished: SweepResults, tmp_path: Path) -> None:
    def halfway(result: CellResult) -> CellResult | None:
        if result.cell.phase != "explore":
            return None
        open_cell = result.outcome == "completed" and result.cell.strategy == "long_seq"
        return replace(result, outcome=None, tokens_seen=RUNGS[1], val_loss=None) if open_cell else result

    page = page_of(changed(finished, halfway), tmp_path)
    assert "of 12 cells have no outcome yet" in page
    assert 'id="plot-rates"' in page
    assert 'id="plot-confirm"' not in page


def test_records_from_a_file_give_a_report_without_shapes_or_curves(finished: SweepResults, tmp_path: Path) -> None:
    bare = changed(finished, lambda r: replace(r, records=(), scores=None))
    page = page_of(replace(bare, beginning={}), tmp_path)
    assert 'id="plot-confirm"' in page
    assert 'id="plot-curves"' not in page
    assert "common context of all arms" not in page


def test_what_a_sweep_does_not_have_is_not_mentioned(finished: SweepResults) -> None:
    page = text_of(changed(finished, lambda r: replace(r, scores=None)))
    assert "Loss by position" not in page
    assert "How much of a lead is context" not in page
    assert "own context and common context both scored" not in page


def test_cells_of_a_single_record_give_a_report_without_curves(finished: SweepResults, tmp_path: Path) -> None:
    page = page_of(changed(finished, lambda r: replace(r, records=r.records[:1])), tmp_path)
    assert 'id="plot-throughput"' in page
    assert not any(f'id="plot-{name}"' in page for name in ("curves", "progress", "experts"))


def test_records_without_a_finite_training_loss_draw_no_empty_pictures(finished: SweepResults, tmp_path: Path) -> None:
    def blind(result: CellResult) -> CellResult:
        return replace(result, records=tuple({**record, "train_loss": math.nan} for record in result.records))

    page = page_of(changed(finished, blind), tmp_path)
    assert 'id="plot-experts"' in page
    assert not any(f'id="plot-{name}"' in page for name in ("curves", "progress"))


def test_one_seed_or_one_arm_gives_a_report(tmp_path: Path) -> None:
    assert "exploratory" in page_of(results(seeds=1, points=6), tmp_path / "seed")
    assert "exploratory" in page_of(results({"only": (8, 256)}, points=6), tmp_path / "arm")


@pytest.mark.slow
def test_many_arms_with_long_names_give_a_report(tmp_path: Path) -> None:
    arms = {f"a_strategy_with_a_rather_long_name_{i}": (2**i, 2048 // 2**i) for i in range(1, 11)}
    page = page_of(results(arms, seeds=3, points=6), tmp_path)
    assert all(name in page for name in arms)


@pytest.mark.slow
def test_ten_thousand_cells_make_a_report_of_less_than_ten_megabytes(tmp_path: Path) -> None:
    sweep = many_cells(10_000)
    assert len(sweep.cells) >= 10_000
    files = write_report(sweep, decide(sweep), tmp_path)
    assert files.html.stat().st_size < 10 * 2**20
    assert files.html.read_text().count("<tr>") > 10_000
