"""Reports in a real browser: drawn, readable in both schemes and on a phone, sortable, and alone with themselves."""

import json
import shutil
import time

import pytest
from support.report_sources import held_row, quadratic, train_row, write_run, write_store

import streamseq as ss

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed (Debian: chromium chromium-driver)"
)
KINDS = ("store", "run", "search")
LIGHT, DARK = ([{"name": "prefers-color-scheme", "value": value}] for value in ("light", "dark"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of each kind: by kind the address of the file."""
    folder = tmp_path_factory.mktemp("pages")
    write_store(folder)
    rows = [*(train_row(update, 9 / update) for update in range(1, 40)), held_row(20, 1.0), held_row(39, 0.5)]
    write_run(folder / "run", rows, settings={"k1": 8, "k2": 16}, run={"updates": 39, "seconds": 20.0, "waited": 1.0})
    ss.search(quadratic, folder / "search", {"k1": [8, 16, 32], "k2": "2*k1,4*k1"})
    names = {"store": "plants.zarr", "run": "run", "search": "search"}
    return {kind: f"file://{ss.report(folder / name, folder / f'{kind}.html').out}" for kind, name in names.items()}


@pytest.fixture(scope="module")
def browser():
    """One browser for all."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for option in ("--no-sandbox", "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(option)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, pages):
    """Show a page, drawn."""

    def open_page(kind, width=1200, scheme=LIGHT):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(pages[kind])
        wait(lambda: browser.execute_script("return document.documentElement.dataset.drawn"))
        return browser

    return open_page


def wait(holds):
    """Wait until something holds."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "the page did not come to what was waited for"
        time.sleep(0.02)


def colours(browser):
    """Of the page, of its text, and of what is drawn."""
    return browser.execute_script("""
        const style = getComputedStyle(document.body);
        const drawn = [...document.querySelectorAll(".chart path.js-line, .chart .bg")];
        return [style.backgroundColor, style.color, ...drawn.map((each) => {
            const style = getComputedStyle(each);
            return `${style.stroke} ${style.fill}`;
        })];
    """)


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_drawn_without_errors_and_without_the_network(show, kind):
    browser = show(kind)
    charts = browser.execute_script("return JSON.parse(document.getElementById('charts').textContent).length")
    drawn = browser.execute_script("""
        return [...document.querySelectorAll(".chart")]
            .filter((each) => each.querySelector("svg .cartesianlayer :is(path, image)")).length
    """)
    assert drawn == charts >= 4
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in urls if url.startswith("file:")]) == 1
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_s_scheme_colours_page_and_charts_also_when_it_changes(show, kind):
    browser = show(kind)
    light = colours(browser)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": DARK})
    wait(lambda: colours(browser)[2] != light[2])
    dark = colours(browser)
    assert len(light) == len(dark) > 3
    assert not [one for one, other in zip(light, dark, strict=True) if one == other]
    show(kind, scheme=DARK)
    assert colours(browser) == dark
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_scrolls_tables_but_not_the_page(show, kind):
    browser = show(kind, width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = browser.execute_script("""
        return [...document.querySelectorAll("body *")].filter((each) =>
            !each.closest(".scroll, .chart, .unseen, .skip") && each.getBoundingClientRect().right > 391).length
    """)
    assert wide == 0
    scrolled = browser.execute_script("""
        return [...document.querySelectorAll(".scroll")].filter((each) => each.scrollWidth > each.clientWidth).length
    """)
    assert bool(scrolled) == (kind != "run")


def test_tables_are_sorted_by_the_column_that_is_pressed(show):
    browser = show("search")
    column = """
        const table = [...document.querySelectorAll("table")].find((each) => /All trials/.test(each.caption.textContent));
        const head = [...table.tHead.rows[0].cells].find((each) => each.textContent === arguments[0]);
        if (arguments[1]) head.querySelector("button").click();
        return [head.getAttribute("aria-sort"), [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].textContent)];
    """  # noqa: E501
    for name in ("k2", "held-out loss"):
        sort, values = browser.execute_script(column, name, True)
        assert sort == "ascending"
        assert list(map(float, values)) == sorted(map(float, values))
        sort, values = browser.execute_script(column, name, True)
        assert sort == "descending"
        assert list(map(float, values)) == sorted(map(float, values), reverse=True)
    # Of the one before it is not said any more.
    assert browser.execute_script(column, "k2", False)[0] is None


def test_another_view_is_drawn_when_it_is_chosen(show):
    browser = show("store")
    path = "return document.querySelector('.chart path.js-fill, .chart path.js-line').getAttribute('d')"
    before = browser.execute_script(path)
    browser.execute_script("document.querySelectorAll('fieldset input')[1].click()")
    wait(lambda: browser.execute_script(path) != before)
    assert browser.execute_script("return document.querySelectorAll('fieldset input')[1].checked")


def test_what_ids_say_runs_nothing(show):
    browser = show("store")
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert "onerror=alert(1)" in browser.execute_script("return document.body.innerText")


def test_on_paper_it_is_light(show):
    browser = show("run", scheme=DARK)
    dark = colours(browser)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    wait(lambda: colours(browser)[2] != dark[2])
    assert colours(browser)[0] == "rgb(255, 255, 255)"
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    wait(lambda: colours(browser) == dark)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_stands_out_from_what_is_behind_it(show, scheme):
    browser = show("store", scheme=scheme)
    contrasts = browser.execute_script("""
        const style = getComputedStyle(document.documentElement);
        const parts = (name) => {
            const hex = style.getPropertyValue(name).trim();
            return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
        };
        const light = (colour) => {
            const [r, g, b] = colour.map((each) => each / 255)
                .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const contrast = (one, other) => {
            const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
            return (high + 0.05) / (low + 0.05);
        };
        const found = {};
        for (const text of ["--text", "--soft", "--link"])
            for (const behind of ["--page", "--panel", "--best", "--warn"])
                found[text + " on " + behind] = contrast(parts(text), parts(behind));
        // The figures in a heat map, whose colours lie between those of the scale.
        for (let step = 0; step <= 50; step++) {
            const at = step / 50;
            const place = Math.min(Math.floor(4 * at), 3), rest = 4 * at - place;
            const [from, to] = [place, place + 1].map((each) => parts("--scale-" + each));
            const behind = from.map((each, index) => each + rest * (to[index] - each));
            found["at " + at] = contrast(parts(at <= 0.4 ? "--on-strong" : "--on-weak"), behind);
        }
        return found;
    """)
    assert not {pair: contrast for pair, contrast in contrasts.items() if contrast < 4.5}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_and_listed_has_a_name(show, kind):
    browser = show(kind)
    nameless = browser.execute_script("""
        const named = (each) => each.getAttribute("aria-label")
            || document.getElementById(each.getAttribute("aria-labelledby") || "none")?.textContent;
        return [...document.querySelectorAll("main section, main figure:has(.chart), .chart, .scroll, nav")]
            .filter((each) => !named(each)).map((each) => each.outerHTML.slice(0, 100));
    """)
    assert nameless == []
    levels = browser.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map((each) => each.tagName)")
    assert levels[:2] == ["H1", "H2"]
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert browser.execute_script("return [...document.querySelectorAll('nav a')].every((each) => "
                                  "document.getElementById(each.hash.slice(1)))")  # fmt: skip
    assert len({each for each in ids if each.startswith(("chart-", "section-"))}) == len(
        [each for each in ids if each.startswith(("chart-", "section-"))]
    )
