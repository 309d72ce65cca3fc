"""Debian's Chromium, driven by Playwright: what people see, and what the browser complains about."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.support.bakery import ROOT
from tests.support.machine import need
from tests.support.server import Server

# Screenshots, to be looked at. Each run overwrites them.
ARTIFACTS = ROOT / "test-artifacts"
# What has to be quick says so itself; the rest may wait for a busy machine.
expect.set_options(timeout=30_000)
# A name, because pages may behave differently on localhost: Swagger UI asks a validator on the internet elsewhere.
HOST = "my-space.test"
WIDTHS = {"wide": 1280, "narrow": 360}


@contextmanager
def chromium(rules: str = f"MAP {HOST} 127.0.0.1") -> Iterator[Browser]:
    """Yield a browser that finds the app's servers at HOST, or where Chromium's `rules` for names say; or skip."""
    # First, since Playwright's own driver does not start on every machine that lacks a browser.
    options = _options(rules)
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as browser:
        yield browser


@contextmanager
def browser_with_cookies(folder: Path, hosts: Mapping[str, int], *, in_frames: bool) -> Iterator[BrowserContext]:
    """Yield a person's browser that finds these hosts at ports of this machine, or skip.

    `in_frames` says whether it keeps the cookies of a page that another one shows in a frame.
    """
    settings = {"profile": {"cookie_controls_mode": 0 if in_frames else 1, "block_third_party_cookies": not in_frames}}
    (folder / "Default").mkdir()
    (folder / "Default" / "Preferences").write_text(json.dumps(settings), encoding="utf-8")
    options = _options(", ".join(f"MAP {host} 127.0.0.1:{port}" for host, port in hosts.items()))
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch_persistent_context(folder, ignore_https_errors=True, **options) as context,
    ):
        yield context


def _options(rules: str) -> dict[str, Any]:
    return {
        "executable_path": need("chromium", "it opens the app's pages"),
        # Chromium's sandbox refuses root and containers; only our own pages are opened.
        "args": ["--no-sandbox", "--no-proxy-server", f"--host-resolver-rules={rules}"],
        # a slow machine may need long for its first start
        "timeout": 120_000,
    }


@dataclass(frozen=True)
class Visit:
    """A page that is open, and all that must not have happened: errors, and requests to other hosts."""

    page: Page
    problems: list[str]

    def photograph(self, name: str) -> None:
        """Keep a picture of the whole page."""
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)

    def resize(self, width: int) -> None:
        """Make the window so wide, and as high as a small laptop's."""
        self.page.set_viewport_size({"width": width, "height": 800})

    @property
    def needs_sideways_scrolling(self) -> bool:
        """Whether something is wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def barriers(self, axe: str) -> list[str]:
        """What axe finds that keeps people from using the page."""
        self.page.evaluate(axe)
        found = self.page.evaluate("axe.run()")
        return [
            f"{violation['id']}: {node['target']}: {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]


@contextmanager
def new_context(
    browser: Browser, hosts: tuple[str, ...] = (HOST,), **options: Any
) -> Iterator[tuple[BrowserContext, list[str]]]:
    """Yield a fresh profile of the browser, and the list of what goes wrong in it."""
    problems: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error":
            problems.append(message.text)

    def watch(request: Request) -> None:
        if urlsplit(request.url).hostname not in hosts:
            problems.append(f"asked {request.url}")

    context = browser.new_context(**options)
    context.on("console", listen)
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("request", watch)
    try:
        yield context, problems
    finally:
        # The page asks for itself again and again, also while the test ends.
        context.unroute_all(behavior="ignoreErrors")
        context.close()


@contextmanager
def visit(
    browser: Browser, server: Server, path: str = "/", *, stop_clock: bool = False, **options: Any
) -> Iterator[Visit]:
    """Open a page of the app in a fresh profile; `options` are Playwright's, such as `color_scheme`.

    Where the clock is stopped, the page's timers wait for `page.clock.run_for`.
    """
    with new_context(browser, **options) as (context, problems):
        if stop_clock:
            context.clock.install(time=0)
            context.clock.pause_at(1_000)
        page = context.new_page()
        page.goto(f"http://{HOST}:{server.port}{path}")
        yield Visit(page, problems)


def axe_source(folder: Path) -> str:
    """Return axe as one script, from where the packages are installed."""
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
