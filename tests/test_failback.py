"""Rows that SQLite took while PostgreSQL was away reach PostgreSQL, each once, whatever happens on the way."""

import json
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx2
import psutil
import pytest
import sqlalchemy as sa
from space_runtime.records import failbacks

from tests.support import disks
from tests.support.bakery import BakedProject
from tests.support.killing import app_that_dies
from tests.support.postgres import Login, Postgres
from tests.support.server import IMPATIENT, Server

pytestmark = pytest.mark.slow

FAILBACK = ("python", "-m", "space_runtime.failback", "src.main:create_runtime")


def create(server: Server, title: str) -> str:
    """Create an item and return its path."""
    answer = server.post("/api/items", json={"title": title})
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


def degraded(server: Server) -> None:
    assert server.settled()["status"] == "degraded", server.log()


def ok(server: Server) -> dict[str, object]:
    report = server.health_when(lambda report: report["status"] == "ok", within=30)
    assert report["database"]["backend"] == "postgresql"
    database: dict[str, object] = report["database"]
    return database


def files(project: BakedProject, state: str) -> list[Path]:
    """The SQLite files in this state."""
    return sorted((project.path / "data").glob(f"{state}-*.db"))


def test_rows_move_while_the_app_serves(project: BakedProject, postgres: Postgres) -> None:
    url = postgres.create_database()
    postgres.stop()
    with project.boot({"DATABASE_URL": url} | IMPATIENT, in_place=True) as server:
        degraded(server)
        paths = [create(server, f"item {number}") for number in range(30)]
        server.patch(paths[1], json={"title": "changed"})
        server.delete(paths[2])
        before = {path: server.get(path) for path in paths}
        assert before[paths[0]].headers["X-Database"] == "fallback"
        server.health_when(lambda report: report["database"]["pending_rows"] == 29)
        postgres.start()
        assert ok(server)["pending_rows"] == 0
        after = {path: server.get(path) for path in paths}
        assert {path: answer.text for path, answer in after.items() if path != paths[2]} == {
            path: answer.text for path, answer in before.items() if path != paths[2]
        }
        assert after[paths[2]].status_code == 404
        assert "X-Database" not in after[paths[0]].headers
    assert files(project, "fallback") == files(project, "handover") == []
    (kept,) = files(project, "moved")
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone() == (29,)


def test_clients_of_a_failback_see_a_pause_and_nothing_else(project: BakedProject, login: Login) -> None:
    with project.boot({"DATABASE_URL": login.url}, in_place=True) as server:
        degraded(server)
        answers: dict[str, httpx2.Response] = {}
        moved_at = 0
        login.allow()
        for number in range(2000):
            answers[f"item {number}"] = server.post("/api/items", json={"title": f"item {number}"})
            if not moved_at and server.health()["status"] == "ok":
                moved_at = number
            if moved_at and number > moved_at + 20:
                break
        assert moved_at, server.log()
        statuses = {answer.status_code for answer in answers.values()}
        assert statuses <= {201, 503}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers.values() if answer.status_code == 503)
        acknowledged = [title for title, answer in answers.items() if answer.status_code == 201]
        assert sorted(server.titles()) == sorted(acknowledged)


def test_rows_move_at_the_next_start(project: BakedProject, postgres: Postgres) -> None:
    url = postgres.create_database()
    postgres.stop()
    with project.boot({"DATABASE_URL": url} | IMPATIENT, in_place=True) as server:
        degraded(server)
        create(server, "before")
        server.kill()
    postgres.start()
    for _ in range(2):
        with project.boot({"DATABASE_URL": url}, in_place=True) as server:
            assert ok(server)["pending_rows"] == 0
            assert server.titles() == ["before"]
    # PostgreSQL as an older backup has it, and what the README says to do then
    with postgres.connect(url) as connection:
        connection.execute("DELETE FROM items; DELETE FROM space_runtime_failbacks")
    (kept,) = files(project, "moved")
    kept.rename(kept.with_name(kept.name.replace("moved", "fallback")))
    with project.boot({"DATABASE_URL": url}, in_place=True) as server:
        ok(server)
        assert server.titles() == ["before"]


def test_rows_in_memory_move_too(project: BakedProject, login: Login) -> None:
    prefix = disks.read_only(writable="/dev/shm")
    with project.boot({"DATABASE_URL": login.url}, in_place=True, prefix=prefix) as server:
        degraded(server)
        create(server, "in memory")
        server.health_when(lambda report: report["database"]["pending_rows"] == 1)
        login.allow()
        ok(server)
        assert server.titles() == ["in memory"]


# so many that moving them takes longer than the log is silent
@pytest.mark.thorough
def test_many_rows_move_in_bounded_memory_with_progress_in_the_log(project: BakedProject, login: Login) -> None:
    with project.boot({"DATABASE_URL": login.url}, in_place=True) as server:
        degraded(server)
        (serving,) = files(project, "fallback")
        with closing(sqlite3.connect(serving, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO items VALUES (?, ?, ?, '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000')",
                ((uuid4().hex, f"row {number}", "x" * 500) for number in range(100_000)),
            )
            connection.execute("COMMIT")
        process = psutil.Process(server.process.pid)
        server.health_when(lambda report: report["database"]["pending_rows"] == 100_000)
        before, most, unready = process.memory_info().rss, 0, 0
        login.allow()
        deadline = time.monotonic() + 120
        while server.health()["status"] != "ok":
            assert time.monotonic() < deadline, server.log()[-2000:]
            most = max(most, process.memory_info().rss)
            unready += server.get("/health/ready").status_code == 503
            time.sleep(0.1)
        assert unready > 0
        assert (most - before) / 2**20 < 60
        assert "moving rows to PostgreSQL" in server.log_when_it_tells("moved 100000 rows")
    with login.postgres.connect(login.url) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT title) FROM items").fetchone() == (100_000, 100_000)


OWN_TABLES = """
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from src.database.base import Base, PortableJSON
from src.database.session import DatabaseDep
from src.main import app


class Author(Base):
    __tablename__ = "z_authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    teacher_id: Mapped[int | None] = mapped_column(ForeignKey("z_authors.id"))
    notes: Mapped[dict | None] = mapped_column(PortableJSON)


class Book(Base):
    __tablename__ = "a_books"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    author_id: Mapped[int] = mapped_column(ForeignKey("z_authors.id"))
    is_lent: Mapped[bool]


@app.post("/fill")
async def fill(database: DatabaseDep) -> None:
    def work(session):
        teacher = Author(name="teacher", notes={"b": [1, None]})
        session.add(teacher)
        session.flush()
        pupil = Author(name="pupil", teacher_id=teacher.id)
        session.add(pupil)
        session.flush()
        session.add_all([
            Book(author_id=teacher.id, is_lent=True),
            Book(author_id=pupil.id, is_lent=False),
            Book(author_id=pupil.id, is_lent=True),
        ])
        # a pupil that was there before its teacher
        early = Author(name="early")
        session.add(early)
        session.flush()
        late = Author(name="late")
        session.add(late)
        session.flush()
        early.teacher_id = late.id

    await database.write(work)


@app.post("/author")
async def add_author(database: DatabaseDep, name: str) -> int:
    def work(session):
        author = Author(name=name)
        session.add(author)
        session.flush()
        return author.id

    return await database.write(work)
"""

OWN_MIGRATION = """
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "own"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "z_authors",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False, unique=True),
        sa.Column("teacher_id", sa.Integer(), sa.ForeignKey("z_authors.id")),
        sa.Column("notes", sa.JSON().with_variant(postgresql.JSONB(), "postgresql")),
    )
    op.create_table(
        "a_books",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("author_id", sa.Integer(), sa.ForeignKey("z_authors.id"), nullable=False),
        sa.Column("is_lent", sa.Boolean(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("a_books")
    op.drop_table("z_authors")
"""


@pytest.fixture
def own_tables(project: BakedProject) -> BakedProject:
    """The project with two tables of its owner, one of which refers to the other and that one to itself."""
    (project.path / "extra.py").write_text(OWN_TABLES)
    (project.path / "migrations" / "versions" / "0002_own.py").write_text(OWN_MIGRATION)
    return project


def test_tables_of_the_owner_move_in_the_right_order(own_tables: BakedProject, login: Login) -> None:
    with own_tables.boot({"DATABASE_URL": login.url}, in_place=True, app="extra:app") as server:
        degraded(server)
        assert server.post("/fill").status_code == 200
        login.allow()
        assert ok(server)["pending_rows"] == 0, server.log()
        with login.postgres.connect(login.url) as connection:
            assert connection.execute(
                "SELECT pupils.name, teachers.name FROM z_authors pupils"
                " JOIN z_authors teachers ON pupils.teacher_id = teachers.id ORDER BY 1"
            ).fetchall() == [("early", "late"), ("pupil", "teacher")]
            assert connection.execute("SELECT count(*) FROM a_books WHERE is_lent").fetchone() == (2,)
            assert connection.execute("SELECT notes FROM z_authors WHERE notes IS NOT NULL").fetchall() == [
                ({"b": [1, None]},)
            ]
        # what was moved has numbers far above
        assert server.post("/author", params={"name": "new"}).json() == 1


def test_large_rows_move_in_bounded_memory(own_tables: BakedProject, login: Login) -> None:
    with own_tables.boot({"DATABASE_URL": login.url}, in_place=True, app="extra:app") as server:
        degraded(server)
        (serving,) = files(own_tables, "fallback")
        with closing(sqlite3.connect(serving)) as connection, connection:
            for number in range(60):
                notes = json.dumps({"large": "x" * 2_000_000})
                connection.execute("INSERT INTO z_authors VALUES (?, ?, NULL, ?)", (number, f"author {number}", notes))
        process = psutil.Process(server.process.pid)
        before = most = process.memory_info().rss
        unready = 0
        login.allow()
        deadline = time.monotonic() + 120
        while server.health()["status"] != "ok":
            assert time.monotonic() < deadline, server.log()[-2000:]
            most = max(most, process.memory_info().rss)
            unready += server.get("/health/ready").status_code == 503
            time.sleep(0.02)
        assert unready > 0
        assert (most - before) / 2**20 < 60
    with login.postgres.connect(login.url) as moved:
        assert moved.execute("SELECT count(*) FROM z_authors WHERE notes ? 'large'").fetchone() == (60,)


def test_a_refused_row_and_those_that_refer_to_it_stay_until_the_command_moves_them(
    own_tables: BakedProject, login: Login
) -> None:
    login.allow()
    environ = {"DATABASE_URL": login.url}
    with own_tables.boot(environ, in_place=True, app="extra:app") as server:
        ok(server)
        with login.postgres.connect(login.url) as connection:
            connection.execute("INSERT INTO z_authors VALUES (100, 'pupil')")
    login.refuse()
    with own_tables.boot(environ, in_place=True, app="extra:app") as server:
        degraded(server)
        assert server.post("/fill").status_code == 200
        login.allow()
        report = ok(server)
        assert report["pending_rows"] == 3
        assert "make failback" in str(report["detail"])
        log = server.log_at_the_end()
    refusals = [line for line in log.splitlines() if "a row stays behind" in line]
    assert len(refusals) == 3
    assert sum("table z_authors, key " in line for line in refusals) == 1
    assert "pupil" not in log
    with own_tables.boot(environ, in_place=True, app="extra:app") as server:
        assert ok(server)["pending_rows"] == 3
    again = own_tables.run(*FAILBACK, environ=environ, check=False)
    assert again.returncode == 1
    assert "0 moved, 3 refused" in again.stdout
    with login.postgres.connect(login.url) as connection:
        connection.execute("DELETE FROM z_authors WHERE id = 100")
    moved = own_tables.run(*FAILBACK, environ=environ)
    assert "3 moved, 0 refused" in moved.stdout
    with own_tables.boot(environ, in_place=True, app="extra:app") as server:
        assert ok(server)["pending_rows"] == 0
    with login.postgres.connect(login.url) as connection:
        assert connection.execute("SELECT count(*) FROM a_books").fetchone() == (3,)


def test_rows_that_the_command_moved_do_not_disturb_the_numbering(own_tables: BakedProject, login: Login) -> None:
    login.allow()
    environ = {"DATABASE_URL": login.url}
    with own_tables.boot(environ, in_place=True, app="extra:app") as server:
        ok(server)
        with login.postgres.connect(login.url) as connection:
            connection.execute("INSERT INTO z_authors VALUES (0, 'late')")
    login.refuse()
    with own_tables.boot(environ, in_place=True, app="extra:app") as server:
        degraded(server)
        assert server.post("/fill").status_code == 200
        login.allow()
        assert ok(server)["pending_rows"] == 2
    with login.postgres.connect(login.url) as connection:
        connection.execute("DELETE FROM z_authors WHERE id = 0")
    assert "2 moved, 0 refused" in own_tables.run(*FAILBACK, environ=environ).stdout
    with own_tables.boot(environ, in_place=True, app="extra:app") as server:
        ok(server)
        # what was moved has numbers far above
        assert server.post("/author", params={"name": "new"}).json() == 1


def test_what_no_column_of_postgresql_can_hold_stays_and_the_rest_moves(project: BakedProject, login: Login) -> None:
    with project.boot({"DATABASE_URL": login.url}, in_place=True) as server:
        degraded(server)
        for number in range(20):
            create(server, f"good {number}")
        (serving,) = files(project, "fallback")
        with closing(sqlite3.connect(serving)) as connection, connection:
            for values in (("nul\0here", "2026-01-01 00:00:00"), ("no time", "never"), ("x" * 300, "2026-01-01")):
                connection.execute("INSERT INTO items VALUES (?, ?, NULL, ?, ?)", (uuid4().hex, *values, values[1]))
        login.allow()
        assert ok(server)["pending_rows"] == 3
        assert len(server.titles()) == 20
        log = server.log_at_the_end()
    assert log.count("a row stays behind: table items, key ") == 3
    assert "nul" not in log
    # a newer version changes nothing about them, and they are not forgotten
    (project.path / "migrations" / "versions" / "0002_own.py").write_text(OWN_MIGRATION)
    unasked = project.run(*FAILBACK, environ={"DATABASE_URL": login.url}, check=False)
    assert unasked.returncode == 1
    assert "Migrate this database?" in unasked.stdout
    assert "refused again" not in unasked.stdout
    again = project.run(*FAILBACK, "--yes", environ={"DATABASE_URL": login.url}, check=False)
    assert (again.returncode, "0 moved, 3 refused again" in again.stdout) == (1, True), again.stdout


# Each half of it is also in make test: a newer version that migrates such rows, and a start that finds them moved.
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("module", "name", "moment"), [("handover", "begin", "after"), ("handover", "finish", "before")]
)
def test_rows_whose_move_was_cut_short_arrive_once_though_a_newer_version_starts(
    project: BakedProject, login: Login, module: str, name: str, moment: str
) -> None:
    environ = {"DATABASE_URL": login.url}
    with project.boot(environ, in_place=True, app=app_that_dies(project, moment, module, name)) as server:
        degraded(server)
        create(server, "of the older version")
        login.allow()
        assert server.process.wait(30) == -signal.SIGKILL
    (project.path / "migrations" / "versions" / "0002_own.py").write_text(OWN_MIGRATION)
    with project.boot(environ, in_place=True) as server:
        assert ok(server)["pending_rows"] == 0
        assert server.titles() == ["of the older version"]
    assert files(project, "fallback") == files(project, "handover") == []


def test_an_older_version_that_cannot_move_its_rows_says_that_another_database_serves(
    project: BakedProject, login: Login
) -> None:
    login.allow()
    environ = {"DATABASE_URL": login.url}
    with project.boot(environ, in_place=True) as server:
        ok(server)
        with login.postgres.connect(login.url) as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'from-the-future'")
    login.refuse()
    with project.boot(environ, in_place=True) as server:
        degraded(server)
        create(server, "of the older version")
        login.allow()
        report = server.health_when(lambda report: report["database"]["reason"] == "schema_newer")
        assert (report["status"], report["database"]["backend"]) == ("degraded", "sqlite")
        assert "a newer version moves them" in report["database"]["detail"]


def test_rows_on_a_disk_that_became_read_only_keep_nobody_from_postgresql(
    project: BakedProject, login: Login, tmp_path: Path
) -> None:
    environ = {"DATABASE_URL": login.url}
    with project.boot(environ, in_place=True) as server:
        degraded(server)
        create(server, "on the first disk")
        server.kill()
    login.allow()
    environ["TMPDIR"] = str(tmp_path / "temporary")
    Path(environ["TMPDIR"]).mkdir()
    with project.boot(environ, in_place=True, prefix=disks.read_only(writable=environ["TMPDIR"])) as server:
        report = ok(server)
        assert report["pending_rows"] == 1
        assert "could not be moved" in str(report["detail"])
    with project.boot(environ, in_place=True) as server:
        assert ok(server)["pending_rows"] == 0
        assert server.titles() == ["on the first disk"]


FAILS_ON_SQLITE = """
from alembic import op

revision = "own"
down_revision = "0001"


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        raise NotImplementedError("this cannot be done on SQLite")


def downgrade() -> None:
    pass
"""


def test_rows_that_a_newer_version_cannot_migrate_wait_and_the_log_says_why(
    project: BakedProject, login: Login
) -> None:
    environ = {"DATABASE_URL": login.url}
    with project.boot(environ, in_place=True, app=app_that_dies(project, "after", "handover", "begin")) as server:
        degraded(server)
        create(server, "of the older version")
        login.allow()
        assert server.process.wait(30) == -signal.SIGKILL
    migration = project.path / "migrations" / "versions" / "0002_own.py"
    migration.write_text(FAILS_ON_SQLITE)
    with project.boot(environ, in_place=True) as server:
        assert server.settled()["database"]["reason"] == "migration_failed"
        server.log_when_it_tells("this cannot be done on SQLite")
    migration.write_text(FAILS_ON_SQLITE.replace("raise NotImplementedError", "str"))
    with project.boot(environ, in_place=True) as server:
        assert ok(server)["pending_rows"] == 0
        assert server.titles() == ["of the older version"]


FULL_TEXT_SEARCH = """
from alembic import op

revision = "own"
down_revision = "0001"


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        op.execute("CREATE VIRTUAL TABLE items_search USING fts5(title)")
        op.execute(
            "CREATE TRIGGER fill AFTER INSERT ON items BEGIN INSERT INTO items_search VALUES (new.title); END"
        )


def downgrade() -> None:
    pass
"""


def test_a_search_index_that_only_sqlite_has_is_no_row_to_move(project: BakedProject, login: Login) -> None:
    (project.path / "migrations" / "versions" / "0002_own.py").write_text(FULL_TEXT_SEARCH)
    with project.boot({"DATABASE_URL": login.url}, in_place=True) as server:
        degraded(server)
        create(server, "found by its title")
        server.health_when(lambda report: report["database"]["pending_rows"] == 1)
        login.allow()
        assert ok(server)["pending_rows"] == 0
        assert server.titles() == ["found by its title"]


SLOW_WORK = """
import time
from pathlib import Path

from src.database.session import DatabaseDep
from src.items.models import Item
from src.main import app


@app.post("/slow")
async def slow(database: DatabaseDep, title: str) -> None:
    def work(session):
        Path("begun").touch()
        while not Path("may-end").exists():
            time.sleep(0.02)
        session.add(Item(title=title))

    await database.write(work)
"""


def test_work_under_way_when_postgresql_returns_is_waited_for(project: BakedProject, login: Login) -> None:
    (project.path / "extra.py").write_text(SLOW_WORK)
    with (
        project.boot({"DATABASE_URL": login.url}, in_place=True, app="extra:app") as server,
        ThreadPoolExecutor(1) as client,
    ):
        degraded(server)
        slow = client.submit(server.post, "/slow", params={"title": "slow"})
        try:
            server.health_when(lambda _: (project.path / "begun").exists())
            login.allow()
            # a failback has waited for the work, and has given up for now
            server.health_when(lambda report: report["database"]["reason"] == "locked")
        finally:
            (project.path / "may-end").touch()
        assert slow.result().status_code == 200, server.log()
        ok(server)
        assert server.titles() == ["slow"]


# As a person at a terminal answers.
ANSWERED = """
import io
import sys
from space_runtime.failback.__main__ import main

sys.stdin = io.StringIO("%s\\n")
sys.stdin.isatty = lambda: True
sys.argv = ["failback", "src.main:create_runtime"]
sys.exit(main())
"""


def test_rows_of_a_configured_sqlite_move_by_command_only(project: BakedProject, login: Login) -> None:
    with project.boot({}, in_place=True) as server:
        server.settled()
        create(server, "from my laptop")
    login.allow()
    environ = {"DATABASE_URL": login.url}
    with project.boot(environ, in_place=True) as server:
        report = ok(server)
        assert report["pending_rows"] == 0
        assert "make failback" in str(report["detail"])
        assert server.titles() == []
    dry = project.run(*FAILBACK, "--dry-run", environ=environ)
    assert "app.db: items: 1 rows would be moved" in dry.stdout
    unasked = project.run(*FAILBACK, environ=environ, check=False)
    assert unasked.returncode == 1
    assert "Move the rows of app.db there, too?" in unasked.stdout
    place = f"{login.url.rpartition('/')[2]} on 127.0.0.1"
    assert place in dry.stdout
    assert place in unasked.stdout
    assert login.url.partition("@")[0].rpartition(":")[2] not in dry.stdout + unasked.stdout
    assert (project.path / "data" / "app.db").exists()
    declined, done = (project.run("python", "-c", ANSWERED % answer, environ=environ, check=False) for answer in "ny")
    assert (declined.returncode, "1 moved" in declined.stdout) == (1, False)
    assert "app.db: 1 moved, 0 refused" in done.stdout
    with project.boot(environ, in_place=True) as server:
        assert "make failback" not in str(ok(server)["detail"])
        assert server.titles() == ["from my laptop"]
    assert len(files(project, "moved")) == 1


INTERRUPTED = """
import sys
import psycopg
from space_runtime.failback.__main__ import main

commit = psycopg.Connection.commit

def commit_and_be_interrupted(self):
    moved = self.execute("SELECT to_regclass('items') IS NOT NULL AND EXISTS (SELECT FROM items)").fetchone()[0]
    commit(self)
    if moved:
        raise KeyboardInterrupt

psycopg.Connection.commit = commit_and_be_interrupted
sys.argv = ["failback", "src.main:create_runtime", "--yes"]
main()
"""


def test_a_command_that_is_interrupted_as_it_commits_moves_no_row_twice(project: BakedProject, login: Login) -> None:
    with project.boot({}, in_place=True) as server:
        server.settled()
        create(server, "once")
    login.allow()
    environ = {"DATABASE_URL": login.url}
    cut = project.run("python", "-c", INTERRUPTED, environ=environ, check=False)
    assert "run this again" in cut.stdout, cut.stdout
    again = project.run(*FAILBACK, "--yes", environ=environ, check=False)
    assert again.returncode == 0, again.stdout
    with project.boot(environ, in_place=True) as server:
        assert ok(server)["pending_rows"] == 0
        assert server.titles() == ["once"]


def test_the_command_says_what_is_missing_and_leaves_files_in_use_alone(project: BakedProject, login: Login) -> None:
    unset = project.run(*FAILBACK, check=False)
    assert unset.returncode == 1
    assert unset.stdout.strip() == "DATABASE_URL is not set: set it to a PostgreSQL URL to use PostgreSQL."
    away = project.run(
        "python",
        "-m",
        "space_runtime.failback",
        "src.main:create_runtime",
        environ={"DATABASE_URL": login.url},
        check=False,
    )
    assert away.returncode == 1
    assert "refused the user name" in away.stdout
    assert "Traceback" not in away.stdout
    login.allow()
    mistyped = project.run(*FAILBACK, "no-such.db", environ={"DATABASE_URL": login.url}, check=False)
    assert (mistyped.returncode, "no-such.db" in mistyped.stdout) == (2, True), mistyped.stdout
    assert not (project.path / "no-such.db").exists()
    with project.boot({}, in_place=True) as server:
        server.settled()
        create(server, "in use")
        busy = project.run(*FAILBACK, "--yes", environ={"DATABASE_URL": login.url}, check=False)
        assert busy.returncode == 1
        assert "stop it" in busy.stdout
        assert server.titles() == ["in use"]


# What is set, what is done to the login, and why nothing serves then.
NOTHING_SERVES = {
    "strict": ({"DATABASE_FALLBACK": "strict"}, "NOLOGIN", "auth_failed"),
    "strict, and no URL": ({"DATABASE_FALLBACK": "strict", "DATABASE_URL": "nonsense"}, "NOLOGIN", "unparseable"),
    "read-only": ({}, "LOGIN", "read_only"),
}


def refuse_a_row(login: Login) -> None:
    """Let PostgreSQL have a row that it refused before."""
    engine = sa.create_engine(sa.make_url(login.url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        failbacks.create_tables(connection)
        row = failbacks.RefusedRow(1, uuid4(), "items", "1", "refused", "23514", {}, {}, datetime.now(UTC))
        failbacks.keep(connection, [row])
    engine.dispose()


@pytest.mark.parametrize("why", NOTHING_SERVES)
def test_rows_that_wait_are_counted_while_nothing_serves(project: BakedProject, login: Login, why: str) -> None:
    changed, right, reason = NOTHING_SERVES[why]
    environ = {"DATABASE_URL": login.url}
    with project.boot(environ, in_place=True) as server:
        degraded(server)
        for title in ("first", "second"):
            create(server, title)
        server.kill()
    login.allow()
    refuse_a_row(login)
    with login.postgres.connect() as connection:
        connection.execute(f"ALTER ROLE {login.name} {right}")
        connection.execute(f"ALTER ROLE {login.name} SET default_transaction_read_only = on")
    with project.boot(environ | changed, in_place=True) as server:
        report = server.settled()
        assert (report["status"], report["database"]["backend"]) == ("unavailable", None)
        # only a PostgreSQL that answers can tell what it refused
        known = 3 if right == "LOGIN" else 2
        assert (report["database"]["reason"], report["database"]["pending_rows"]) == (reason, known)
        with login.postgres.connect() as connection:
            connection.execute(f"ALTER ROLE {login.name} LOGIN")
            connection.execute(f"ALTER ROLE {login.name} RESET default_transaction_read_only")
        if environ["DATABASE_URL"] == (environ | changed)["DATABASE_URL"]:
            assert ok(server)["pending_rows"] == 1
            assert server.titles() == ["second", "first"]


def test_strict_never_serves_sqlite_and_finds_postgresql_by_itself(project: BakedProject, postgres: Postgres) -> None:
    url = postgres.create_database()
    postgres.stop()
    with project.boot({"DATABASE_URL": url, "DATABASE_FALLBACK": "strict"}, in_place=True) as server:
        report = server.health_when(lambda report: report["status"] == "unavailable", within=15)
        assert (report["database"]["backend"], report["database"]["reason"]) == (None, "refused")
        answer = server.post("/api/items", json={"title": "x"})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        postgres.start()
        ok(server)
        create(server, "stored")
    assert list(project.path.glob("data/*.db")) == []


def test_processes_that_share_the_file_agree_and_move_it_when_one_is_left(project: BakedProject, login: Login) -> None:
    environ = {"DATABASE_URL": login.url}
    with ExitStack() as stack:
        first, second = (stack.enter_context(project.boot(environ, in_place=True)) for _ in range(2))
        degraded(first)
        degraded(second)
        create(first, "by the first")
        create(second, "by the second")
        login.allow()
        # at first, perhaps, because the second one is just making the tables for failbacks
        blocked = first.health_when(lambda report: "a restart moves the rows" in report["database"]["detail"])
        assert blocked["database"]["reason"] == "locked"
        # one that starts now joins the others
        with project.boot(environ, in_place=True) as third:
            degraded(third)
            create(third, "by the third")
            assert len(third.titles()) == 3
            third.stop()
        assert sorted(first.titles()) == sorted(second.titles())
        second.stop()
        ok(first)
        assert sorted(first.titles()) == ["by the first", "by the second", "by the third"]


# What ends the process: before and after each step of a failback that leaves a trace.
STEPS = [
    ("handover", "begin", "before"),
    ("handover", "checkpoint", "after"),
    ("handover", "begin", "after"),
    ("move", "Move.run", "before"),
    ("move", "Move.run", "after"),
    ("handover", "failbacks.record_move", "after"),
    ("handover", "finish", "before"),
    ("handover", "finish", "after"),
]

# Rows that have not arrived yet, and rows that have. test_acknowledged_writes.py dies at other steps, under load.
REPRESENTATIVES = [("handover", "begin", "after", "away"), ("handover", "finish", "before", "away")]

DEATHS = [
    pytest.param(*death, id="-".join(death), marks=() if death in REPRESENTATIVES else pytest.mark.thorough)
    for death in [(*step, next_start) for step in STEPS for next_start in ("there", "away")]
]


@pytest.mark.parametrize(("module", "name", "moment", "next_start"), DEATHS)
def test_killed_at_any_step_of_a_failback_every_answer_stays_true(
    project: BakedProject, login: Login, module: str, name: str, moment: str, next_start: str
) -> None:
    app = app_that_dies(project, moment, module, name)
    environ = {"DATABASE_URL": login.url}
    expected = {f"item {number}" for number in range(4)}
    with project.boot(environ, in_place=True, app=app) as server:
        degraded(server)
        for title in sorted(expected):
            create(server, title)
        login.allow()
        assert server.process.wait(30) == -signal.SIGKILL
    if next_start == "away":
        login.refuse()
        with project.boot(environ, in_place=True) as server:
            degraded(server)
            visible = {item["title"]: item["id"] for item in server.get("/api/items").json()["items"]}
            # whoever sees the rows can change them, and whoever does not is told that some are missing
            if visible:
                assert set(visible) == expected
                server.patch(f"/api/items/{visible['item 0']}", json={"title": "changed"})
                server.delete(f"/api/items/{visible['item 1']}")
                expected = (expected - {"item 0", "item 1"}) | {"changed"}
            else:
                waiting = 4 if files(project, "handover") else 0
                assert server.health()["database"]["pending_rows"] == waiting
            create(server, "while away")
            expected.add("while away")
            server.kill()
        login.allow()
    with project.boot(environ, in_place=True) as server:
        assert ok(server)["pending_rows"] == 0
        assert sorted(server.titles()) == sorted(expected)
        # what PostgreSQL has now is changed there and must not come back
        ids = {item["title"]: item["id"] for item in server.get("/api/items").json()["items"]}
        server.delete(f"/api/items/{ids['item 2']}")
        server.patch(f"/api/items/{ids['item 3']}", json={"title": "changed later"})
    expected = (expected - {"item 2", "item 3"}) | {"changed later"}
    with project.boot(environ, in_place=True) as server:
        ok(server)
        assert sorted(server.titles()) == sorted(expected)
    assert files(project, "fallback") == files(project, "handover") == []
