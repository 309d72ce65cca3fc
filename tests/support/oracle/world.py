"""Runs a story through the application, on SQLite and PostgreSQL, and says where it differs from its meaning."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import sqlalchemy as sa
from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.failback.handover import Failback
from space_runtime.migrations import Migrations
from space_runtime.project import Project
from space_runtime.records import failbacks
from space_runtime.records.stored import as_text
from space_runtime.runtime import Runtime
from space_runtime.serving.sessions import SessionFactory
from space_runtime.settings import RuntimeSettings
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from src.database.resolver import DatabaseURLResolver

from tests.support.bakery import ROOT, TEMPLATE_FOLDER
from tests.support.oracle.kinds import given, held
from tests.support.oracle.meaning import Meaning, Move, Row, Rows, is_odd
from tests.support.oracle.schemas import ODDITIES, Table, short
from tests.support.oracle.stories import Change, Create, Delete, NewRow, Operation, Outage, Story
from tests.support.postgres import PASSWORD, Postgres

REFUSED = "space_runtime_refused_rows"
SECONDS = 30
REPORTS_UNTIL_CHECKED = 5
NEVER = 60.0
GIVEN_UP = ("rows_not_moved", "migration_failed", "internal", "schema_newer", "connection_lost")

# The story whose tables the migration of the project folder makes.
_telling: "_Telling | None" = None

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
        # Nothing is prepared, since each story has other tables under the same names.
        self.elsewhere = sa.create_engine(
            url, poolclass=StaticPool, isolation_level="AUTOCOMMIT", connect_args={"prepare_threshold": None}
        )
        self.url = postgres.url(self.owner, user=self.owner)
        self._versions = folder / "migrations" / "versions"
        self._versions.mkdir(parents=True)
        for name in ("env.py", "script.py.mako"):
            shutil.copy(ROOT / TEMPLATE_FOLDER / "migrations" / name, folder / "migrations")
        (self._versions / "0001_story.py").write_text(MIGRATION)
        # Not the project's own file, which would put this folder at the front of sys.path each time.
        self.log = Log()
        self._logger = logging.getLogger("space_runtime")
        self._logger.addHandler(self.log)
        # What hundreds of stories logged would hide the one that failed.
        self._logger.setLevel(logging.ERROR)
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
        self._logger.removeHandler(self.log)
        self._logger.setLevel(logging.NOTSET)
        self.elsewhere.dispose()


def upgrade(connection: sa.Connection) -> None:
    """Do what the migration of the story that is told does."""
    assert _telling is not None
    _telling.upgrade(connection)


class DiffersError(AssertionError):
    """What was found is not what the story means."""


def tell(story: Story, world: World) -> None:
    """Run a story; raise DiffersError with the whole of it if PostgreSQL does not hold what it means."""
    problems = _Telling(story, world).run()
    if problems:
        raise DiffersError("\n".join(["", *problems, "", "The story:", repr(story)]))


class _Telling:
    """One story, once."""

    def __init__(self, story: Story, world: World) -> None:
        self.story, self.world, self.schema = story, world, story.schema
        self.tables = self.schema.metadata(models=False).tables
        self.models = self.schema.metadata(models=True)
        self.meaning = Meaning(self.schema)
        self.problems: list[str] = []
        self._drawn = 0
        self._equal_seeds: dict[tuple[str, Any], str] = {}
        """The markers of seeds that are known by their numbers alone, which are the same everywhere."""
        self._kept = 0
        """How many refused rows PostgreSQL keeps."""
        self._runtime: Runtime | None = None
        self._loop: asyncio.Runner | None = None

    def run(self) -> list[str]:
        """Tell it; return what differs."""
        global _telling
        _telling = self
        self.world.log.lines.clear()
        self.world.clear()
        folder = Path(tempfile.mkdtemp(dir=self.world.folder, prefix="sqlite-"))
        try:
            with asyncio.Runner() as self._loop:
                try:
                    self._run(folder)
                finally:
                    self._stop()
        finally:
            shutil.rmtree(folder)
            _telling = None
        return self.problems

    def _run(self, folder: Path) -> None:
        self._folder = folder
        self._start("postgresql")
        with self.world.elsewhere.connect() as connection:
            self.meaning.postgresql.rows |= self._seeds(connection)
        self._perform(self.story.before, self.meaning.postgresql)
        for number, outage in enumerate(self.story.outages, 1):
            move = self._live_through(outage)
            self._compare(f"after outage {number}", move)
            if self.problems:
                return
            self._perform(outage.afterwards, self.meaning.postgresql)
        if self.story.repairs:
            self._repair()
        if not self.problems:
            self._write_one_more_of_each()

    def _live_through(self, outage: Outage) -> Move:
        """Let PostgreSQL be away, and come back; return what that means for the rows on SQLite."""
        self._stop()
        self.world.let_in(False)
        self._start("sqlite", 0.05 if outage.is_live and not outage.restarts else NEVER)
        seeds: dict[str, Row] = self._write(self._seeds)
        sqlite = Rows(self.schema, {marker: row.copy() for marker, row in seeds.items()})
        half = len(outage.on_sqlite) // 2 if outage.restarts else 0
        self._perform(outage.on_sqlite[:half], sqlite)
        if outage.restarts:
            self._stop()
            self._start("sqlite", 0.05 if outage.is_live else NEVER)
        self._perform(outage.on_sqlite[half:], sqlite)
        self._check_numbers(sqlite, seeds, outage)
        self._sqlite = sqlite
        self._perform(outage.elsewhere, self.meaning.postgresql, elsewhere=True)
        refused_before = self._kept
        changed_before = self.meaning.changed_seeds.total()
        move = self.meaning.come_back(sqlite, seeds)
        if outage.is_live:
            waiting = len(sqlite.rows) - len(seeds) + self.meaning.changed_seeds.total() - changed_before
            # Whether those that PostgreSQL refused before are counted while it is away, nobody has said.
            self._check_pending(waiting, waiting + refused_before)
        else:
            self._stop()
        self.world.let_in(True)
        if not outage.is_live:
            self._start("postgresql")
        self._wait_for("postgresql")
        return move

    # the application

    def _start(self, backend: str, check_seconds: float = NEVER) -> None:
        """Start the application, which looks for PostgreSQL as often as this while SQLite serves."""
        settings = RuntimeSettings.model_construct(
            database_connect_seconds=10.0, database_check_seconds=check_seconds, sqlite_dir=str(self._folder)
        )
        project = Project(self.world.folder, "1", self.models, self.world.folder / "about.json")
        resolution = DatabaseURLResolver({"DATABASE_URL": self.world.url}).resolve()
        self._runtime = Runtime(project, settings, resolution, SessionFactory(expire_on_commit=False))
        self.runtime.lifecycle.start()
        self.runtime.lifecycle.wait_until_settled()
        self._wait_for(backend)

    def _stop(self) -> None:
        if self._runtime is not None:
            self._runtime.lifecycle.stop()
            self._runtime = None

    def _wait_for(self, backend: str) -> None:
        self._wait_until(lambda: self._report().backend == backend and self.runtime.lifecycle.is_ready, backend)

    def _wait_until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline or self._report().reason in GIVEN_UP:
                raise DiffersError(f"not {what}: {self._report()}\n{self.world.log}{self.story!r}")
            time.sleep(0.002)

    def _check_pending(self, *right: int) -> None:
        """Compare what is reported after another check with what is right."""
        reports = [self._report()]

        def is_checked() -> bool:
            if self._report() is not reports[-1]:
                reports.append(self._report())
            # Each step makes a report: of these, one is of a check that began after the last request.
            return len(reports) > REPORTS_UNTIL_CHECKED or reports[-1].pending_rows in right

        self._wait_until(is_checked, "checked")
        if (told := reports[-1].pending_rows) not in right:
            self.problems.append(f"before PostgreSQL comes back, pending_rows is {told}, and should be {right[0]}")

    def _report(self) -> Any:
        return self.runtime.lifecycle.report

    @property
    def runtime(self) -> Runtime:
        """The application that runs."""
        assert self._runtime is not None
        return self._runtime

    def upgrade(self, connection: sa.Connection) -> None:
        """Make the tables, and insert the seeds, which may have other keys each time."""
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
                    written.update().where(_is(rows.rows[marker], written)).values(columns)
                )
            case Delete(marker):
                if marker not in rows.rows:
                    return None
                written = self.tables[rows.rows[marker].table.name]
                return lambda connection: connection.execute(written.delete().where(_is(rows.rows[marker], written)))

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
                if target is not None:
                    columns[own] = value(target, there)
                else:
                    # The owner's columns may be shared.
                    columns.setdefault(own, None)
        return columns

    # seeds

    def _seeds(self, connection: sa.Connection) -> dict[str, Row]:
        """The rows that the migration has inserted into this database."""
        rows: dict[str, Row] = {}
        for table, seed in self.schema.seeds:
            written = self.tables[table.name]
            equal = [one.marker for one in table.seeds if one.values["marker"] == seed.values["marker"]]
            key_columns = written.primary_key.columns
            query = sa.select(*key_columns).where(written.c.marker == seed.values["marker"]).order_by(*key_columns)
            key = dict(connection.execute(query).mappings().all()[equal.index(seed.marker)])
            self._equal_seeds |= {(table.name, key["id"]): seed.marker} if len(equal) > 1 else {}
            names = [name for name in ("id", *table.own_key_columns) if name in key]
            given_values = seed.values | {name: key[name] for name in names}
            rows[seed.marker] = Row(table, seed.marker, given_values, dict(seed.refs))
        return rows

    # comparing

    def _check_numbers(self, sqlite: Rows, seeds: dict[str, Row], outage: Outage) -> None:
        """Numbers that SQLite made are in the range of their own."""
        asked_for = {
            new.marker for one in outage.on_sqlite if isinstance(one, Create) for new in one.rows if new.number
        }
        for marker, row in sqlite.rows.items():
            # A table that was written by hand may number its rows from 1.
            own = row.table.is_numbered and row.table.has_model and marker not in {*seeds, *asked_for}
            if own and row.given["id"] < row.table.beginning:
                self.problems.append(
                    f"SQLite gave {marker} the number {row.given['id']}: expected one from a range of"
                    f" its own, from {row.table.beginning}"
                )

    def _compare(self, when: str, move: Move) -> None:
        expected, problems = self.meaning.postgresql, self.problems
        with self.world.elsewhere.connect() as connection:
            found = self._found(connection)
            reasons = refused_rows(connection, self._equal_seeds)
            self._check_new_keys(when, connection, found, move)
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
        kept = Counter(marker for marker, _ in reasons)
        with_missing_seeds = (kept - wanted) & self.meaning.missing_seeds
        wanted += with_missing_seeds
        if kept != wanted:
            for marker in wanted - kept:
                why = move.refused.get(marker, "as before")
                problems.append(f"{when}: {marker} is not kept as a refused row ({why})")
            for marker in kept - wanted:
                problems.append(
                    f"{when}: {marker} is kept as a refused row, and should not be: {dict(reasons)[marker]}"
                )
        if (told := self._report().pending_rows) != wanted.total():
            problems.append(f"{when}: pending_rows is {told}, and should be {wanted.total()}")
        self._kept = wanted.total()

    def _check_new_keys(self, when: str, connection: sa.Connection, found: dict[str, list[Found]], move: Move) -> None:
        """All rows that have just got another key are recorded, as far as keys have one form everywhere."""
        recorded = {(table, old, new) for _, table, old, new in failbacks.read_new_keys(connection)}
        for marker in move.moved.keys() & found.keys() & self._sqlite.rows.keys():
            table = self._sqlite.rows[marker].table
            old = [self._sqlite.value(marker, name) for name in table.key_columns]
            new = [found[marker][0].columns[name][1] for name in table.key_columns]
            is_plain = all(isinstance(one, (int, str)) for one in (*old, *new))
            if is_plain and ((table.name, as_text(old), as_text(new)) in recorded) != (old != new):
                self.problems.append(f"{when}: {marker} had key {old}, has {new}, and that is not what is recorded")

    def _compare_row(
        self, when: str, row: Row, columns: dict[str, tuple[bool, Any]], found: dict[str, list[Found]]
    ) -> None:
        referring = {column: one for one in reversed(row.table.references) for column in one.columns}
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
                if value != row.given["marker"].upper():
                    self.problems.append(f"{when}: {row.marker}.{name} is {short(value)}")
            elif (is_null, repr(value)) != (held(row.given.get(name))[0], repr(held(row.given.get(name))[1])):
                if row.table.columns.get(name) in ("utc", "datetime") and value == row.given.get(name):
                    continue
                was = "NULL" if is_null else short(value)
                self.problems.append(
                    f"{when}: {row.marker}.{name} is {was}, and should be {short(row.given.get(name))}"
                )

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
                marker: str = self._equal_seeds.get((name, row.get("id")), row["marker"])
                found.setdefault(marker, []).append(Found(name, columns))
        return found

    # repairing, and going on

    def _repair(self) -> None:
        meaning = self.meaning
        if not meaning.refused or meaning.missing_seeds or meaning.conflicts_among_refused():
            # Whether a seed that PostgreSQL has no more is to be written again, nobody has said.
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
        retry(self.runtime)
        # It counts them when it begins to serve.
        self._stop()
        self._start("postgresql")
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
        for table in self.schema.tables.values():
            for count in range(2 if table.is_numbered else 0):
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


def retry(runtime: Runtime) -> None:
    """Try refused rows again, as `make failback` does."""
    with runtime.configured_engine() as target:
        failback = Failback(target, runtime.project.metadata, Migrations(runtime.project.folder), runtime.snapshots)
        with target.connect() as connection:
            files = failbacks.files_with_refused(connection)
        for file_id in files:
            failback.retry_refused(file_id)


def refused_rows(connection: sa.Connection, equal_seeds: dict[tuple[str, Any], str]) -> list[tuple[str, str]]:
    """The markers of the rows that PostgreSQL keeps because it refused them, and why it did."""
    if not sa.inspect(connection).has_table(REFUSED):
        return []
    found = connection.execute(sa.text(f"SELECT table_name, content, reason, error FROM {REFUSED}"))  # noqa: S608
    return [
        (equal_seeds.get((table, content.get("id")), content["marker"]), f"{reason} {error or ''}".strip())
        for table, content, reason, error in found
    ]


def _is(row: Row, written: sa.Table) -> sa.ColumnElement[bool]:
    """What tells a row from all others in its table."""
    name, value = ("id", row.given["id"]) if row.table.is_numbered else ("marker", row.marker)
    same: sa.ColumnElement[bool] = written.c[name] == value
    return same
