"""Where SQLite files can live: the directories that are tried, and what a disk is good for."""

import os
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from src.config.settings import PROJECT_ROOT


class Place(NamedTuple):
    """A path for an SQLite file; None where no directory can be written to."""

    path: Path | None
    passed_over: bool
    """Whether a file of that name exists at a better place, which cannot be written to."""


def find_place(file_name: str, directory: str | None) -> Place:
    """Return the first usable place for a file of this name; `directory` is SQLITE_DIR."""
    passed_over = False
    for candidate in directories(directory):
        path = candidate / file_name
        if is_usable(path):
            return Place(path, passed_over)
        passed_over = passed_over or os.path.exists(path)
    return Place(None, passed_over)


def directories(directory: str | None) -> list[Path]:
    """Return the directories that are tried, best first: SQLITE_DIR, data/, $HOME, temporary."""
    return list(dict.fromkeys(_directories(directory)))


def path_of(database: str) -> Path:
    """Return the path that a person named: relative ones begin at the project."""
    return PROJECT_ROOT / Path(database).expanduser()


def is_usable(path: Path) -> bool:
    """Return whether SQLite can work at this path; its directory is made if it is missing.

    A file that is there already counts even on a full disk: its rows can be read, and an empty
    database elsewhere would hide them.
    """
    probe = path.parent / f".probe-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir() or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
            return False
        try:
            with closing(sqlite3.connect(probe, isolation_level=None)) as connection:
                connection.execute("CREATE TABLE probe (id INTEGER)")
        finally:
            for leftover in (probe, probe.with_name(probe.name + "-journal")):
                leftover.unlink(missing_ok=True)
    except sqlite3.OperationalError as error:
        return path.exists() and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
    except OSError:
        return False
    return True


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


def _directories(directory: str | None) -> Iterator[Path]:
    if directory:
        yield path_of(directory)
    yield PROJECT_ROOT / "data"
    home = os.environ.get("HOME")
    if home:
        yield Path(home) / f".{PROJECT_ROOT.name}"
    try:
        # the user's id keeps two users of one machine apart
        yield Path(tempfile.gettempdir()) / f"{PROJECT_ROOT.name}-{os.getuid()}"
    except FileNotFoundError:
        return
