"""The newest migration is known however migrations are written, and a schema that is newer still is served."""

import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest
from space_runtime.migrations import Migrations
from space_runtime.migrations.history import own_names

from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Login, Postgres
from tests.support.server import IMPATIENT

WRITTEN = {
    "a.py": 'revision: str = "a"\ndown_revision: str | None = None\n',
    "b.py": "revision = 'b'\ndown_revision = 'a'\n",
    "c.py": 'revision = "c"\ndown_revision = "a"\n',
    "merged.py": 'revision = "d"\ndown_revision = (\n    "b",  # "x"\n    "c",\n)\n',
}
FROM_THE_FUTURE = "UPDATE alembic_version SET version_num = 'from-the-future'"


def test_the_newest_revision_is_found_however_migrations_are_written(tmp_path: Path) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    for name, text in WRITTEN.items():
        (versions / name).write_text(text)
    assert Migrations(tmp_path).revisions() == ({"a", "b", "c", "d"}, {"d"})


@pytest.mark.slow
def test_a_newer_schema_is_served_with_a_word_about_it(project: BakedProject, database_url: str) -> None:
    environ = {"DATABASE_URL": database_url}
    project.run("python", "-m", "alembic", "upgrade", "head", environ=environ)
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file, file:
            file.execute(FROM_THE_FUTURE)
    else:
        with psycopg.connect(database_url) as server:
            server.execute(FROM_THE_FUTURE)
    with project.boot(environ, in_place=True) as app:
        report = app.settled()
        assert (report["status"], report["database"]["reason"]) == ("ok", "schema_newer")
        assert app.titles() == []


def add_migration(project: BakedProject, body: str, name: str = "more") -> None:
    header = f"import sqlalchemy as sa\nfrom alembic import op\n\nrevision = {name!r}\ndown_revision = '0001'\n\n"
    (project.path / "migrations" / "versions" / f"{name}.py").write_text(header + body)


def test_tables_are_this_projects_own_if_its_migrations_made_and_kept_them(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(SECOND_HISTORY)
    (tmp_path / "c.py").write_text(FIRST_HISTORY)
    tables, indexes, enums, sequences = own_names(tmp_path)
    assert tables == {(None, "new"), ("other", "kept"), (None, "last")}
    assert indexes == {"ix_new_a", "ix_new_b"}
    assert enums == {"status": {"draft", "published", "it's over", "last"}}
    assert sequences == {"orders", "raw", "of_a_column"}


FIRST_HISTORY = """
revision = "1"
down_revision = None


def upgrade():
    op.create_table("old", sa.Column("a"))
    sa.Enum("draft", "published", name="status").create(op.get_bind(), checkfirst=True)
    op.create_table("kept", sa.Column("a", sa.Integer(), sa.Sequence("of_a_column")), schema="other")
    op.create_table("gone", sa.Column("a"))
    op.create_table(f"{prefix}_computed", sa.Column("a"))
    with op.batch_alter_table("old") as batch_op:
        batch_op.create_index(batch_op.f("ix_new_a"), ["a"])


def downgrade():
    op.drop_table("kept", schema="other")
"""
SECOND_HISTORY = """
revision = "2"
down_revision = "1"


def upgrade():
    op.drop_table("gone")
    op.execute("ALTER TYPE status ADD VALUE IF NOT EXISTS 'it''s over'")
    op.execute(sa.text('alter type public."status" add value ' "'last'"))
    op.execute(sa.schema.CreateSequence(sa.Sequence(name="orders")))
    op.execute('CREATE SEQUENCE IF NOT EXISTS public."raw" START WITH 5')
    op.rename_table("old", "new")
    op.create_table(table_name="last")
    op.create_index(index_name="ix_new_b", table_name="new", columns=["b"])


def downgrade():
    op.create_table("gone", sa.Column("a"))
"""

AUTOCOMMIT = """
def check_limits():
    if op.get_bind().dialect.name == "postgresql":
        for setting, value in {"statement_timeout": "0", "lock_timeout": "5s", "transaction_read_only": "off"}.items():
            assert op.get_bind().scalar(sa.text(f"SHOW {setting}")) == value, setting


def upgrade():
    check_limits()
    op.add_column("items", sa.Column("kind", sa.String(20)))
    with op.get_context().autocommit_block():
        check_limits()
        if op.get_bind().dialect.name == "postgresql":
            op.execute("CREATE TYPE mood AS ENUM ('sad')")
            op.execute("ALTER TYPE mood ADD VALUE 'glad'")
            op.execute("CREATE INDEX CONCURRENTLY ix_items_kind ON items (kind)")
    check_limits()
    op.create_table("moods", sa.Column("mood", sa.String(20)))
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE moods ALTER mood TYPE mood USING mood::mood")
    op.execute("INSERT INTO moods VALUES ('glad')")


def downgrade():
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["at start", pytest.param("by hand", marks=pytest.mark.thorough)])
def test_a_migration_may_leave_its_transaction_for_a_while(project: BakedProject, database_url: str, how: str) -> None:
    environ = {"DATABASE_URL": database_url}
    project.run("python", "-m", "alembic", "upgrade", "head", environ=environ)
    add_migration(project, AUTOCOMMIT)
    if how == "by hand":
        project.run("python", "-m", "alembic", "upgrade", "head", environ=environ)
    with project.boot(environ, in_place=True) as app:
        report = app.settled()
        assert (report["status"], report["database"]["reason"]) == ("ok", None), app.log()
        assert app.post("/api/items", json={"title": "one"}).status_code == 201
    if not database_url.startswith("sqlite"):
        with psycopg.connect(database_url) as server:
            assert server.execute("SELECT mood FROM moods").fetchall() == [("glad",)]
            valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_items_kind'::regclass"
            assert server.execute(valid).fetchall() == [(True,)]


@pytest.mark.slow
def test_processes_that_wait_for_a_migration_do_not_hold_it_up(project: BakedProject, postgres: Postgres) -> None:
    environ = {"DATABASE_URL": postgres.create_database()}
    project.run("python", "-m", "alembic", "upgrade", "head", environ=environ)
    add_migration(
        project, MEETING + AUTOCOMMIT.replace("        check_limits()\n        if", "        meet()\n        if")
    )
    with ExitStack() as apps:
        started = [apps.enter_context(project.boot(environ, in_place=True)) for _ in range(3)]
        for app in started:
            assert app.settled(60)["status"] == "ok", app.log()
        for app in started:
            assert "Traceback" not in app.log_at_the_end()


MEETING = """
import time


def meet():
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 60
    while op.get_bind().scalar(sa.text(others)) < 2:
        assert time.monotonic() < deadline, "the others do not come"
        time.sleep(0.05)


"""

FAILS = """
def upgrade():
    op.create_table("half", sa.Column("a", sa.Integer()))
    op.execute("INSERT INTO half VALUES (1)")
    op.execute("SELECT * FROM nowhere")


def downgrade():
    pass
"""


@pytest.mark.slow
def test_a_migration_that_fails_leaves_nothing_half_made(project: BakedProject, database_url: str) -> None:
    add_migration(project, FAILS)
    environ = {"DATABASE_URL": database_url}
    done = project.run("python", "-m", "alembic", "upgrade", "head", environ=environ, check=False)
    assert "nowhere" in done.stdout
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
            assert file.execute("SELECT name FROM sqlite_master").fetchall() == []
    else:
        with psycopg.connect(database_url) as server:
            assert server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == []


WAITS = """
def upgrade():
    op.create_table("half", sa.Column("a", sa.Integer()))
    op.execute("SET LOCAL lock_timeout = 0")
    op.execute("SELECT pg_advisory_xact_lock(1)")


def downgrade():
    pass
"""
SESSIONS = """
    SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE datname = current_database() AND locktype = 'advisory' AND %s AND (classid, objid) %s (0, 1)
"""


def wait_for(server: "psycopg.Connection[tuple[object, ...]]", query: str) -> tuple[object, ...]:
    deadline = time.monotonic() + 60
    while (row := server.execute(query).fetchone()) is None:
        assert time.monotonic() < deadline, query
        time.sleep(0.05)
    return row


@pytest.mark.slow
def test_a_migration_does_not_go_on_when_its_lock_is_lost(project: BakedProject, postgres: Postgres) -> None:
    """Both belong to one session, so another process can have the lock only after the migration has ended."""
    url = postgres.create_database()
    project.run("python", "-m", "alembic", "upgrade", "head", environ={"DATABASE_URL": url})
    add_migration(project, WAITS)
    with postgres.connect(url) as server:
        server.execute("SELECT pg_advisory_lock(1)")
        with project.boot({"DATABASE_URL": url, "DATABASE_CHECK_SECONDS": "0.2"}, in_place=True) as app:
            (migrating,) = wait_for(server, SESSIONS % ("NOT granted", "="))
            (holder,) = wait_for(server, SESSIONS % ("granted", "<>"))
            assert holder == migrating
            server.execute("SELECT pg_terminate_backend(%s)", [holder])
            (another,) = wait_for(server, f"{SESSIONS % ('NOT granted', '=')} AND pid <> {holder}")
            assert server.execute("SELECT to_regclass('half')").fetchone() == (None,)
            (holder,) = wait_for(server, SESSIONS % ("granted", "<>"))
            assert holder == another
            server.execute("SELECT pg_advisory_unlock(1)")
            assert app.health_when(lambda report: report["status"] == "ok", 60)
        assert server.execute("SELECT count(*) FROM half").fetchone() == (0,)


OTHERS = """
    CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
    INSERT INTO alembic_version VALUES ('of-others'), ('and-one-more');
    CREATE TABLE users (id integer PRIMARY KEY);
"""


@pytest.mark.slow
def test_a_database_of_other_migrations_is_left_alone(project: BakedProject, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
            file.executescript(OTHERS)
    else:
        with psycopg.connect(database_url) as server:
            server.execute(OTHERS)
    environ = {"DATABASE_URL": database_url}
    with project.boot(environ, in_place=True) as app:
        report = app.settled()
        assert (report["status"], report["database"]["reason"]) == ("unavailable", "foreign_schema")
        assert "belongs to the migrations of another application" in report["database"]["detail"]
        assert app.get("/api/items").status_code == 503
        if not database_url.startswith("sqlite"):
            with psycopg.connect(database_url) as server:
                server.execute("DROP TABLE alembic_version; DROP TABLE users")
            assert app.health_when(lambda report: report["status"] == "ok")
    if database_url.startswith("sqlite"):
        done = project.run("python", "-m", "alembic", "upgrade", "head", environ=environ, check=False)
        assert done.returncode != 0
        assert "belongs to the migrations of another application" in done.stdout
        assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_of_two_new_projects_with_one_empty_database_the_second_leaves_it_alone(
    bake: Bakery, tmp_path: Path, postgres: Postgres
) -> None:
    environ = {"DATABASE_URL": postgres.create_database()}
    projects = [bake(project_slug=slug).copy_to(tmp_path / slug) for slug in ("one", "two")]
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        # both begin on a database without any table
        booted = threads.map(lambda project: stack.enter_context(project.boot(environ, in_place=True)), projects)
        first, second = sorted(booted, key=lambda app: str(app.settled()["status"]))
        assert first.health()["status"] == "ok"
        report = second.health()
        assert (report["status"], report["database"]["reason"]) == ("unavailable", "foreign_schema")
        assert "Give this application a database or a schema of its own" in second.get("/status").text
        assert second.post("/api/items", json={"title": "mixed"}).status_code == 503
        assert first.post("/api/items", json={"title": "own"}).status_code == 201
        assert first.titles() == ["own"]
    refused = [project.run("python", "-m", "alembic", "check", environ=environ, check=False) for project in projects]
    assert sorted("belongs to the migrations of another application" in done.stdout for done in refused) == [
        False,
        True,
    ]


NEWER = """
def upgrade():
    op.drop_table("items")
    op.create_table("things", sa.Column("a", sa.Integer()))


def downgrade():
    pass
"""


@pytest.mark.slow
def test_a_newer_schema_is_known_even_if_it_has_no_table_of_the_older_code(
    bake: Bakery, tmp_path: Path, postgres: Postgres
) -> None:
    environ = {"DATABASE_URL": postgres.create_database()}
    older, newer = (bake().copy_to(tmp_path / age) for age in ("older", "newer"))
    older.run("python", "-m", "alembic", "upgrade", "head", environ=environ)
    add_migration(newer, NEWER)
    newer.run("python", "-m", "alembic", "upgrade", "head", environ=environ)
    with older.boot(environ, in_place=True) as app:
        report = app.settled()
        assert (report["status"], report["database"]["reason"]) == ("ok", "schema_newer")


FOR_POSTGRESQL_ONLY = """
def upgrade():
    op.create_table("half", sa.Column("a", sa.Integer()))
    op.create_table("tags", sa.Column("tags", sa.ARRAY(sa.String(20))))


def downgrade():
    pass
"""


@pytest.mark.slow
def test_a_migration_for_postgresql_only_is_not_blamed_while_postgresql_is_away(
    project: BakedProject, login: Login
) -> None:
    add_migration(project, FOR_POSTGRESQL_ONLY)
    with project.boot(IMPATIENT | {"DATABASE_URL": login.url}, in_place=True) as app:
        report = app.settled()
        assert (report["status"], report["database"]["reason"]) == ("unavailable", "auth_failed")
        assert "the migrations do not run on it" in report["database"]["detail"]
        assert app.get("/api/items").status_code == 503
        left = [file.name for file in (project.path / "data").iterdir()]
        assert [name for name in left if ".db" in name] == []
        login.allow()
        assert app.health_when(lambda report: report["status"] == "ok")["database"]["backend"] == "postgresql"
        app.stop()
        assert "ARRAY" in app.log()


NUMBERED = """
import os

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from space_runtime.backends import SQLITE

metadata = sa.MetaData()
sa.Table("generated", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String))
sa.Table("big", metadata, sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("name", sa.String))
sa.Table("natural", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
sa.Table("child", metadata, sa.Column("id", sa.ForeignKey("generated.id"), primary_key=True))
pair = [sa.Column(name, sa.Integer, primary_key=True) for name in "ab"]
sa.Table("pair", metadata, *pair)
sa.Table("bare", metadata, sa.Column("id", sa.Integer, primary_key=True), sqlite_with_rowid=False)
engine = SQLITE.create_engine(sa.URL.create("sqlite", database=os.environ["FILE"]), {}, 1)
metadata.create_all(engine)
with SQLITE.lock_migrations(engine) as connection, connection.begin():
    connection.execute(sa.text("INSERT INTO generated VALUES (7000, 'gone')"))
    connection.execute(sa.text("DELETE FROM generated"))
    operations = Operations(MigrationContext.configure(connection))
    for name in ("generated", "natural"):
        with operations.batch_alter_table(name, recreate="always") as batch:
            batch.add_column(sa.Column("more", sa.String))
with engine.begin() as connection:
    print(connection.execute(sa.text("INSERT INTO generated (name) VALUES ('x') RETURNING id")).scalar())
    rows = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'"))
    print(sorted(name for name, _ in rows))
engine.dispose()
"""


def test_on_sqlite_a_number_that_was_given_is_never_given_again(project: BakedProject, tmp_path: Path) -> None:
    environ = {"FILE": str(tmp_path / "numbered.db")}
    assert project.run("python", "-c", NUMBERED, environ=environ).stdout == "7001\n['big', 'generated']\n"
    assert not list(tmp_path.glob("*.migrating"))


def test_a_database_in_memory_is_still_there_when_it_was_migrated(project: BakedProject) -> None:
    code = """
from pathlib import Path
from sqlalchemy import inspect
from space_runtime.migrations import Migrations
from src.database.session import build_engine

engine = build_engine("sqlite://")
Migrations(Path()).migrate(engine)
print(inspect(engine).has_table("items"))
engine.dispose()
"""
    assert project.run(sys.executable, "-c", code).stdout.splitlines()[-1] == "True"
