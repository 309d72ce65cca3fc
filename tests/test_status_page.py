"""The status page tells people the truth: in words, a sign and a colour, on any screen, and without a reload."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect
from src.database.errors import CAUSES
from src.database.resolver import DatabaseURLResolver
from src.status_page.router import REMEDIES, REPAIRS

from tests.support.bakery import ROOT, BakedProject, Bakery
from tests.support.browser import HOST, WIDTHS, Visit, axe_source, chromium, new_context, visit
from tests.support.faults import listening, silence
from tests.support.javascript import install_packages
from tests.support.postgres import Postgres

pytestmark = pytest.mark.slow

SOON = 5_000  # milliseconds
REFUSED = "postgresql://app:secret@127.0.0.1:1/app"
ON_A_SPACE = {"SPACE_ID": "example/my-space", "SPACE_HOST": "example-my-space.hf.space"}
STATES: dict[str, dict[str, str]] = {
    "ok": {},
    "ok-on-a-space": ON_A_SPACE,
    "degraded": {"DATABASE_URL": f" '{REFUSED}?pgbouncer=true' "},
    "unavailable": {"DATABASE_URL": REFUSED, "DATABASE_FALLBACK": "strict"},
    "starting": {"DATABASE_URL": "postgresql://app:secret@127.0.0.1:{silent}/app"},
}
WORDS = {
    "ok": ["OK", "Everything works", "SQLite serves."],
    "ok-on-a-space": ["OK", "Data do not survive a restart", "DATABASE_URL", "SNAPSHOT_URL", "this Space's settings"],
    "degraded": ["Degraded", "another database", "SQLite serves instead of PostgreSQL.", "What to do", "DATABASE_URL"],
    "unavailable": ["Unavailable", "neither be read nor written", "refuses connections", "What to do", "DATABASE_URL"],
    "starting": ["Starting", "The database is being chosen."],
}
FACTS: dict[str, dict[str, str]] = {
    "ok": {"Database": "SQLite", "Data survive a restart": "Yes"},
    "ok-on-a-space": {"Database": "SQLite", "Data survive a restart": "No"},
    "degraded": {
        "Database": "SQLite",
        "Data survive a restart": "Yes",
        "Rows that wait to be moved to PostgreSQL": "1",
        "Mended in DATABASE_URL": "blanks around it, quotes around it, left out the parameter pgbouncer",
    },
    "unavailable": {"Database": "None", "Data survive a restart": "Not known", "Latency": "Not measured"},
    "starting": {"Database": "None", "Data survive a restart": "Not known", "Latency": "Not measured"},
}
ALWAYS = {"Database", "Data survive a restart", "Latency", "Uptime", "Last checked", "Version"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script that looks for what keeps people from using a page."""
    return axe_source(install_packages(tmp_path_factory.mktemp("javascript")))


# Goes on starting for as long as anyone may look at it.
PATIENT_APP = """
from src.database import lifecycle

assert lifecycle.CONNECT_SECONDS == 10
lifecycle.CONNECT_SECONDS = 300
from src.main import app
"""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where somebody listens who never says a word."""
    with listening(silence) as port:
        yield port


def state_of(page: Page) -> Locator:
    """The part that tells the state, whose headline screen readers announce when it changes."""
    return page.locator("section.state", has=page.get_by_role("status"))


def facts_of(page: Page) -> dict[str, str]:
    """The table of facts, as far as it is shown."""
    rows = page.locator("dl > div:visible")
    texts = (row.inner_text().split("\n", 1) for row in rows.all())
    return {term.strip(): value.strip() for term, value in texts}


def count_announcements(page: Page) -> None:
    """Count in `announced`, from now on, how often screen readers have something to say."""
    page.evaluate(
        """() => {
            window.announced = 0;
            const seen = {subtree: true, childList: true, characterData: true};
            const observer = new MutationObserver(() => window.announced++);
            for (const part of document.querySelectorAll("[role=status], [aria-live]")) observer.observe(part, seen);
        }"""
    )


def check_sizes(opened: Visit, axe: str, name: str) -> None:
    """Look at the page at each width: it fits, nothing keeps people from using it, and a picture is kept."""
    for size, width in WIDTHS.items():
        opened.resize(width)
        assert not opened.needs_sideways_scrolling
        assert opened.barriers(axe) == []
        opened.photograph(f"{name}-{size}")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_each_state_is_told_in_words_that_everyone_can_use(
    project: BakedProject, browser: Browser, axe: str, silent_port: int, state: str, theme: str
) -> None:
    environ = {name: value.format(silent=silent_port) for name, value in STATES[state].items()}
    (project.path / "patient.py").write_text(PATIENT_APP)
    app = "patient:app" if state == "starting" else "src.main:app"
    with project.boot(environ, in_place=True, app=app) as server:
        if state != "starting":
            server.settled()
        if state == "degraded":
            server.post("/api/items", json={"title": "waits"})
            server.health_when(lambda report: report["database"]["pending_rows"] == 1)
        with visit(browser, server, color_scheme=theme) as opened:
            page = opened.page
            shown = page.locator("main").inner_text().replace("\n", " ")
            assert [word for word in WORDS[state] if word.lower() not in shown.lower()] == []
            status = state.partition("-")[0]
            expect(page.locator(".state use")).to_have_attribute("href", f"#sign-{status}")
            expect(page).to_have_title(re.compile(f"^My Space: {status}$", re.IGNORECASE))
            facts = facts_of(page)
            assert facts.keys() == ALWAYS | FACTS[state].keys()
            assert {name: facts[name].lower() for name in FACTS[state]} == {
                name: value.lower() for name, value in FACTS[state].items()
            }
            expect(page.get_by_text("Data do not survive")).to_be_visible(visible=state == "ok-on-a-space")
            check_sizes(opened, axe, f"status-{state}-{theme}")
            assert opened.problems == []
        assert server.health()["status"] == status


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_state_looks_like_another(bake: Bakery, browser: Browser, theme: str) -> None:
    with bake().boot() as server, visit(browser, server, color_scheme=theme) as opened:
        colours = opened.page.evaluate(
            """states => {
                const colour = selector => getComputedStyle(document.querySelector(selector)).backgroundColor;
                const ofState = state => { document.body.dataset.status = state; return colour(".state") };
                return ["rgba(0, 0, 0, 0)", colour("body"), ...states.map(ofState)];
            }""",
            ["ok", "degraded", "unavailable", "starting", "silent"],
        )
        assert len(set(colours)) == 7


def test_changes_appear_and_are_announced_without_a_reload(
    bake: Bakery, browser: Browser, axe: str, postgres: Postgres
) -> None:
    url = postgres.create_database()
    postgres.stop()
    with bake().boot({"DATABASE_URL": url}) as server, visit(browser, server) as opened:
        page, state = opened.page, state_of(opened.page)
        server.settled()
        expect(state).to_contain_text("SQLite serves instead of PostgreSQL.", timeout=SOON)
        postgres.start()
        server.health_when(lambda report: report["status"] == "ok")
        expect(state).to_contain_text("PostgreSQL serves.", timeout=SOON)

        count_announcements(page)
        uptime = page.locator("dt:text('Uptime') + dd")
        for _ in range(2):
            expect(uptime).not_to_have_text(uptime.inner_text(), timeout=SOON)
        assert page.evaluate("window.announced") == 0

        postgres.stop()
        server.health_when(lambda report: report["status"] == "unavailable")
        expect(state).to_contain_text("Data can neither be read nor written", timeout=SOON)
        assert page.evaluate("window.announced") == 1
        expect(page).to_have_title("My Space: Unavailable")
        check_sizes(opened, axe, "status-unavailable-postgresql")

        postgres.start()
        server.health_when(lambda report: report["status"] == "ok")
        expect(state).to_contain_text("Everything works", timeout=SOON)
        # what was counted is still there, so nothing was loaded anew
        assert page.evaluate("window.announced") == 2
        assert opened.problems == []


def test_an_age_that_grows_is_shown_and_not_announced(bake: Bakery, browser: Browser, tmp_path: Path) -> None:
    with bake().boot({"SNAPSHOT_URL": str(tmp_path), "SNAPSHOT_INTERVAL": "5"}) as server:
        server.health_when(lambda report: "The newest snapshot is" in report["database"]["detail"])
        with visit(browser, server) as opened:
            count_announcements(opened.page)
            detail = opened.page.locator("#text p").first
            for _ in range(2):
                expect(detail).not_to_have_text(detail.inner_text(), timeout=SOON)
            assert opened.page.evaluate("window.announced") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_server_that_was_killed_is_no_longer_called_ok(
    project: BakedProject, browser: Browser, axe: str, theme: str
) -> None:
    with project.boot(in_place=True) as server:
        server.settled()
        with visit(browser, server, color_scheme=theme) as opened:
            state = state_of(opened.page)
            expect(state).to_contain_text("Everything works")
            server.kill()
            expect(state).to_contain_text("The server does not answer", timeout=SOON)
            expect(state).not_to_contain_text("Everything works")
            expect(opened.page).to_have_title("My Space: no answer")
            assert facts_of(opened.page)["Last checked"].startswith("No answer for")
            check_sizes(opened, axe, f"status-no-answer-{theme}")
            with project.boot(in_place=True, port=server.port) as restarted:
                restarted.settled()
                expect(state).to_contain_text("Everything works", timeout=SOON)


def test_a_server_that_hangs_is_no_longer_called_ok(bake: Bakery, browser: Browser) -> None:
    with bake().boot() as server:
        server.settled()
        with visit(browser, server) as opened:
            expect(state_of(opened.page)).to_contain_text("Everything works")
            server.process.send_signal(signal.SIGSTOP)
            try:
                expect(state_of(opened.page)).to_contain_text("The server does not answer", timeout=SOON + 1_000)
            finally:
                server.process.send_signal(signal.SIGCONT)
            expect(state_of(opened.page)).to_contain_text("Everything works", timeout=SOON)


def test_a_hidden_tab_asks_for_nothing_and_is_up_to_date_when_shown(bake: Bakery, browser: Browser) -> None:
    # Chromium without a screen never hides a tab.
    hide = """hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with bake().boot() as server, visit(browser, server) as opened:
        page = opened.page
        page.evaluate(hide, True)
        # a question that was under way
        page.wait_for_timeout(500)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(5_000)
        assert asked == []
        with page.expect_request("**/", timeout=1_000):
            page.evaluate(hide, False)


def test_the_page_is_true_without_javascript(bake: Bakery, browser: Browser) -> None:
    with bake().boot({"DATABASE_URL": "mysql://app:secret@db.example.com/app"}) as server:
        server.settled()
        with visit(browser, server, java_script_enabled=False) as bare, visit(browser, server) as opened:
            assert state_of(bare.page).inner_text() == state_of(opened.page).inner_text()
            assert "SQLite serves instead of PostgreSQL." in state_of(bare.page).inner_text()
            assert facts_of(bare.page).keys() == ALWAYS
            assert bare.problems == []


HOSTILE = [
    "<script>document.title = 'taken over'</script>",
    '"><img src="https://elsewhere.example/x.png" onerror="alert(1)">',
    "</title><h1>$title $$ ${title} {title} %s</h1>",
    "&lt;b&gt; &amp; \\u003cb> 'quoted' \\",
    "Ünï" + "x" * 190,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_titles_and_descriptions_are_shown_as_they_were_typed(bake: Bakery, browser: Browser, text: str) -> None:
    project = bake.as_typed(project_name=text, short_description=text[:60], emoji="#️⃣")
    with project.boot() as server:
        server.settled()
        with visit(browser, server) as opened:
            opened.resize(WIDTHS["narrow"])
            assert opened.page.locator("h1").all_text_contents() == [text]
            assert opened.page.locator(".about").text_content() == text[:60]
            assert opened.page.locator(".emoji").text_content() == "#️⃣"
            expect(opened.page).to_have_title(f"{text}: OK")
            assert not opened.needs_sideways_scrolling
            assert opened.problems == []


def test_the_keyboard_reaches_every_link_and_shows_where_it_is(bake: Bakery, browser: Browser) -> None:
    focused = "[document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"
    with bake().boot() as server, visit(browser, server) as opened:
        page = opened.page
        for name in ("API docs", "Health as JSON", "Metrics"):
            page.keyboard.press("Tab")
            assert page.evaluate(focused) == [name, "solid"]
            address = page.evaluate("document.activeElement.href")
            assert server.get(urlsplit(address).path).status_code == 200
        # what is focused stays so while the rest of the page changes
        uptime = page.locator("dt:text('Uptime') + dd")
        expect(uptime).not_to_have_text(uptime.inner_text(), timeout=SOON)
        assert page.evaluate(focused) == ["Metrics", "solid"]
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"http://{HOST}:{server.port}/health")


@pytest.mark.parametrize(("motion", "moving"), [("no-preference", 1), ("reduce", 0)])
def test_nothing_moves_for_those_who_want_no_motion(bake: Bakery, browser: Browser, motion: str, moving: int) -> None:
    with bake().boot() as server, visit(browser, server, reduced_motion=motion) as opened:
        moves = "document.body.dataset.status = 'starting', document.getAnimations().length"
        assert opened.page.evaluate(moves) == moving


FRAME = """<!doctype html><title>The Hub</title>
<iframe title="Space" style="width: 100%; height: 45rem; border: 0" src="https://example-my-space.hf.space/?__theme=dark"
  sandbox="allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-same-origin
  allow-scripts"></iframe>"""


@pytest.mark.parametrize("host", ["huggingface.co", "elsewhere.example"])
def test_the_hub_and_nobody_else_shows_the_page_in_a_frame(bake: Bakery, browser: Browser, host: str) -> None:
    hosts = (host, "example-my-space.hf.space")
    with bake().boot(ON_A_SPACE) as server, new_context(browser, hosts, color_scheme="light") as (context, problems):

        def forward(route: Route) -> None:
            address = urlsplit(route.request.url)
            route.fulfill(response=route.fetch(url=f"{server.url}{address.path}?{address.query}"))

        server.settled()
        context.route(f"https://{host}/**", lambda route: route.fulfill(body=FRAME, content_type="text/html"))
        context.route("https://example-my-space.hf.space/**", forward)
        page = context.new_page()
        page.goto(f"https://{host}/spaces/example/my-space")
        frame = page.frame_locator("iframe")
        if host == "elsewhere.example":
            expect(frame.get_by_role("status")).to_have_count(0)
            assert "frame-ancestors" in "".join(problems)
            return
        expect(frame.get_by_role("status")).to_contain_text("Everything works")
        assert frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(13, 17, 23)"
        uptime = frame.locator("dt:text('Uptime') + dd")
        expect(uptime).not_to_have_text(uptime.inner_text(), timeout=SOON)
        Visit(page, problems).photograph("status-in-a-frame")
        with context.expect_page() as docs:
            frame.get_by_role("link", name="API docs").click()
        expect(docs.value).to_have_url("https://example-my-space.hf.space/docs")
        expect(docs.value.get_by_text("/api/items", exact=True).first).to_be_visible()
        assert problems == []


@pytest.mark.parametrize(("theme", "scheme"), [("light", "light"), ("dark", "dark"), ("<b>", "light dark")])
def test_the_theme_is_the_hubs_or_the_browsers(bake: Bakery, theme: str, scheme: str) -> None:
    with bake().boot() as server:
        page = server.get("/", params={"__theme": theme, "logs": "container"}).text
        assert f'<meta name="color-scheme" content="{scheme}">' in page


def test_every_reason_has_a_remedy() -> None:
    about_the_url = {"auth_failed", "database_missing", "dns", "not_postgres", "tls"}
    assert {*CAUSES, "schema_newer"} == REMEDIES.keys() | about_the_url


def test_every_repair_is_told_in_words() -> None:
    rows = (ROOT / "tests" / "data" / "database-urls.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(row)["value"] for row in rows]
    resolutions = (DatabaseURLResolver({"DATABASE_URL": value}).resolve() for value in values if value)
    repairs = {code.partition(":")[0] for resolution in resolutions for code in resolution.repairs}
    assert len(repairs) > 10
    assert repairs <= REPAIRS.keys()
