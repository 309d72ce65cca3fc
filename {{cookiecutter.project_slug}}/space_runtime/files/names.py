"""The names of the files whose rows belong in PostgreSQL. Each name begins with the file's state:

fallback-<id>.db   it serves while PostgreSQL is away
handover-<id>.db   its rows are being moved, and the application no longer writes to it
moved-<id>.db      its rows are in PostgreSQL, except for those that were refused
"""

import logging
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4, uuid5

logger = logging.getLogger(__name__)

FileState = Literal["fallback", "handover", "moved"]

LOCATION = "fallback"
"""All these files in a directory share one lock, which is named after this."""

_NAME = re.compile(r"(fallback|handover|moved)-([0-9a-f]{32})\.db")
_JOURNALS = ("-wal", "-shm", "-journal")


def path(directory: Path, state: FileState, file_id: UUID) -> Path:
    """Return the path of a file in this state."""
    return directory / f"{state}-{file_id.hex}.db"


def find(state: FileState, directories: Iterable[Path]) -> list[Path]:
    """Return the files in this state."""
    found: list[Path] = []
    for directory in directories:
        # This process cannot have written anything to a missing or unreadable directory.
        with suppress(OSError):
            found += sorted(file for file in directory.iterdir() if state_of(file) == state)
    return found


def state_of(file: Path) -> str | None:
    """Return the state in a file's name, or None if the name has another form."""
    match = _NAME.fullmatch(file.name)
    return match[1] if match else None


def id_of(file: Path) -> UUID:
    """Return the id in a file's name, or a new id if the name has another form."""
    match = _NAME.fullmatch(file.name)
    return UUID(hex=match[2]) if match else uuid4()


def copy_of(file_id: UUID) -> UUID:
    """Return the id for a copy of a file that was moved already, so that both can be recorded."""
    return uuid5(file_id, "copy")


def series_of(file_id: UUID) -> str:
    """Return the series of a fallback file's snapshots."""
    return f"fallback-{file_id.hex}"


def id_in(series: str) -> UUID:
    """Return the id of the fallback file whose snapshots are in this series."""
    return UUID(hex=series.removeprefix("fallback-"))


def location_of(file: Path) -> Path:
    """Return the path that the locks on a file are named after."""
    return file.with_name(LOCATION) if state_of(file) else file


def rename(file: Path, new: Path) -> Path:
    """Rename a file within its directory, so that the new name survives a crash."""
    file.rename(new)
    _sync_names(new.parent)
    return new


def remove(file: Path) -> None:
    """Remove a file and its journals."""
    for ending in ("", *_JOURNALS):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    _sync_names(file.parent)


def set_aside(file: Path) -> None:
    """Rename a damaged file and its journals, so that a person can still examine them."""
    suffix = f".damaged-{uuid4().hex[:8]}"
    for ending in ("", *_JOURNALS):
        with suppress(FileNotFoundError):
            file.with_name(file.name + ending).rename(f"{file}{ending}{suffix}")
    logger.error("the SQLite file is damaged: it was set aside, with .damaged in its name")


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
