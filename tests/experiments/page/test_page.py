"""The page in a browser, opened as a file: it draws, it follows what is clicked, and asks nobody for anything."""

import json
import re

import numpy as np
import pytest

from blocks.history import log_spaced
from experiments.page import content
from experiments.page.html import render_page
from tests.experiments.page.synthetic import STEPS, sweep
from tests.experiments.test_show import SCREENSHOTS, chromium

MARKUP = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"> 'a' \"b\" & \u2028"


@pytest.fixture(scope="module")
def browser():
    driver = chromium({"goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}})
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """opened(page, width) -> the browser with that page in a window of that width."""

    def show(page, width=1400):
        file = tmp_path / "report.html"
        file.write_text(render_page(page), encoding="utf-8")
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(f"file://{file}")
        return browser

    yield show
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert asked(browser) <= {f"file://{tmp_path}/report.html"}


def asked(browser):
    """The addresses that were asked for, those with the data in them apart."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if not url.startswith("data:")}


def text(browser, selector):
    return browser.find_element("css selector", selector).get_attribute("textContent")


def drawn(browser, figure):
    return browser.find_element("css selector", f"#{figure} > div").get_attribute("innerHTML")


def open_table(browser):
    """The table is drawn as it opens, which the browser says in its own time."""
    browser.find_element("css selector", "#table summary").click()
    support = pytest.importorskip("selenium.webdriver.support.wait")
    support.WebDriverWait(browser, 20).until(lambda _: browser.find_elements("css selector", "#table tbody tr"))


def slide(browser, share):
    """Move the slider to that share of its range; the step that it shows then."""
    browser.execute_script(
        "const slider = document.querySelector('.slider'); slider.value = Math.round(arguments[0] * slider.max);"
        "slider.dispatchEvent(new Event('input'))",
        share,
    )
    return int(re.search(r"step (\d+)", text(browser, ".at"))[1])


def keep_picture(browser, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    (SCREENSHOTS / f"{name}.png").write_bytes(browser.get_screenshot_as_png())


@pytest.mark.parametrize("width", [400, 1400])
def test_a_cell_that_is_clicked_and_a_slider_that_is_moved_change_the_pictures(opened, width):
    browser = opened(sweep(seeds=(0, 1), signals=True, verdict="holds: it does"), width)
    # Nothing is wider than the window, a phone's among them.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cells = browser.find_elements("css selector", ".cell")
    assert [cell.get_attribute("aria-label").partition(":")[0] for cell in cells] == [
        f"depth {depth}, rate {rate}" for depth in (2, 5) for rate in (0.1, 1)
    ]
    assert text(browser, "#card h3") == "depth 2, rate 1, seed 0"
    before = {name: drawn(browser, name) for name in ("curves", "losses", "norms", "profile", "ridges", "parallel")}
    cells[2].click()
    assert text(browser, "#card h3") == "depth 5, rate 0.1, seed 0"
    assert not [name for name, picture in before.items() if drawn(browser, name) == picture]
    before = {name: drawn(browser, name) for name in ("profile", "ridges")}
    # Of the initial network theory's normal densities.
    assert len(browser.find_elements("css selector", "#ridges .theory path")) == 5
    # Log-spaced, and all of them where there are no more than a curve has points.
    assert slide(browser, 0.5) == round(0.5 * (STEPS - 1))
    assert not [name for name, picture in before.items() if drawn(browser, name) == picture]
    assert "measured at step 10" in text(browser, "#ridges")
    assert not browser.find_elements("css selector", "#ridges .theory path")
    browser.find_elements("css selector", "#card button")[1].click()
    assert text(browser, "#card h3") == "depth 5, rate 0.1, seed 1"
    keep_picture(browser, f"report-{width}")


def test_axes_are_switched_and_lines_are_gathered(opened):
    browser = opened(sweep(seeds=(0, 1, 2)))
    bands = "#curves g[aria-label=area] path"
    assert len(browser.find_elements("css selector", bands)) == 4
    pictures = [drawn(browser, "curves")]
    for control in ("toggle-logX", "toggle-logY"):
        browser.find_element("id", control).click()
        pictures.append(drawn(browser, "curves"))
    browser.find_element("css selector", "#choose-by option[value='network.depth']").click()
    assert len(browser.find_elements("css selector", bands)) == 2
    assert len({*pictures, drawn(browser, "curves")}) == 4
    open_table(browser)
    assert len(browser.find_elements("css selector", "#table tbody tr")) == 12
    browser.find_elements("css selector", "#table tbody tr")[-1].click()
    assert text(browser, "#card h3") == "depth 5, rate 0.1, seed 2"


def test_the_slider_plays(opened):
    browser = opened(sweep())
    browser.find_element("css selector", ".play").click()
    browser.execute_async_script("setTimeout(arguments[0], 600)")
    browser.find_element("css selector", ".play").click()
    assert 0 < int(re.search(r"step (\d+)", text(browser, ".at"))[1]) < STEPS - 1


def test_what_a_stranger_has_named_is_text(opened):
    browser = opened(sweep(dataset=MARKUP, name=MARKUP, verdict=MARKUP))
    # MARKUP's last letter is a separator that is written as an escape in what is printed.
    assert browser.title == MARKUP.replace("\u2028", "\\u2028")
    assert MARKUP[:-1] in text(browser, "h1")
    assert MARKUP[:-1] in text(browser, ".verdict")
    assert len(browser.find_elements("css selector", ".cell")) == 4


def test_a_sweep_that_diverged_everywhere_has_a_map(opened):
    browser = opened(sweep(diverged=lambda *_: True))
    cells = browser.find_elements("css selector", ".cell")
    assert {cell.get_attribute("aria-label").partition(": ")[2] for cell in cells} == {"diverged"}
    cells[3].click()
    assert "at step 5, in block 5" in text(browser, "#card")
    slide(browser, 1.0)


def test_a_run_that_cannot_be_read_is_left_out_and_named(opened):
    browser = opened(sweep(damaged={1}))
    assert len(browser.find_elements("css selector", ".cell")) == 3
    assert "Left out: history.npz of job 1 is damaged" in text(browser, "header")


def test_of_accuracies_the_largest_is_the_best(opened):
    """They are exp(-rate t / 10), of the last step 99."""
    browser = opened(sweep(rates=(0.01, 0.1, 1.0), diverged=lambda depth, rate, _: rate == 1, measure="accuracy/train"))
    assert text(browser, "#card h3") == "depth 2, rate 0.01, seed 0"
    assert [label.text for label in browser.find_elements("css selector", "#map svg text") if "*" in label.text] == ["0.906*"]
    assert not browser.find_element("id", "toggle-logY").is_selected()
    open_table(browser)
    rows = [row.text.split()[-1:-3:-1] for row in browser.find_elements("css selector", "#table tbody tr")]
    assert rows[:4] == [["trained", "0.906"]] * 2 + [["trained", "0.372"]] * 2
    assert [outcome for outcome, _ in rows[4:]] == ["diverged"] * 2
    # What has no value lies below all others.
    labels = browser.find_elements("css selector", "#parallel svg text")
    down = {label.text: label.location["y"] for label in labels if label.text}
    assert down["none"] > down["0.4"] > down["0.8"]


def test_of_a_search_every_run_is_a_point(opened):
    content = sweep(range(2, 12), np.geomspace(1e-3, 1, 40).round(5).tolist())
    browser = opened({**content, "isSearch": True})
    points = browser.find_elements("css selector", "#map .cell")
    assert len(points) == 400
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click'))", points[41])
    assert text(browser, "#card h3") == "depth 3, rate 0.00119, seed 0"


def test_a_run_alone_has_no_map(opened):
    browser = opened(sweep(depths=(3,), rates=(0.1,)))
    assert browser.find_elements("css selector", ".cell") == []
    assert browser.find_elements("css selector", "#parallel") == []
    assert slide(browser, 1.0) == STEPS - 1


def test_without_the_instrument_the_page_says_how_to_have_it(opened):
    browser = opened(sweep())
    assert "instruments.signals=log" in text(browser, "#distributions-section")


@pytest.mark.slow
def test_of_a_thousand_runs_cells_and_bands_are_drawn(opened):
    page = sweep(range(1, 26), np.geomspace(1e-3, 1, 20).round(4).tolist(), (0, 1), lambda depth, rate, _: depth * rate > 15)
    assert len(render_page(page)) < 6e6
    browser = opened(page)
    assert len(browser.find_elements("css selector", ".cell")) == 500
    assert len(browser.find_elements("css selector", "#curves g[aria-label=line] path")) <= 26
    assert "1000 runs are drawn as bands" in text(browser, "#curves figcaption")
    assert "Of 500 cells the best 150 are drawn" in text(browser, "#parallel figcaption")
    browser.find_elements("css selector", ".cell")[77].click()
    assert text(browser, "#card h3").startswith("depth 4, rate 0.48")
    keep_picture(browser, "report-thousand")


def test_the_more_runs_the_fewer_steps_of_each(monkeypatch):
    few = sweep()
    assert {tuple(grid["shape"]) for grid in few["grids"]} == {(STEPS,), (5,)}
    # 4 runs of 5 curves, and of 14 blocks in all: 14 and 20 steps of each.
    monkeypatch.setattr(content, "MAX_VALUES", 280)
    many = sweep()
    assert {run["curves"]["loss/batch"]["values"]["shape"][0] for run in many["runs"]} == {len(log_spaced(STEPS, 14))}
    assert {run["norms"]["values"]["shape"][0] for run in many["runs"]} == {len(log_spaced(STEPS, 20))}


@pytest.mark.slow
def test_a_hundred_deep_runs_with_distributions_are_six_megabytes_at_most():
    assert len(render_page(sweep(range(20, 70), (0.1, 1.0), signals=True))) < 6e6
