"""The page in a real browser, with and without JavaScript: the story of one bad morning, from the
login to the restore.

Needs chromium (`sh hookq/setup.sh browser`); SCREENSHOTS=folder keeps what it saw.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from conftest import free_port, until
from test_dashboard import bury
from test_stack import Stack

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="there is no chromium here: sh hookq/setup.sh browser installs it"
)

BROKEN = """
def handle(delivery):
    order = delivery.json()
    raise ValueError("no price in %s" % order["note"])
"""
LOGIN = {"username": "operator", "password": "a-password"}
MENDED = "def handle(delivery): pass\n"
HOSTILE = '{"note": "</pre><script>document.title = 1</script><img src=x onerror=document.title=2> $x ${y}"}'


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def stack(tmp_path_factory):
    folder = Path("/tmp") / f"hb{os.getpid()}"
    folder.mkdir()
    made = Stack(folder)
    made.write_sources = lambda: (folder / "w.toml").write_text(
        '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\nhandler = "h.py:handle"\nmax_attempts = 1\n'
    )
    made.write_sources()
    (folder / "h.py").write_text(BROKEN)
    yield made.start()
    made.stop(signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def overview(browser, running):
    """Return a browser's context, logged in, and the URL of a dashboard without the stack."""
    port = free_port()
    running("dashboard.py", DASHBOARD_PORT=port).saw("process.start")
    context = browser.new_context(http_credentials=LOGIN)
    yield context, f"http://127.0.0.1:{port}/dashboard"
    context.close()


def accessible(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    assert not found, [(rule["id"], node["html"][:200]) for rule in found for node in rule["nodes"]]


def seen(page, name):
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")
    if "-plain-" not in f"-{name}":  # axe-core is JavaScript, too
        accessible(page)


def click(page, what):
    """Click on what leads to another page, and wait until that is there."""
    with page.expect_navigation():
        page.click(what)


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without"])
def test_story_of_a_bad_morning(browser, stack, javascript):
    kind, home = "js" if javascript else "plain", f"http://127.0.0.1:{stack.dash}/dashboard"
    context = browser.new_context(
        http_credentials=LOGIN,
        java_script_enabled=javascript,
        viewport={"width": 1280, "height": 900},
    )
    page, troubles = context.new_page(), []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))

    page.goto(home)
    assert (
        "Nothing received yet." in page.inner_text(".verdict")
        and page.locator("#live button").count() == javascript
    )
    seen(page, f"{kind}-1-empty")
    assert {stack.post(HOSTILE.encode()) for _ in range(3)} == {202}
    stack.settled(dead=3)
    if javascript:  # the numbers come by themselves
        until(lambda: page.inner_text("[data-live=dead]") == "3", what="the number comes")
    page.goto(home)
    assert "3 dead letters from 1 cause in the last hour." in page.inner_text(".verdict")
    seen(page, f"{kind}-2-dead")

    click(page, "text=ValueError in h.py:4 handle")
    assert page.locator("tbody tr").count() == 3
    seen(page, f"{kind}-3-list")
    click(page, "tbody th a >> nth=0")
    assert "</pre><script>document.title" in page.inner_text(
        "pre[aria-label=Body]"
    ) and "Traceback" in page.inner_text("main")
    assert (
        page.title().startswith("Delivery ") and page.locator("main script, main img").count() == 0
    )
    seen(page, f"{kind}-4-delivery")

    (stack.folder / "h.py").write_text(MENDED)
    assert stack.run(sys.executable, "-m", "hookq.launch", "reload").returncode == 0
    page.goto(home)
    click(page, "button[aria-label='Retry all of ValueError in h.py:4 handle']")
    assert "3 dead letters" in page.inner_text("main")
    seen(page, f"{kind}-5-confirm")
    click(page, "text=Put back 3 dead letters")
    assert "Put back 3 dead letters." in page.inner_text("[role=status]")
    stack.settled(done=3, dead=0)

    (stack.folder / "h.py").write_text(BROKEN)
    assert stack.run(sys.executable, "-m", "hookq.launch", "reload").returncode == 0
    until(lambda: stack.post(HOSTILE.encode()) == 202 and stack.audit()["dead"] >= 1, 60)
    stack.settled()
    page.goto(home + "/dead")
    click(page, "tbody button[aria-label^=Discard] >> nth=0")
    assert "Discarded " in page.inner_text("[role=status]")
    page.goto(home)
    click(page, "text=Restore >> nth=0")
    assert "Restored 1 dead letter" in page.inner_text("[role=status]")
    seen(page, f"{kind}-6-restored")
    assert stack.audit()["gap"] == 0 and stack.audit()["discarded"] == 0 and not troubles
    context.close()


@pytest.mark.parametrize(
    ("name", "more"),
    [("dark", {"color_scheme": "dark"}), ("small", {"viewport": {"width": 320, "height": 800}})],
)
def test_page_is_readable_in_the_dark_and_on_a_small_screen(browser, stack, name, more):
    stack.post(HOSTILE.encode())
    found = stack.settled(dead=1)
    assert found["dead"] == 1
    id = stack.dlqctl("--view").stdout.split("\t")[1]
    context = browser.new_context(http_credentials=LOGIN, **more)
    page = context.new_page()
    for place in ("", "/dead", f"/deliveries/{id}"):
        page.goto(f"http://127.0.0.1:{stack.dash}/dashboard{place}")
        seen(page, f"{name}-{place.strip('/').split('/')[0] or 'overview'}")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    context.close()


def test_more_tabs_than_a_browser_has_connections_stay_live(overview, store):
    context, home = overview
    tabs = [context.new_page() for _ in range(8)]  # a browser allows six connections per host
    for tab in tabs:
        tab.goto(home)
        tab.wait_for_selector("#live button")
    bury(store)
    for tab in tabs:
        until(lambda tab=tab: tab.inner_text("[data-live=dead]") == "1", 10, "the number")
        assert tab.inner_text("#live button") == "Live: pause"


def test_live_page_polls_less_on_failure_and_never_when_hidden(overview):
    context, home = overview
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(1) if "live.json" in request.url else None)
    page.clock.install()
    page.goto(home)

    def says(text):
        return until(lambda: page.inner_text("#live button") == text, 10, text)

    def asks_on():
        enough = len(asked) + 5
        until(lambda: page.clock.run_for(2000) or len(asked) >= enough, 10, "it asks")

    def asks_in(seconds):
        before = len(asked)
        for _ in range(seconds // 2):
            page.clock.run_for(2000)
            page.evaluate("fetch('/static/app.css').then((answer) => answer.text())")
        return len(asked) - before

    def look(away):
        page.evaluate(
            "(away) => { Object.defineProperty(document, 'hidden', {value: away, configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            away,
        )

    says("Live: pause")
    asks_on()
    page.route("**/live.json", lambda route: route.abort())
    page.clock.run_for(2000)
    says("Disconnected: resume")
    assert asks_in(20) <= 4
    page.unroute("**/live.json")
    asks_on()  # again, by itself
    says("Live: pause")

    look(away=True)
    assert asks_in(60) == 0
    look(away=False)
    asks_on()

    page.click("#live button")
    says("Paused: resume")
    look(away=False)
    assert asks_in(60) == 0
    page.click("#live button")
    says("Live: pause")
    asks_on()

    page.route("**/live.json", lambda route: route.fulfill(status=401))
    page.clock.run_for(2000)
    says("Disconnected: resume")
    look(away=False)
    assert asks_in(60) == 0  # the login is gone: each further try would count as a wrong password
    page.unroute("**/live.json")
    page.click("#live button")
    says("Live: pause")
