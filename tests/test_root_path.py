"""Behind a proxy that puts the app below a path of its host, links lead back to it, and the app behaves the same."""

import re
import sys

import pytest

from tests.support.bakery import BakedProject
from tests.support.processes import free_port
from tests.support.server import Server

pytestmark = pytest.mark.slow

ROOT_PATH = "/app"
UNUSABLE = {"DATABASE_URL": "postgresql://app@:5432/app"}
BELOW = f"""
from src.main import app
from starlette.responses import PlainTextResponse

app.root_path = {ROOT_PATH!r}
app.mount("/ui", PlainTextResponse("mounted"))
"""


def check_pages(server: Server) -> None:
    """Look at the pages that come where there is no route, and follow their links."""
    assert server.get("/").text.startswith("<!doctype html>")
    missing = server.get("/nothing/here", headers={"Accept": "text/html"})
    assert missing.status_code == 404
    for link in re.findall('<a .*?href="(.*?)"', missing.text):
        assert server.get(link.removeprefix(ROOT_PATH)).status_code == 200, link


def check_links(server: Server) -> None:
    """Follow what a client outside is told, through a proxy that takes the app's path away."""
    created = server.post("/api/items", json={"title": "first"})
    assert created.status_code == 201, server.log()
    location = created.headers["Location"]
    assert location == f"{ROOT_PATH}/api/items/{created.json()['id']}"
    assert server.get(location.removeprefix(ROOT_PATH)).json() == created.json()


def test_where_the_server_knows_the_path(project: BakedProject) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "src.main:app", "--port", str(port), "--root-path", ROOT_PATH]
    with project.boot(UNUSABLE, command=command, port=port) as server:
        server.settled()
        check_links(server)
        assert server.get("/api/items").headers["X-Database"] == "fallback"
        assert "X-Database" not in server.get("/health").headers
        check_pages(server)


def test_where_the_application_knows_the_path(project: BakedProject) -> None:
    (project.path / "below.py").write_text(BELOW)
    with project.boot(UNUSABLE, in_place=True, app="below:app") as server:
        server.settled()
        check_links(server)
        # some proxies leave the path in place
        for path in ("/api/items", f"{ROOT_PATH}/api/items"):
            answer = server.get(path)
            assert (answer.status_code, answer.headers["X-Database"]) == (200, "fallback")
        check_pages(server)
        for path in ("/ui", f"{ROOT_PATH}/ui"):
            answer = server.get(path)
            assert (answer.status_code, answer.headers["Location"]) == (307, "./ui/")
