"""SQLite: what is set on each connection, and how transactions begin and end."""

import math
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

# below what a health check waits, which says `locked` then
BUSY_TIMEOUT_SECONDS = 2
STATEMENT_TIMEOUT_SECONDS = 10
# a second for each 150 MB, before the application serves
LARGEST_CHECKED_BYTES = 2**30
_INSTRUCTIONS_BETWEEN_CLOCK_READINGS = 20_000
_NETWORK_FILE_SYSTEMS = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "lustre", "gcsfuse")


def configure(engine: Engine) -> None:
    """Write-ahead log on a local disk, foreign keys on, and writers that queue instead of failing.

    A deferred BEGIN loses updates or fails with "database is locked" as soon as two clients change
    the same row; BEGIN IMMEDIATE waits. The driver's own BEGIN is off (isolation_level=None).
    """

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, record: ConnectionPoolEntry) -> None:
        mode = journal_mode(engine.url.database)
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'WAL' else 'FULL'}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")

    @event.listens_for(engine, "reset")
    def end_transaction(connection: Any, record: ConnectionPoolEntry, state: Any) -> None:
        # SQLite goes on with a transaction whose COMMIT failed; SQLAlchemy takes it for ended
        if connection.in_transaction:
            connection.rollback()

    @event.listens_for(engine, "begin")
    def begin_as_asked(connection: Connection) -> None:
        options = connection.get_execution_options()
        begin(
            connection,
            reading=options.get("reading", False),
            bounded=options.get("bounded", False),
        )


def begin(connection: Connection, *, reading: bool, bounded: bool) -> None:
    """Begin a transaction; for reading there is none, each statement sees its own snapshot.

    `bounded`: statements that run for longer than STATEMENT_TIMEOUT_SECONDS are interrupted.
    """
    info = connection.info
    info["deadline"] = time.monotonic() + STATEMENT_TIMEOUT_SECONDS if bounded else math.inf
    # only where it changes, since it makes SQLite compile every statement anew
    if reading != info.get("reading", False):
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.execute(f"PRAGMA query_only = {reading}")
        info["reading"] = reading
    if not reading:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def refuse_failed_transaction(session: Session) -> None:
    """Do nothing: SQLite keeps a transaction usable after an error."""


def configure_for_serving(engine: Engine) -> None:
    """Interrupt what runs past its deadline."""

    @event.listens_for(engine, "connect")
    def watch_the_clock(connection: Any, record: ConnectionPoolEntry) -> None:
        def is_overdue() -> bool:
            deadline: float = record.info.get("deadline", math.inf)
            return time.monotonic() > deadline

        connection.set_progress_handler(is_overdue, _INSTRUCTIONS_BETWEEN_CLOCK_READINGS)


def is_sound(path: Path) -> bool:
    """Return whether the file is an undamaged database; a very large one is taken for sound.

    A file that cannot be read now is not damaged: whatever keeps it is found when it is opened.
    """
    if path.stat().st_size > LARGEST_CHECKED_BYTES:
        return True
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError as error:
        return error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def journal_mode(path: str | None, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return WAL, or DELETE where the file's shared memory would not be shared (FUSE, NFS)."""
    kind = file_system(path, mounts)
    return "DELETE" if kind.startswith(_NETWORK_FILE_SYSTEMS) else "WAL"


def file_system(path: str | None, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the kind of file system at the path (ext4, tmpfs, fuse...), or "" if unknown."""
    if not path or not mounts.exists():
        return ""
    target = Path(path).resolve()
    best = ("", "")
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _device, mount_point, kind, *_rest = line.split(" ")
        mount_point = mount_point.replace("\\040", " ")
        if target.is_relative_to(mount_point) and len(mount_point) >= len(best[0]):
            best = (mount_point, kind)
    return best[1]
