"""The page in a real browser: nothing fetched, nothing wider than a phone, all of it by keyboard, no script needed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.report.page import write_report
from tests.evaluation.report.browser import Browser, browser, find_chromium
from tests.evaluation.report.made_comparisons import few_labels
from tests.evaluation.report.test_page import make_run, results

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on PATH")

LONG = "Land_principally_occupied_by_agriculture_with_significant_areas_of_natural_vegetation"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with awkward names, and runs beside it."""
    folder = tmp_path_factory.mktemp("page")
    classes = [LONG, "<b>&\"'", *(f"class {k}" for k in range(6))]
    few_labels(folder / "all" / "compared", "single", classes, encoders=("scratch", "simclr", LONG), seeds=(0,),
               failed=[{"cell": LONG, "error": LONG * 2}])  # fmt: skip
    path = folder / "all" / "compared" / "comparison.json"
    content = json.loads(path.read_text())
    for row in content["rows"]:  # cells of a confusion matrix in all depths of colour
        row["confusion"] = [[12 * k + 8 if j == k else 92 - 12 * k if j == (k + 1) % 8 else 0 for j in range(8)]
                            for k in range(8)]  # fmt: skip
    path.write_text(json.dumps(content))
    make_run(folder / "all" / "a", results("scratch", 0.3, classes))
    make_run(folder / "all" / LONG, results("run", 0.4, classes))
    write_report([folder / "all"], folder / "report.html", f"A title with {LONG}")
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as tab:
        yield tab


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_fetches_nothing(chromium: Browser, page: Path, width: int, dark: bool) -> None:
    chromium.open(page, width, dark=dark)
    assert [url for url in chromium.requests if not url.startswith("data:")] == [page.as_uri()]
    assert chromium.complaints == []
    assert chromium.run("document.documentElement.scrollWidth") <= width
    wide = chromium.run("""[...document.querySelectorAll('main *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.width && box.right > innerWidth + 1 && !e.closest('.scroll') && !e.closest('svg')
    }).map(e => e.outerHTML.slice(0, 200))""")
    assert wide == []
    ground = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")


def test_what_scrolls_takes_the_focus_and_the_first_stop_skips_to_the_content(chromium: Browser, page: Path) -> None:
    chromium.open(page, 390)
    chromium.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    scrolling = chromium.run("""[...document.querySelectorAll('*')].filter(e => {
        const how = getComputedStyle(e).overflowX;
        return (how == 'auto' || how == 'scroll') && e.scrollWidth > e.clientWidth + 1
    }).map(e => { e.focus(); return document.activeElement == e })""")
    assert len(scrolling) > 3 and all(scrolling)
    chromium.open(page, 390)
    chromium.ask("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert chromium.run("document.activeElement.className") == "skip"
    assert chromium.run("document.activeElement.getBoundingClientRect().left") >= 0


def test_text_stands_out_from_its_ground(chromium: Browser, page: Path) -> None:
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3) for all text of tables, cards and captions, in light and dark."""
    for dark in (False, True):
        chromium.open(page, 1280, dark=dark)
        chromium.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        weak = chromium.run("""(() => {
            const shade = c => { const v = c.match(/[\\d.]+/g).map(Number); return {rgb: v.slice(0, 3), a: v[3] ?? 1} };
            const light = rgb => { const [r, g, b] = rgb.map(v => { v /= 255;
                return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126*r + .7152*g + .0722*b };
            const ground = e => { const over = []; for (; e; e = e.parentElement) {
                const c = shade(getComputedStyle(e).backgroundColor); over.push(c); if (c.a == 1) break }
                return over.reverse().reduce((low, c) => low.map((v, k) => v * (1 - c.a) + c.rgb[k] * c.a),
                                             [255, 255, 255]) };
            const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
            const all = [...document.querySelectorAll('main *:not(svg *)')];
            return all.filter(e => own(e) && e.offsetWidth > 1).map(e => {
                const a = light(shade(getComputedStyle(e).color).rgb), b = light(ground(e));
                return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 120)]
            }).filter(([ratio]) => ratio < 4.5)
        })()""")
        assert weak == [], (dark, weak[:5])


def test_everything_is_there_without_javascript(chromium: Browser, page: Path) -> None:
    chromium.open(page, 1280, script=False)
    chromium.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert chromium.run("document.scripts.length") == 0
    assert chromium.run("document.querySelectorAll('table.lead tbody tr').length") > 10
    assert chromium.run("document.querySelectorAll('svg.chart').length") >= 4
