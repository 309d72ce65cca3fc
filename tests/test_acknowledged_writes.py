"""What was acknowledged is stored exactly once, whatever is stopped or killed, and at whatever moment."""

import os
import random
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.load import clients, write
from tests.support.postgres import Postgres
from tests.support.processes import free_port

pytestmark = pytest.mark.slow

KILLS = 20
RESTARTS = 10


@pytest.fixture
def chance() -> random.Random:
    """Random moments. What is printed can be given again as SEED, though no two runs see the same moments quite."""
    seed = os.environ.get("SEED") or str(random.randrange(2**32))  # noqa: S311
    print(f"SEED={seed}")
    return random.Random(seed)  # noqa: S311


@pytest.fixture
def project(bake: Bakery, tmp_path: Path) -> BakedProject:
    """A private copy, which is started again and again."""
    return bake().copy_to(tmp_path)


def kill_again_and_again(project: BakedProject, environ: dict[str, str], port: int, chance: random.Random) -> None:
    """Start the app and kill it at a random moment, many times."""
    for _ in range(KILLS):
        with project.boot(environ, in_place=True, port=port) as server:
            time.sleep(chance.uniform(0, 1))
            server.kill()


def titles_in_sqlite(path: Path) -> Counter[str]:
    """How often each title is in the file."""
    with closing(sqlite3.connect(path)) as connection:
        return Counter(title for (title,) in connection.execute("SELECT title FROM items"))


def titles_in_postgresql(postgres: Postgres, url: str) -> Counter[str]:
    """How often each title is in the database."""
    with postgres.connect(url) as connection:
        return Counter(str(title) for (title,) in connection.execute("SELECT title FROM items"))


def test_on_sqlite_whenever_the_app_is_killed(project: BakedProject, chance: random.Random) -> None:
    port = free_port()
    with clients(4, write, port) as told:
        kill_again_and_again(project, {}, port, chance)
    told.check(titles_in_sqlite(project.path / "data" / "app.db"))


def test_on_postgresql_whenever_it_is_stopped_and_the_app_is_killed(
    project: BakedProject, postgres: Postgres, chance: random.Random
) -> None:
    url, port = postgres.create_database(), free_port()
    moments = random.Random(chance.random())  # noqa: S311 - of its own: two threads would share the order otherwise

    def restart_again_and_again() -> None:
        for _ in range(RESTARTS):
            time.sleep(moments.uniform(0, 3))
            moments.choice([postgres.stop, lambda: postgres.stop("immediate"), postgres.kill])()
            time.sleep(moments.uniform(0, 2))
            postgres.start()

    with ThreadPoolExecutor(1) as other, clients(4, write, port) as told:
        restarting = other.submit(restart_again_and_again)
        kill_again_and_again(project, {"DATABASE_URL": url}, port, chance)
        restarting.result()
    with project.boot({"DATABASE_URL": url}, in_place=True) as server:
        server.health_when(lambda report: report["status"] == "ok" and not report["database"]["pending_rows"])
    told.check(titles_in_postgresql(postgres, url))
