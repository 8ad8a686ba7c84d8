"""The report in a real browser: wide and narrow, light and dark, with nothing fetched and nothing on the console."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.report.report import write_report
from sweeps.verdict.decision import decide
from tests.sweeps.report_data import results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the program chromium is not installed")

NOT_SHOWN = """() => [...document.querySelectorAll('figure')].filter(figure =>
    ![...figure.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().height > 60)
).map(figure => figure.id)"""
PAST_THE_EDGE = """() => [...document.querySelectorAll('main *')].filter(element =>
    !element.closest('svg, .scroll, .cells, .long, pre, details')
    && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(element => element.tagName + '.' + element.className)"""
LETTERS_PAST_THE_EDGE = """() => [...document.querySelectorAll('.panels:not(.long) svg text')].filter(text => {
    const box = text.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    return box.width > 0 && (box.right > width + 1 || box.left < -1);
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = results({"large_batch": (32, 64), "balanced": (8, 256), "<script>alert(1)</script>": (2, 1024)})
    return write_report(sweep, decide(sweep), tmp_path_factory.mktemp("report")).html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


class Visit:
    """A page that was opened, with everything that it said and asked for."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())


@pytest.fixture
def visit(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    width, scheme = getattr(request, "param", (1400, "light"))
    opened = Visit(browser, page_file, width, scheme)
    yield opened
    opened.context.close()


EVERYWHERE = pytest.mark.parametrize("visit", [(w, s) for w in (1400, 390) for s in ("light", "dark")], indirect=True)


@EVERYWHERE
def test_the_report_opens_quietly_and_fetches_nothing(visit: Visit, page_file: Path) -> None:
    assert visit.said == []
    assert visit.asked == [page_file.as_uri()]


@EVERYWHERE
def test_every_picture_is_visible_and_nothing_sticks_out(visit: Visit) -> None:
    assert visit.page.evaluate(NOT_SHOWN) == []
    assert visit.page.evaluate(PAST_THE_EDGE) == []
    assert visit.page.evaluate(LETTERS_PAST_THE_EDGE) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize(("visit", "dark"), [((1400, "light"), False), ((1400, "dark"), True)], indirect=["visit"])
def test_pictures_follow_the_colour_scheme_of_the_page(visit: Visit, dark: bool) -> None:
    fill = "getComputedStyle(document.querySelector('#plot-confirm svg text')).fill"
    channels = [int(part) for part in visit.page.evaluate(fill).removeprefix("rgb(").removesuffix(")").split(",")]
    assert (sum(channels) > 3 * 128) == dark


def column(visit: Visit, index: int) -> list[str]:
    script = f"rows => rows.map(row => row.cells[{index}].textContent.trim())"
    return [str(text) for text in visit.page.eval_on_selector_all("#cells tbody tr:not([hidden])", script)]


def test_the_table_of_cells_sorts_by_number_both_ways_with_gaps_last(visit: Visit) -> None:
    titles = visit.page.eval_on_selector_all("#cells th", "found => found.map(th => th.textContent.trim())")
    test = titles.index("test")
    visit.page.click(f"#cells th:nth-child({test + 1}) button")
    texts = column(visit, test)
    known = [float(text) for text in texts if text != "–"]
    assert known == sorted(known)
    assert texts[len(known) :] == ["–"] * (len(texts) - len(known))
    visit.page.click(f"#cells th:nth-child({test + 1}) button")
    assert [float(text) for text in column(visit, test)[: len(known)]] == known[::-1]


def test_the_table_of_cells_filters_by_words(visit: Visit) -> None:
    visit.page.fill("#filter", "confirm balanced")
    assert set(column(visit, 1)) == {"balanced"}
    assert visit.page.inner_text("#shown") == str(len(column(visit, 1))) == "5"


@pytest.mark.parametrize("visit", [(390, "light")], indirect=True)
def test_on_a_phone_the_table_of_arms_shows_mean_interval_and_rate_within_the_screen(visit: Visit) -> None:
    script = "found => found.filter(th => th.offsetWidth > 0).map(th => th.textContent)"
    titles = visit.page.eval_on_selector_all("#arms table >> nth=0 >> th", script)
    assert titles == ["arm", "test loss", "interval", "best lr"]
    assert visit.page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#arms .scroll'))")


def test_kept_checks_wait_behind_a_click(visit: Visit) -> None:
    kept = visit.page.locator("#checks details table")
    assert not kept.is_visible()
    visit.page.click("#checks summary")
    assert "precision used in every cell" in kept.inner_text()


def test_a_mark_says_what_it_is_when_pointed_at(visit: Visit) -> None:
    mark = visit.page.locator("#plot-confirm svg use[data-tip]").first
    mark.scroll_into_view_if_needed()
    mark.hover(force=True)
    assert "confirm" in visit.page.inner_text("#tip")


def test_an_arm_named_like_a_script_is_read_as_its_name(visit: Visit) -> None:
    assert "<script>alert(1)</script>" in visit.page.inner_text("#arms")
    assert visit.page.evaluate("document.scripts.length") == 1


def test_the_report_prints_with_its_pictures_in_light_colours(browser: Any, page_file: Path) -> None:
    opened = Visit(browser, page_file, 1400, "dark")
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert (
        opened.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--text').trim()")
        == "#1d2329"
    )
    assert opened.page.evaluate(NOT_SHOWN) == []
    assert len(opened.page.pdf(format="A4")) > 50_000
    opened.context.close()
