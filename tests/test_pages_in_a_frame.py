"""Pages of an owner's own as the Hub shows them: in a frame of another origin, behind TLS. Gradio and React, too."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, Route, expect

from tests.support.bakery import ROOT, BakedProject
from tests.support.browser import Visit, chromium, new_context
from tests.support.edge import edge
from tests.support.machine import need
from tests.support.processes import free_port
from tests.support.server import Server
from tests.test_pages import CDN, PAGE, library, works

pytestmark = pytest.mark.slow

HUB = "huggingface.co"
SPACE = "example-my-space.hf.space"
ON_A_SPACE = {"SPACE_ID": "example/my-space", "SPACE_HOST": SPACE}
TOKEN = "a-token-of-visitors"  # noqa: S105
FRAME = """<!doctype html><title>The Hub</title><link rel="icon" href="data:,">
<iframe title="Space" style="width: 100%%; height: 45rem; border: 0" src="https://%s/%s?__theme=light"
  allow="accelerometer; autoplay; camera; clipboard-read; clipboard-write; encrypted-media; microphone; usb"
  sandbox="allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-same-origin
  allow-scripts"></iframe>"""
GRADIO_VERSION = "6.31.0"
GRADIO = """
import gradio
from space_runtime.http.access import public_mount
from src.main import app

with gradio.Blocks(analytics_enabled=False) as blocks:
    name = gradio.Textbox(label="Name")
    answer = gradio.Textbox(label="Answer")
    gradio.Button("Submit").click(lambda name: f"Hello {name}", name, answer)
gradio.mount_gradio_app(app, blocks, path="PATH")
public_mount(app, "PATH")
"""


@dataclass(frozen=True)
class Browsing:
    """A browser, and the port of loopback where it finds the Space's host."""

    browser: Browser
    port: int


@pytest.fixture(scope="module")
def browsing() -> Iterator[Browsing]:
    """A browser for all tests of this file."""
    port = free_port()
    with chromium(f"MAP {SPACE}:443 127.0.0.1:{port}") as browser:
        yield Browsing(browser, port)


@contextmanager
def visit_space(browsing: Browsing, server: Server, *hosts: str, headers: dict[str, str]) -> Iterator[Visit]:
    """Yield a page that is not open yet, in a browser that finds the Space, and the Hub with the Space in a frame."""
    with (
        edge(server.port, SPACE, browsing.port),
        new_context(browsing.browser, (HUB, SPACE, *hosts), ignore_https_errors=True) as (context, wrong),
    ):
        # Chromium would keep the Hub, which is public, from what is on loopback.
        context.grant_permissions(["local-network-access"])
        # The Hub wants nothing of them, and no other host may be given them.
        context.route(f"https://{SPACE}/**", lambda route: route.continue_(headers=route.request.headers | headers))
        context.route(f"https://{HUB}/**", lambda route: route.fulfill(body=framed(route), content_type="text/html"))
        yield Visit(context.new_page(), wrong)


def framed(route: Route) -> str:
    """The Hub's page, which shows the path of the Space that its query names."""
    return FRAME % (SPACE, route.request.url.partition("?")[2])


def test_an_ordinary_page_works_in_the_frame_of_the_hub(project: BakedProject, browsing: Browsing) -> None:
    shutil.copytree(PAGE, project.path / "web", dirs_exist_ok=True)
    with (
        project.boot(ON_A_SPACE, in_place=True) as server,
        visit_space(browsing, server, CDN, headers={}) as opened,
    ):
        opened.page.context.route(f"https://{CDN}/**", library)
        opened.page.goto(f"https://{HUB}/spaces/example/my-space?")
        works(opened.page.frame_locator("iframe"))
        opened.photograph("own-page-in-a-frame")
        assert opened.problems == []


@pytest.mark.thorough
def test_a_build_of_vite_and_react_works(project: BakedProject, browsing: Browsing, tmp_path: Path) -> None:
    npm = need("npm", "it builds a front end")
    shutil.copytree(ROOT / "tests" / "vite", project.path / "web", dirs_exist_ok=True)
    for command in (["ci", "--no-audit"], ["run", "build"]):
        subprocess.run([npm, *command], cwd=project.path / "web", check=True, capture_output=True)  # noqa: S603
    with (
        project.boot(ON_A_SPACE | {"API_TOKEN": TOKEN}, in_place=True) as server,
        visit_space(browsing, server, headers={"X-API-Token": TOKEN}) as opened,
    ):
        server.settled()
        opened.page.goto(f"https://{SPACE}/")
        works_as_an_application(opened.page)
        opened.page.reload()
        expect(opened.page.get_by_role("heading")).to_have_text("About me")
        opened.page.goto(f"https://{HUB}/spaces/example/my-space?")
        works_as_an_application(opened.page.frame_locator("iframe"))
        opened.photograph("react-in-a-frame")
        assert opened.problems == []
        assert server.titles() == ["from React"] * 2


def works_as_an_application(page: Page | FrameLocator) -> None:
    """See that the page does what it was written for."""
    expect(page.get_by_role("heading")).to_have_text("Home")
    expect(page.get_by_text("Loaded later")).to_be_visible()
    before = page.get_by_role("listitem").count()
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("listitem")).to_have_count(before + 1)
    page.get_by_role("button", name="About").click()
    expect(page.get_by_role("heading")).to_have_text("About me")


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["/ui", "/"])
def test_visitors_can_use_gradio_wherever_it_is_mounted(project: BakedProject, browsing: Browsing, path: str) -> None:
    (project.path / "with_gradio.py").write_text(GRADIO.replace("PATH", path))
    environ = {
        "PYTHONPATH": str(gradio_packages()),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    with (
        project.boot(ON_A_SPACE | environ, in_place=True, app="with_gradio:app") as server,
        visit_space(browsing, server, headers={}) as opened,
    ):
        if path != "/":
            answer = server.get(path)
            assert (answer.status_code, answer.headers["Location"]) == (307, f".{path}/")
        assert server.settled()["status"] == "ok"
        for address in (f"https://{SPACE}{path}", f"https://{HUB}/spaces/example/my-space?{path[1:]}"):
            opened.page.goto(address)
            shown = opened.page if SPACE in address else opened.page.frame_locator("iframe")
            shown.get_by_label("Name").fill("you")
            shown.get_by_role("button", name="Submit").click()
            expect(shown.get_by_label("Answer")).to_have_value("Hello you")
            opened.photograph(f"gradio-{'alone' if SPACE in address else 'in-a-frame'}")
        assert opened.problems == []
        assert "Traceback" not in server.log()


def gradio_packages() -> Path:
    """Where Gradio is, installed once: a quarter of a gigabyte is too much for all who only run the other tests."""
    folder = ROOT / ".tools" / f"gradio-{GRADIO_VERSION}-{sys.version_info.minor}"
    with (folder.parent / "gradio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            install_gradio(folder)
    return folder


def install_gradio(folder: Path) -> None:
    """Install it somewhere else first, so that `folder` is there only when it is whole."""
    beginning = folder.with_name(f"{folder.name}.part")
    lock = ROOT / "requirements-dev.lock"
    done = subprocess.run(  # noqa: S603
        [
            *(ROOT / ".tools" / "bin" / "uv", "pip", "install", "--quiet", "--python", sys.executable),
            *("--target", beginning, "--constraint", lock, f"gradio=={GRADIO_VERSION}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"Gradio cannot be installed (let uv reach PyPI): {done.stderr}")
    beginning.rename(folder)
