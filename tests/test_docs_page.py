"""The API docs work with no internet, under the app's own Content-Security-Policy, and can write with a token."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.bakery import Bakery
from tests.support.browser import HOST, WIDTHS, chromium, visit
from tests.support.server import Server

pytestmark = pytest.mark.slow

TOKEN = "an-api-token"  # noqa: S105
WITH_TOKEN = {"API_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(bake: Bakery) -> Iterator[Server]:
    """The app, where writes need a token."""
    with bake().boot(WITH_TOKEN) as server:
        server.settled()
        yield server


def authorize(page: Page) -> None:
    """Give the token to the docs."""
    page.get_by_role("button", name="Authorize").click()
    dialog = page.locator(".modal-ux .auth-container").first
    dialog.get_by_label("Value:").fill(TOKEN)
    dialog.get_by_role("button", name="Apply credentials").click()
    dialog.get_by_role("button", name="Close").click()


def create_item(page: Page, title: str) -> str:
    """Create an item with the docs' form, and return the status of the answer."""
    operation = page.locator(".opblock-post", has_text="/api/items")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("textarea").fill(f'{{"title": "{title}"}}')
    operation.get_by_role("button", name="Execute").click()
    return operation.locator(".live-responses-table .response-col_status").last.inner_text()


def test_an_item_is_created_from_the_docs_with_a_token_which_they_remember(browser: Browser, server: Server) -> None:
    before = server.titles()
    with visit(browser, server, "/docs") as opened:
        authorize(opened.page)
        assert create_item(opened.page, "from the docs").startswith("201")
        opened.photograph("docs-created")
        # not reload(): the address now names the form, which would be open already
        opened.page.goto(f"http://{HOST}:{server.port}/docs")
        assert create_item(opened.page, "after a reload").startswith("201")
        assert opened.problems == []
    assert server.titles() == ["after a reload", "from the docs", *before]


def test_without_the_token_the_docs_show_why_nothing_was_created(browser: Browser, server: Server) -> None:
    before = server.titles()
    with visit(browser, server, "/docs") as opened:
        assert create_item(opened.page, "by a stranger").startswith("401")
        expect(opened.page.get_by_text("Writing needs the API token, in the header X-API-Token.")).to_be_visible()
    assert server.titles() == before


@pytest.mark.thorough
def test_a_padlock_is_shown_where_a_token_is_needed_and_nowhere_else(
    browser: Browser, server: Server, bake: Bakery
) -> None:
    with bake().boot() as opened:
        for place, padlocks in ((server, 3), (opened, 0)):
            with visit(browser, place, "/docs") as visited:
                expect(visited.page.locator(".opblock-post")).to_be_visible()
                expect(visited.page.locator(".opblock .authorization__btn")).to_have_count(padlocks)


@pytest.mark.parametrize("theme", ["dark", pytest.param("light", marks=pytest.mark.thorough)])
def test_the_docs_follow_the_theme_and_fit_a_narrow_screen(browser: Browser, server: Server, theme: str) -> None:
    with visit(browser, server, "/docs", color_scheme=theme) as opened:
        for size, width in WIDTHS.items():
            opened.resize(width)
            expect(opened.page.get_by_role("button", name="Authorize")).to_be_visible()
            opened.photograph(f"docs-{theme}-{size}")
            assert not opened.needs_sideways_scrolling
        expect(opened.page.locator("html.dark-mode")).to_have_count(int(theme == "dark"))
        opened.page.get_by_role("link", name="Status of My Space").click()
        expect(opened.page.get_by_role("status")).to_contain_text("Everything works")
        assert opened.problems == []


def test_the_schema_asks_for_the_token_on_writes_alone(server: Server) -> None:
    schema = server.get("/openapi.json").json()
    schemes = schema["components"]["securitySchemes"]
    assert (schemes["APIToken"]["name"], schemes["APITokenBearer"]["scheme"]) == ("X-API-Token", "bearer")
    for path in schema["paths"].values():
        for method, operation in path.items():
            assert operation.get("security") == (None if method == "get" else [{name: []} for name in schemes])
