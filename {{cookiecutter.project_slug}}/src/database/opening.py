"""How each database is opened: connect, check, migrate, within bounds of time."""

import fcntl
import logging
import multiprocessing
import queue
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from src.database import migrations, postgresql, sqlite
from src.database.engine import build_engine
from src.database.errors import DatabaseUnavailable, connection_reason, running_reason

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# what may pass by itself in a few seconds; the other reasons need a person
TRANSIENT = frozenset(
    ["refused", "timeout", "dns", "unreachable", "too_many_connections", "starting_up"]
)


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
    set_aside: bool = False


def open_postgresql(
    url: URL,
    *,
    connections: int,
    transaction_pooler: bool,
    seconds: float,
    stopping: threading.Event,
) -> Opened:
    """Connect within `seconds`, retrying what may pass, then migrate; raise CannotServe."""
    deadline = time.monotonic() + seconds
    pause, reason = 0.25, ""
    while True:
        engine = build_engine(url, pool_size=connections)
        postgresql.configure_for_serving(engine, transaction_pooler=transaction_pooler)
        try:
            bounded(_connector(engine), deadline - time.monotonic())
            break
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
            postgresql.sever(engine)
            engine.dispose()
            # the last attempt is cut short: what an earlier one met says more
            if not (isinstance(error, TimeoutError) and reason):
                reason = connection_reason(error)
            expired = time.monotonic() + pause >= deadline
            if reason not in TRANSIENT or expired or stopping.wait(pause):
                raise CannotServe(reason, reached=reason == "read_only") from None
            pause = min(2 * pause, 2.0)
    return _migrated(engine)


def open_sqlite(path: Path | None, *, connections: int) -> Opened:
    """Open and migrate the file, or memory for None; a damaged file is set aside first."""
    if path is None:
        _claim_memory()
    try:
        return _migrated(_sqlite_engine(path, connections))
    except CannotServe as error:
        if error.reason != "corrupt" or path is None:
            raise
    # one process at a time, and each looks again: another one may have begun the new file
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return _migrated(_sqlite_engine(path, connections))
        except CannotServe as error:
            if error.reason != "corrupt":
                raise
        set_aside(path)
        opened = _migrated(_sqlite_engine(path, connections))
    return Opened(opened.engine, set_aside=True)


def set_aside(path: Path) -> None:
    """Rename a damaged file and its journals, so that a person can still look into them."""
    suffix = f".damaged-{uuid.uuid4().hex[:8]}"
    for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        if file.exists():
            file.rename(file.with_name(file.name + suffix))
    logger.error("the SQLite file is damaged: it was renamed and a new one begun")


def bounded(function: Callable[[], Result], seconds: float) -> Result:
    """Return function(), or raise TimeoutError; a call that hangs is left to its daemon thread."""
    outcome: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            outcome.put((function(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=call, name="database-bounded", daemon=True).start()
    try:
        result, error = outcome.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # None only if the function returned it


def _connector(engine: Engine) -> Callable[[], None]:
    return lambda: engine.connect().close()


def _sqlite_engine(path: Path | None, connections: int) -> Engine:
    url = URL.create("sqlite", database=str(path) if path else None)
    engine = build_engine(url, pool_size=connections)
    sqlite.configure_for_serving(engine)
    return engine


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
        return Opened(engine, schema_newer=not migrations.migrate(engine))
    except DatabaseUnavailable as error:
        failure = CannotServe(error.reason or "migration_failed", reached=True)
    except Exception as error:  # a migration is its owner's code: it may raise anything
        failure = CannotServe(running_reason(error) or "migration_failed", reached=True)
        failure.__cause__ = error
    engine.dispose()
    raise failure
