"""Snapshots of a running app: taken on a timer and at the stop, restored when the disk is gone."""

import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from space_runtime.snapshots.store import KEPT

from tests.support import disks
from tests.support.bakery import BakedProject
from tests.support.killing import app_that_dies
from tests.support.load import titles_in
from tests.support.postgres import Login
from tests.support.server import Server

pytestmark = pytest.mark.slow
THOROUGH = pytest.mark.thorough


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The directory that snapshots go to."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    return folder


@pytest.fixture
def environ(store: Path) -> dict[str, str]:
    return {"SNAPSHOT_URL": str(store), "SNAPSHOT_INTERVAL": "1"}


def lose_the_disk(project: BakedProject) -> None:
    shutil.rmtree(project.path / "data")


def snapshots(store: Path) -> list[Path]:
    """The snapshots, oldest first."""
    return sorted(store.glob("*.db"), key=lambda path: path.name.split("-")[2])


def create(server: Server, title: str) -> None:
    assert server.post("/api/items", json={"title": title}).status_code == 201


def wait_until(holds: Callable[[], bool], store: Path) -> None:
    """Return as soon as something holds; name the snapshots if it does not in time."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, snapshots(store)
        time.sleep(0.05)


def wait_for_snapshot_of(store: Path, title: str) -> None:
    """Wait until the newest snapshot holds this item."""

    def is_there() -> bool:
        taken = snapshots(store)
        try:
            return bool(taken) and title in titles_in(taken[-1])
        except sqlite3.DatabaseError:
            # it is being written, or its table is not there yet
            return False

    wait_until(is_there, store)


@pytest.mark.parametrize("end", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.thorough)])
def test_a_file_that_is_a_symbolic_link_is_kept_as_any_other(
    project: BakedProject, store: Path, environ: dict[str, str], tmp_path: Path, end: signal.Signals
) -> None:
    elsewhere = tmp_path / "volume"
    elsewhere.mkdir()
    (project.path / "data").mkdir()
    (project.path / "data" / "app.db").symlink_to(elsewhere / "real.db")
    titles = [f"row {number}" for number in range(5)]
    with project.boot(environ, in_place=True) as server:
        server.settled()
        create(server, titles[0])
        wait_for_snapshot_of(store, titles[0])
        for title in titles[1:]:
            create(server, title)
        if end == signal.SIGKILL:
            wait_for_snapshot_of(store, titles[-1])
            server.kill()
        else:
            server.stop()
    shutil.rmtree(elsewhere)
    elsewhere.mkdir()
    with project.boot(environ, in_place=True) as server:
        server.settled()
        assert sorted(server.titles()) == titles
    assert (elsewhere / "real.db").is_file()


def test_what_a_timer_kept_comes_back_after_a_kill_and_the_loss_of_the_disk(
    project: BakedProject, store: Path, environ: dict[str, str]
) -> None:
    with project.boot(environ, in_place=True) as server:
        server.settled()
        create(server, "kept")
        wait_for_snapshot_of(store, "kept")
        server.health_when(lambda report: "snapshot is" in report["database"]["detail"])
        server.kill()
    lose_the_disk(project)
    with project.boot(environ, in_place=True) as server:
        assert server.settled()["status"] == "ok"
        assert server.titles() == ["kept"]
        create(server, "later")
        wait_for_snapshot_of(store, "later")
    lose_the_disk(project)
    # a torn newest one is passed over for the one before
    newest = snapshots(store)[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    with project.boot(environ, in_place=True) as server:
        server.settled()
        assert "kept" in server.titles()


def test_the_last_snapshot_at_the_stop_holds_every_acknowledged_row(project: BakedProject) -> None:
    environ = {"SNAPSHOT_URL": "./copies", "SNAPSHOT_INTERVAL": "3600"}
    with project.boot(environ, in_place=True) as server:
        server.settled()
        for number in range(20):
            create(server, str(number))
        assert server.stop() == -signal.SIGTERM
        assert f"snapshots go to the folder {project.path}/copies" in server.log()
    lose_the_disk(project)
    with project.boot(environ, in_place=True) as server:
        server.settled()
        assert len(server.titles()) == 20


def test_a_file_on_the_disk_is_never_replaced_by_a_snapshot(
    project: BakedProject, store: Path, environ: dict[str, str]
) -> None:
    with project.boot(environ, in_place=True) as server:
        server.settled()
        create(server, "in the snapshot")
        wait_for_snapshot_of(store, "in the snapshot")
        before = set(snapshots(store))
        create(server, "on the disk only")
        server.kill()
    # one that the timer took at the last moment would hold both
    for taken in set(snapshots(store)) - before:
        taken.unlink()
    with project.boot(environ, in_place=True) as server:
        server.settled()
        assert sorted(server.titles()) == ["in the snapshot", "on the disk only"]


def test_a_damaged_file_is_replaced_by_the_newest_snapshot(
    project: BakedProject, store: Path, environ: dict[str, str]
) -> None:
    with project.boot(environ, in_place=True) as server:
        server.settled()
        create(server, "kept")
        wait_for_snapshot_of(store, "kept")
    (project.path / "data" / "app.db").write_bytes(b"no database" * 1000)
    with project.boot(environ, in_place=True) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("degraded", "corrupt")
        assert server.titles() == ["kept"]
    assert len(list((project.path / "data").glob("app.db.damaged-*"))) >= 1


# Tries as often as ever, and pauses shorter.
IN_A_HURRY = """
from space_runtime.snapshots import schedule
from src.main import app

schedule.SECONDS_BETWEEN_ATTEMPTS = 0.05
"""


def test_snapshots_that_cannot_be_reached_are_told_and_never_pushed_out(
    project: BakedProject, store: Path, environ: dict[str, str]
) -> None:
    with project.boot(environ, in_place=True) as server:
        server.settled()
        create(server, "old")
        wait_for_snapshot_of(store, "old")
    before = snapshots(store)
    lose_the_disk(project)
    # neither a directory nor absent: reading fails
    store.rename(store.with_name("away"))
    store.write_text("in the way")
    (project.path / "in_a_hurry.py").write_text(IN_A_HURRY)
    with project.boot(environ, in_place=True, app="in_a_hurry:app") as server:
        assert server.settled()["status"] == "ok"
        server.health_when(lambda report: "Snapshots fail" in report["database"]["detail"])
        store.unlink()
        store.with_name("away").rename(store)
        for number in range(KEPT + 1):
            create(server, f"new {number}")
            wait_for_snapshot_of(store, f"new {number}")
    assert set(before) <= set(snapshots(store))


def test_a_snapshot_is_consistent_while_rows_are_written(
    project: BakedProject, store: Path, environ: dict[str, str]
) -> None:
    with project.boot(environ, in_place=True) as server:
        server.settled()
        over = threading.Event()
        acknowledged: list[str] = []

        def write() -> None:
            while not over.is_set():
                title = str(len(acknowledged))
                create(server, title)
                acknowledged.append(title)

        with ThreadPoolExecutor(1) as other:
            writing = other.submit(write)
            try:
                wait_until(lambda: writing.done() or len(snapshots(store)) >= 3, store)
            finally:
                over.set()
        writing.result()
    # each row was written after the one before: a copy of one moment has no gap
    for taken in snapshots(store):
        numbers = sorted(int(title) for title in titles_in(taken))
        assert numbers == list(range(len(numbers)))
    assert sorted(titles_in(snapshots(store)[-1])) == sorted(acknowledged)


@pytest.fixture
def fallback(login: Login, environ: dict[str, str]) -> dict[str, str]:
    """The environment of a deployment whose PostgreSQL refuses the login for now."""
    return environ | {"DATABASE_URL": login.url}


@pytest.mark.parametrize("at_next_start", [pytest.param("there", marks=pytest.mark.thorough), "away"])
def test_rows_for_postgresql_survive_the_loss_of_the_disk(
    project: BakedProject, store: Path, fallback: dict[str, str], login: Login, at_next_start: str
) -> None:
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "kept")
        wait_for_snapshot_of(store, "kept")
        server.kill()
    lose_the_disk(project)
    if at_next_start == "away":
        with project.boot(fallback, in_place=True) as server:
            assert server.settled()["status"] == "degraded"
            assert server.titles() == ["kept"]
            login.allow()
            server.health_when(lambda report: report["status"] == "ok", within=30)
            assert server.titles() == ["kept"]
            server.kill()
        lose_the_disk(project)
    login.allow()
    for _ in range(2):
        with project.boot(fallback, in_place=True) as server:
            report = server.settled()
            assert (report["status"], report["database"]["pending_rows"]) == ("ok", 0)
            assert server.titles() == ["kept"]
        shutil.rmtree(project.path / "data", ignore_errors=True)
    # what was moved is not served from a snapshot when PostgreSQL is away once more
    login.refuse()
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        assert server.titles() == []


@pytest.mark.parametrize(
    ("module", "name", "moment"),
    [
        pytest.param("move", "Move.run", "before", marks=pytest.mark.thorough, id="not yet moved"),
        pytest.param("handover", "finish", "before", id="moved"),
    ],
)
def test_killed_during_a_failback_and_the_disk_lost_every_row_arrives_once(
    project: BakedProject,
    store: Path,
    fallback: dict[str, str],
    login: Login,
    module: str,
    name: str,
    moment: str,
) -> None:
    app = app_that_dies(project, moment, module, name)
    with project.boot(fallback, in_place=True, app=app) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "first")
        wait_for_snapshot_of(store, "first")
        login.allow()
        assert server.process.wait(30) == -signal.SIGKILL
    lose_the_disk(project)
    login.refuse()
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        # perhaps it is in PostgreSQL already, so nobody may change it here
        assert server.titles() == []
        create(server, "second")
        login.allow()
        server.health_when(lambda report: report["status"] == "ok", within=30)
        assert sorted(server.titles()) == ["first", "second"]


def test_rows_that_no_timer_kept_are_in_a_snapshot_before_they_move(
    project: BakedProject, fallback: dict[str, str], login: Login
) -> None:
    app = app_that_dies(project, "before", "move", "Move.run")
    rarely = fallback | {"SNAPSHOT_INTERVAL": "3600"}
    with project.boot(rarely, in_place=True, app=app) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "of the last moment")
        login.allow()
        assert server.process.wait(30) == -signal.SIGKILL
    lose_the_disk(project)
    with project.boot(rarely, in_place=True) as server:
        assert server.settled()["status"] == "ok"
        assert server.titles() == ["of the last moment"]


@pytest.mark.parametrize("at_next_start", ["there", "away"])
def test_a_row_that_was_deleted_before_postgresql_came_back_stays_deleted(
    project: BakedProject, store: Path, fallback: dict[str, str], login: Login, at_next_start: str
) -> None:
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "deleted")
        wait_for_snapshot_of(store, "deleted")
        before = set(snapshots(store))
        (item,) = server.get("/api/items").json()["items"]
        assert server.delete(f"/api/items/{item['id']}").status_code == 204
        login.allow()
        server.health_when(lambda report: report["status"] == "ok", within=30)
        assert server.titles() == []
        server.kill()
    lose_the_disk(project)
    # one that the timer took at the last moment would not hold the row
    for taken in set(snapshots(store)) - before:
        taken.unlink()
    if at_next_start == "there":
        # PostgreSQL knows by itself, even if SNAPSHOT_URL could not be told
        for tombstone in store.glob("*.moved"):
            tombstone.unlink()
    else:
        login.refuse()
        with project.boot(fallback, in_place=True) as server:
            assert server.settled()["status"] == "degraded"
            assert server.titles() == []
        login.allow()
    with project.boot(fallback, in_place=True) as server:
        report = server.settled()
        assert (report["status"], report["database"]["pending_rows"]) == ("ok", 0)
        assert server.titles() == []


# Both find rows in a snapshot only. The one that is first to restore them goes on as soon as the other one is about to
# look, or has looked; if that one restores them, too, it does so when they have been moved already.
RACING = """
import os
import time
from space_runtime.failback import handover
from space_runtime.files import sqlite_files
from space_runtime.snapshots.schedule import Snapshots
from src.main import app

setting_up, restore, finish = sqlite_files.setting_up, Snapshots.restore, handover.finish


def note(what):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")


def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds([line.split() for line in open(os.environ["NOTES"])]):
        assert time.monotonic() < deadline, open(os.environ["NOTES"]).read()
        time.sleep(0.01)


def set_up_noted(location):
    note("looks")
    return setting_up(location)


def restore_in_turn(*arguments):
    note("restores")
    with open(os.environ["NOTES"]) as notes:
        first = next(line.split()[1] for line in notes if line.startswith("restores"))
    if first == str(os.getpid()):
        wait_until(lambda notes: len({process for _, process in notes}) == 2)
    else:
        wait_until(lambda notes: ["moved", first] in notes)
    return restore(*arguments)


def finish_noted(file):
    finished = finish(file)
    note("moved")
    return finished


sqlite_files.setting_up = set_up_noted
Snapshots.restore = restore_in_turn
handover.finish = finish_noted
"""

NUMBERED = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table("numbered", sa.Column("id", sa.Integer(), primary_key=True), sa.Column("title", sa.String()))
    op.create_table("without_key", sa.Column("title", sa.String()))


def downgrade() -> None:
    op.drop_table("without_key")
    op.drop_table("numbered")
"""


@pytest.mark.parametrize("containers", [1, 2])
def test_two_processes_that_find_the_same_rows_in_a_snapshot_move_each_row_once(
    project: BakedProject, store: Path, fallback: dict[str, str], login: Login, tmp_path: Path, containers: int
) -> None:
    (project.path / "migrations" / "versions" / "0002_numbered.py").write_text(NUMBERED)
    (project.path / "racing.py").write_text(RACING)
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        (serving,) = (project.path / "data").glob("fallback-*.db")
        with closing(sqlite3.connect(serving)) as connection, connection:
            connection.execute("INSERT INTO numbered (title) VALUES ('first'), ('second')")
            connection.execute("INSERT INTO without_key VALUES ('first'), ('second')")
        create(server, "the last one")
        wait_for_snapshot_of(store, "the last one")
        server.kill()
    lose_the_disk(project)
    other = project if containers == 1 else project.copy_to(tmp_path / "other")
    login.allow()
    environ = fallback | {"NOTES": str(tmp_path / "notes")}
    with (
        project.boot(environ, in_place=True, app="racing:app") as first,
        other.boot(environ, in_place=True, app="racing:app") as second,
    ):
        for server in (first, second):
            report = server.settled(60)
            assert (report["status"], report["database"]["pending_rows"]) == ("ok", 0), server.log()
            assert server.titles() == ["the last one"]
    with login.postgres.connect(login.url) as postgresql:
        for table in ("numbered", "without_key"):
            rows = postgresql.execute(f"SELECT title FROM {table} ORDER BY title").fetchall()  # noqa: S608
            assert rows == [("first",), ("second",)], table
    moved = {container.path: list((container.path / "data").glob("*.db")) for container in (project, other)}
    assert [[file.name.partition("-")[0] for file in files] for files in moved.values()] == [["moved"]] * containers


# Both have handed their file over before either has moved it.
HANDING_OVER_TOGETHER = """
import os
import time
from space_runtime.failback import handover
from src.main import app

begin = handover.begin


def begin_with_the_other(*arguments):
    handed_over = begin(*arguments)
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{os.getpid()}\\n")
    deadline = time.monotonic() + 30
    while len(set(open(os.environ["NOTES"]).readlines())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return handed_over


handover.begin = begin_with_the_other
"""


def test_two_containers_that_serve_the_same_rows_from_a_snapshot_lose_none_that_came_to_either(
    project: BakedProject, store: Path, fallback: dict[str, str], login: Login, tmp_path: Path
) -> None:
    (project.path / "together.py").write_text(HANDING_OVER_TOGETHER)
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "kept")
        wait_for_snapshot_of(store, "kept")
        server.kill()
    lose_the_disk(project)
    other = project.copy_to(tmp_path / "other")
    environ = fallback | {"NOTES": str(tmp_path / "notes")}
    with (
        project.boot(environ, in_place=True, app="together:app") as first,
        other.boot(environ, in_place=True, app="together:app") as second,
    ):
        for server, title in ((first, "of the first"), (second, "of the second")):
            assert server.settled()["status"] == "degraded"
            assert server.titles() == ["kept"]
            create(server, title)
        login.allow()
        for server in (first, second):
            server.health_when(lambda report: report["status"] == "ok", within=60)
        assert sorted(first.titles()) == ["kept", "of the first", "of the second"]


def test_rows_in_a_folder_that_is_a_link_move_to_postgresql(
    project: BakedProject, fallback: dict[str, str], login: Login, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    (project.path / "data").symlink_to(tmp_path / "volume")
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "on the volume")
        login.allow()
        server.health_when(lambda report: report["status"] == "ok", within=30)
        assert server.titles() == ["on the volume"]
    assert [file.name.partition("-")[0] for file in (tmp_path / "volume").glob("*.db")] == ["moved"]


@THOROUGH
def test_a_file_for_postgresql_that_is_a_symbolic_link_is_kept_as_any_other(
    project: BakedProject, store: Path, fallback: dict[str, str], tmp_path: Path
) -> None:
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        server.stop()
    (file,) = (project.path / "data").glob("fallback-*.db")
    file.rename(tmp_path / "real.db")
    file.symlink_to(tmp_path / "real.db")
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        for title in ("one", "two"):
            create(server, title)
            wait_for_snapshot_of(store, title)


def relabel(project: BakedProject, title: str) -> None:
    """Give the project another name."""
    about = project.path / "src" / "config" / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text(encoding="utf-8")) | {"title": title}), encoding="utf-8")


ANOTHER = "SNAPSHOT_URL belongs to another deployment"


def test_two_deployments_with_one_snapshot_url_never_see_or_displace_each_others_rows(
    project: BakedProject, store: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    with project.boot(environ, in_place=True) as server:
        server.settled()
        create(server, "of the first")
        server.stop()
    before = {file.name: file.read_bytes() for file in store.glob("*.db")}
    (mark,) = store.glob("owner-*.txt")
    lose_the_disk(project)

    # such as a duplicate of a Space, to which the Hub has copied the variable
    other = project.copy_to(tmp_path / "other")
    on_a_space = environ | {"SPACE_ID": "example/duplicate", "API_TOKEN": "long enough"}
    with other.boot(on_a_space, in_place=True) as server:
        server.health_when(lambda report: ANOTHER in report["database"]["detail"])
        assert server.titles() == []
        for number in range(KEPT + 1):
            answer = server.post("/api/items", json={"title": str(number)}, headers={"X-API-Token": "long enough"})
            assert answer.status_code == 201
        server.stop()
        told = server.log()
        assert told.index(ANOTHER) < told.index("POST")
        assert mark.name in told
        assert "no snapshot can be taken" in told
    assert {file.name: file.read_bytes() for file in store.glob("*.db")} == before

    with project.boot(environ, in_place=True) as server:
        server.settled()
        assert server.titles() == ["of the first"]
    lose_the_disk(project)
    relabel(project, "Renamed")
    with project.boot(environ, in_place=True) as server:
        server.health_when(lambda report: ANOTHER in report["database"]["detail"])
        assert server.titles() == []
    # what the sentence says
    mark.unlink()
    lose_the_disk(project)
    with project.boot(environ, in_place=True) as server:
        server.settled()
        assert server.titles() == ["of the first"]


def test_rows_of_an_outage_do_not_move_to_the_postgresql_of_another_deployment(
    project: BakedProject, store: Path, fallback: dict[str, str], login: Login
) -> None:
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "of the first")
        wait_for_snapshot_of(store, "of the first")
        server.kill()
    lose_the_disk(project)
    login.allow()
    relabel(project, "Another")
    with project.boot(fallback, in_place=True) as server:
        assert server.settled()["status"] == "ok"
        assert server.titles() == []
        server.log_when_it_tells(ANOTHER)
    assert not list(store.glob("*.moved"))


def test_two_copies_that_run_at_once_notice_each_other_and_say_so(
    project: BakedProject, environ: dict[str, str], tmp_path: Path
) -> None:
    def is_alone(report: dict[str, Any]) -> bool:
        return "Another copy" not in report["database"]["detail"]

    with project.boot(environ, in_place=True) as first:
        assert is_alone(first.settled())
        with project.copy_to(tmp_path / "other").boot(environ, in_place=True) as second:
            for server in (first, second):
                server.health_when(lambda report: not is_alone(report))
                server.log_when_it_tells("Another copy of this application uses SNAPSHOT_URL")
            second.stop()
        first.health_when(is_alone)


# A place that lists at once, and that nothing can be written to until the file `may_go_on` is there. Its silence counts
# as one from the moment at which there is a file `told`.
SLOW_PLACE = """
import pathlib
import time

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from space_runtime.snapshots import schedule
from src.main import app


class Slow(MemoryFileSystem):
    protocol = "slow"

    def _open(self, *arguments, **options):
        while not pathlib.Path("may_go_on").exists():
            time.sleep(0.05)
        return super()._open(*arguments, **options)


def describe(timer):
    schedule.SECONDS_OF_SILENCE = 1.0 if pathlib.Path("told").exists() else 60.0
    return really_describe(timer)


fsspec.register_implementation("slow", Slow)
really_describe, schedule._Timer.describe = schedule._Timer.describe, describe
"""


def test_the_database_serves_while_snapshot_url_is_tried(project: BakedProject, environ: dict[str, str]) -> None:
    (project.path / "slow.py").write_text(SLOW_PLACE)
    with project.boot(environ | {"SNAPSHOT_URL": "slow://x"}, in_place=True, app="slow:app") as server:
        server.settled()
        create(server, "served")
        server.health_when(lambda report: "SNAPSHOT_URL is being tried" in report["database"]["detail"])
        (project.path / "told").touch()
        server.health_when(lambda report: "SNAPSHOT_URL has not answered" in report["database"]["detail"])
        (project.path / "may_go_on").touch()
        server.health_when(lambda report: "The newest snapshot is" in report["database"]["detail"])


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("backup", "neither a URL with :// in it nor a folder that exists"),
        pytest.param("webdav://example.com/x", "a package is missing; add it to requirements.txt", marks=THOROUGH),
        pytest.param("unheard-of://x", "a protocol that nothing here knows", marks=THOROUGH),
        pytest.param("{forbidden}/x", f"let user {os.getuid()} write to that folder", marks=THOROUGH),
    ],
)
def test_a_snapshot_url_that_cannot_be_used_is_told_at_the_start(
    project: BakedProject, environ: dict[str, str], tmp_path: Path, url: str, told: str
) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0o555)
    rarely = {"SNAPSHOT_URL": url.format(forbidden=forbidden), "SNAPSHOT_INTERVAL": "3600"}
    prefix = disks.without_roots_rights() if url[0] == "{" else ()
    with project.boot(environ | rarely, in_place=True, prefix=prefix) as server:
        report = server.health_when(lambda report: "Snapshots fail: " in report["database"]["detail"])
        assert report["status"] == "ok"
        assert told in report["database"]["detail"]
        assert "credentials" not in report["database"]["detail"]
        server.log_when_it_tells("no snapshot can be taken: SNAPSHOT_URL")
        assert not (project.path / "backup").exists()


def test_a_lock_that_cannot_be_made_is_told(project: BakedProject, environ: dict[str, str]) -> None:
    (project.path / "data" / "snapshots.lock").mkdir(parents=True)
    with project.boot(environ, in_place=True) as server:
        server.health_when(lambda report: "No lock can be made beside the database" in report["database"]["detail"])
        server.log_when_it_tells("no snapshot can be taken: No lock can be made")
