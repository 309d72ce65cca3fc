"""Where SQLite files are kept: in the first directory in which SQLite can create a file."""

import logging
import multiprocessing
import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import URL

from space_runtime.backends.sqlite import mount_of
from space_runtime.project import Project

logger = logging.getLogger(__name__)

_MEMORY = Path("/dev/shm")  # noqa: S108
_IN_MEMORY = ("tmpfs", "ramfs")
# What the root of a container is on, so that it can be thrown away. It may be on any other, too.
_LAYERED = ("overlay", "fuse.fuse-overlayfs", "aufs")
# What Kubernetes removes with the pod, by the name of its folder on the node.
_OF_A_POD = "/kubernetes.io~empty-dir/"
# What tells of a container: variables of its image and of Kubernetes, files of its engine.
_VARIABLES = ("container", "KUBERNETES_SERVICE_HOST")
_MARKS = ("/.dockerenv", "/run/.containerenv")
# What SQLite reports when the disk or the user's quota is full.
_DISK_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class Location(NamedTuple):
    """A path for an SQLite file; None if no directory can be written to."""

    path: Path | None
    is_substitute: bool = False
    """Whether this is not where its owner wants it: a better directory was named or mounted, or has
    a file of that name, but is not writable; or this path is in memory."""


class Locations:
    """The directories to try: SQLITE_DIR, data/, $HOME, the temporary one, /dev/shm."""

    def __init__(self, project: Project, sqlite_dir: str | None) -> None:
        self._project = project
        self._named = project.path(sqlite_dir) if sqlite_dir else None

    def directories(self) -> list[Path]:
        """Return the directories, best first, as they are called without symbolic links."""
        return list(dict.fromkeys(map(real_path, self._candidates())))

    def _candidates(self) -> list[Path]:
        name = self._project.folder.name
        # Other users of the machine may run the same project, so the user id is in the name.
        own_name = f"{name}-{os.getuid()}"
        found = [self._named] if self._named else []
        found.append(self._project.folder / "data")
        if home := os.environ.get("HOME"):
            found.append(Path(home) / f".{name}")
        with suppress(FileNotFoundError):  # No temporary directory is writable.
            found.append(Path(tempfile.gettempdir()) / own_name)
        if _MEMORY.is_dir():
            found.append(_MEMORY / own_name)
        return found

    def find(self, file_name: str, passed_over: str = "") -> Location:
        """Return the first usable path for a file of this name.

        `passed_over` is how its owner calls a better one that was tried before.
        """
        for directory in self._candidates():
            path = real_path(directory / file_name)
            if is_usable(path):
                if passed_over:
                    logger.warning("%s cannot be written to: SQLite is kept elsewhere", passed_over)
                return Location(path, bool(passed_over) or directory.is_relative_to(_MEMORY))
            passed_over = passed_over or self._wanted(directory, file_name)
        return Location(None)

    def configured(self, database: str) -> Path:
        """Return the path that a URL names."""
        return real_path(self._project.path(database))

    def in_memory(self) -> Path | None:
        """Return a path for rows that the server's workers share, and that are lost with it."""
        parent = multiprocessing.parent_process()
        name = f"memory-{parent.pid if parent else os.getpid()}.db"
        paths = (directory / name for directory in reversed(self.directories()))
        return next(filter(is_usable, paths), None)

    def _wanted(self, directory: Path, file_name: str) -> str:
        """Return how its owner calls this directory, or "" if nobody asked for it."""
        if directory == self._named:
            return "SQLITE_DIR"
        is_mounted = os.path.islink(directory) or os.path.ismount(directory)
        return directory.name if is_mounted or os.path.lexists(directory / file_name) else ""


def real_path(path: Path) -> Path:
    """Follow symbolic links: SQLite's journals are beside the file itself."""
    return Path(os.path.realpath(path))


def outlives_container(path: Path) -> bool:
    """Return whether a file at this path is still there after a container is replaced.

    Outside of containers, what is on a disk is. Inside, only what is on a volume is.
    """
    mount = mount_of(path)
    is_own_layer = mount.point == "/" and (mount.kind in _LAYERED or _is_in_container())
    return not (mount.kind in _IN_MEMORY or is_own_layer or _OF_A_POD in mount.folder)


def _is_in_container() -> bool:
    return any(map(os.environ.get, _VARIABLES)) or any(map(os.path.exists, _MARKS))


def is_usable(path: Path) -> bool:
    """Return whether SQLite can work at this path; create the directory if it is missing.

    An existing file is usable even on a full disk: its rows can be read, and an empty database
    elsewhere would hide them.
    """
    probe = path.parent / f".probe-{uuid4().hex}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir() or real_path(path).is_symlink():  # It leads to itself.
            return False
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            return False
        try:
            with closing(sqlite3.connect(probe, isolation_level=None)) as connection:
                connection.execute("CREATE TABLE probe (id INTEGER)")
        finally:
            for leftover in (probe, probe.with_name(probe.name + "-journal")):
                leftover.unlink(missing_ok=True)
    except sqlite3.OperationalError as error:
        return path.exists() and error.sqlite_errorcode & 0xFF in _DISK_FULL
    except OSError:
        return False
    return True


def is_memory(url: URL | None) -> bool:
    """Return whether the URL names an SQLite database in memory."""
    return url is not None and url.database in (None, "", ":memory:")
