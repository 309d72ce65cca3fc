"""Runs a story through the application, on SQLite and PostgreSQL, and says where it differs from its meaning."""

import asyncio
import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.failback.handover import Failback
from space_runtime.migrations import Migrations
from space_runtime.project import Project
from space_runtime.runtime import Runtime
from space_runtime.serving.database import SessionFactory
from space_runtime.settings import RuntimeSettings
from src.database.resolver import DatabaseURLResolver
from tests.support.bakery import ROOT, TEMPLATE_FOLDER
from tests.support.oracle.kinds import given, held
from tests.support.oracle.meaning import Meaning, Move, Row, Rows, is_odd
from tests.support.oracle.schemas import ODDITIES, Schema, Table, short
from tests.support.oracle.stories import Change, Create, Delete, NewRow, Operation, Story
from tests.support.postgres import PASSWORD, Postgres

REFUSED = "space_runtime_refused_rows"
SECONDS = 30
GIVEN_UP = ("rows_not_moved", "migration_failed", "internal", "schema_newer", "connection_lost")

# What the migration of the project folder does; it is different in each story.
upgrade: Callable[[sa.Connection], None] = lambda connection: None

MIGRATION = '''"""The only migration: the tables of the story that is told."""

from alembic import op

from tests.support.oracle import world

revision = "0001"
down_revision = None


def upgrade() -> None:
    world.upgrade(op.get_bind())
'''


class Found(NamedTuple):
    """A row as PostgreSQL holds it: for each column, whether it is NULL, and its value."""

    table: str
    columns: dict[str, tuple[bool, Any]]


class Log(logging.Handler):
    """The last errors that the runtime logged."""

    def __init__(self) -> None:
        """Empty."""
        super().__init__(logging.ERROR)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines = [*self.lines[-4:], self.format(record)]

    def __str__(self) -> str:
        """All of them."""
        return "\n".join(self.lines)


class World:
    """A PostgreSQL server, one database in it, whose owner may log in or not, and a project folder."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        """Nobody else uses the folder."""
        self._postgres, self.folder = postgres, folder
        self.owner = f"oracle_{uuid4().hex[:12]}"
        with postgres.connect() as connection:
            connection.execute(f"CREATE ROLE {self.owner} LOGIN PASSWORD '{PASSWORD}'")
            connection.execute(f"CREATE DATABASE {self.owner}")
        url = sa.make_url(postgres.url(self.owner)).set(drivername="postgresql+psycopg")
        self.elsewhere = sa.create_engine(url, poolclass=StaticPool, isolation_level="AUTOCOMMIT")
        self.url = postgres.url(self.owner, user=self.owner)
        self._versions = folder / "migrations" / "versions"
        self._versions.mkdir(parents=True)
        for name in ("env.py", "script.py.mako"):
            shutil.copy(ROOT / TEMPLATE_FOLDER / "migrations" / name, folder / "migrations")
        (self._versions / "0001_story.py").write_text(MIGRATION)
        # Not the project's own file, which would put this folder at the front of sys.path each time.
        self.log = Log()
        logging.getLogger("space_runtime").addHandler(self.log)
        (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n")

    def clear(self) -> None:
        """Make the database an empty one again."""
        with self.elsewhere.connect() as connection:
            for statement in (
                "DROP SCHEMA public CASCADE",
                f'CREATE SCHEMA public AUTHORIZATION "{self.owner}"',
                f'ALTER ROLE "{self.owner}" LOGIN',
            ):
                connection.exec_driver_sql(statement)

    def let_in(self, allowed: bool) -> None:
        """Let PostgreSQL be there for the application, or away."""
        with self.elsewhere.connect() as connection:
            connection.exec_driver_sql(f'ALTER ROLE "{self.owner}" {"LOGIN" if allowed else "NOLOGIN"}')

    def close(self) -> None:
        """Close the connection."""
        logging.getLogger("space_runtime").removeHandler(self.log)
        self.elsewhere.dispose()


class Differs(AssertionError):
    """What was found is not what the story means."""


def tell(story: Story, world: World) -> None:
    """Run a story; raise Differs with the whole of it if PostgreSQL does not hold what it means."""
    problems = _Telling(story, world).run()
    if problems:
        raise Differs("\n".join(["", *problems, "", "The story:", repr(story)]))


class _Telling:
    """One story, once."""

    def __init__(self, story: Story, world: World) -> None:
        self.story, self.world, self.schema = story, world, story.schema
        self.tables = self.schema.metadata(models=False).tables
        self.models = self.schema.metadata(models=True)
        self.meaning = Meaning(self.schema)
        self.problems: list[str] = []
        self._drawn = 0
        self._numbers: dict[str, int] = {}
        self._runtime: Runtime | None = None
        self._loop: asyncio.Runner | None = None

    def run(self) -> list[str]:
        """Tell it; return what differs."""
        global upgrade
        upgrade = self._upgrade
        self.world.log.lines.clear()
        self.world.clear()
        folder = Path(tempfile.mkdtemp(dir=self.world.folder, prefix="sqlite-"))
        try:
            with asyncio.Runner() as self._loop:
                self._run(folder)
        finally:
            shutil.rmtree(folder)
            # The types of rows and models that nobody will use again.
            upgrade = lambda connection: None  # noqa: E731
        return self.problems

    def _run(self, folder: Path) -> None:
        self._folder = folder
        with self._application("postgresql", 60):
            with self.world.elsewhere.connect() as connection:
                self.meaning.postgresql.rows |= self._seeds(connection)
            self._perform(self.story.before, self.meaning.postgresql)
        for number, outage in enumerate(self.story.outages, 1):
            sqlite = Rows(self.schema)
            self.world.let_in(False)
            with self._application("sqlite", 0.05 if outage.is_live and not outage.restarts else 60):
                seeds = self._seeds_on_sqlite()
                sqlite.rows |= {marker: row.copy() for marker, row in seeds.items()}
                half = len(outage.on_sqlite) // 2 if outage.restarts else len(outage.on_sqlite)
                self._perform(outage.on_sqlite[:half], sqlite)
                if not outage.restarts:
                    move = self._end_of_outage(outage, sqlite, seeds)
                    if outage.is_live:
                        self.world.let_in(True)
                        self._wait_for("postgresql")
                        self._after(number, move, outage.afterwards)
            if outage.restarts:
                with self._application("sqlite", 0.05 if outage.is_live else 60):
                    self._perform(outage.on_sqlite[half:], sqlite)
                    move = self._end_of_outage(outage, sqlite, seeds)
                    if outage.is_live:
                        self.world.let_in(True)
                        self._wait_for("postgresql")
                        self._after(number, move, outage.afterwards)
            if not outage.is_live:
                self.world.let_in(True)
                with self._application("postgresql", 60):
                    self._after(number, move, outage.afterwards)
            if self.problems:
                return
        if self.story.repairs:
            self._repair()
        if not self.problems:
            self._write_one_more_of_each()

    # the application

    @contextmanager
    def _application(self, backend: str, check_seconds: float) -> Iterator[None]:
        settings = RuntimeSettings.model_construct(
            database_connect_seconds=5.0, database_check_seconds=check_seconds, sqlite_dir=str(self._folder)
        )
        project = Project(self.world.folder, "1", self.models, self.world.folder / "about.json")
        resolution = DatabaseURLResolver({"DATABASE_URL": self.world.url}).resolve()
        runtime = self._runtime = Runtime(project, settings, resolution, SessionFactory(expire_on_commit=False))
        runtime.lifecycle.start()
        try:
            runtime.lifecycle.wait_until_settled()
            self._wait_for(backend)
            yield
        finally:
            runtime.lifecycle.stop()
            self._runtime = None

    def _wait_for(self, backend: str) -> None:
        self._wait_until(lambda: self._report().backend == backend and self.runtime.lifecycle.is_ready, backend)

    def _wait_until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline or self._report().reason in GIVEN_UP:
                raise Differs(f"not {what}: {self._report()}\n{self.world.log}\n{self.story!r}")
            time.sleep(0.002)

    def _report(self) -> Any:
        return self.runtime.lifecycle.report

    @property
    def runtime(self) -> Runtime:
        """The application that runs."""
        assert self._runtime is not None
        return self._runtime

    def _upgrade(self, connection: sa.Connection) -> None:
        self._drawn += 1
        self.schema.upgrade(connection, self._drawn)

    def _write(self, work: Callable[[sa.Connection], Any]) -> Any:
        assert self._loop is not None

        def with_session(session: Session) -> Any:
            return work(session.connection())

        return self._loop.run(self.runtime.database.write(with_session))

    # operations

    def _perform(self, operations: Sequence[Operation], rows: Rows, *, elsewhere: bool = False) -> None:
        """Perform what can be performed; what the database answers counts."""
        others = self._sqlite if elsewhere else self.meaning.postgresql
        for operation in operations:
            work = self._work(operation, rows, others, elsewhere)
            if work is None:
                continue
            try:
                if elsewhere:
                    with self.world.elsewhere.execution_options(isolation_level="READ COMMITTED").connect() as one:
                        keys = work(one)
                        one.commit()
                else:
                    keys = self._write(work)
            except (SQLAlchemyError, DatabaseUnavailable, ValueError):
                if elsewhere:
                    continue
                if not self.runtime.lifecycle.is_ready:
                    raise
                continue
            match operation:
                case Create(created):
                    for new, key in zip(created, keys, strict=True):
                        rows.create(new, key)
                case Change():
                    rows.change(operation)
                case Delete(marker):
                    rows.delete(marker)

    def _work(
        self, operation: Operation, rows: Rows, others: Rows, elsewhere: bool
    ) -> Callable[[sa.Connection], Any] | None:
        """What a request does; None if it is about rows that are not there."""
        match operation:
            case Create(created):
                there = {*rows.rows, *(new.marker for new in created)}
                if any(target and target not in there for new in created for target in new.refs.values()):
                    return None
                return lambda connection: self._insert(connection, created, rows, others, elsewhere)
            case Change(marker, values, refs):
                if marker not in rows.rows or any(one and one not in rows.rows for one in refs.values()):
                    return None
                table = rows.rows[marker].table
                columns = {name: given(value) for name, value in values.items()}
                columns |= self._referring(table, refs, rows.value)
                written = self.tables[table.name]
                return lambda connection: connection.execute(
                    written.update().where(written.c.marker == marker).values(columns)
                )
            case Delete(marker):
                if marker not in rows.rows:
                    return None
                written = self.tables[rows.rows[marker].table.name]
                return lambda connection: connection.execute(written.delete().where(written.c.marker == marker))

    def _insert(
        self, connection: sa.Connection, created: list[NewRow], rows: Rows, others: Rows, elsewhere: bool
    ) -> list[dict[str, Any]]:
        """Insert rows; return the key of each."""
        keys: list[dict[str, Any]] = []
        trial = Rows(self.schema, dict(rows.rows))
        drafts: dict[str, dict[str, Any]] = {}
        for new in created:
            own = dict(new.values)
            table = self.schema.tables[new.table]
            if new.number is not None:
                own["id"] = new.number
            if new.key_of in others.rows:
                names = ("id",) if table.is_numbered else table.own_key_columns
                own |= {name: others.value(new.key_of or "", name) for name in names}
            drafts[new.marker] = own
            trial.rows[new.marker] = Row(table, new.marker, own, dict(new.refs))
        for new in created:
            table, written = self.schema.tables[new.table], self.tables[new.table]
            columns = {name: given(value) for name, value in drafts[new.marker].items()}
            columns |= self._referring(table, new.refs, trial.value)
            statement = written.insert().values(columns).returning(*written.primary_key.columns)
            # SQLAlchemy cannot write OVERRIDING SYSTEM VALUE.
            overrides = elsewhere and table.numbering == "always" and "id" in columns
            identity = f"ALTER TABLE {table.name} ALTER COLUMN id SET GENERATED"
            if overrides:
                connection.exec_driver_sql(f"{identity} BY DEFAULT")
            key = dict(connection.execute(statement).mappings().one())
            if overrides:
                connection.exec_driver_sql(f"{identity} ALWAYS")
            trial.rows[new.marker].given |= {name: key[name] for name in ("id",) if name in key}
            keys.append(key)
        return keys

    @staticmethod
    def _referring(table: Table, refs: dict[str, str | None], value: Callable[[str, str], Any]) -> dict[str, Any]:
        """What the columns of references hold."""
        columns: dict[str, Any] = {}
        for name, target in refs.items():
            one = table.reference(name)
            for own, there in zip(one.columns, one.target_columns, strict=True):
                columns[own] = None if target is None else value(target, there)
        return columns

    # seeds

    def _seeds(self, connection: sa.Connection) -> dict[str, Row]:
        """The rows that the migration has inserted into this database."""
        rows: dict[str, Row] = {}
        for table, seed in self.schema.seeds:
            written = self.tables[table.name]
            query = sa.select(*written.primary_key.columns).where(written.c.marker == seed.marker)
            key = dict(connection.execute(query).mappings().one())
            names = [name for name in ("id", *table.own_key_columns) if name in key]
            given_values = seed.values | {name: key[name] for name in names}
            rows[seed.marker] = Row(table, seed.marker, given_values, dict(seed.refs))
        return rows

    def _seeds_on_sqlite(self) -> dict[str, Row]:
        seeds: dict[str, Row] = self._write(self._seeds)
        return seeds

    # the end of an outage

    def _end_of_outage(self, outage: Any, sqlite: Rows, seeds: dict[str, Row]) -> Move:
        self._check_numbers_of_sqlite(sqlite, seeds, outage)
        self._sqlite = sqlite
        self._perform(outage.elsewhere, self.meaning.postgresql, elsewhere=True)
        refused_before = self._count_refused()
        move = self.meaning.come_back(sqlite, seeds)
        if outage.is_live:
            waiting = len(sqlite.rows) - len(seeds) + sum(
                self.meaning.changed_seeds[marker] > self._changed_before.get(marker, 0) for marker in seeds
            )
            # Those in PostgreSQL cannot be counted while it is away, or are counted still.
            right = {waiting, waiting + refused_before}
            with suppress(Differs):
                self._wait_until(lambda: self._report().pending_rows in right, "counted") if waiting < 0 else None
        return move

    @property
    def _changed_before(self) -> dict[str, int]:
        return {}

    def _check_numbers_of_sqlite(self, sqlite: Rows, seeds: dict[str, Row], outage: Any) -> None:
        """Numbers that SQLite made are in the range of their own."""
        asked_for = {
            new.marker for one in outage.on_sqlite if isinstance(one, Create) for new in one.rows if new.number
        }
        for marker, row in sqlite.rows.items():
            own = row.table.is_numbered and marker not in seeds and marker not in asked_for
            if own and row.given["id"] < row.table.beginning:
                self.problems.append(f"SQLite gave {marker} the number {row.given['id']}: expected one from a range of"
                                     f" its own, from {row.table.beginning}")

    def _after(self, number: int, move: Move, afterwards: Sequence[Operation]) -> None:
        self._compare(f"after outage {number}", move)
        if not self.problems:
            self._perform(afterwards, self.meaning.postgresql)

    def _count_refused(self) -> int:
        return len(self.meaning.refused) + self.meaning.changed_seeds.total()

    # comparing

    def _compare(self, when: str, move: Move, *, pending: int | None = None) -> None:
        expected, problems = self.meaning.postgresql, self.problems
        with self.world.elsewhere.connect() as connection:
            found = self._found(connection)
            kept = refused_rows(connection, self._folder)
        for marker, rows in found.items():
            if len(rows) > 1:
                problems.append(f"{when}: {marker} is in PostgreSQL {len(rows)} times")
            if marker not in expected.rows:
                why = f" ({move.refused[marker]})" if marker in move.refused else ""
                problems.append(f"{when}: {marker} is in PostgreSQL, and should not be{why}")
        for marker, row in expected.rows.items():
            if marker not in found:
                problems.append(f"{when}: {marker} is not in PostgreSQL")
                continue
            columns = found[marker][0].columns
            if row.table.is_numbered:
                number, keeps = columns["id"][1], move.moved.get(marker)
                if keeps is not None and number != keeps:
                    problems.append(f"{when}: {marker} has number {number}, and {keeps} was free")
                elif marker in move.moved and keeps is None and number >= row.table.beginning:
                    problems.append(f"{when}: {marker} has got number {number}, which is not PostgreSQL's next one")
                elif marker not in move.moved and number != row.given["id"]:
                    problems.append(f"{when}: the number of {marker} has changed to {number}")
                row.given["id"] = number
        for marker, row in expected.rows.items():
            if marker in found:
                self._compare_row(when, row, found[marker][0].columns, found)
        wanted = Counter(self.meaning.refused.keys()) + self.meaning.changed_seeds
        if kept != wanted:
            for marker in wanted - kept:
                why = move.refused.get(marker, "as before")
                problems.append(f"{when}: {marker} is not kept as a refused row ({why})")
            for marker in kept - wanted:
                problems.append(f"{when}: {marker} is kept as a refused row, and should not be")
        if (told := self._report().pending_rows) != self._count_refused():
            problems.append(f"{when}: pending_rows is {told}, and should be {self._count_refused()}")

    def _compare_row(
        self, when: str, row: Row, columns: dict[str, tuple[bool, Any]], found: dict[str, list[Found]]
    ) -> None:
        referring = {column: one for one in row.table.references for column in one.columns}
        for name, (is_null, value) in columns.items():
            if name in referring:
                target = row.refs.get(referring[name].name)
                if target is not None and target not in self.meaning.postgresql.rows:
                    continue
                expected = self.meaning.postgresql.value(row.marker, name)
                if value != expected:
                    leads_to = self._whose(referring[name].target, referring[name], columns, found)
                    self.problems.append(
                        f"{when}: {row.marker}.{name} is {short(value)}, and should be {short(expected)}: {target};"
                        f" it leads to {leads_to}"
                    )
            elif name == "computed":
                if value != row.marker.upper():
                    self.problems.append(f"{when}: {row.marker}.{name} is {short(value)}")
            elif (is_null, repr(value)) != (held(row.given.get(name))[0], repr(held(row.given.get(name))[1])):
                if row.table.columns.get(name) in ("utc", "datetime") and value == row.given.get(name):
                    continue
                was = "NULL" if is_null else short(value)
                self.problems.append(f"{when}: {row.marker}.{name} is {was}, and should be {short(row.given.get(name))}")

    @staticmethod
    def _whose(table: str, one: Any, columns: dict[str, Any], found: dict[str, list[Found]]) -> str:
        """The row that a reference leads to."""
        wanted = [columns[own][1] for own in one.columns]
        for marker, rows in found.items():
            there = rows[0]
            if there.table == table and [there.columns[name][1] for name in one.target_columns] == wanted:
                return marker
        return "nobody"

    def _found(self, connection: sa.Connection) -> dict[str, list[Found]]:
        """The rows in PostgreSQL by their markers."""
        connection.exec_driver_sql("SET TIME ZONE 'UTC'")
        found: dict[str, list[Found]] = {}
        for name, table in self.tables.items():
            query = sa.select(*table.c, *(one.is_(None).label(f"{one.name} is null") for one in table.c))
            for row in connection.execute(query).mappings():
                columns = {one.name: (row[f"{one.name} is null"], row[one.name]) for one in table.c}
                found.setdefault(row["marker"], []).append(Found(name, columns))
        return found

    # repairing, and going on

    def _repair(self) -> None:
        meaning = self.meaning
        if not meaning.refused or meaning.conflicts_among_refused():
            return
        repaired = 0
        with self.world.elsewhere.connect() as connection:
            for row in list(meaning.refused.values()):
                repaired += self._repair_row(connection, row)
                if repaired == self.story.repairs:
                    break
        if meaning.conflicts_among_refused():
            return
        move = meaning.try_again()
        with self._application("postgresql", 60):
            retry(self.runtime, self._folder)
        with self._application("postgresql", 60):
            self._compare("after the refused rows were tried again", move)

    def _repair_row(self, connection: sa.Connection, row: Row) -> bool:
        """Remove the cause for which PostgreSQL refuses a row, if there is one of its own."""
        table, rows = row.table, self.meaning.postgresql
        if is_odd(row) and table.name not in self.meaning.lifted and (statement := ODDITIES[table.odd or ""]):
            connection.exec_driver_sql(statement.format(table=table.name))
            self.meaning.lifted.add(table.name)
            return True
        for columns in (("u",), table.own_key_columns):
            if columns == ("u",) and not table.unique:
                continue
            values = tuple(held(row.given.get(column))[1] for column in columns)
            stranger = rows.has(table, columns, values) if columns else None
            if stranger is None:
                continue
            changes = {"u": f"u-other-{stranger}", "code": f"code-other-{stranger}", "area": f"north-{stranger}"}
            changes = {name: changes[name] for name in columns if name in changes}
            written = self.tables[table.name]
            if not changes:
                continue
            try:
                connection.execute(written.update().where(written.c.marker == stranger).values(changes))
            except SQLAlchemyError:
                # Others refer to it by this.
                continue
            rows.rows[stranger].given |= changes
            return True
        return False

    def _write_one_more_of_each(self) -> None:
        """PostgreSQL's own numbering is neither disturbed nor behind."""
        numbered = [table for table in self.schema.tables.values() if table.is_numbered]
        if not numbered:
            return
        with self._application("postgresql", 60):
            for table in numbered:
                for count in range(2):
                    self._write_one_more(table, f"last{count}-{table.name}", count)

    def _write_one_more(self, table: Table, marker: str, count: int) -> None:
        from tests.support.oracle.choosing import Choose
        from tests.support.oracle.schemas import draw_values

        simplest = Choose(lambda least, most: least)
        refs: dict[str, str | None] = {}
        for one in table.references:
            candidates = [name for name, row in self.meaning.postgresql.rows.items() if row.table.name == one.target]
            if one.nullable:
                refs[one.name] = None
            elif candidates:
                refs[one.name] = candidates[0]
            else:
                return
        values = draw_values(simplest, table, marker, 10_000 + count)
        if "slot" in values:
            values["slot"] = 10_000 + count
        new = NewRow(table.name, marker, values, refs)
        rows = self.meaning.postgresql
        try:
            (key,) = self._write(lambda connection: self._insert(connection, [new], rows, rows, False))
        except (SQLAlchemyError, DatabaseUnavailable) as error:
            self.problems.append(f"in the end: no row can be added to {table.name}: {error}")
            return
        if key["id"] >= table.beginning:
            self.problems.append(f"in the end: PostgreSQL's next number in {table.name} is {key['id']}")


# What the runtime offers, in one place.


def retry(runtime: Runtime, folder: Path) -> None:
    """Try refused rows again, as `make failback` does."""
    with runtime.configured_engine() as target:
        failback = Failback(target, runtime.project.metadata, Migrations(runtime.project.folder), runtime.snapshots)
        for file in sorted(folder.glob("moved-*.db")):
            failback.retry_refused(file)


def refused_rows(connection: sa.Connection, folder: Path) -> Counter[str]:
    """The markers of the rows that PostgreSQL keeps because it refused them."""
    names = sa.inspect(connection).get_columns(REFUSED) if sa.inspect(connection).has_table(REFUSED) else []
    kept: Counter[str] = Counter()
    if not names:
        return kept
    if "row_id" in {one["name"] for one in names}:
        import sqlite3

        for file_id, table, row_id in connection.execute(sa.text(f"SELECT file_id, table_name, row_id FROM {REFUSED}")):
            with ExitStack() as stack:
                one = sqlite3.connect(folder / f"moved-{file_id.hex}.db")
                stack.callback(one.close)
                (marker,) = one.execute(f'SELECT marker FROM "{table}" WHERE _rowid_ = ?', [row_id]).fetchone()
            kept[marker] += 1
        return kept
    # Read as text, since a value may hold what PostgreSQL's own JSON functions do not take.
    column = next(one["name"] for one in names if isinstance(one["type"], sa.JSON) and one["name"] != "key")
    for (text,) in connection.execute(sa.text(f'SELECT "{column}"::text FROM {REFUSED}')):
        kept[json.loads(text)["marker"]] += 1
    return kept
