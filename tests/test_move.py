"""What a move makes of single rows: of tables that were written by hand, or with values that SQLite should not hold."""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from space_runtime.failback.handover import Failback
from space_runtime.failback.outcome import Outcome
from space_runtime.files import names
from space_runtime.files.contents import count_rows, read_only
from space_runtime.migrations import Migrations
from space_runtime.records import failbacks, seeds
from space_runtime.snapshots.schedule import Snapshots

from tests.support.postgres import Postgres

pytestmark = pytest.mark.slow


@dataclass
class Database:
    """A PostgreSQL database, and a folder for the SQLite files that wait for it."""

    engine: sa.Engine
    failback: Failback
    models: sa.MetaData
    folder: Path
    file_id: UUID = field(default_factory=uuid4)

    def run(self, *statements: str) -> Sequence[Any]:
        """Run statements in PostgreSQL; return what the last one does."""
        with self.engine.begin() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement.replace("%", "%%"))
            return [tuple(row) for row in result] if result.returns_rows else []

    def move(self, *statements: str, create: bool = False) -> Outcome:
        """Move a file in which these statements were run; return how many rows moved, and how many stay behind."""
        file = names.path(self.folder, "fallback", self.file_id)
        if create:
            self.models.create_all(sa.create_engine(f"sqlite:///{file}"))
        with sqlite3.connect(file) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return self.failback.move(file)

    def retry(self) -> Outcome:
        """Try again to move what was refused."""
        with self.engine.connect() as connection:
            files = failbacks.files_with_refused(connection)
        outcomes = [self.failback.retry_refused(file_id) for file_id in files]
        return Outcome(sum(one.moved for one in outcomes), sum(one.refused for one in outcomes))

    def reasons(self) -> list[tuple[str, str]]:
        """Return the tables of the refused rows, and why PostgreSQL refused them."""
        query = "SELECT table_name, coalesce(sqlstate, reason) FROM space_runtime_refused_rows ORDER BY file_id, number"
        return [(table, reason) for table, reason in self.run(query)]


@pytest.fixture
def database(postgres: Postgres, tmp_path: Path) -> Iterator[Database]:
    url = sa.make_url(postgres.create_database()).set(drivername="postgresql+psycopg")
    engine, models = sa.create_engine(url, connect_args={"prepare_threshold": None}), sa.MetaData()
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    snapshots = Snapshots(None, 60.0)
    yield Database(engine, Failback(engine, models, Migrations(tmp_path), snapshots), models, tmp_path)
    engine.dispose()


def _key() -> sa.Column[Any]:
    return sa.Column("id", sa.Integer, primary_key=True)


NOTES = "CREATE TABLE notes (id integer PRIMARY KEY AUTOINCREMENT, text text)"


def test_rows_of_a_table_that_a_migration_renames_in_an_outage_are_still_peoples(database: Database) -> None:
    database.run("CREATE TABLE remarks (id serial PRIMARY KEY, text text)")
    file = names.path(database.folder, "fallback", database.file_id)
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        connection.exec_driver_sql(NOTES)
        connection.exec_driver_sql("INSERT INTO notes (text) VALUES ('hello')")
    with engine.begin() as connection, seeds.recording(connection):
        connection.exec_driver_sql("ALTER TABLE notes RENAME TO remarks")
    engine.dispose()
    assert count_rows(read_only(file)) == {"remarks": 1}
    assert database.move() == (1, 0)
    assert database.run("SELECT text FROM remarks") == [("hello",)]


def test_what_two_files_have_differently_is_not_doubled_when_it_is_tried_again(database: Database) -> None:
    database.run("CREATE TABLE notes (id serial PRIMARY KEY, text text)")
    assert database.move(NOTES, "INSERT INTO notes VALUES (7, 'hello')") == (1, 0)
    # another machine went on with the same snapshot
    assert database.move(NOTES, "INSERT INTO notes VALUES (7, 'hello, world'), (8, 'new')") == (1, 1)
    assert database.retry() == (0, 1)
    assert database.reasons() == [("notes", "already_there")]
    assert database.run("SELECT * FROM notes ORDER BY id") == [(7, "hello"), (8, "new")]


PARENTS = "CREATE TABLE parents (id integer PRIMARY KEY AUTOINCREMENT, name text)"
CHILDREN = "CREATE TABLE children (id integer PRIMARY KEY AUTOINCREMENT, parent_id int REFERENCES parents, more text)"
NUMBERED = ("id serial PRIMARY KEY, name text UNIQUE", "id serial PRIMARY KEY, parent_id int REFERENCES parents")
WHOSE = "SELECT parents.name FROM children JOIN parents ON parents.id = parent_id"


@pytest.mark.parametrize(
    ("at_first", "mended"),
    [
        (f"CREATE TABLE children ({NUMBERED[1]})", "ALTER TABLE children ADD more text"),
        ("SELECT 1", f"CREATE TABLE children ({NUMBERED[1]}, more text)"),
    ],
    ids=["without the column", "without the table"],
)
def test_a_row_that_cannot_be_written_remembers_what_the_row_it_refers_to_has_become(
    database: Database, at_first: str, mended: str
) -> None:
    sa.Table("parents", database.models, _key())
    sa.Table("children", database.models, _key(), sa.Column("parent_id", sa.ForeignKey("parents.id")))
    database.run(f"CREATE TABLE parents ({NUMBERED[0]})", "INSERT INTO parents (name) VALUES ('stranger')", at_first)
    rows = ("INSERT INTO parents VALUES (1, 'own')", "INSERT INTO children VALUES (1, 1, 'more')")
    assert database.move(PARENTS, CHILDREN, *rows) == (1, 1)
    database.run(mended)
    assert database.retry() == (1, 0)
    assert database.run(WHOSE) == [("own",)]


def test_a_row_remembers_what_a_row_of_the_same_batch_has_become(database: Database) -> None:
    database.run(
        "CREATE TABLE parents (id serial PRIMARY KEY, name text, parent_id int REFERENCES parents)",
        "INSERT INTO parents (name) VALUES ('stranger')",
    )
    sqlite = "CREATE TABLE parents (id integer PRIMARY KEY AUTOINCREMENT, name text, parent_id int, more text)"
    rows = "INSERT INTO parents VALUES (1, 'own', NULL, NULL), (2, 'child', 1, 'more')"
    assert database.move(sqlite, rows) == (1, 1)
    database.run("ALTER TABLE parents ADD more text")
    assert database.retry() == (1, 0)
    (own,) = database.run("SELECT id FROM parents WHERE name = 'own'")
    assert database.run("SELECT parent_id FROM parents WHERE name = 'child'") == [own]


def test_what_refers_to_a_refused_row_follows_the_number_that_it_gets_in_the_end(database: Database) -> None:
    database.run(
        f"CREATE TABLE parents ({NUMBERED[0]})",
        f"CREATE TABLE children ({NUMBERED[1]}, more text)",
        "INSERT INTO parents (name) VALUES ('own')",
    )
    rows = ("INSERT INTO parents VALUES (1, 'own')", "INSERT INTO children VALUES (1, 1, NULL)")
    assert database.move(PARENTS, CHILDREN, *rows) == (0, 2)
    database.run("DELETE FROM parents")
    assert database.retry() == (2, 0)
    assert database.run(WHOSE) == [("own",)]
