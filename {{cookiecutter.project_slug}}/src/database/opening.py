"""How each database is opened: make an engine, connect, check, migrate, in bounds of time."""

import logging
import multiprocessing
import queue
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from src.database import migrations, postgresql, sqlite
from src.database.errors import DatabaseUnavailable, connection_reason, running_reason
from src.database.reasons import REASONS
from src.database.resolver import Resolution
from src.database.url.building import hide_secrets

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

MIGRATION_SECONDS = 900.0

_memory_claims: list[socket.socket] = []


class CannotServe(Exception):
    """This database cannot serve now. `reached`: its server answered, so its data are there."""

    def __init__(self, reason: str, *, reached: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reached = reached


@dataclass(frozen=True)
class Opened:
    """An engine whose schema is up to date, or newer than this code."""

    engine: Engine
    schema_newer: bool = False


def build_engine(target: Resolution | URL | str, *, pool_size: int = 5) -> Engine:
    """Return an engine with this backend's options; nothing is opened and no directory is made.

    Of a resolution the driver also receives the secrets that its URL does not hold. SQL parameters
    never appear in errors or logs (`hide_parameters`), nor does a secret in `engine.url`.
    """
    secrets: Mapping[str, str | tuple[str, ...]] = {}
    if isinstance(target, Resolution):
        if target.url is None:
            raise ValueError(
                f"{target.message} Until then SQLite serves, in a place that is chosen at start:"
                " use open_database() from src.commands."
            )
        url, secrets = target.url, target.secrets
    else:
        url, secrets = hide_secrets(make_url(target))
    if url.get_backend_name() == "postgresql":
        engine = create_engine(
            url,
            connect_args=dict(secrets),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_recycle=300,
            hide_parameters=True,
        )
        postgresql.configure(engine)
        return engine
    driver_options = {
        "isolation_level": None,
        "check_same_thread": False,
        "timeout": sqlite.BUSY_TIMEOUT_SECONDS,
    }
    if is_memory(url):
        # the database is its one connection, which one user at a time may have
        pool_size = 1
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        connect_args=driver_options,
        hide_parameters=True,
    )
    sqlite.configure(engine)
    return engine


def is_memory(url: URL) -> bool:
    """Return whether the URL names an SQLite database that lives in this process's memory."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def open_postgresql(
    resolution: Resolution,
    *,
    connections: int,
    seconds: float,
    may_retry: Callable[[float], bool],
) -> Opened:
    """Connect within `seconds`, then migrate; raise CannotServe.

    What may pass by itself is tried again for as long as may_retry(pause in seconds) allows.
    """
    deadline = time.monotonic() + seconds
    pause, reason = 0.25, ""
    while True:
        engine = build_engine(resolution, pool_size=connections)
        postgresql.configure_for_serving(engine, transaction_pooler=resolution.transaction_pooler)
        try:
            is_current = bounded(_is_current(engine), deadline - time.monotonic())
            break
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
            postgresql.sever(engine)
            engine.dispose()
            # the last attempt is cut short: what an earlier one met says more
            if not (isinstance(error, TimeoutError) and reason):
                reason = connection_reason(error)
            expired = time.monotonic() + pause >= deadline
            if not REASONS[reason].transient or expired or not may_retry(pause):
                cause = error if reason == "migration_failed" else None
                raise CannotServe(reason, reached=REASONS[reason].is_there) from cause
            pause = min(2 * pause, 2.0)
    return Opened(engine) if is_current else _migrated(engine)


def open_sqlite(path: Path | None, *, connections: int) -> Opened:
    """Check, open and migrate the file, or memory for None; raise CannotServe."""
    if path is None:
        _claim_memory()
    engine = build_engine(
        URL.create("sqlite", database=str(path) if path else None), pool_size=connections
    )
    sqlite.configure_for_serving(engine)
    if path is not None and path.exists() and not sqlite.is_sound(path):
        raise CannotServe("corrupt", reached=True)
    return _migrated(engine)


def set_aside(path: Path) -> None:
    """Rename a damaged file and its journals, so that a person can still look into them."""
    suffix = f".damaged-{uuid.uuid4().hex[:8]}"
    for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        if file.exists():
            file.rename(file.with_name(file.name + suffix))
    logger.error("the SQLite file is damaged: it was renamed and a new one begun")


def bounded(
    function: Callable[[], Result],
    seconds: float,
    progress: threading.Event | None = None,
    wake: Callable[[], None] | None = None,
) -> Result:
    """Return function(), or raise TimeoutError; a call that hangs is left to its daemon thread.

    With `progress`, the seconds count from when that event was last set. When they are over,
    `wake` is called once, and there is as much time again.
    """
    outcome: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            outcome.put((function(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=call, name="database-bounded", daemon=True).start()
    while True:
        try:
            result, error = outcome.get(timeout=max(seconds, 0.0))
            break
        except queue.Empty:
            if progress is not None and progress.is_set():
                progress.clear()
            elif wake is not None:
                wake()
                wake = None
            else:
                raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # None only if the function returned it


def ping(engine: Engine, *, write: bool) -> float:
    """Return how long a query takes, in milliseconds; also try whether a write would work."""
    for attempt in (1, 2):
        try:
            with engine.connect() as connection:
                connection = connection.execution_options(reading=not write)
                connection.execute(text("SELECT 1"))
                started = time.perf_counter()
                connection.execute(text("SELECT 1"))
                latency = round((time.perf_counter() - started) * 1000, 2)
                if write and engine.dialect.name == "sqlite":
                    version = connection.execute(text("PRAGMA user_version")).scalar_one()
                    connection.execute(text(f"PRAGMA user_version = {int(version)}"))
                connection.commit()
                return latency
        except SQLAlchemyError as error:
            # the first use of a connection that died while it was idle tells nothing
            if attempt == 2 or not getattr(error, "connection_invalidated", False):
                raise
    raise AssertionError("unreachable")


def _is_current(engine: Engine) -> Callable[[], bool]:
    return lambda: migrations.is_current(engine)


def _claim_memory() -> None:
    """Raise CannotServe if another worker of the same server has a database in its memory.

    Each worker would have rows that the others do not know. A name in the abstract namespace of
    Unix sockets needs no disk, and is free again when its process has ended.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux" or _memory_claims:
        return
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0memory-database-of-{parent.pid}")
    except OSError:
        claim.close()
        raise CannotServe("locked", reached=True) from None
    _memory_claims.append(claim)


def _migrated(engine: Engine) -> Opened:
    try:
        is_newest = bounded(lambda: migrations.migrate(engine), MIGRATION_SECONDS)
        return Opened(engine, schema_newer=not is_newest)
    except TimeoutError:
        postgresql.sever(engine)
        failure = CannotServe("timeout", reached=True)
    except DatabaseUnavailable as error:
        failure = CannotServe(error.reason or "migration_failed", reached=True)
    except Exception as error:  # a migration is its owner's code: it may raise anything
        failure = CannotServe(running_reason(error) or "migration_failed", reached=True)
        failure.__cause__ = error
    engine.dispose()
    raise failure
