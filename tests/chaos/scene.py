"""What one cell of the matrix is played on: a project, its database, and how the app is started."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.support.bakery import BakedProject
from tests.support.faults import Clock, Names, Network
from tests.support.postgres import PASSWORD, Postgres
from tests.support.server import SECONDS_TO_LISTEN, Server


class Scene:
    """Where a fault is injected. What only some faults need is made when it is first asked for."""

    def __init__(self, project: BakedProject, folder: Path, request: pytest.FixtureRequest) -> None:
        """`project` may be written to; `folder` is for whatever a fault needs beside it."""
        self.moment = ""
        self.project = project
        self.folder = folder
        self.environ: dict[str, str] = {}
        self.prefix: list[str] = []
        self.sqlite_folder = project.path / "data"
        self.sqlite_folder.mkdir()
        self.is_in_memory = False
        self.is_damaged_for_good = False
        self.earlier: list[str] = []
        self.server: Server | None = None
        self.name = f"chaos_{uuid4().hex[:12]}"
        self._request = request
        self._closing = ExitStack()

    @cached_property
    def postgres(self) -> Postgres:
        """The real server, in which this scene has a role and a database of its own, called `name`."""
        server: Postgres = self._request.getfixturevalue("postgres")
        with server.connect() as connection:
            connection.execute(f"CREATE ROLE {self.name} LOGIN PASSWORD '{PASSWORD}'")
            connection.execute(f"CREATE DATABASE {self.name} OWNER {self.name}")
        return server

    @cached_property
    def network(self) -> Network:
        """A network between the app and PostgreSQL."""
        network = Network(self.postgres.port)
        self._closing.callback(network.close)
        return network

    @cached_property
    def names(self) -> Names:
        """The names of hosts that the app knows."""
        return Names(self.folder)

    @cached_property
    def clock(self) -> Clock:
        """The app's time of day."""
        return Clock(self.folder)

    def ask_for_postgres(self, host: str = "127.0.0.1", port: int | None = None) -> None:
        """Let DATABASE_URL name this scene's database."""
        address = f"{host}:{port or self.postgres.port}"
        self.environ["DATABASE_URL"] = f"postgresql://{self.name}:{quote(PASSWORD, safe='')}@{address}/{self.name}"

    def administer(self, statement: str) -> None:
        """Run a statement as the owner of the PostgreSQL server."""
        with self.postgres.connect() as connection:
            connection.execute(statement)

    def disconnect(self) -> None:
        """End the app's connections to PostgreSQL, as the server's owner may."""
        with self.postgres.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [self.name])

    @contextmanager
    def app(self) -> Iterator[Server]:
        """The app, started with what the scene says."""
        with self.project.boot(self.environ, in_place=True, prefix=self.prefix) as server:
            self.server = server
            assert server.seconds_to_listen < SECONDS_TO_LISTEN
            # a disk that only the app has mounted is there for as long as somebody has it open
            self._disk = os.open(self.seen_by_app(self.sqlite_folder), os.O_RDONLY | os.O_DIRECTORY)
            self._closing.callback(os.close, self._disk)
            try:
                yield server
            finally:
                # shown where the cell fails
                print(server.log())

    def seen_by_app(self, path: Path) -> Path:
        """Where we find what the app, with its own mounts, finds at this path."""
        assert self.server is not None
        return Path(f"/proc/{self.server.process.pid}/root{path}")

    def use_once(self) -> None:
        """Let the app make its schema, and stop."""
        with self.project.boot(self.environ, in_place=True) as server:
            assert server.settled()["status"] == "ok"
            server.stop()

    def titles(self) -> list[str]:
        """The titles in the database itself, which the app has no part in."""
        if "DATABASE_URL" in self.environ:
            with self.postgres.connect(self.postgres.url(self.name)) as connection:
                if connection.execute("SELECT to_regclass('items')").fetchone() == (None,):
                    return []
                return [str(title) for (title,) in connection.execute("SELECT title FROM items")]
        with tempfile.TemporaryDirectory() as folder:
            for name in ("app.db", "app.db-wal"):
                file = Path(f"/proc/self/fd/{self._disk}", name)
                if file.exists():
                    shutil.copy(file, folder)
            with closing(sqlite3.connect(f"{folder}/app.db")) as connection:
                return [title for (title,) in connection.execute("SELECT title FROM items")]

    def close(self) -> None:
        """Leave nothing behind but what pytest removes."""
        self._closing.close()
