"""The pages in a real browser."""

import os
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import uvicorn
from datasets import load_dataset

from helpers.prepared_data import TITLES


NASTY = 'The <script>alert("1")</script> | *Story* & $x_1$ (1950), with a long name that goes on and on'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def demo(recommender, prepared_folder):
    """The address of the page of a tiny model, beside itself."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from trl_sdpo.commands.demo import load_users
    from trl_sdpo.serving.demo import Page, make_app

    recommenders = {"s-dpo": recommender, "sft": recommender}
    app = make_app(Page(recommenders, load_users(str(prepared_folder), recommenders)), "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(browser, demo):
    """The page, which fails the test where it asks anybody else or an error is on its console."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(demo)
    page.wait_for_selector("#query")
    yield page
    assert [url for url in asked if not url.startswith((demo, "data:", "blob:"))] == []
    assert errors == []
    context.close()


def titles_of(page, table=0):
    cells = page.locator(".sdpo-list").nth(table).locator("tbody tr td:nth-child(2)")
    return [text.split("\n")[0] for text in cells.all_inner_texts()]


def add(page, title):
    page.fill("#query textarea, #query input", title.split(" (")[0])
    page.locator("#found label", has_text=title).click()
    page.locator("#history", has_text=title).wait_for()


def test_a_history_is_built_by_clicking_and_gives_the_lists_of_the_models(page, recommender):
    for title in TITLES[:2]:
        add(page, title)
    page.click("#go")
    page.locator(".sdpo-list").nth(1).wait_for()
    expected = [item.title for item in recommender.recommend(TITLES[:2], top_k=12)][:10]
    assert titles_of(page, 0) == titles_of(page, 1) == expected
    captions = page.locator(".sdpo-list caption").all_inner_texts()
    assert captions == ["s-dpo", "sft"]


def test_a_test_user_is_loaded_and_what_came_next_is_marked(page, prepared_folder):
    page.click("#user input")
    page.get_by_role("option").first.click()
    page.locator("#history .token, #history button").first.wait_for()
    page.click("#go")
    page.locator(".sdpo-list").first.wait_for()
    assert len(titles_of(page)) == 10


def test_a_changed_history_shows_what_moved(page):
    for title in TITLES[4:8]:
        add(page, title)
    page.locator("#variation label", has_text="shuffled").click()
    page.click("#go")
    page.locator(".sdpo-list").first.wait_for()
    assert page.locator(".sdpo-list caption").first.inner_text() == "s-dpo, history shuffled"
    page.locator("#variation label", has_text="without one item").click()
    page.click("#go")
    page.get_by_text("Choose which item to leave out").wait_for()
    page.click("#without input")
    page.get_by_role("option", name=TITLES[5]).click()
    page.click("#go")
    page.locator(".sdpo-list caption", has_text="without one item").first.wait_for()
    assert not set(titles_of(page)) & set(TITLES[4:8])


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_wider_than_the_window(browser, demo, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(demo)
    page.wait_for_selector("#query")
    add(page, TITLES[0])
    page.click("#go")
    page.locator(".sdpo-list").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.fixture(scope="module")
def report(prepared_folder, tmp_path_factory):
    """The page of `trl-sdpo evaluate`, of three systems of which one has a long name with markup in it."""
    from trl_sdpo import load_recommender_files
    from trl_sdpo.evaluation.comparison import evaluate_ranking
    from trl_sdpo.evaluation.report import collect_results, write_report

    folder = tmp_path_factory.mktemp("report")
    cache = str(tmp_path_factory.mktemp("cache"))
    records, train = (load_dataset(str(prepared_folder), split=split, cache_dir=cache) for split in ("test", "train"))
    rng = np.random.default_rng(0)
    scores = {name: list(rng.normal(size=(len(records), 5))) for name in ("sft", "s-dpo", NASTY)}
    catalogue = load_recommender_files(prepared_folder).catalogue
    section = evaluate_ranking(scores, records, seed=0, catalogue=catalogue, train=train)
    results = collect_results([section], dataset={"name": "tiny", "records": len(records)}, settings={"seed": 0})
    return next(path for path in write_report(results, folder) if path.suffix == ".html")


@pytest.mark.parametrize("width", [375, 1280])
def test_the_report_fits_and_its_figures_have_words(browser, report, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(report.as_uri())
    assert asked == [report.as_uri()]
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.locator("figure svg").all()
    assert figures
    for figure in figures:
        box = figure.bounding_box()
        assert 0 < box["width"] <= width
        assert len(figure.get_attribute("aria-label")) > 5
    page.close()


def test_the_report_prints(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
