"""The pages in a real browser."""

import os
import shutil
import socket
import threading
import time

import pytest
import uvicorn

from helpers.prepared_data import TITLES


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
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
