"""The limit: the same queries and the same bytes, from the bare driver, under Starlette alone.

`raw:loop` waits in the event loop (SQLite: works in it), `raw:threads` in as many threads as this project has.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
from space_runtime.backends import backend_of
from sqlalchemy import make_url
from src.database.session import build_engine
from src.items.models import Item
from src.pagination import Position, encode_cursor
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

URL = os.environ["DATABASE_URL"]
IS_SQLITE = URL.startswith("sqlite")
DSN = make_url(URL).database or "" if IS_SQLITE else URL.replace("+psycopg", "")
ROWS = "SELECT id, title, description, created_at, updated_at FROM items"
LIST = f"{ROWS} ORDER BY created_at DESC, id DESC LIMIT %s"
ONE = f"{ROWS} WHERE id = %s"
CREATE = "INSERT INTO items (title, description, id, created_at, updated_at) VALUES (%s, %s, %s, %s, %s)"
Ask = Callable[[str, tuple[object, ...]], Awaitable[list[Any]]]


def connect() -> Any:
    """Connect as this project does."""
    if not IS_SQLITE:
        return psycopg.connect(DSN, autocommit=True, prepare_threshold=None)
    connection = sqlite3.connect(DSN, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def ask(connection: Any, statement: str, values: tuple[object, ...]) -> list[Any]:
    """Execute one statement and return its rows."""
    cursor = connection.execute(statement.replace("%s", "?") if IS_SQLITE else statement, values)
    return cursor.fetchall() if cursor.description else []


@contextlib.asynccontextmanager
async def in_threads(app: Starlette) -> AsyncIterator[None]:
    """Work in a few threads, with a connection each."""
    mine = threading.local()

    def start() -> None:
        mine.connection = connect()

    threads = 2 if IS_SQLITE else backend_of(make_url(URL)).default_pool_size
    with ThreadPoolExecutor(threads, initializer=start) as executor:
        loop = asyncio.get_running_loop()
        app.state.ask = lambda *what: loop.run_in_executor(executor, lambda: ask(mine.connection, *what))
        yield


@contextlib.asynccontextmanager
async def in_loop(app: Starlette) -> AsyncIterator[None]:
    """Work in the event loop, or let it wait for a few connections."""
    free: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(1 if IS_SQLITE else backend_of(make_url(URL)).default_pool_size):
        connecting = psycopg.AsyncConnection.connect(DSN, autocommit=True, prepare_threshold=None)
        free.put_nowait(connect() if IS_SQLITE else await connecting)

    async def ask_somewhere(*what: Any) -> list[Any]:
        connection = await free.get()
        try:
            if IS_SQLITE:
                return ask(connection, *what)
            cursor = await connection.execute(*what)
            return await cursor.fetchall() if cursor.description else []
        finally:
            free.put_nowait(connection)

    app.state.ask = ask_somewhere
    yield


def item(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return an item as this project answers it."""
    key, title, description, *times = row
    created_at, updated_at = (f"{str(time)[:26].replace(' ', 'T')}Z" for time in times)
    return {
        "id": str(UUID(key) if isinstance(key, str) else key),
        "title": title,
        "description": description,
        "created_at": created_at,
        "updated_at": updated_at,
    }


def answer(content: object, status: int = 200) -> Response:
    """Return it as JSON."""
    return Response(json.dumps(content, separators=(",", ":")), status, media_type="application/json")


async def list_items(request: Request) -> Response:
    """List items, newest first."""
    limit = int(request.query_params.get("limit", 20))
    rows = await request.app.state.ask(LIST, (limit + 1,))
    cursor = None
    if len(rows) > limit:
        last = item(rows[limit - 1])
        cursor = encode_cursor(Position(datetime.fromisoformat(last["created_at"]), UUID(last["id"])))
    return answer({"items": [item(row) for row in rows[:limit]], "next_cursor": cursor})


async def get_item(request: Request) -> Response:
    """Return an item."""
    key = UUID(request.path_params["key"])
    rows = await request.app.state.ask(ONE, (key.hex if IS_SQLITE else key,))
    return answer(item(rows[0]))


async def create_item(request: Request) -> Response:
    """Create an item."""
    data, key, now = await request.json(), uuid4(), datetime.now(UTC)
    time = now.replace(tzinfo=None).isoformat(" ") if IS_SQLITE else now
    row = (data["title"], data.get("description"), key.hex if IS_SQLITE else key, time, time)
    await request.app.state.ask(CREATE, row)
    return answer(item((row[2], row[0], row[1], time, time)), 201)


def make_app(lifespan: Any) -> Starlette:
    """Return the application; its tables are there afterwards."""
    engine = build_engine(URL)
    with engine.begin() as connection:
        Item.metadata.create_all(connection)
    engine.dispose()
    routes = [
        Route("/api/items", list_items),
        Route("/api/items", create_item, methods=["POST"]),
        Route("/api/items/{key}", get_item),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def __getattr__(name: str) -> Starlette:
    """Return `loop` or `threads`, whichever is asked for."""
    return make_app(in_loop if name == "loop" else in_threads)
