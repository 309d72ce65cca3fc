"""Several processes of one deployment start at once: one migrates, none fails, and all serve the same database."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Postgres
from tests.support.server import Server, one_client_for_each_process, wait_until_ready

pytestmark = pytest.mark.slow

# In each of the two copies.
FEW, MANY = (2, 1), (4, 1)

# All processes look for a database at the same moment, and note when they are where one lets the others wait.
APP = """
import os
import time
import alembic.command
import psycopg
from space_runtime import backends
from space_runtime.files import sqlite_files
from space_runtime.lifecycle.runner import Lifecycle
from src.main import app

run = Lifecycle._run


def run_with_the_others(lifecycle):
    with open(os.environ["READY"], "a") as ready:
        ready.write("ready\\n")
    while len(open(os.environ["READY"]).readlines()) < int(os.environ["PROCESSES"]):
        time.sleep(0.01)
    run(lifecycle)


def noting(wait_for_the_others):
    def note_and_wait(*arguments):
        with open(os.environ["WAITING"], "a") as waiting:
            waiting.write(f"{os.getpid()}\\n")
        return wait_for_the_others(*arguments)

    return note_and_wait


Lifecycle._run = run_with_the_others
sqlite_files.setting_up = noting(sqlite_files.setting_up)
for backend in (backends.POSTGRESQL, backends.SQLITE):
    backend.lock_migrations = noting(backend.lock_migrations)
"""

# A second migration that is not over before all processes are there, and that notes each time it is run.
MIGRATION = """
import os
import time

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write("migrated\\n")
    deadline = time.monotonic() + 30
    while len(set(open(os.environ["WAITING"]).readlines())) < int(os.environ["PROCESSES"]):
        assert time.monotonic() < deadline, "the others do not come"
        time.sleep(0.01)
    # all are at the door, and would be in if it were open
    time.sleep(float(os.environ["LASTS"]))


def downgrade() -> None:
    pass
"""


@pytest.fixture
def projects(bake: Bakery, tmp_path: Path) -> list[BakedProject]:
    """Two copies, as two containers have them."""
    projects = [bake().copy_to(tmp_path / name) for name in ("first", "second")]
    for project in projects:
        (project.path / "migrations" / "versions" / "0002_take_long.py").write_text(MIGRATION)
        (project.path / "extra.py").write_text(APP)
    return projects


@pytest.fixture(params=["postgresql", "sqlite"])
def environ(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An empty database that all processes share."""
    notes = {name.upper(): str(tmp_path / name) for name in ("notes", "ready", "waiting")}
    if request.param == "sqlite":
        # SQLite itself keeps others waiting for two seconds, and then lets them fail
        return notes | {"SQLITE_DIR": str(tmp_path / "shared"), "LASTS": "2.5"}
    postgres: Postgres = request.getfixturevalue("postgres")
    return notes | {"DATABASE_URL": postgres.create_database(), "LASTS": "0.5"}


@pytest.mark.parametrize(
    ("workers", "again"),
    [(FEW, 0), *(pytest.param(MANY, again, marks=pytest.mark.thorough) for again in range(2))],
    ids=["few", "many", "many-again"],
)
def test_all_that_start_at_once_serve_the_database_that_one_of_them_made(
    projects: list[BakedProject], environ: dict[str, str], workers: tuple[int, ...], again: int
) -> None:
    def start(number: int) -> Server:
        # uvicorn kills workers that take five seconds to say a word, as they may where so many begin at once
        settings = {
            "WEB_CONCURRENCY": str(workers[number]),
            "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "60",
            "PROCESSES": str(sum(workers)),
        }
        return stack.enter_context(projects[number].boot(environ | settings, in_place=True, app="extra:app"))

    with ExitStack() as stack, ThreadPoolExecutor(len(workers)) as threads:
        servers = list(threads.map(start, range(len(workers))))
        stored: set[str] = set()
        for server, processes in zip(servers, workers, strict=True):
            for client in one_client_for_each_process(server, processes):
                wait_until_ready(client)
                title = str(len(stored))
                assert client.post("/api/items", json={"title": title}).status_code == 201
                stored.add(title)
                assert {item["title"] for item in client.get("/api/items").json()["items"]} == stored
        assert len(stored) == sum(workers)
        for server in servers:
            server.stop()  # what is logged follows what is reported
        log = "".join(server.log() for server in servers)
    assert Path(environ["NOTES"]).read_text() == "migrated\n"
    assert log.count("database ok") == sum(workers)
    assert not [trouble for trouble in ("[warning", "[error", "Traceback") if trouble in log], log
