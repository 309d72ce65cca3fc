"""Open a database: connect to the server or check the file, then migrate."""

import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from space_runtime.backends import POSTGRESQL, SQLITE, backend_of
from space_runtime.backends.errors import DatabaseUnavailable, connection_reason, running_reason
from space_runtime.backends.sqlite import is_sound
from space_runtime.migrations import Migrations
from space_runtime.reasons import REASONS
from space_runtime.time_limit import within
from space_runtime.url.resolution import Resolution

MIGRATION_SECONDS = 900.0


class CannotServe(Exception):
    """This database cannot serve now.

    `is_there`: its data are known to exist, so no other database may stand in for it. `detail`: a
    clause that says where it failed; anyone may see it.
    """

    def __init__(self, reason: str, *, is_there: bool, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_there = is_there
        self.detail = detail


@dataclass(frozen=True)
class Opened:
    """An engine whose schema is up to date, or newer than this code."""

    engine: Engine
    schema_newer: bool = False


def open_postgresql(
    resolution: Resolution, migrations: Migrations, *, connections: int, seconds: float
) -> Opened:
    """Connect within `seconds`, then migrate; raise CannotServe."""
    if resolution.url is None:
        raise ValueError("there is no URL to connect to")
    engine = POSTGRESQL.create_engine(resolution.url, resolution.secrets, connections)
    POSTGRESQL.prepare_to_serve(engine, transaction_pooler=resolution.transaction_pooler)
    try:
        is_current = within(seconds, lambda: migrations.is_current(engine))
    except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
        POSTGRESQL.terminate_connections(engine)
        engine.dispose()
        reason = connection_reason(error)
        cause = error if reason == "migration_failed" else None
        raise CannotServe(reason, is_there=REASONS[reason].is_there) from cause
    return Opened(engine) if is_current else _migrated(engine, migrations)


def open_sqlite(path: Path, migrations: Migrations, *, connections: int) -> Opened:
    """Check, open and migrate the file; raise CannotServe.

    A new file that cannot be migrated is removed again.
    """
    engine = SQLITE.create_engine(URL.create("sqlite", database=str(path)), {}, connections)
    SQLITE.prepare_to_serve(engine, transaction_pooler=False)
    is_new = not path.exists()
    if not is_new and not is_sound(path):
        raise CannotServe("corrupt", is_there=True)
    try:
        return _migrated(engine, migrations)
    except CannotServe:
        if is_new:
            for ending in ("", "-wal", "-shm", "-journal"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
        raise


def ping(engine: Engine, *, write: bool) -> float:
    """Return how many milliseconds a query takes; with `write`, raise what a write would raise."""
    try:
        return _ping_once(engine, write)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        # The connection may have died while idle, which says nothing about the server now.
        return _ping_once(engine, write)


def _ping_once(engine: Engine, write: bool) -> float:
    with engine.connect().execution_options(reading=not write) as connection:
        connection.execute(text("SELECT 1"))
        started = time.perf_counter()
        connection.execute(text("SELECT 1"))
        latency = round((time.perf_counter() - started) * 1000, 2)
        if write:
            backend_of(engine).try_to_write(connection)
        connection.commit()
        return latency


def _migrated(engine: Engine, migrations: Migrations) -> Opened:
    try:
        is_newest = within(MIGRATION_SECONDS, lambda: migrations.migrate(engine))
        return Opened(engine, schema_newer=not is_newest)
    except Exception as error:  # A migration is the owner's code, which may raise anything.
        cause = None
        if isinstance(error, TimeoutError):
            reason: str | None = "timeout"
            backend_of(engine).terminate_connections(engine)
        elif isinstance(error, DatabaseUnavailable):
            reason = error.reason
        else:
            reason, cause = running_reason(error), error
        engine.dispose()
        raise CannotServe(reason or "migration_failed", is_there=True) from cause
