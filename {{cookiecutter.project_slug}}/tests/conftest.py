"""Each test gets an application of its own on a fresh database: SQLite, and a real PostgreSQL."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient
from psycopg.sql import SQL, Identifier

from src.main import create_app
from tools.throwaway_postgresql import NoPostgreSQL, throwaway_postgresql

SETTINGS = ("API_TOKEN", "DATABASE_FALLBACK", "POOL_SIZE", "SPACE_HOST", "SPACE_ID")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Remove the log handler that create_app() installed: its stream is closed after the test."""
    yield
    logging.root.handlers.clear()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """Return a function that creates a database and returns its URL."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(throwaway_postgresql())
        except NoPostgreSQL as error:
            pytest.skip(str(error))
        connection = stack.enter_context(psycopg.connect(server.url(), autocommit=True))

        def create_database() -> str:
            name = f"test_{uuid.uuid4().hex}"
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
            return server.url(name)

        yield create_database


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of a fresh database, to which DATABASE_URL is also set."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/test.db"
    else:
        url = request.getfixturevalue("postgresql")()
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SQLITE_DIR", str(tmp_path))
    return url


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[[], TestClient]:
    """Return a function that starts an application and waits until its database is chosen."""

    def start_application() -> TestClient:
        client = TestClient(create_app(), raise_server_exceptions=False)
        client.__enter__()
        request.addfinalizer(lambda: client.__exit__(None, None, None))
        deadline = time.monotonic() + 20
        while client.get("/health").json()["status"] == "starting":
            assert time.monotonic() < deadline, "the database is still being chosen"
            time.sleep(0.005)
        return client

    return start_application


@pytest.fixture
def client(database_url: str, start: Callable[[], TestClient]) -> TestClient:
    """A client of an application that serves."""
    return start()
