"""The page in a browser: nothing is loaded or fails, a node answers a click.

Screenshots are kept in the folder that ``MXHW_SCREENSHOTS`` names, or else beside the page in the
test's folder; ``MXHW_REPORT`` names a page of a real build to take them of as well.
"""

import os
import shutil
from pathlib import Path

import pytest

from mxhw.report import PAGE_FILE, read_folder, render
from tests.report import sample

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing")

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing")

VIEWS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = sample.write_folder(tmp_path_factory.mktemp("build"))
    path = folder / PAGE_FILE
    path.write_text(render(read_folder(folder)), "utf-8")
    return path


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    named = os.environ.get("MXHW_SCREENSHOTS")
    path = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


class Opened:
    """A page, and everything that went wrong or left it."""

    def __init__(self, browser, path, view):
        self.context = browser.new_context(**VIEWS[view])
        self.page = self.context.new_page()
        self.problems, self.requests = [], []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.context.close()

    def check(self, path):
        outside = [url for url in self.requests if not url.startswith("data:")]
        assert (self.problems, outside) == ([], [path.as_uri()])


@pytest.mark.parametrize("view", VIEWS)
def test_page_opens_and_a_node_answers(browser, page_file, screenshots, view):
    with Opened(browser, page_file, view) as opened:
        page = opened.page
        page.locator("#graph .node", has_text="softmax").first.click()
        panel = page.locator("#panel")
        assert panel.locator("h3").text_content() == "softmax"
        text = panel.inner_text()
        facts = ("llama.py:", "self.attend(q", "mxint8", "cycles", "against float", "lookup tables")
        for part in facts:
            assert part in text
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]
        if view == "phone":
            panel.get_by_role("button", name="Close").click()
            assert not panel.is_visible()
        page.screenshot(path=screenshots / f"report-{view}.png", full_page=True)
        opened.check(page_file)


def test_layers_measures_and_zoom(browser, page_file):
    with Opened(browser, page_file, "light") as opened:
        page = opened.page
        page.locator("#graph .node", has_text="attention.wq").click()
        assert page.locator("#panel").get_attribute("data-node") == "linear"
        page.locator("#layer-choice button").nth(1).click()
        assert page.locator("#panel").get_attribute("data-node") != "linear"
        assert "blocks.1.attention.wq" in page.locator("#panel").inner_text()
        assert page.locator("#layer-number").text_content() == "2"
        values = page.locator("#graph .value")
        cycles = values.all_text_contents()
        page.get_by_role("button", name="error", exact=True).click()
        assert values.all_text_contents() != cycles
        whole = page.locator("#timeline").get_attribute("viewBox")
        page.get_by_role("button", name="layer 2").click()
        assert page.locator("#timeline").get_attribute("viewBox") != whole
        page.locator('#timeline rect[data-node="swiglu_1"]').first.click()
        assert page.locator("#panel").get_attribute("data-node") == "swiglu_1"
        opened.check(page_file)


def test_nodes_can_be_reached_with_the_keyboard(browser, page_file):
    with Opened(browser, page_file, "light") as opened:
        node = opened.page.locator("#graph .node", has_text="argmax")
        node.focus()
        opened.page.keyboard.press("Enter")
        assert opened.page.locator("#panel").get_attribute("data-node") == "argmax"


def test_paper_shows_what_a_click_would(browser, page_file, screenshots):
    with Opened(browser, page_file, "light") as opened:
        sheets = opened.page.locator("#dataflow .paper")
        assert sheets.count() > 1
        assert not sheets.first.is_visible()
        opened.page.emulate_media(media="print")
        assert sheets.first.is_visible()
        assert sheets.last.is_visible()
        assert not opened.page.locator("#graph").is_visible()
        opened.page.pdf(path=screenshots / "report-print.pdf", format="A4", print_background=True)
        assert opened.page.locator("#all-nodes").get_attribute("open") is not None
        opened.check(page_file)


@pytest.mark.skipif("MXHW_REPORT" not in os.environ, reason="MXHW_REPORT names no page")
@pytest.mark.parametrize("view", VIEWS)
def test_page_of_a_real_build(browser, screenshots, view):
    path = Path(os.environ["MXHW_REPORT"]).resolve()
    with Opened(browser, path, view) as opened:
        if view != "phone":
            opened.page.locator("#graph .node").nth(9).click()
            opened.page.evaluate("scrollTo(0, 0)")
        opened.page.screenshot(path=screenshots / f"build-{view}.png", full_page=True)
        opened.check(path)
