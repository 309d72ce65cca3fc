"""The names of the files whose rows PostgreSQL should have had: each says how far the file is.

fallback-<id>.db   it serves while PostgreSQL is away
handover-<id>.db   its rows are being moved, and it is never written again
moved-<id>.db      its rows are in PostgreSQL, but for those that were refused
"""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4

logger = logging.getLogger(__name__)

FileState = Literal["fallback", "handover", "moved"]

LOCATION = "fallback"
"""What the locks on all these files of a directory are named after."""

_NAME = re.compile(r"(fallback|handover|moved)-([0-9a-f]{32})\.db")


def path(directory: Path, state: FileState, file_id: UUID) -> Path:
    """Return the path of a file in this state."""
    return directory / f"{state}-{file_id.hex}.db"


def find(state: FileState, directories: Iterable[Path]) -> list[Path]:
    """Return the files in this state."""
    found: list[Path] = []
    for directory in directories:
        try:
            files = sorted(directory.glob(f"{state}-*.db"))
        except OSError:  # who may not look into it has written nothing there
            continue
        found += [file for file in files if _NAME.fullmatch(file.name)]
    return found


def state_of(file: Path) -> FileState | None:
    """Return what a file's name says of it; None for a file of another name."""
    match = _NAME.fullmatch(file.name)
    return match[1] if match else None  # type: ignore[return-value]  # as the pattern says


def id_of(file: Path) -> UUID:
    """Return the id in a file's name; a new one for a file of another name."""
    match = _NAME.fullmatch(file.name)
    return UUID(hex=match[2]) if match else uuid4()


def series_of(file_id: UUID) -> str:
    """Return the series of the snapshots of a fallback file."""
    return f"fallback-{file_id.hex}"


def id_in(series: str) -> UUID:
    """Return the id of the fallback file that a series of snapshots is of."""
    return UUID(hex=series.removeprefix("fallback-"))


def location_of(file: Path) -> Path:
    """Return what the locks on a file are named after."""
    return file.with_name(LOCATION) if _NAME.fullmatch(file.name) else file


def rename(file: Path, new: Path) -> Path:
    """Rename a file within its directory; the new name is on the disk when this returns."""
    file.rename(new)
    _sync_names(new.parent)
    return new


def remove(file: Path) -> None:
    """Remove a file and its journals."""
    for ending in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    _sync_names(file.parent)


def set_aside(file: Path) -> None:
    """Rename a damaged file and its journals, so that a person can still look into them."""
    suffix = f".damaged-{uuid4().hex[:8]}"
    for one in (file, file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")):
        if one.exists():
            one.rename(one.with_name(one.name + suffix))
    logger.error("the SQLite file is damaged: it was renamed and a new one begun")


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
