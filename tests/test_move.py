"""What a move makes of single rows: of tables that were written by hand, or with values that SQLite should not hold."""

# ruff: noqa: S608  (all statements are from here)

import socket
import sqlite3
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from space_runtime.backends import POSTGRESQL, postgresql
from space_runtime.failback import __main__ as command
from space_runtime.failback import handover, refusals, target
from space_runtime.failback.handover import Failback
from space_runtime.failback.outcome import Outcome
from space_runtime.files import names
from space_runtime.files.contents import count_rows, read_only
from space_runtime.migrations import Migrations
from space_runtime.migrations.opening import CannotServe
from space_runtime.records import failbacks, seeds
from space_runtime.snapshots.schedule import Snapshots
from space_runtime.time_limit import start, within

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
                result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []

    def act_as_another(self) -> str:
        """Do all that follows as a role that may write rows, and make tables; return its name."""
        name = f"someone_{uuid4().hex[:12]}"
        self.run(f"CREATE ROLE {name}", f"GRANT ALL ON SCHEMA public TO {name}")
        self.run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")

        @sa.event.listens_for(self.engine, "begin")
        def become(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SET LOCAL ROLE {name}")

        return name

    def move(self, *statements: str, create: bool = False) -> Outcome:
        """Move a file in which these statements were run; return how many rows moved, and how many stay behind."""
        return self.failback.move(self.write(*statements, create=create))

    def write(self, *statements: str, create: bool = False) -> Path:
        """Run these statements in the file that waits, and return it."""
        file = names.path(self.folder, "fallback", self.file_id)
        if create:
            engine = sa.create_engine(f"sqlite:///{file}")
            self.models.create_all(engine)
            engine.dispose()
        with sqlite3.connect(file) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return file

    def seed(self, *statements: str) -> None:
        """Run these statements as a migration of the file that is to be moved."""
        engine = sa.create_engine(f"sqlite:///{names.path(self.folder, 'fallback', self.file_id)}")
        with engine.begin() as connection, seeds.recording(connection):
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def retry(self) -> Outcome:
        """Try again to move what was refused."""
        with self.engine.connect() as connection:
            files = failbacks.files_with_refused(connection)
        outcomes = [self.failback.retry_refused(file_id) for file_id in files]
        return Outcome(sum(one.moved for one in outcomes), sum(one.refused for one in outcomes))

    def reasons(self) -> list[tuple[str, str]]:
        """Return the tables of the refused rows, and why PostgreSQL refused them."""
        query = "SELECT table_name, coalesce(error, reason) FROM space_runtime_refused_rows ORDER BY number"
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


@pytest.mark.parametrize("is_first", ["original", "copy"])
def test_what_was_refused_in_two_files_moves_once(database: Database, is_first: str) -> None:
    database.run("CREATE TABLE notes (id serial PRIMARY KEY, text text CHECK (text <> 'bad'))")
    rows = "INSERT INTO notes VALUES (1073741900, 'bad')"
    assert database.move(NOTES, rows) == (0, 1)
    assert database.move(NOTES, f"{rows}, (1073741901, 'of the copy')") == (1, 1)
    database.run("ALTER TABLE notes DROP CONSTRAINT notes_text_check")
    if is_first == "copy":
        assert database.failback.retry_refused(names.copy_of(database.file_id)) == (1, 0)
        assert database.retry() == (0, 0)
    else:
        assert database.retry() == (1, 0)
    assert database.run("SELECT * FROM notes ORDER BY id") == [(1073741900, "bad"), (1073741901, "of the copy")]
    assert database.reasons() == []


REFUSING = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.name = 'bad' THEN RAISE 'no' USING ERRCODE = 'insufficient_privilege'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON parents FOR EACH ROW EXECUTE FUNCTION refuse()
"""


@pytest.mark.parametrize(
    ("key", "bad", "reason"),
    [
        ("text PRIMARY KEY", "char(110, 0, 111)", "refused"),
        ("text PRIMARY KEY", "CAST(x'ff6e' AS text)", "refused"),
        ("serial PRIMARY KEY", "'no'", "22P02"),
    ],
    ids=["NUL", "not UTF-8", "no number"],
)
def test_a_key_that_postgresql_cannot_have_keeps_no_other_row_back(
    database: Database, key: str, bad: str, reason: str
) -> None:
    table = f"CREATE TABLE parents (id {key}, name text)"
    database.run(table)
    assert database.move(table, f"INSERT INTO parents VALUES ({bad}, 'bad'), (7, 'good')") == (1, 1)
    assert database.reasons() == [("parents", reason)]
    assert database.run("SELECT name FROM parents") == [("good",)]


def test_a_row_for_which_sqlite_made_no_key_gets_one(database: Database) -> None:
    table = f"CREATE TABLE parents ({NUMBERED[0]})"
    database.run(table)
    assert database.move(table, "INSERT INTO parents (name) VALUES ('one'), ('two')") == (2, 0)
    assert database.run("SELECT * FROM parents ORDER BY id") == [(1, "one"), (2, "two")]
    # another machine went on with the same snapshot, in which the rows cannot be told apart
    assert database.move(table, "INSERT INTO parents (name) VALUES ('one'), ('two')") == (0, 2)


def test_a_sequence_that_ends_keeps_only_those_rows_back_that_need_a_number(database: Database) -> None:
    database.run(
        "CREATE SEQUENCE few MAXVALUE 2",
        "CREATE TABLE parents (id int PRIMARY KEY DEFAULT nextval('few'), name text)",
        "INSERT INTO parents (name) VALUES ('one'), ('two')",
    )
    rows = "INSERT INTO parents VALUES (1, 'own'), (2, 'own, too'), (70, 'free'), (1073741900, 'high')"
    assert database.move(PARENTS, rows) == (2, 2)
    assert database.reasons() == [("parents", "no_number")] * 2
    assert database.run("SELECT id FROM parents ORDER BY id") == [(1,), (2,), (70,), (1073741900,)]


def test_numbers_of_a_table_without_a_model_do_not_disturb_postgresqls(database: Database) -> None:
    database.run("CREATE TABLE parents (id bigserial PRIMARY KEY, name text)")
    assert database.move(PARENTS, "INSERT INTO parents VALUES (1500000000, 'own')") == (1, 0)
    assert database.run("INSERT INTO parents (name) VALUES ('next') RETURNING id") == [(1,)]


@pytest.mark.parametrize(
    ("key", "last", "kept"),
    [("serial", 1_200_000_000, 1_100_000_000), ("smallserial", 20_000, 19_000)],
    ids=["int", "smallint"],
)
def test_postgresqls_numbering_does_not_meet_rows_that_moved_though_it_is_in_their_range(
    database: Database, key: str, last: int, kept: int
) -> None:
    database.run(f"CREATE TABLE parents (id {key} PRIMARY KEY, name text)", f"SELECT setval('parents_id_seq', {last})")
    rows = f"INSERT INTO parents VALUES (3, 'low'), ({kept}, 'kept'), ({last + 2}, 'met'), ({last + 100}, 'met, too')"
    assert database.move(PARENTS, rows) == (4, 0)
    assert database.run("INSERT INTO parents (name) VALUES ('next') RETURNING id") == [(last + 3,)]
    found = database.run("SELECT id FROM parents ORDER BY id")
    assert found == [(3,), (kept,), (last + 1,), (last + 2,), (last + 3,)]


def test_postgresqls_numbering_may_begin_in_the_range_of_rows_that_move(database: Database) -> None:
    key = "id int GENERATED ALWAYS AS IDENTITY (START 2000000000) PRIMARY KEY"
    database.run(f"CREATE TABLE parents ({key}, name text)")
    assert database.move(PARENTS, "INSERT INTO parents VALUES (1100000000, 'kept'), (2000000000, 'met')") == (2, 0)
    assert database.run("INSERT INTO parents (name) VALUES ('next') RETURNING id") == [(2_000_000_001,)]


def test_whatever_a_trigger_raises_is_about_its_row(database: Database) -> None:
    database.run("CREATE TABLE parents (id serial PRIMARY KEY, name text)", REFUSING)
    assert database.move(PARENTS, "INSERT INTO parents VALUES (1, 'bad'), (2, 'good')") == (1, 1)
    assert database.reasons() == [("parents", "42501")]


def test_what_row_level_security_refuses_keeps_no_other_row_back(database: Database) -> None:
    database.run(
        "CREATE TABLE parents (id int PRIMARY KEY, name text)",
        "ALTER TABLE parents ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY good ON parents WITH CHECK (name = 'good')",
        "CREATE POLICY all_of_them ON parents FOR SELECT USING (true)",
    )
    name = database.act_as_another()
    try:
        assert database.move(PARENTS, "INSERT INTO parents VALUES (1, 'bad'), (2, 'good')") == (1, 1)
        assert database.reasons() == [("parents", "42501")]
    finally:
        database.run("RESET ROLE", f"DROP OWNED BY {name}", f"DROP ROLE {name}")


class Sealed(sa.TypeDecorator[str]):
    """A type that cannot read everything."""

    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Raise an error of its own."""
        if value == "broken":
            raise RuntimeError("the seal is broken")
        return value and value[::-1]


def test_a_value_that_the_owners_type_cannot_read_keeps_no_other_row_back(database: Database) -> None:
    table = sa.Table("letters", database.models, _key(), sa.Column("text", Sealed))
    table.create(database.engine)
    assert database.move("INSERT INTO letters VALUES (1, 'broken'), (2, 'whole')", create=True) == (1, 1)
    assert database.reasons() == [("letters", "unstorable")]


class Hashed(sa.TypeDecorator[str]):
    """A type that cannot be undone, and says that it reads what is stored."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Hash it."""
        return None if value is None else f"hash({value})"

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Return it as it is."""
        return value


class Digest(sa.TypeDecorator[Any]):
    """A type that cannot be undone, and says nothing about reading."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes | None:
        """Digest text."""
        return None if value is None else value.encode()[:2]


def test_what_the_owners_type_does_to_a_value_once_is_not_done_twice(database: Database) -> None:
    columns = [sa.Column("name", Hashed, unique=True), sa.Column("digest", Digest)]
    sa.Table("users", database.models, _key(), *columns).create(database.engine)
    rows = "INSERT INTO users VALUES (7, 'hash(x)', x'ff00'), (8, NULL, NULL)"
    assert database.move(rows, create=True) == (2, 0)
    assert database.run("SELECT * FROM users ORDER BY id") == [(7, "hash(x)", b"\xff\0"), (8, None, None)]
    # another machine went on with the same snapshot
    assert database.move(rows, "INSERT INTO users VALUES (9, 'hash(y)', NULL)", create=True) == (1, 0)


def test_a_model_may_have_other_names_for_its_columns(database: Database) -> None:
    sa.Table(
        "parents",
        database.models,
        sa.Column("id", sa.Text, primary_key=True, key="own"),
        sa.Column("parent_id", sa.ForeignKey("parents.own"), key="parent"),
    ).create(database.engine)
    rows = "INSERT INTO parents VALUES ('a', 'b'), ('b', 'a'), ('c', 'a')"
    assert database.move(rows, create=True) == (3, 0)
    assert database.run("SELECT * FROM parents ORDER BY id") == [("a", "b"), ("b", "a"), ("c", "a")]


def test_a_copy_may_have_keys_that_postgresql_cannot_have(database: Database) -> None:
    database.run("CREATE TABLE parents (id uuid PRIMARY KEY)")
    table = "CREATE TABLE parents (id text PRIMARY KEY)"
    assert database.move(table, f"INSERT INTO parents VALUES ('{UUID(int=1)}')") == (1, 0)
    assert database.move(table, f"INSERT INTO parents VALUES ('bad'), ('{UUID(int=2)}')") == (1, 1)
    assert database.reasons() == [("parents", "22P02")]


class Point(sa.types.UserDefinedType[str]):
    """A type that PostgreSQL cannot compare."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        """Return what PostgreSQL calls it."""
        return "point"


@pytest.mark.filterwarnings("ignore:Did not recognize type")
def test_every_seed_that_stays_behind_is_kept_though_none_can_be_compared(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "ROWS_AT_ONCE", 2)
    sa.Table("places", database.models, _key(), sa.Column("spot", Point), sa.Column("name", sa.Text))
    sa.Table("pins", database.models, _key(), sa.Column("place_id", sa.ForeignKey("places.id")))
    database.models.create_all(database.engine)
    engine = sa.create_engine(f"sqlite:///{names.path(database.folder, 'fallback', database.file_id)}")
    with engine.begin() as connection, seeds.recording(connection):
        database.models.create_all(connection)
        connection.exec_driver_sql("INSERT INTO places (spot) VALUES ('(1,1)'), ('(2,2)'), ('(3,3)')")
    engine.dispose()
    assert database.move("UPDATE places SET name = 'own'") == (0, 3)
    assert database.reasons() == [("places", "seed_changed")] * 3


def test_a_seed_with_a_high_number_does_not_move_postgresqls_numbering_on(database: Database) -> None:
    database.run("CREATE TABLE parents (id serial PRIMARY KEY, name text)")
    database.run("INSERT INTO parents VALUES (500000, 'a seed')")
    database.seed(PARENTS, "INSERT INTO parents VALUES (500000, 'a seed')")
    assert database.move("INSERT INTO parents VALUES (3, 'low'), (1500000000, 'high')") == (2, 0)
    assert database.run("INSERT INTO parents (name) VALUES ('next') RETURNING id") == [(4,)]


SEATS = "CREATE TABLE seats (id integer PRIMARY KEY AUTOINCREMENT, status text)"
BOOKINGS = "CREATE TABLE bookings (id integer PRIMARY KEY AUTOINCREMENT, seat_id int REFERENCES seats, who text)"
THREE_SEATS = "INSERT INTO seats (status) VALUES ('free'), ('free'), ('free')"


def test_seeds_that_differ_only_in_their_numbers_are_not_mistaken_for_each_other(database: Database) -> None:
    database.run(in_postgresql(SEATS), in_postgresql(BOOKINGS), THREE_SEATS)
    database.seed(SEATS, BOOKINGS, THREE_SEATS)
    database.run("UPDATE seats SET status = 'sold' WHERE id = 2")
    assert database.move("INSERT INTO bookings VALUES (7, 3, 'Ann'), (8, 2, 'Bob'), (9, 1, 'Cleo')") == (2, 2)
    assert database.run("SELECT seat_id, who FROM bookings ORDER BY 1") == [(1, "Cleo"), (3, "Ann")]
    assert set(database.reasons()) == {("seats", "seed_alike"), ("bookings", "refers_to_refused")}
    # one that could be any of them, though it is the only one now
    database.run("UPDATE seats SET status = 'sold' WHERE id = 1")
    database.run("UPDATE seats SET status = 'free' WHERE id = 2")
    assert database.retry() == (1, 0)
    assert database.run("SELECT seat_id FROM bookings WHERE who = 'Bob'") == [(2,)]


def test_seeds_that_differ_only_in_their_numbers_lead_nowhere_if_those_differ(database: Database) -> None:
    database.run(in_postgresql(SEATS), in_postgresql(BOOKINGS), "SELECT setval('seats_id_seq', 10)", THREE_SEATS)
    database.run("UPDATE seats SET status = 'sold' WHERE id < 13")
    database.seed(SEATS, BOOKINGS, THREE_SEATS)
    assert database.move("INSERT INTO bookings VALUES (8, 2, 'Bob')") == (0, 2)
    # It is no row of PostgreSQL's, so it becomes one.
    assert database.retry() == (2, 0)
    assert database.run("SELECT status, who FROM bookings JOIN seats ON seats.id = seat_id") == [("free", "Bob")]
    assert database.run("SELECT count(*) FROM seats") == [(4,)]


def test_a_seed_may_have_nothing_but_a_number(database: Database) -> None:
    slots = "CREATE TABLE slots (id integer PRIMARY KEY AUTOINCREMENT)"
    uses = "CREATE TABLE uses (id integer PRIMARY KEY AUTOINCREMENT, slot_id int REFERENCES slots)"
    database.run(in_postgresql(slots), in_postgresql(uses), "INSERT INTO slots VALUES (1), (2)")
    database.seed(slots, uses, "INSERT INTO slots VALUES (1), (2)")
    assert database.move("INSERT INTO uses VALUES (7, 2)") == (1, 0)
    assert database.run("SELECT slot_id FROM uses") == [(2,)]


@pytest.mark.parametrize("table", ["cats", "dogs"], ids=["one table", "two tables"])
def test_seeds_may_refer_to_each_other_whatever_their_keys_are(database: Database, table: str) -> None:
    def tables(key: str) -> list[str]:
        parent = "" if table == "cats" else f"CREATE TABLE dogs (id {key} PRIMARY KEY, best_id {key}, name text)"
        cats = f"CREATE TABLE cats (id {key} PRIMARY KEY, parent_id {key} REFERENCES {table}, name text)"
        uses = f"CREATE TABLE uses (id integer PRIMARY KEY, cat_id {key} REFERENCES cats)"
        return [*filter(None, [parent]), cats, uses]

    def rows(root: int, child: int) -> list[str]:
        return [
            f"INSERT INTO {table} VALUES ('{UUID(int=root).hex}', NULL, 'root')",
            f"INSERT INTO cats VALUES ('{UUID(int=child).hex}', '{UUID(int=root).hex}', 'child')",
        ]

    # with the second table, both refer to each other
    both = [] if table == "cats" else ["ALTER TABLE dogs ADD FOREIGN KEY (best_id) REFERENCES cats"]
    database.run(*tables("uuid"), *both, *rows(50, 51))
    database.seed(*tables("text"), *rows(9, 3))
    assert database.move(f"INSERT INTO uses VALUES (7, '{UUID(int=3).hex}')") == (1, 0)
    assert database.run("SELECT cat_id FROM uses") == [(UUID(int=51),)]


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


def test_a_long_list_of_rows_that_refer_to_the_next_and_the_last_one_moves(database: Database) -> None:
    table = "CREATE TABLE pages (id int PRIMARY KEY, next int REFERENCES pages, last int REFERENCES pages)"
    database.run(table)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)"
    pages = f"{numbers} INSERT INTO pages SELECT i, nullif(i + 1, 1501), nullif(i - 1, 0) FROM n"
    assert database.move(table, pages) == (1500, 0)
    assert database.run("SELECT count(*) FROM pages WHERE next = id + 1 OR last = id - 1") == [(1500,)]


@pytest.mark.parametrize("name", ["100%", "Order (old)", 'the "best"', "a:b"])
def test_tables_and_columns_may_have_any_name(database: Database, name: str) -> None:
    name = name.replace('"', '""')
    columns = f'"{name}" int REFERENCES "{name}"'
    with database.engine.begin() as connection:
        key = "id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
        connection.exec_driver_sql(f'CREATE TABLE "{name}" ({key}, {columns})'.replace("%", "%%"))
    sqlite = f'CREATE TABLE "{name}" (id integer PRIMARY KEY AUTOINCREMENT, {columns})'
    assert database.move(sqlite, f'INSERT INTO "{name}" VALUES (1, 2), (2, NULL)') == (2, 0)


def test_refused_rows_leave_nothing_locked_in_the_server(database: Database) -> None:
    database.run("CREATE TABLE parents (id int PRIMARY KEY, name text UNIQUE)", "INSERT INTO parents VALUES (0, 'bad')")
    locks: list[int] = []

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def count(*called: Any) -> None:
        if called[2].startswith("INSERT INTO parents"):
            (found,) = database.run("SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid'")
            locks.append(found[0])

    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)"
    rows = f"{numbers} INSERT INTO parents SELECT i, 'bad' FROM n"
    assert database.move(PARENTS, rows) == (0, 60)
    assert 0 < max(locks) < 10


def test_a_sequence_that_counts_in_steps_goes_no_further_than_it_must(database: Database) -> None:
    database.run("CREATE TABLE parents (id int GENERATED ALWAYS AS IDENTITY (INCREMENT 10) PRIMARY KEY, name text)")
    assert database.move(PARENTS, "INSERT INTO parents VALUES (95, 'own')") == (1, 0)
    assert database.run("INSERT INTO parents (name) VALUES ('next') RETURNING id") == [(111,)]


def test_a_reference_may_have_another_type_than_what_it_refers_to(database: Database) -> None:
    parents = sa.Table(
        "parents",
        database.models,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("parent_id", sa.Uuid(as_uuid=False), sa.ForeignKey("parents.id")),
        sa.Column("name", sa.Text, unique=True),
    )
    parents.create(database.engine)
    database.run(f"INSERT INTO parents VALUES ('{UUID(int=9)}', NULL, 'seed'), ('{UUID(int=8)}', NULL, 'bad')")
    engine = sa.create_engine(f"sqlite:///{names.path(database.folder, 'fallback', database.file_id)}")
    with engine.begin() as connection, seeds.recording(connection):
        parents.create(connection)
        connection.exec_driver_sql(f"INSERT INTO parents VALUES ('{UUID(int=1).hex}', NULL, 'seed')")
    engine.dispose()
    values = ", ".join(f"('{UUID(int=n).hex}', '{UUID(int=1).hex}', '{name}')" for n, name in [(2, "bad"), (3, "good")])
    assert database.move(f"INSERT INTO parents VALUES {values}") == (1, 1)
    database.run("DELETE FROM parents WHERE name = 'bad'")
    assert database.retry() == (1, 0)
    assert database.run(f"SELECT count(*) FROM parents WHERE parent_id = '{UUID(int=9)}'") == [(2,)]


def test_large_rows_are_refused_in_bounded_memory(database: Database) -> None:
    database.run("CREATE TABLE photos (id int PRIMARY KEY, photo bytea CHECK (length(photo) < 10))")
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30)"
    photos = f"{numbers} INSERT INTO photos SELECT i, randomblob(1000000) FROM n"
    tracemalloc.start()
    try:
        assert database.move("CREATE TABLE photos (id integer PRIMARY KEY, photo blob)", photos) == (0, 30)
        assert tracemalloc.get_traced_memory()[1] < 80 * 2**20
    finally:
        tracemalloc.stop()


def test_references_follow_a_number_that_a_trigger_gave(database: Database) -> None:
    database.run(
        "CREATE TABLE owners (id serial PRIMARY KEY, name text)",
        "CREATE TABLE pets (id serial PRIMARY KEY, owner_id int REFERENCES owners, name text)",
        "CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.id := nextval('owners_id_seq'); RETURN NEW; END $$",
        "INSERT INTO owners VALUES (5, 'a stranger'), (6, 'another')",
        "CREATE TRIGGER number BEFORE INSERT ON owners FOR EACH ROW EXECUTE FUNCTION number()",
        "SELECT setval('owners_id_seq', 10)",
    )
    moved = database.move(
        "CREATE TABLE owners (id integer PRIMARY KEY AUTOINCREMENT, name text)",
        "CREATE TABLE pets (id integer PRIMARY KEY AUTOINCREMENT, owner_id int REFERENCES owners, name text)",
        "INSERT INTO owners VALUES (7, 'one'), (8, 'two')",
        "INSERT INTO pets VALUES (1, 7, 'of one'), (2, 8, 'of two')",
    )
    assert moved == (4, 0)
    found = database.run("SELECT owners.name, pets.name FROM pets JOIN owners ON owners.id = owner_id ORDER BY 1")
    assert found == [("one", "of one"), ("two", "of two")]
    assert {(5,), (6,)} < set(database.run("SELECT id FROM owners"))


def test_references_follow_a_number_that_a_trigger_gave_to_a_row_in_a_circle(database: Database) -> None:
    owners = "CREATE TABLE owners (id integer PRIMARY KEY AUTOINCREMENT, slug text UNIQUE, boss text REFERENCES owners"
    pets = "CREATE TABLE pets (id integer PRIMARY KEY, owner_id int REFERENCES owners)"
    database.run(
        in_postgresql(f"{owners} (slug))"),
        pets,
        "INSERT INTO owners (slug) VALUES ('a stranger'), ('another')",
        "CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.id := nextval('owners_id_seq'); RETURN NEW; END $$",
        "CREATE TRIGGER number BEFORE INSERT ON owners FOR EACH ROW EXECUTE FUNCTION number()",
    )
    rows = ("INSERT INTO owners VALUES (1, 'a', 'b'), (2, 'b', 'a')", "INSERT INTO pets VALUES (1, 1), (2, 2)")
    assert database.move(f"{owners} (slug))", pets, *rows) == (4, 0)
    whose = "SELECT pets.id, slug FROM pets JOIN owners ON owners.id = owner_id ORDER BY 1"
    assert database.run(whose) == [(1, "a"), (2, "b")]
    recorded = "SELECT old_key, slug FROM space_runtime_new_keys JOIN owners ON id::text = new_key ORDER BY 1"
    assert database.run(recorded) == [("1", "a"), ("2", "b")]


TREES = "CREATE TABLE trees (id integer PRIMARY KEY AUTOINCREMENT, parent_id int REFERENCES trees, name text)"


def in_postgresql(table: str) -> str:
    return table.replace("integer PRIMARY KEY AUTOINCREMENT", "serial PRIMARY KEY")


def test_a_seed_that_somebody_deleted_is_told_until_postgresql_has_it_no_more(database: Database) -> None:
    database.run(
        "CREATE TABLE kinds (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text UNIQUE)",
        "CREATE TABLE roles (id int PRIMARY KEY, kind_id uuid REFERENCES kinds, name text)",
        "INSERT INTO kinds (name) VALUES ('kind')",
        "INSERT INTO roles SELECT 1, id, 'admin' FROM kinds",
    )
    file = names.path(database.folder, "fallback", database.file_id)
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as connection, seeds.recording(connection):
        connection.exec_driver_sql("CREATE TABLE kinds (id text PRIMARY KEY, name text UNIQUE)")
        connection.exec_driver_sql("CREATE TABLE roles (id integer PRIMARY KEY, kind_id text, name text)")
        connection.exec_driver_sql("INSERT INTO kinds VALUES ('00000000000000000000000000000001', 'kind')")
        connection.exec_driver_sql("INSERT INTO roles SELECT 1, id, 'admin' FROM kinds")
    assert count_rows(read_only(file)) == {}
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM roles")
    engine.dispose()
    assert count_rows(read_only(file)) == {"roles": 1}
    assert database.move() == (0, 1)
    assert database.retry() == (0, 1)
    assert database.reasons() == [("roles", "seed_deleted")]
    database.run("DELETE FROM roles")
    assert database.retry() == (0, 0)


def test_every_row_that_got_another_key_is_recorded(database: Database) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150)"
    rows = f"{numbers} INSERT INTO trees SELECT i, nullif(i - 1, 0), 'own ' || i FROM n"
    database.run(in_postgresql(TREES), rows.replace("own", "a stranger"), "SELECT setval('trees_id_seq', 150)")
    assert database.move(TREES, rows) == (150, 0)
    recorded = database.run("SELECT old_key, new_key FROM space_runtime_new_keys WHERE table_name = 'trees'")
    names_of = dict(database.run("SELECT id::text, name FROM trees"))
    assert {old: names_of[new] for old, new in recorded} == {str(i): f"own {i}" for i in range(1, 151)}


def test_every_key_that_holds_another_key_is_recorded_where_that_was_replaced(database: Database) -> None:
    tables = (
        "CREATE TABLE people (id integer PRIMARY KEY AUTOINCREMENT, name text)",
        "CREATE TABLE staff (id integer PRIMARY KEY REFERENCES people, pay int CHECK (pay > 0))",
        "CREATE TABLE lines (staff_id int REFERENCES staff, n int, PRIMARY KEY (staff_id, n))",
        "CREATE TABLE knows (a int REFERENCES people, b int REFERENCES people, PRIMARY KEY (a, b))",
    )
    database.run(*map(in_postgresql, tables), "INSERT INTO people (name) VALUES ('a seed'), ('a stranger')")
    database.seed(*(table.replace(" CHECK (pay > 0)", "") for table in tables))
    database.seed("INSERT INTO people VALUES (1, 'a seed')")
    rows = (
        "INSERT INTO people VALUES (2, 'own'), (70, 'kept')",
        "INSERT INTO staff VALUES (2, 0), (1, 5), (70, 6)",
        "INSERT INTO lines VALUES (2, 7), (1, 7)",
        "INSERT INTO knows VALUES (2, 1), (1, 70)",
    )
    recorded = "SELECT old_key, new_key FROM space_runtime_new_keys WHERE table_name = '{}'"
    assert database.move(*rows) == (7, 2)
    ((number,),) = database.run("SELECT id FROM people WHERE name = 'own'")
    assert database.run(recorded.format("people")) == [("2", f"{number}")]
    assert database.run(recorded.format("knows")) == [("2, 1", f"{number}, 1")]
    database.run("ALTER TABLE staff DROP CONSTRAINT staff_pay_check")
    assert database.retry() == (2, 0)
    assert database.run(recorded.format("staff")) == [("2", f"{number}")]
    assert database.run(recorded.format("lines")) == [("2, 7", f"{number}, 7")]
    # another machine went on with the same snapshot
    database.seed(*(table.replace(" CHECK (pay > 0)", "") for table in tables))
    database.seed("INSERT INTO people VALUES (1, 'a seed')")
    assert database.move(*rows, "INSERT INTO lines VALUES (2, 8)") == (1, 0)
    assert database.run("SELECT * FROM lines ORDER BY n DESC LIMIT 1") == [(number, 8)]


def test_references_follow_a_key_of_any_type_that_a_trigger_made(database: Database) -> None:
    database.run(
        "CREATE TABLE owners (id uuid PRIMARY KEY, name text, slug text UNIQUE, boss_id uuid REFERENCES owners)",
        "CREATE TABLE pets (id int PRIMARY KEY, owner_id uuid REFERENCES owners, of text REFERENCES owners (slug))",
        "CREATE FUNCTION make_key() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.id := gen_random_uuid(); NEW.slug := lower(NEW.slug); RETURN NEW; END $$",
        "CREATE TRIGGER make_key BEFORE INSERT ON owners FOR EACH ROW EXECUTE FUNCTION make_key()",
    )
    moved = database.move(
        "CREATE TABLE owners (id text PRIMARY KEY, name text, slug text UNIQUE, boss_id text REFERENCES owners)",
        "CREATE TABLE pets (id integer PRIMARY KEY, owner_id text REFERENCES owners, of text REFERENCES owners (slug))",
        f"INSERT INTO owners VALUES ('{UUID(int=1).hex}', 'one', 'ONE', NULL)",
        f"INSERT INTO owners VALUES ('{UUID(int=2).hex}', 'two', 'TWO', '{UUID(int=1).hex}')",
        f"INSERT INTO pets VALUES (1, '{UUID(int=1).hex}', 'TWO'), (2, '{UUID(int=2).hex}', 'ONE')",
    )
    assert moved == (4, 0)
    found = database.run("SELECT pets.id, name, of FROM pets JOIN owners ON owners.id = owner_id ORDER BY 1")
    assert found == [(1, "one", "two"), (2, "two", "one")]
    bosses = "SELECT one.name, boss.name FROM owners one JOIN owners boss ON boss.id = one.boss_id"
    assert database.run(bosses) == [("two", "one")]


def test_a_copy_does_not_move_rows_again_that_got_another_number(database: Database) -> None:
    database.run(in_postgresql(TREES), "INSERT INTO trees (name) VALUES ('a stranger'), ('another')")
    rows = "INSERT INTO trees VALUES (1, NULL, 'root'), (2, 1, 'child')"
    assert database.move(TREES, rows) == (2, 0)
    # another machine went on with the same snapshot
    assert database.move(TREES, rows, "INSERT INTO trees VALUES (70, 2, 'of the copy')") == (1, 0)
    parents = "SELECT one.name, parent.name FROM trees one JOIN trees parent ON parent.id = one.parent_id ORDER BY 1"
    assert database.run(parents) == [("child", "root"), ("of the copy", "child")]


def test_without_a_right_to_the_numbering_only_those_rows_stay_that_need_a_number(database: Database) -> None:
    database.run("CREATE TABLE parents (id serial PRIMARY KEY, name text)")
    name = database.act_as_another()
    try:
        rows = "INSERT INTO parents VALUES (3, 'low'), (1073741900, 'high'), (1073741901, 'high, too')"
        assert database.move(PARENTS, rows) == (2, 1)
        assert database.reasons() == [("parents", "no_number")]
        assert database.run("SELECT id FROM parents ORDER BY id") == [(1073741900,), (1073741901,)]
    finally:
        database.run("RESET ROLE", f"DROP OWNED BY {name}", f"DROP ROLE {name}")


# As far as tests need it: the extension itself is not in every installation.
CITEXT = [
    "CREATE TYPE citext",
    "CREATE FUNCTION citextin(cstring) RETURNS citext LANGUAGE internal IMMUTABLE STRICT AS 'textin'",
    "CREATE FUNCTION citextout(citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout'",
    "CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, CATEGORY = 'S', COLLATABLE = true)",
    "CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT",
    "CREATE CAST (text AS citext) WITHOUT FUNCTION AS ASSIGNMENT",
    "CREATE CAST (varchar AS citext) WITHOUT FUNCTION AS ASSIGNMENT",
    "CREATE FUNCTION citext_cmp(citext, citext) RETURNS int LANGUAGE sql IMMUTABLE"
    " AS $$ SELECT bttextcmp(lower($1::text), lower($2::text)) $$",
    *[
        statement
        for name, operator in {"lt": "<", "le": "<=", "eq": "=", "ge": ">=", "gt": ">"}.items()
        for statement in (
            f"CREATE FUNCTION citext_{name}(citext, citext) RETURNS bool LANGUAGE sql IMMUTABLE"
            f" AS $$ SELECT citext_cmp($1, $2) {operator} 0 $$",
            f"CREATE OPERATOR {operator} (FUNCTION = citext_{name}, LEFTARG = citext, RIGHTARG = citext)",
        )
    ],
    "CREATE OPERATOR CLASS citext_ops DEFAULT FOR TYPE citext USING btree AS OPERATOR 1 <, OPERATOR 2 <=,"
    " OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 citext_cmp(citext, citext)",
]


@pytest.mark.parametrize(
    ("right", "table"),
    [
        ("SELECT", "space_runtime_failbacks"),
        pytest.param("INSERT", "space_runtime_failbacks", marks=pytest.mark.thorough),
        pytest.param("SELECT", "space_runtime_refused_rows", marks=pytest.mark.thorough),
        ("INSERT", "space_runtime_new_keys"),
    ],
)
def test_a_move_without_a_right_to_the_tables_for_failbacks_says_to_which(
    database: Database, right: str, table: str
) -> None:
    database.run(in_postgresql(PARENTS), "INSERT INTO parents VALUES (1, 'a stranger')")
    database.run("GRANT USAGE ON SEQUENCE parents_id_seq TO PUBLIC")
    with database.engine.begin() as connection:
        failbacks.create_tables(connection)
    before = sa.create_engine(database.engine.url)
    name = database.act_as_another()
    with before.begin() as connection:
        connection.exec_driver_sql(f"REVOKE {right} ON {table} FROM {name}")
    before.dispose()
    file = database.write(PARENTS, "INSERT INTO parents VALUES (1, 'own')")
    with pytest.raises(CannotServe) as failed:
        database.failback.move_all([file])
    assert (failed.value.reason, failed.value.detail) == ("rows_not_moved", f"table {table}, error 42501")
    assert file.exists()


def test_a_reference_that_differs_in_case_leads_to_no_stranger(database: Database) -> None:
    database.run(
        *CITEXT,
        "CREATE TABLE parents (code citext PRIMARY KEY, name text UNIQUE)",
        "CREATE TABLE children (id int PRIMARY KEY, parent_code citext REFERENCES parents)",
        "INSERT INTO parents VALUES ('ABC', 'a stranger')",
    )
    tables = (
        "CREATE TABLE parents (code text COLLATE NOCASE PRIMARY KEY, name text UNIQUE)",
        "CREATE TABLE children (id integer PRIMARY KEY, parent_code text REFERENCES parents)",
    )
    rows = ("INSERT INTO parents VALUES ('abc', 'own')", "INSERT INTO children VALUES (1, 'aBc')")
    assert database.move(*tables, *rows) == (0, 2)
    assert database.reasons() == [("parents", "23505 parents_pkey"), ("children", "refers_to_refused")]
    assert [row.table_name for row in database.failback.find_refused(1)] == ["parents", "children"]
    database.run("DELETE FROM parents")
    assert database.retry() == (2, 0)


def test_a_sequence_that_cycles_ends_for_rows_that_find_no_number(database: Database) -> None:
    database.run(
        "CREATE SEQUENCE few MAXVALUE 3 CYCLE",
        "CREATE TABLE parents (id int PRIMARY KEY DEFAULT nextval('few'), name text)",
        "INSERT INTO parents (name) VALUES ('one'), ('two')",
    )
    rows = "INSERT INTO parents VALUES (1, 'own'), (2, 'own, too')"
    assert database.move(PARENTS, rows) == (1, 1)
    assert database.reasons() == [("parents", "no_number")]


def test_a_refused_row_costs_two_round_trips(database: Database) -> None:
    database.run("CREATE TABLE parents (id int PRIMARY KEY, name text UNIQUE)", "INSERT INTO parents VALUES (0, 'bad')")
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)"
    statements: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *called: statements.append(called[2]))
    rows = f"{numbers} INSERT INTO parents SELECT i, CASE i WHEN 390 THEN 'good' ELSE 'bad' END FROM n"
    assert database.move(PARENTS, rows) == (1, 399)
    assert len(statements) < 2 * 400 + 100


def test_a_refused_row_keeps_its_number_and_the_time_of_its_first_refusal(database: Database) -> None:
    database.run(in_postgresql(PARENTS).replace("name text", "name text UNIQUE"), "INSERT INTO parents VALUES (0, 'a')")
    assert database.move(PARENTS, "INSERT INTO parents VALUES (7, 'a')") == (0, 1)
    database.file_id = uuid4()
    assert database.move(PARENTS, "INSERT INTO parents VALUES (8, 'a'), (9, 'a')") == (0, 2)
    query = "SELECT number, key, refused_at FROM space_runtime_refused_rows ORDER BY number"
    before = database.run(query)
    assert [row[:2] for row in before] == [(1, "7"), (2, "8"), (3, "9")]
    assert database.retry() == (0, 3)
    assert database.run(query) == before


def test_a_refused_row_is_discarded_with_all_that_refer_to_it(database: Database) -> None:
    database.run(
        in_postgresql(TREES).replace("name text", "name text UNIQUE"), "INSERT INTO trees (name) VALUES ('taken')"
    )
    rows = "(1, 3, 'taken'), (2, 1, 'child'), (3, 2, 'in a circle'), (4, NULL, 'moves'), (5, 4, 'taken')"
    assert database.move(TREES, f"INSERT INTO trees VALUES {rows}") == (1, 4)
    numbers = {key: number for number, key in database.run("SELECT number, key FROM space_runtime_refused_rows")}
    found = [row.number for row in database.failback.find_refused(numbers["2"])]
    assert sorted(found) == sorted(numbers[key] for key in "123")
    with database.engine.begin() as connection:
        failbacks.discard_refused(connection, found)
    assert [key for (key,) in database.run("SELECT key FROM space_runtime_refused_rows")] == ["5"]
    with pytest.raises(LookupError):
        database.failback.find_refused(numbers["2"])


def test_a_refused_row_is_tried_again_with_those_that_refer_to_it_and_no_others(database: Database) -> None:
    trees = in_postgresql(TREES).replace("name text", "name text UNIQUE")
    database.run(trees, "INSERT INTO trees (name) VALUES ('a'), ('b'), ('c')")
    rows = "(1, NULL, 'a'), (2, 1, 'child of a'), (11, NULL, 'b'), (12, 11, 'child of b'), (13, 12, 'grandchild')"
    assert database.move(TREES, f"INSERT INTO trees VALUES {rows}") == (0, 5)
    kept = "SELECT number, key, reason, error, refused_at FROM space_runtime_refused_rows ORDER BY number"
    before = database.run(kept)
    numbers = {key: number for number, key, *_ in before}

    def retry(*keys: str) -> Outcome:
        return database.failback.retry_refused(database.file_id, [numbers[key] for key in keys])

    # the row that it refers to is not tried, and PostgreSQL has a stranger's of that number
    database.run("UPDATE trees SET name = 'not ' || name")
    assert retry("2") == (0, 5)
    assert database.run(kept) == before
    assert retry("11", "12") == (2, 3)
    assert [row for row in database.run(kept) if row[1] in ("1", "2")] == [
        row for row in before if row[1] in ("1", "2")
    ]
    assert retry("13") == (1, 2)
    parents = "SELECT one.name, parent.name FROM trees one JOIN trees parent ON parent.id = one.parent_id ORDER BY 1"
    assert database.run(parents) == [("child of b", "b"), ("grandchild", "child of b")]
    assert database.retry() == (2, 0)


def run_command(database: Database, *options: str) -> int:
    """Run what `make failback` runs, with the database of this test; return its exit code."""
    runtime = SimpleNamespace(
        project=SimpleNamespace(folder=database.folder, metadata=database.models),
        resolution=SimpleNamespace(url=database.engine.url, backend="postgresql"),
        snapshots=Snapshots(None, 60.0),
        configured_engine=lambda: nullcontext(database.engine),
    )
    module = ModuleType("of_this_test")
    module.create_runtime = lambda: runtime  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setattr(sys, "argv", ["failback", f"{module.__name__}:create_runtime", *options])
        return command.main()


def number_of(database: Database, table: str, key: str) -> str:
    """Return the number of a refused row."""
    condition = f"table_name = '{table}' AND key = '{key}'"
    ((number,),) = database.run(f"SELECT number FROM space_runtime_refused_rows WHERE {condition}")
    return str(number)


@pytest.mark.thorough
def test_what_refers_to_a_seed_that_somebody_renamed_moves_when_that_is_said(database: Database) -> None:
    database.run(in_postgresql(PARENTS), in_postgresql(CHILDREN), "INSERT INTO parents (name) VALUES ('renamed')")
    engine = sa.create_engine(f"sqlite:///{names.path(database.folder, 'fallback', database.file_id)}")
    with engine.begin() as connection, seeds.recording(connection):
        connection.exec_driver_sql(PARENTS)
        connection.exec_driver_sql("INSERT INTO parents (name) VALUES ('a seed')")
    engine.dispose()
    assert database.move(CHILDREN, "INSERT INTO children VALUES (7, 1, 'own')") == (0, 2)
    assert database.reasons() == [("parents", "seed_missing"), ("children", "refers_to_refused")]
    assert run_command(database, "--found", number_of(database, "parents", "1"), "--yes") == 0
    assert database.run("SELECT * FROM children") == [(7, 1, "own")]
    assert database.run("SELECT * FROM parents") == [(1, "renamed")]


@pytest.mark.thorough
def test_a_refused_row_of_a_renamed_table_moves_when_it_is_renamed_too(database: Database) -> None:
    database.run("CREATE TABLE elders (id serial PRIMARY KEY, title text)")
    assert database.move(PARENTS, "INSERT INTO parents VALUES (7, 'own')") == (0, 1)
    database.run(
        "UPDATE space_runtime_refused_rows SET table_name = 'elders',"
        " content = replace(content::text, '\"name\":', '\"title\":')::json WHERE table_name = 'parents'"
    )
    assert database.retry() == (1, 0)
    assert database.run("SELECT * FROM elders") == [(7, "own")]


def test_what_refers_to_a_refused_row_moves_when_somebody_has_inserted_that_by_hand(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    database.run(in_postgresql(PARENTS).replace("name text", "name text CHECK (name <> 'bad')"))
    database.run(in_postgresql(CHILDREN))
    parents = "INSERT INTO parents VALUES (7, 'bad'), (8, 'bad')"
    children = "INSERT INTO children VALUES (1, 7, 'moves'), (2, 8, 'stays')"
    assert database.move(PARENTS, CHILDREN, parents, children) == (0, 4)
    number = number_of(database, "parents", "7")
    database.run("INSERT INTO parents VALUES (7, 'good')")
    assert run_command(database, "--found", number) == 1
    assert "YES=1 says yes" in capsys.readouterr().out
    assert run_command(database, "--found", number, "--yes") == 0
    assert "1 moved, 0 refused again" in capsys.readouterr().out
    assert database.run("SELECT parent_id, name, more FROM children JOIN parents ON parents.id = parent_id") == [
        (7, "good", "moves")
    ]
    assert database.reasons() == [("parents", "23514 parents_name_check"), ("children", "refers_to_refused")]


ORDERS = "CREATE TABLE orders (id integer PRIMARY KEY AUTOINCREMENT, name text)"
LINES = "CREATE TABLE lines (id integer PRIMARY KEY AUTOINCREMENT, order_id int NOT NULL REFERENCES orders, name text)"


def deferred(name: str, table: str, condition: str) -> str:
    """Return statements for a constraint trigger that is fired at COMMIT."""
    return f"""
        CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF {condition} THEN RAISE 'no' USING ERRCODE = 'check_violation', CONSTRAINT = '{name}'; END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER {name} AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION {name}();
    """


def test_a_row_that_is_refused_only_at_commit_stays_behind_alone(database: Database) -> None:
    database.run(
        in_postgresql(ORDERS),
        in_postgresql(LINES),
        deferred("has_lines", "orders", "NOT EXISTS (SELECT FROM lines WHERE order_id = NEW.id)"),
        deferred("few_lines", "lines", "(SELECT count(*) FROM lines WHERE order_id = NEW.order_id) > 2"),
        "INSERT INTO orders VALUES (1, 'a stranger')",
        "INSERT INTO lines VALUES (1, 1, 'a stranger')",
    )
    orders = ", ".join(f"({number}, 'order {number}')" for number in range(1, 31))
    lines = ", ".join(
        f"({number}, {number // 2}, 'line {number}')" for number in range(2, 62) if number not in (14, 15)
    )
    rows = (f"INSERT INTO orders VALUES {orders}", f"INSERT INTO lines VALUES {lines}, (70, 20, 'one too many')")
    assert database.move(ORDERS, LINES, *rows) == (87, 2)
    assert sorted(database.reasons()) == [("lines", "23514 few_lines"), ("orders", "23514 has_lines")]
    found = database.run("SELECT orders.name, count(*) FROM orders JOIN lines ON orders.id = order_id GROUP BY 1")
    assert set(found) == {("a stranger", 1)} | {(f"order {number}", 2) for number in range(1, 31) if number != 7}
    assert database.retry() == (0, 2)
    database.run("DROP TRIGGER has_lines ON orders", "DROP TRIGGER few_lines ON lines")
    assert database.retry() == (2, 0)


@pytest.mark.parametrize("parents", ["orders", "bills"])
def test_triggers_of_two_tables_may_have_one_name(database: Database, parents: str) -> None:
    tables = [ORDERS.replace("orders", parents), LINES.replace("orders", parents)]
    database.run(*map(in_postgresql, tables), deferred("checked", "lines", "NEW.name = 'bad'"))
    database.run(
        f"CREATE CONSTRAINT TRIGGER checked AFTER INSERT ON {parents} DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION checked()"
    )
    orders = f"INSERT INTO {parents} VALUES (1, 'one'), (2, 'two'), (3, 'three')"
    lines = "INSERT INTO lines VALUES (1, 1, 'good'), (2, 1, 'bad'), (3, 2, 'good')"
    assert database.move(*tables, orders, lines) == (5, 1)
    assert database.reasons() == [("lines", "23514 checked")]


def test_a_row_stays_behind_alone_for_which_a_trigger_writes_what_is_refused_at_commit(database: Database) -> None:
    database.run(
        in_postgresql(ORDERS),
        in_postgresql(PARENTS),
        deferred("no_copies", "orders", "NEW.name = 'copied'"),
        "CREATE FUNCTION copied() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO orders VALUES (99, 'copied'); RETURN NULL; END $$",
        "CREATE TRIGGER copied AFTER INSERT ON parents FOR EACH ROW WHEN (NEW.name = 'bad') EXECUTE FUNCTION copied()",
    )
    orders = "INSERT INTO orders VALUES (1, 'one'), (2, 'two'), (3, 'three')"
    parents = "INSERT INTO parents VALUES (1, 'good'), (2, 'bad'), (3, 'good')"
    assert database.move(ORDERS, PARENTS, orders, parents) == (5, 1)
    assert database.reasons() == [("parents", "23514 no_copies")]


SLOW = """
    CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE INSERT ON parents FOR EACH ROW EXECUTE FUNCTION sleep()
"""


@pytest.fixture
def watched(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failback]:
    """A failback that soon asks whether PostgreSQL is still at work, into a database with a table of parents."""
    database.run(in_postgresql(PARENTS))
    engine = POSTGRESQL.create_engine(database.engine.url.update_query_dict({"connect_timeout": "2"}), {}, 2)
    POSTGRESQL.prepare_to_serve(engine, transaction_pooler=False)
    monkeypatch.setattr(handover, "_SECONDS_BETWEEN_CHECKS", 0.5)
    yield Failback(engine, database.models, Migrations(database.folder), Snapshots(None, 60.0))
    for thread in threading.enumerate():
        if thread.name == "time-limit":  # it may still wait for a server that was silent
            thread.join(10)
    engine.dispose()


@pytest.mark.parametrize(
    "slow",
    [SLOW, pytest.param(deferred("slow", "parents", "pg_sleep(2) IS NULL"), marks=pytest.mark.thorough)],
    ids=["at each row", "at commit"],
)
def test_a_slow_trigger_is_no_lost_connection(database: Database, watched: Failback, slow: str) -> None:
    database.run(slow)
    watched.move_all([database.write(PARENTS, "INSERT INTO parents VALUES (7, 'own')")])
    assert database.run("SELECT name FROM parents") == [("own",)]


@pytest.mark.thorough
def test_a_trigger_that_does_not_end_is_told(
    database: Database, watched: Failback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "_SECONDS_FOR_A_STATEMENT", 0.2)
    database.run(SLOW)
    with pytest.raises(CannotServe) as failed:
        watched.move_all([database.write(PARENTS, "INSERT INTO parents VALUES (7, 'own')")])
    assert (failed.value.reason, failed.value.detail) == ("timeout", "table parents, error 57014")


@pytest.mark.thorough
def test_a_move_ends_when_postgresql_falls_silent(database: Database, watched: Failback, postgres: Postgres) -> None:
    database.run(SLOW.replace("pg_sleep(2)", "pg_sleep(60)"))
    file = database.write(PARENTS, "INSERT INTO parents VALUES (7, 'own')")
    with ThreadPoolExecutor(1) as thread:
        moving = thread.submit(watched.move_all, [file])
        at_work = """
            SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()
        """
        while database.run(at_work) == [(0,)]:
            assert not moving.done()
        postgres.pause()
        try:
            with pytest.raises(CannotServe) as failed:
                moving.result(30)
        finally:
            postgres.resume()
    assert failed.value.reason == "connection_lost"
    assert file.exists()


class TwoHeads(Migrations):
    """Migrations with two heads, one of which is new."""

    def revisions(self) -> tuple[set[str], set[str]]:
        """Return all revisions, and which of them are heads."""
        return {"a", "b", "c", "d"}, {"b", "d"}

    def migrate(self, engine: sa.Engine) -> bool:
        """Bring the schema to the newest revision."""
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'd' WHERE version_num = 'c'")
        return True


def test_a_file_with_several_heads_is_brought_up_to_date(database: Database) -> None:
    heads = "CREATE TABLE alembic_version (version_num text)"
    database.run(in_postgresql(PARENTS), heads, "INSERT INTO alembic_version VALUES ('d'), ('b')")
    database.failback = Failback(database.engine, database.models, TwoHeads(database.folder), Snapshots(None, 60.0))
    rows = ("INSERT INTO parents VALUES (7, 'own')", "INSERT INTO alembic_version VALUES ('b'), ('c')")
    assert database.move(PARENTS, heads, *rows) == (1, 0)


def test_a_move_waits_for_another_that_takes_long(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.run(in_postgresql(PARENTS))
    file = database.write(PARENTS, "INSERT INTO parents VALUES (7, 'own')")
    has_waited, ended = threading.Event(), threading.Event()
    began = time.monotonic()

    def sleep(seconds: float) -> None:
        ended.wait(seconds)
        if time.monotonic() > began + 2 * 1.5:
            has_waited.set()

    monkeypatch.setattr(handover, "_SECONDS_BETWEEN_CHECKS", 1.5)
    monkeypatch.setattr(postgresql, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with ThreadPoolExecutor(1) as thread:
        with POSTGRESQL.lock_migrations(database.engine):
            moving = thread.submit(database.failback.move_all, [file])
            assert has_waited.wait(60)
            assert not moving.done()
            monkeypatch.setattr(handover, "_SECONDS_BETWEEN_CHECKS", 20.0)
        moving.result(60)
    assert database.run("SELECT name FROM parents") == [("own",)]


def test_two_silent_hosts_keep_nobody_from_the_third(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POSTGRESQL, "_attempts_in_vain", 0)
    url = sa.make_url(postgres.create_database())
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        silent = [server.getsockname()[1] for server in servers]
        several = url.set(
            drivername="postgresql+psycopg",
            host=None,
            port=None,
            query={
                "host": ",".join(["127.0.0.1"] * 3),
                "port": ",".join(map(str, [*silent, url.port])),
                "connect_timeout": "2",
            },
        )

        def connect() -> None:
            engine = POSTGRESQL.create_engine(several, {}, 1)
            POSTGRESQL.prepare_to_serve(engine, transaction_pooler=False)
            with engine.connect():
                pass
            engine.dispose()

        first = start(connect)
        servers[0].settimeout(30)
        stack.enter_context(servers[0].accept()[0])
        # While that attempt is at the first host or at the second, another one begins with the second.
        within(30, connect)
        servers[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            servers[0].accept()
    first.result(30)


def test_rows_of_a_circle_that_stay_behind_are_not_in_postgresql(database: Database) -> None:
    nodes = "CREATE TABLE nodes (code text PRIMARY KEY, next text REFERENCES nodes (code))"
    database.run(
        nodes,
        "CREATE FUNCTION fold() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.code := lower(NEW.code); NEW.next := lower(NEW.next); RETURN NEW; END $$",
        "CREATE TRIGGER fold BEFORE INSERT ON nodes FOR EACH ROW EXECUTE FUNCTION fold()",
    )
    assert database.move(nodes, "INSERT INTO nodes VALUES ('A', 'B'), ('B', 'A')") == (0, 2)
    assert database.run("SELECT * FROM nodes") == []


@pytest.mark.parametrize("decimals", [0, 2])
def test_a_seed_with_a_name_for_a_key_is_not_taken_for_one_with_another_name(database: Database, decimals: int) -> None:
    currencies = "CREATE TABLE currencies (code text PRIMARY KEY, decimals int)"
    prices = "CREATE TABLE prices (id integer PRIMARY KEY, currency text REFERENCES currencies)"
    database.run(currencies, prices, "INSERT INTO currencies VALUES ('USD', 2), ('KRW', 0)")
    database.seed(currencies, prices, f"INSERT INTO currencies VALUES ('USD', 2), ('JPY', {decimals})")
    assert database.move("INSERT INTO prices VALUES (1, 'JPY')") == (0, 2)
    assert database.reasons() == [("currencies", "seed_missing"), ("prices", "refers_to_refused")]


def test_a_refused_row_is_found_only_where_postgresql_has_its_key(database: Database) -> None:
    people = "CREATE TABLE people (id integer PRIMARY KEY, email text UNIQUE)"
    database.run(people, "INSERT INTO people VALUES (1, 'a@x')")
    assert database.move(people, "INSERT INTO people VALUES (7, 'a@x')") == (0, 1)
    (row,) = database.failback.find_refused(1)
    assert not database.failback.is_there(row)
    database.run("INSERT INTO people VALUES (7, 'b@x')")
    assert database.failback.is_there(row)
