"""What was acknowledged is stored exactly once, whatever is stopped or killed, and at whatever moment."""

import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.bakery import BakedProject
from tests.support.load import Told, clients, write
from tests.support.postgres import Postgres
from tests.support.processes import free_port
from tests.support.server import Server

pytestmark = pytest.mark.slow

KILLS = [5, pytest.param(20, marks=pytest.mark.thorough)]

# The steps of a failback, and on which side of each of them the app is killed.
STEPS = [
    ("space_runtime.failback.handover.begin", "before"),
    ("space_runtime.failback.handover.checkpoint", "after"),
    ("space_runtime.failback.handover.begin", "after"),
    ("space_runtime.failback.move.Move.run", "after"),
    ("space_runtime.records.failbacks.record_move", "after"),
    ("space_runtime.failback.handover.Failback._move_rows", "after"),
    ("space_runtime.failback.handover.finish", "after"),
]

# While its rows are on their way. test_failback.py dies at other steps, and looks at more.
REPRESENTATIVE = ("space_runtime.records.failbacks.record_move", "after", "while PostgreSQL is there")

DEATHS = [
    pytest.param(*death, marks=() if death == REPRESENTATIVE else pytest.mark.thorough)
    for death in [
        (*step, restart)
        for step in STEPS
        for restart in ("while PostgreSQL is there", "while PostgreSQL is away again")
    ]
]

# Stops at a step for longer than the test takes, and leaves a file that says so.
PAUSE = """
import os
import pkgutil
import time
from pathlib import Path
from src.main import app

holder_name, _, name = os.environ["STEP"].rpartition(".")
holder = pkgutil.resolve_name(holder_name)
step = getattr(holder, name)


def pause(side):
    if side == os.environ["SIDE"]:
        Path("paused").touch()
        time.sleep(600)


def step_with_pauses(*arguments, **options):
    pause("before")
    result = step(*arguments, **options)
    pause("after")
    return result


setattr(holder, name, step_with_pauses)
"""


@pytest.fixture
def chance() -> random.Random:
    """Random moments. What is printed can be given again as SEED, though no two runs see the same moments quite."""
    seed = os.environ.get("SEED") or str(random.randrange(2**32))  # noqa: S311
    print(f"SEED={seed}")
    return random.Random(seed)  # noqa: S311


def kill_again_and_again(
    kills: int, project: BakedProject, environ: dict[str, str], port: int, told: Told, chance: random.Random
) -> None:
    """Start the app and kill it at a random moment of its start, or after it has stored more, many times."""
    for number in range(kills):
        with project.boot(environ, in_place=True, port=port) as server:
            if number % 2:
                wait_for_more(told, server)
            time.sleep(chance.uniform(0, 0.5))
            server.kill()


def titles_in_sqlite(path: Path) -> Counter[str]:
    """How often each title is in the file."""
    with closing(sqlite3.connect(path)) as connection:
        return Counter(title for (title,) in connection.execute("SELECT title FROM items"))


def titles_in_postgresql(postgres: Postgres, url: str) -> Counter[str]:
    """How often each title is in the database."""
    with postgres.connect(url) as connection:
        return Counter(str(title) for (title,) in connection.execute("SELECT title FROM items"))


def let_in(postgres: Postgres, url: str, allowed: bool) -> None:
    """Let PostgreSQL accept connections to a database, or refuse them: then an app that starts falls back at once."""
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {url.rpartition('/')[2]} ALLOW_CONNECTIONS {allowed}")


def wait_until(holds: Callable[[], bool], server: Server) -> None:
    """Return as soon as something holds; fail with the server's log if it does not in time."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.05)


def wait_for_more(told: Told, server: Server) -> None:
    """Return when some more items have been acknowledged."""
    enough = len(told.stored) + 10
    wait_until(lambda: len(told.stored) > enough, server)


def is_all_in_postgresql(report: dict[str, Any]) -> bool:
    """Whether a health report says that PostgreSQL serves and no row waits to be moved to it."""
    database = report["database"]
    return report["status"] == "ok" and database["backend"] == "postgresql" and not database["pending_rows"]


@pytest.mark.parametrize("kills", KILLS)
def test_on_sqlite_whenever_the_app_is_killed(project: BakedProject, chance: random.Random, kills: int) -> None:
    port = free_port()
    with clients(4, write, port) as told:
        kill_again_and_again(kills, project, {}, port, told, chance)
    told.check(titles_in_sqlite(project.path / "data" / "app.db"))


@pytest.mark.parametrize("kills", KILLS)
def test_on_postgresql_whenever_it_is_stopped_and_the_app_is_killed(
    project: BakedProject, postgres: Postgres, chance: random.Random, kills: int
) -> None:
    url, port = postgres.create_database(), free_port()
    moments = random.Random(chance.random())  # noqa: S311 - of its own: two threads would share the order otherwise
    enough = threading.Event()

    def restart_again_and_again() -> None:
        while not enough.wait(moments.uniform(0, 1)):
            # an app that starts meanwhile serves SQLite, and its rows are moved afterwards
            let_in(postgres, url, False)
            time.sleep(moments.uniform(0, 1))
            moments.choice([postgres.stop, lambda: postgres.stop("immediate"), postgres.kill])()
            time.sleep(moments.uniform(0, 0.5))
            postgres.start()
            let_in(postgres, url, True)

    with ThreadPoolExecutor(1) as other, clients(4, write, port) as told:
        restarting = other.submit(restart_again_and_again)
        try:
            kill_again_and_again(kills, project, {"DATABASE_URL": url}, port, told, chance)
        finally:
            enough.set()
        restarting.result()
    with project.boot({"DATABASE_URL": url}, in_place=True) as server:
        server.health_when(is_all_in_postgresql, within=30)
    told.check(titles_in_postgresql(postgres, url))


@pytest.mark.parametrize(("step", "side", "restart"), DEATHS)
def test_on_both_wherever_the_app_is_killed_while_rows_are_moved(
    project: BakedProject, postgres: Postgres, step: str, side: str, restart: str
) -> None:
    (project.path / "extra.py").write_text(PAUSE)
    url, port = postgres.create_database(), free_port()
    let_in(postgres, url, False)
    with clients(2, write, port) as told:
        environ = {"DATABASE_URL": url, "STEP": step, "SIDE": side}
        with project.boot(environ, in_place=True, app="extra:app", port=port) as server:
            wait_for_more(told, server)
            let_in(postgres, url, True)
            wait_until((project.path / "paused").exists, server)
            server.kill()
        is_away = restart == "while PostgreSQL is away again"
        let_in(postgres, url, not is_away)
        with project.boot({"DATABASE_URL": url}, in_place=True, port=port) as server:
            if is_away:
                wait_for_more(told, server)
                let_in(postgres, url, True)
            server.health_when(is_all_in_postgresql, within=30)
            wait_for_more(told, server)
    told.check(titles_in_postgresql(postgres, url))
    assert {path.name.partition("-")[0] for path in project.path.glob("data/*.db")} == {"moved"}
