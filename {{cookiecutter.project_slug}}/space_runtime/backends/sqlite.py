"""SQLite: connection settings, transactions, and checks of the file and its file system."""

import contextlib
import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Enum,
    SmallInteger,
    Table,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.types import TypeEngine

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.backends.protocol import Backend, Name, Secrets
from space_runtime.backends.sqlite_types import STRICT_TYPES, dump_json
from space_runtime.file_locks import Busy, alone

# Shorter than a health check's time limit, so that a check reports `locked`, not `timeout`.
BUSY_TIMEOUT_SECONDS = 2
STATEMENT_TIMEOUT_SECONDS = 10
# A check delays the start by a second for each 150 MB.
LARGEST_CHECKED_BYTES = 2**30
_COPY = "_alembic_tmp_"
"""How Alembic names the copy of a table that it recreates; it cuts the name at 50 characters."""
# Some milliseconds. Each reading needs the GIL, for which the event loop would have to wait.
_INSTRUCTIONS_BETWEEN_CLOCK_READINGS = 200_000
# Some microseconds, in the event loop, which has the GIL anyway.
_INSTRUCTIONS_BETWEEN_LOOKS = 200
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK_FILE_SYSTEMS = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "lustre", "gcsfuse")


class SQLite(Backend):
    """See Backend for what each method is for."""

    name: Name = "sqlite"
    default_pool_size = 3
    has_one_writer = True

    def describe(self, url: URL) -> str:
        """Name the file."""
        return f"SQLite, {'in memory' if _is_in_memory(url) else url.database}"

    def create_engine(self, url: URL, secrets: Secrets, pool_size: int) -> Engine:
        """Return an engine with a WAL on a local disk, foreign keys, and writers that queue.

        The driver's own BEGIN comes only before the first write: if two clients read a row and then
        change it, one update may be lost or fail with "database is locked". So it is turned off,
        and begin() uses BEGIN IMMEDIATE, which waits.
        """
        engine = create_engine(
            url,
            poolclass=QueuePool,
            # A database in memory exists in one connection only.
            pool_size=1 if _is_in_memory(url) else pool_size,
            max_overflow=0,
            pool_timeout=5,
            connect_args={
                "isolation_level": None,
                "check_same_thread": False,
                "timeout": BUSY_TIMEOUT_SECONDS,
            },
            hide_parameters=True,
            json_serializer=dump_json,
        )
        engine.dialect.colspecs = {**engine.dialect.colspecs, **STRICT_TYPES}

        @event.listens_for(engine, "connect")
        def set_pragmas(connection: Any, record: ConnectionPoolEntry) -> None:
            mode = journal_mode(engine.url.database)
            connection.execute(f"PRAGMA journal_mode = {mode}")
            connection.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'WAL' else 'FULL'}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA temp_store = MEMORY")

        @event.listens_for(engine, "reset")
        def end_transaction(connection: Any, record: ConnectionPoolEntry, state: Any) -> None:
            # After a failed COMMIT the transaction is still open, but SQLAlchemy thinks it ended.
            if connection.in_transaction:
                connection.rollback()

        self.begin_by_options(engine)
        return engine

    def prepare_to_serve(self, engine: Engine, *, transaction_pooler: bool) -> None:
        """Interrupt overdue statements, and replace connections that cannot write."""

        @event.listens_for(engine, "connect")
        def watch_the_clock(connection: Any, record: ConnectionPoolEntry) -> None:
            def is_overdue() -> bool:
                deadline: float = record.info.get("deadline", math.inf)
                return time.monotonic() > deadline

            connection.set_progress_handler(is_overdue, _INSTRUCTIONS_BETWEEN_CLOCK_READINGS)

        @event.listens_for(engine, "handle_error")
        def replace_connections(context: ExceptionContext) -> None:
            # A connection that was opened while the file was read-only stays so, and one that has
            # read a damaged first page does not read it again when the file is mended.
            code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
            info = context.connection.info if context.connection else {}
            is_refused_write = code == sqlite3.SQLITE_READONLY and not info.get("reading")
            if is_refused_write or code in _DAMAGED:
                context.is_disconnect = True

        @event.listens_for(engine, "invalidate")
        def give_back_locks(
            connection: Any, record: ConnectionPoolEntry, error: BaseException | None
        ) -> None:
            # To close it is not enough, as long as anybody has one of its cursors.
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()

    def begin(self, connection: Connection, *, reading: bool, bounded: bool) -> None:
        """Begin a write; reads have no transaction, and each statement sees its own snapshot."""
        info = connection.info
        info["deadline"] = time.monotonic() + STATEMENT_TIMEOUT_SECONDS if bounded else math.inf
        # Only on a change, because the PRAGMA makes SQLite recompile every statement.
        if reading != info.get("reading", False):
            driver_connection: Any = connection.connection.driver_connection
            driver_connection.execute(f"PRAGMA query_only = {reading}")
            info["reading"] = reading
        if not reading:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def reads_in_loop(self, engine: Engine) -> bool:
        """Return True for a file on a local disk, where a read never waits for a writer."""
        return not _is_in_memory(engine.url) and journal_mode(engine.url.database) == "WAL"

    def interrupt(self, connection: Connection, is_to_stop: Callable[[], bool]) -> None:
        """Ask every few microseconds, in the sum of all runs of a statement."""
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.set_progress_handler(is_to_stop, _INSTRUCTIONS_BETWEEN_LOOKS)
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        connection.rollback()

    def try_to_write(self, connection: Connection) -> None:
        """Write the file's user_version again, with the value that it already has."""
        version = connection.execute(text("PRAGMA user_version")).scalar_one()
        connection.execute(text(f"PRAGMA user_version = {int(version)}"))

    @contextlib.contextmanager
    def lock_migrations(self, engine: Engine) -> Iterator[Connection]:
        """Hold a lock on a file beside the database, which is removed at the end."""
        with contextlib.ExitStack() as stack:
            is_in_memory = _is_in_memory(engine.url)
            if not is_in_memory:
                try:
                    stack.enter_context(alone(Path(str(engine.url.database))))
                except Busy:
                    message = "Another process migrates the database."
                    raise DatabaseUnavailable(message, reason="locked") from None
            connection = stack.enter_context(engine.connect())
            driver_connection: Any = connection.connection.driver_connection
            # Batch migrations drop and recreate tables; with foreign keys on, dropping a table
            # deletes the rows that refer to it, or fails.
            driver_connection.execute("PRAGMA foreign_keys = OFF")
            if is_in_memory:
                stack.callback(driver_connection.execute, "PRAGMA foreign_keys = ON")
            else:
                # Nobody else may get it; an autocommit_block() changes the driver's mode, too.
                stack.callback(connection.invalidate)
            yield connection

    def is_stored_the_same(
        self, connection: Connection, existing: Column[Any], wanted: Column[Any]
    ) -> bool:
        """Compare the text of the declaration, of which reflection understands only a part."""
        quoted = connection.dialect.identifier_preparer.quote(existing.table.name)
        rows = connection.exec_driver_sql(f"PRAGMA table_info({quoted})").mappings()
        declared = next((row["type"] for row in rows if row["name"] == existing.name), None)
        if isinstance(wanted.type, Enum) and wanted.type.native_enum:
            return str(declared).startswith("VARCHAR")  # of any length: a value may have been added
        compiler = connection.dialect.type_compiler_instance
        try:
            return bool(compiler.process(wanted.type, type_expression=wanted) == declared)
        except CompileError:
            return True  # SQLite has no such type, so there is nothing to compare


@event.listens_for(Table, "before_create")
def number_rows_once(table: Table, connection: Connection, **_options: object) -> None:
    """Create a table whose key is one generated integer with AUTOINCREMENT.

    Without it, SQLite would give the number of a deleted row to a new one.
    """
    options = table.dialect_options["sqlite"]
    if table.name.startswith(_COPY):
        # Reflection does not tell whether an integer key is generated; the table itself does.
        old = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND substr(? || name, 1, 50) = ?",
            (_COPY, table.name),
        ).scalar()
        options["autoincrement"] = "AUTOINCREMENT" in str(old).upper()
    elif _is_generated(table):
        options["autoincrement"] = True


@event.listens_for(Table, "after_create")
def keep_last_number(table: Table, connection: Connection, **_options: object) -> None:
    """Let the copy of a table that a batch migration recreates continue its numbers."""
    if table.name.startswith(_COPY) and table.dialect_options["sqlite"]["autoincrement"]:
        connection.exec_driver_sql(
            "INSERT INTO sqlite_sequence (name, seq)"
            " SELECT ?, seq FROM sqlite_sequence WHERE substr(? || name, 1, 50) = ?",
            (table.name, _COPY, table.name),
        )


@compiles(BigInteger, "sqlite")
@compiles(SmallInteger, "sqlite")
def declare_integer(kind: TypeEngine[int], compiler: Any, **options: Any) -> str:
    """Declare a generated key as INTEGER, whatever its width: SQLite numbers rows of no other."""
    column = options.get("type_expression")
    table = getattr(column, "table", None)
    if isinstance(table, Table) and _is_generated(table) and column is table.autoincrement_column:
        return "INTEGER"
    return str(getattr(compiler, f"visit_{kind.__visit_name__}")(kind, **options))


def _is_in_memory(url: URL) -> bool:
    return url.database in (None, "", ":memory:")


def _is_generated(table: Table) -> bool:
    """Return whether the key is one integer that the database generates."""
    has_rowid = table.dialect_options["sqlite"]["with_rowid"]
    is_single = len(table.primary_key.columns) == 1
    return has_rowid and is_single and table.autoincrement_column is not None


def is_sound(path: Path) -> bool:
    """Return whether the file is an undamaged database; a very large one is not checked.

    A file that cannot be read now also counts as sound: opening it will tell why.
    """
    if path.stat().st_size > LARGEST_CHECKED_BYTES:
        return True
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError as error:
        return error.sqlite_errorcode & 0xFF not in _DAMAGED


def journal_mode(path: str | None) -> str:
    """Return WAL, or DELETE on file systems that cannot share WAL's memory (FUSE, NFS)."""
    kind = mount_of(path).kind if path else ""
    return "DELETE" if kind.startswith(_NETWORK_FILE_SYSTEMS) else "WAL"


class Mount(NamedTuple):
    """Where a file system begins, its kind (ext4, tmpfs, fuse...), and which folder of it is there.

    All are "" if unknown.
    """

    point: str = ""
    kind: str = ""
    folder: str = ""


def mount_of(path: str | Path) -> Mount:
    """Return the mounted file system that holds this path."""
    if not _MOUNTS.exists():
        return Mount()
    target = Path(path).resolve()
    lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    # Of several at the same point, the last one hides the others.
    mounts = map(_parse_mount, reversed(lines))
    holding = (mount for mount in mounts if target.is_relative_to(mount.point))
    return max(holding, key=lambda mount: len(mount.point), default=Mount())


def _parse_mount(line: str) -> Mount:
    where, _, what = line.partition(" - ")
    folder, point = where.split(" ")[3:5]
    return Mount(point.replace("\\040", " "), what.split(" ")[0], folder)
