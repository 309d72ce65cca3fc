"""Drives an application without a server: `python driven.py MODULE REQUESTS`, by a line on its input."""

import asyncio
import importlib
import sys
from typing import Any

WARM_UP = 30
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/api/items",
    "raw_path": b"/api/items",
    "query_string": b"limit=20",
    "root_path": "",
    "headers": [(b"host", b"x")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 2),
}


async def ask(app: Any) -> int:
    """Ask for a list; return the status of the answer."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({**SCOPE, "state": {}}, receive, send)
    return int(sent[0]["status"])


async def main(module: str, requests: int) -> None:
    """Say when everything is warm, ask when told to, and say when that is done."""
    app = importlib.import_module(module).app
    async with app.router.lifespan_context(app):
        while await ask(app) != 200:
            await asyncio.sleep(0.5)
        for _ in range(WARM_UP):
            await ask(app)
        print("warm", flush=True)
        sys.stdin.readline()
        for _ in range(requests):
            assert await ask(app) == 200  # noqa: S101
        print("done", flush=True)
        sys.stdin.readline()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
