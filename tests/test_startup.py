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
WORKERS = [4, 1]

# All processes look for a database at the same moment.
APP = """
import os
import time
import alembic.command
import psycopg
from src.database.lifecycle import DatabaseLifecycle
from src.main import app

choose = DatabaseLifecycle.choose


def choose_with_the_others(lifecycle):
    with open(os.environ["READY"], "a") as ready:
        ready.write("ready\\n")
    while len(open(os.environ["READY"]).readlines()) < int(os.environ["PROCESSES"]):
        time.sleep(0.01)
    choose(lifecycle)


DatabaseLifecycle.choose = choose_with_the_others
"""

# A second migration, slow enough that all processes are there before it is over, and that notes each time it is run.
MIGRATION = """
import os
import time

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write("migrated\\n")
    time.sleep(4)


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
    notes = {"NOTES": str(tmp_path / "notes"), "READY": str(tmp_path / "ready"), "PROCESSES": str(sum(WORKERS))}
    if request.param == "sqlite":
        return notes | {"SQLITE_DIR": str(tmp_path / "shared")}
    postgres: Postgres = request.getfixturevalue("postgres")
    return notes | {"DATABASE_URL": postgres.create_database()}


@pytest.mark.parametrize("again", range(3))
def test_all_that_start_at_once_serve_the_database_that_one_of_them_made(
    projects: list[BakedProject], environ: dict[str, str], again: int
) -> None:
    def start(number: int) -> Server:
        # uvicorn kills workers that take five seconds to say a word, as they may where so many begin at once
        settings = {"WEB_CONCURRENCY": str(WORKERS[number]), "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "60"}
        return stack.enter_context(projects[number].boot(environ | settings, in_place=True, app="extra:app"))

    with ExitStack() as stack, ThreadPoolExecutor(len(WORKERS)) as threads:
        servers = list(threads.map(start, range(len(WORKERS))))
        stored: set[str] = set()
        for server, processes in zip(servers, WORKERS, strict=True):
            for client in one_client_for_each_process(server, processes):
                wait_until_ready(client)
                title = str(len(stored))
                assert client.post("/api/items", json={"title": title}).status_code == 201
                stored.add(title)
                assert {item["title"] for item in client.get("/api/items").json()["items"]} == stored
        assert len(stored) == sum(WORKERS)
        log = "".join(server.log() for server in servers)
    assert Path(environ["NOTES"]).read_text() == "migrated\n"
    assert log.count("database ok") == sum(WORKERS)
    assert not [trouble for trouble in ("[warning", "[error", "Traceback") if trouble in log], log
