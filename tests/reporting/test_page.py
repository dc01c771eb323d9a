"""The pages in a browser: nothing overflows on a phone, a screen or paper, and nothing is asked of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from atbench.reporting import report
from tests.support.browser import CHROMIUM, Browser
from tests.support.figures import rendered
from tests.support.outcomes import STANDARD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
ATTACKED = {"attacks": STANDARD, "sequential": True, "norms": ("l2", "l1")}
# Boxes that end right of the window, but for what scrolls by itself.
OUTSIDE = """[...document.querySelectorAll("body *")].filter(
    one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1
           && !one.closest(".wide, svg, figure.whole")).map(one => one.outerHTML.slice(0, 80))"""
WIDTH = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.fixture(scope="module")
def pages(run_maker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    with rendered():
        runs = [run_maker(folder / f"s{seed}", seed=seed, evaluated=ATTACKED, last_robust=0.5) for seed in (0, 1)]
        runs.append(run_maker(folder / "other", method="pgd_at", evaluated={**ATTACKED, "robust": 0.4}))
        report.write_report(runs[0])
        report.report_runs(runs, folder / "out", False)
    return {"run": runs[0] / "report.html", "comparison": folder / "out" / "report.html"}


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize("which", ["run", "comparison"])
def test_a_page_fits_and_asks_for_nothing(which: str, pages: dict[str, Path], tab: Browser) -> None:
    for width in (390, 1280):
        for dark in (False, True):
            tab.open(pages[which], width, dark=dark)
            tab.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
            scroll, client = tab.run(WIDTH)
            assert scroll == client == width and tab.run(OUTSIDE) == []
            assert tab.errors == [] and tab.requests == [pages[which].as_uri()]


def test_the_first_picture_is_seen_without_scrolling(pages: dict[str, Path], tab: Browser) -> None:
    tab.open(pages["run"], 1280)
    assert tab.run("document.querySelector('figure').getBoundingClientRect().bottom") < 900
    assert tab.run("document.querySelector('.card .value').getBoundingClientRect().bottom") < 300


def test_nothing_is_cut_on_paper(pages: dict[str, Path], tab: Browser) -> None:
    """What overflows a sheet makes the browser shrink the whole page or cut it: boxes end within the paper's width."""
    for inches in ((8.27, 11.69), (8.5, 11.0)):
        width = round(96 * inches[0] - 2 * 12 / 25.4 * 96)
        for page in pages.values():
            tab.open(page, width)
            tab.send("Emulation.setEmulatedMedia", media="print")
            tab.run("dispatchEvent(new Event('beforeprint'))")
            assert tab.run("[...document.querySelectorAll('details')].every(one => one.open)")
            right = "Math.max(...[...document.querySelectorAll('td, img, svg, pre, p')].map(" \
                    "one => one.getBoundingClientRect().right))"  # fmt: skip
            assert tab.run(right) <= width + 1
            assert tab.print(inches).startswith(b"%PDF")
            tab.send("Emulation.setEmulatedMedia", media="")


def test_a_table_sorts_by_keyboard(pages: dict[str, Path], tab: Browser) -> None:
    tab.open(pages["run"], 1280)
    tab.run("""(() => {
        const button = [...document.querySelectorAll("th button")].find(one => one.innerText === "broke");
        window.head = button.parentNode;
        button.focus(); })()""")
    cells = "[...head.closest('table').tBodies[0].rows].map(row => row.cells[head.cellIndex].innerText)"
    for way in ("ascending", "descending"):
        tab.press("Enter")
        assert tab.run("head.getAttribute('aria-sort')") == way
        numbers = [int(text) for text in tab.run(cells) if re.fullmatch(r"\d+", text)]
        assert len(numbers) > 3 and numbers == sorted(numbers, reverse=way == "descending")


def test_a_link_of_the_contents_opens_its_section(pages: dict[str, Path], tab: Browser) -> None:
    tab.open(pages["run"], 1280)
    assert not tab.run("document.querySelector('#calibration').open")
    tab.run("document.querySelector('nav a[href=\"#calibration\"]').click()")
    assert tab.run("new Promise(done => setTimeout(() => done(document.querySelector('#calibration').open), 200))")


def test_pictures_have_names_for_those_who_do_not_see_them(pages: dict[str, Path], tab: Browser) -> None:
    tab.open(pages["run"], 1280)
    named = "[...document.querySelectorAll('figure svg')].map(one => [one.getAttribute('role')," \
            " document.getElementById(one.getAttribute('aria-labelledby')).textContent.length])"  # fmt: skip
    found = tab.run(named)
    assert len(found) > 4 and all(role == "img" and length > 10 for role, length in found)
    assert tab.run("[...document.querySelectorAll('img')].every(one => one.alt.length > 10)")
