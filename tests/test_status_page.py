"""The status page tells people the truth: in words, a sign and a colour, on any screen, and without a reload."""

import json
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect
from space_runtime.http.status_page import REPAIRS
from space_runtime.reasons import REASONS
from src.database.resolver import DatabaseURLResolver

from tests.support.bakery import ROOT, BakedProject, Bakery
from tests.support.browser import HOST, WIDTHS, Visit, axe_source, chromium, new_context, visit
from tests.support.faults import listening, silence
from tests.support.javascript import installed_packages
from tests.support.postgres import Postgres
from tests.support.server import IMPATIENT, Server

pytestmark = pytest.mark.slow

SOON = 20_000  # milliseconds
POLL = 2_000  # from one question of the page to the next
REFUSED = "postgresql://app:secret@127.0.0.1:1/app"
THEMES: list[Literal["light", "dark"]] = ["light", "dark"]
ON_A_SPACE = {"SPACE_ID": "example/my-space", "SPACE_HOST": "example-my-space.hf.space"}
STATES: dict[str, dict[str, str]] = {
    "ok": {},
    "ok-on-a-space": ON_A_SPACE,
    "degraded": {"DATABASE_URL": f" '{REFUSED}?pgbouncer=true' ", **IMPATIENT},
    "unavailable": {"DATABASE_URL": REFUSED, "DATABASE_FALLBACK": "strict"},
    # goes on starting for as long as anyone may look at it
    "starting": {
        "DATABASE_URL": "postgresql://app:secret@127.0.0.1:{silent}/app",
        "DATABASE_CONNECT_SECONDS": "300",
    },
}
WORDS = {
    "ok": ["OK", "Everything works", "SQLite serves."],
    "ok-on-a-space": ["OK", "Data does not survive a restart", "DATABASE_URL", "SNAPSHOT_URL", "this Space's settings"],
    "degraded": ["Degraded", "another database", "SQLite serves instead of PostgreSQL.", "What to do", "DATABASE_URL"],
    "unavailable": ["Unavailable", "neither be read nor written", "refuses connections", "What to do", "DATABASE_URL"],
    "starting": ["Starting", "The database is being chosen."],
}
FACTS: dict[str, dict[str, str]] = {
    "ok": {"Database": "SQLite"},
    "ok-on-a-space": {"Database": "SQLite", "Data survives a restart": "No"},
    "degraded": {
        "Database": "SQLite",
        "Rows that are not in PostgreSQL yet": "1",
        "Mended in DATABASE_URL": "blanks around it, quotes around it, left out the parameter pgbouncer",
    },
    "unavailable": {"Database": "None", "Data survives a restart": "Not known", "Latency": "Not measured"},
    "starting": {"Database": "None", "Data survives a restart": "Not known", "Latency": "Not measured"},
}
ALWAYS = {"Database", "Data survives a restart", "Latency", "Uptime", "Last checked", "Version"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def axe() -> str:
    """The script that looks for what keeps people from using a page."""
    return axe_source(installed_packages())


@pytest.fixture(scope="module")
def server(bake: Bakery) -> Iterator[Server]:
    """An app on SQLite, for all tests that leave it as it is."""
    with bake().boot() as server:
        server.settled()
        yield server


@pytest.fixture(scope="module")
def space(bake: Bakery) -> Iterator[Server]:
    """The same on a Space."""
    with bake().boot(ON_A_SPACE) as server:
        server.settled()
        yield server


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


Look = tuple[Literal["light", "dark"], str]
# each theme and each width
LOOKS: list[Look] = [("light", "wide"), ("dark", "narrow")]
OTHER_LOOKS: list[Look] = [("light", "narrow"), ("dark", "wide")]


def check_looks(opened: Visit, axe: str, name: str, looks: Sequence[Look] = LOOKS) -> None:
    """Look at the page in themes and widths: it fits, keeps nobody from using it, and a picture is kept."""
    for theme, size in looks:
        opened.page.emulate_media(color_scheme=theme)
        opened.resize(WIDTHS[size])
        assert not opened.needs_sideways_scrolling
        assert opened.barriers(axe) == [], (theme, size)
        opened.photograph(f"{name}-{theme}-{size}")


@pytest.mark.parametrize(
    "looks", [LOOKS, pytest.param(OTHER_LOOKS, marks=pytest.mark.thorough)], ids=["looks", "other-looks"]
)
@pytest.mark.parametrize("state", STATES)
def test_each_state_is_told_in_words_that_everyone_can_use(
    bake: Bakery, browser: Browser, axe: str, silent_port: int, state: str, looks: Sequence[Look]
) -> None:
    environ = {name: value.format(silent=silent_port) for name, value in STATES[state].items()}
    with bake().boot(environ) as server:
        if state != "starting":
            server.settled()
        if state == "degraded":
            server.post("/api/items", json={"title": "waits"})
            server.health_when(lambda report: report["database"]["pending_rows"] == 1)
        with visit(browser, server) as opened:
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
            database = server.health()["database"]
            if database["backend"]:
                # where these tests run may itself be a container, whose disk ends with it
                assert facts["Data survives a restart"] == ("Yes" if database["persistent"] else "No")
            is_lost = facts["Data survives a restart"] == "No"
            expect(page.get_by_text("Data does not survive")).to_be_visible(visible=is_lost)
            check_looks(opened, axe, f"status-{state}", looks)
            assert opened.problems == []
        assert server.health()["status"] == status
        if state == "starting":
            # it would end when its PostgreSQL has had its time to answer
            server.kill()


@pytest.mark.parametrize("theme", THEMES)
def test_no_state_looks_like_another(server: Server, browser: Browser, theme: str) -> None:
    with visit(browser, server, color_scheme=theme) as opened:
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
    with bake().boot({"DATABASE_URL": url, **IMPATIENT}) as server, visit(browser, server) as opened:
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
        check_looks(opened, axe, "status-unavailable-postgresql")

        postgres.start()
        server.health_when(lambda report: report["status"] == "ok")
        expect(state).to_contain_text("Everything works", timeout=SOON)
        # what was counted is still there, so nothing was loaded anew
        assert page.evaluate("window.announced") == 2
        assert opened.problems == []


@pytest.mark.thorough
def test_an_age_that_grows_is_shown_and_not_announced(bake: Bakery, browser: Browser, tmp_path: Path) -> None:
    with (
        bake().boot({"SNAPSHOT_URL": str(tmp_path), "SNAPSHOT_INTERVAL": "3"}) as server,
        visit(browser, server) as opened,
    ):
        detail = opened.page.locator("#text p").first
        expect(detail).to_contain_text("The newest snapshot is")
        count_announcements(opened.page)
        for _ in range(2):
            expect(detail).not_to_have_text(detail.inner_text(), timeout=SOON)
        assert opened.page.evaluate("window.announced") == 0


def test_a_server_that_was_killed_is_no_longer_called_ok(project: BakedProject, browser: Browser, axe: str) -> None:
    with project.boot(in_place=True) as server:
        server.settled()
        with visit(browser, server) as opened:
            state = state_of(opened.page)
            expect(state).to_contain_text("Everything works")
            server.kill()
            expect(state).to_contain_text("The server does not answer", timeout=SOON)
            expect(state).not_to_contain_text("Everything works")
            expect(opened.page).to_have_title("My Space: no answer")
            assert facts_of(opened.page)["Last checked"].startswith("No answer for")
            check_looks(opened, axe, "status-no-answer")
            with project.boot(in_place=True, port=server.port) as restarted:
                restarted.settled()
                expect(state).to_contain_text("Everything works", timeout=SOON)


def test_a_server_that_hangs_is_no_longer_called_ok(server: Server, browser: Browser) -> None:
    with visit(browser, server, stop_clock=True) as opened:
        state, clock = state_of(opened.page), opened.page.clock
        expect(state).to_contain_text("Everything works")
        server.process.send_signal(signal.SIGSTOP)
        try:
            # the page's time, in which it asks, and gives the question up
            clock.run_for(SOON)
            expect(state).to_contain_text("The server does not answer")
        finally:
            server.process.send_signal(signal.SIGCONT)
        clock.run_for(POLL)
        expect(state).to_contain_text("Everything works")


def test_a_hidden_tab_asks_for_nothing_and_is_up_to_date_when_shown(server: Server, browser: Browser) -> None:
    # Chromium without a screen never hides a tab.
    hide = """hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with visit(browser, server, stop_clock=True) as opened:
        page = opened.page
        with page.expect_request_finished():
            page.clock.run_for(POLL)
        page.evaluate(hide, True)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.clock.run_for(10 * POLL)
        # a question would be on its way by now
        page.wait_for_timeout(500)
        assert asked == []
        # no timer may ask in its place: the clock stands still
        with page.expect_request("**/status"):
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
    '</title><h1>$title $$ ${title} {title} %s</h1>"><img src="https://elsewhere.example/x.png" onerror="alert(1)">',
    "<script>document.title = 'taken over'</script>",
    "&lt;b&gt; &amp; \\u003cb> 'quoted' \\",
    "Ünï" + "x" * 190,
]


@pytest.mark.parametrize(
    "text", [*HOSTILE[:1], *(pytest.param(text, marks=pytest.mark.thorough) for text in HOSTILE[1:])]
)
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


def test_the_keyboard_reaches_every_link_and_shows_where_it_is(server: Server, browser: Browser) -> None:
    focused = "[document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"
    with visit(browser, server) as opened:
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
def test_nothing_moves_for_those_who_want_no_motion(server: Server, browser: Browser, motion: str, moving: int) -> None:
    with visit(browser, server, reduced_motion=motion) as opened:
        moves = "document.body.dataset.status = 'starting', document.getAnimations().length"
        assert opened.page.evaluate(moves) == moving


FRAME = """<!doctype html><title>The Hub</title>
<iframe title="Space" style="width: 100%; height: 45rem; border: 0" src="https://example-my-space.hf.space/?__theme=dark"
  sandbox="allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-same-origin
  allow-scripts"></iframe>"""


@pytest.mark.parametrize("host", ["huggingface.co", "elsewhere.example"])
def test_the_hub_and_nobody_else_shows_the_page_in_a_frame(space: Server, browser: Browser, host: str) -> None:
    hosts = (host, "example-my-space.hf.space")
    with new_context(browser, hosts, color_scheme="light") as (context, problems):

        def forward(route: Route) -> None:
            address = urlsplit(route.request.url)
            route.fulfill(response=route.fetch(url=f"{space.url}{address.path}?{address.query}"))

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
def test_the_theme_is_the_hubs_or_the_browsers(server: Server, theme: str, scheme: str) -> None:
    page = server.get("/", params={"__theme": theme, "logs": "container"}).text
    assert f'<meta name="color-scheme" content="{scheme}">' in page


def test_the_page_shows_the_colors_of_the_card_and_a_first_request_that_works(bake: Bakery, server: Server) -> None:
    page = server.get("/").text
    assert '<div class="card from-blue to-green"></div>' in page
    for end, question in (("from", "color_from"), ("to", "color_to")):
        styled = re.findall(rf"\.{end}-(\w+) {{ --{end}: #", page)
        assert sorted(styled) == sorted(bake.questions[question])
    (url,) = re.findall(r"<code>curl (\S+)</code>", page)
    assert url == f"http://localhost:{server.port}/api/items"
    assert server.get(url).status_code == 200


def test_every_reason_has_a_remedy() -> None:
    about_the_url = {"auth_failed", "database_missing", "dns", "not_postgres", "tls"}
    assert {code for code, reason in REASONS.items() if not reason.remedy} == about_the_url


def test_every_repair_is_told_in_words() -> None:
    rows = (ROOT / "tests" / "data" / "database-urls.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(row)["value"] for row in rows]
    resolutions = (DatabaseURLResolver({"DATABASE_URL": value}).resolve() for value in values if value)
    repairs = {code.partition(":")[0] for resolution in resolutions for code in resolution.repairs}
    assert len(repairs) > 10
    assert repairs <= REPAIRS.keys()
