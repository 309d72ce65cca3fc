"""The SQLite files of one deployment: which one serves, and which wait for PostgreSQL."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from space_runtime.backends.errors import connection_reason
from space_runtime.backends.opening import CannotServe, Opened, open_sqlite
from space_runtime.file_locks import Busy, FileLock, exclusive, setting_up
from space_runtime.files import names
from space_runtime.files.contents import COUNTED_AT_MOST, count_rows, read_only
from space_runtime.files.locations import Locations, is_memory, is_usable
from space_runtime.migrations import Migrations
from space_runtime.snapshots.schedule import CONFIGURED, FALLBACK, Snapshots, new_series

logger = logging.getLogger(__name__)

CONFIGURED_FILE = "app.db"


@dataclass(frozen=True)
class OpenedFile:
    """A file that serves."""

    path: Path
    opened: Opened
    problem: str | None
    """Why it is not the file that was configured, or not as it was; a reason's code."""


class SQLiteFiles:
    """Opens files, on disk or from their snapshots, and keeps the lock on the one that serves."""

    def __init__(self, locations: Locations, migrations: Migrations, snapshots: Snapshots) -> None:
        self._locations = locations
        self._migrations = migrations
        self._snapshots = snapshots
        self._lock: FileLock | None = None
        self._serving: tuple[Path, os.stat_result] | None = None

    @property
    def is_in_place(self) -> bool:
        """Whether the file that serves is still the one at its path; nobody may have removed it."""
        if self._serving is None:
            return True
        path, opened = self._serving
        try:
            return os.path.samestat(path.stat(), opened)
        except OSError:
            return False

    def open_configured(self, url: URL | None, connections: int) -> OpenedFile:
        """Open the file that was configured, or the best there is; raise CannotServe."""
        path, problem = self._configured_path(url)
        if path is None:
            raise CannotServe("no_writable_path", is_there=False)
        if is_memory(url):
            opened, _ = self._open(_Forgotten(path), connections)
            return OpenedFile(path, opened, problem)
        configured = _Configured(path, self._snapshots)
        opened, was_damaged = self._open(configured, connections)
        self._snapshots.begin(path, configured.series)
        return OpenedFile(path, opened, problem or ("corrupt" if was_damaged else None))

    def open_fallback(self, connections: int) -> OpenedFile:
        """Open the file for rows that PostgreSQL should have had; raise CannotServe."""
        location = self._fallback_location()
        if location is None:
            raise CannotServe("no_writable_path", is_there=False)
        fallback = _Fallback(location, self, self._snapshots)
        opened, _ = self._open(fallback, connections)
        self._snapshots.begin(fallback.path, fallback.series)
        return OpenedFile(fallback.path, opened, None)

    def leave(self) -> None:
        """Give up the lock on the file that served; one that was memory goes with its last user."""
        serving, lock = self._serving, self._lock
        self._serving = self._lock = None
        if serving is not None and serving[0].name.startswith("memory-") and lock is not None:
            try:
                lock.take_exclusively()
            except Busy:
                pass
            else:
                names.remove(serving[0])
        if lock is not None:
            lock.release()

    def restore_waiting(self, is_moved: Callable[[UUID], bool]) -> None:
        """Restore what waits for PostgreSQL in snapshots only, since the disk it was on is lost.

        It comes back as handed over, because another container may be moving the same rows, and
        then only PostgreSQL's table can tell, which `is_moved` looks into. Raise Busy.
        """
        for series, has_tombstone in self._snapshots.series(FALLBACK).items():
            location = self._fallback_location()
            if location is None:
                return
            file_id = names.id_in(series)
            with setting_up(location):
                if file_id in self._ids():
                    continue
                if not is_moved(file_id):
                    path = names.path(location.parent, "handover", file_id)
                    self._snapshots.restore(series, path)
                elif not has_tombstone:
                    self._snapshots.add_tombstone(series)

    @contextmanager
    def waiting_exclusively(self) -> Iterator[list[Path]]:
        """Yield the files that wait for PostgreSQL, locked; raise Busy if others serve them.

        Those that cannot be written to wait on, since every step of a failback is a rename.
        """
        files = filter(is_usable, self._waiting())
        with exclusive(map(names.location_of, files), self._lock):
            yield list(filter(is_usable, self._waiting()))

    def moved(self) -> list[UUID]:
        """Return the ids of the files whose rows were moved."""
        return [names.id_of(file) for file in self._find("moved")]

    def count_waiting(self) -> int:
        """Return how many rows wait for PostgreSQL, counting up to COUNTED_AT_MOST a table."""
        return sum(map(_count_rows, self._waiting()))

    def count_configured(self) -> int:
        """Return how many rows were written while SQLite was what was configured."""
        path = self._locations.find(CONFIGURED_FILE).path
        return _count_rows(path) if path and path.exists() else 0

    def restore_unmoved(self, directory: Path) -> None:
        """Restore the newest series of rows that are not in PostgreSQL, if their file is lost."""
        unmoved = [one for one, moved in self._snapshots.series(FALLBACK).items() if not moved]
        for series in reversed(unmoved):
            file_id = names.id_in(series)
            if file_id not in self._ids():
                self._snapshots.restore(series, names.path(directory, "fallback", file_id))
                return

    def _configured_path(self, url: URL | None) -> tuple[Path | None, str | None]:
        """Return the file, and "no_writable_path" if it is not the right one."""
        if url is None:
            path, is_substitute = self._locations.find(CONFIGURED_FILE)
            return path, "no_writable_path" if is_substitute else None
        if is_memory(url):
            return self._locations.in_memory().path, None
        configured = self._locations.configured(str(url.database))
        if is_usable(configured):
            return configured, None
        return self._locations.find(configured.name).path, "no_writable_path"

    def _fallback_location(self) -> Path | None:
        """Return where fallback files are: beside one that was begun, else in the best place."""
        for file in self._find("fallback"):
            if is_usable(file):
                return names.location_of(file)
        return self._locations.find(names.LOCATION).path

    def _open(
        self, file: "_Configured | _Fallback | _Forgotten", connections: int
    ) -> tuple[Opened, bool]:
        """Return what was opened and whether a damaged file was set aside; raise CannotServe."""
        lock, was_damaged = FileLock(file.location), False
        try:
            with setting_up(file.location):
                lock.share()
                file.choose()
                try:
                    opened = open_sqlite(file.path, self._migrations, connections=connections)
                except CannotServe as error:
                    if error.reason != "corrupt":
                        raise
                    was_damaged = True
                    lock.take_exclusively()
                    names.set_aside(file.path)
                    file.restore()
                    opened = open_sqlite(file.path, self._migrations, connections=connections)
                    lock.share()
        except Busy:
            lock.release()
            raise CannotServe("locked", is_there=True) from None
        except CannotServe:
            lock.release()
            raise
        self._lock, self._serving = lock, (file.path, file.path.stat())
        return opened, was_damaged

    def _ids(self) -> set[UUID]:
        return {names.id_of(file) for file in [*self._waiting(), *self._find("moved")]}

    def _waiting(self) -> list[Path]:
        """Return the files whose rows PostgreSQL should have, handed-over ones first."""
        return self._find("handover") + self._find("fallback")

    def _find(self, state: names.FileState) -> list[Path]:
        return names.find(state, self._locations.directories())


class _Configured:
    """The file that was configured; it is at its path, or its newest snapshot is."""

    def __init__(self, path: Path, snapshots: Snapshots) -> None:
        self.location = self.path = path
        self.series: str | None = None
        """None continues the newest series of snapshots."""
        self._snapshots = snapshots

    def choose(self) -> None:
        """Make sure that the file is there if it can be."""
        if not self.path.exists():
            self.restore()

    def restore(self) -> None:
        """Put the newest snapshot there."""
        self.series = self._snapshots.restore(CONFIGURED, self.path) or new_series()


class _Forgotten:
    """A file that stands for a database in memory."""

    def __init__(self, path: Path) -> None:
        self.location = self.path = path

    def choose(self) -> None:
        """Take it as it is."""

    def restore(self) -> None:
        """Begin anew."""


class _Fallback:
    """The file that serves while PostgreSQL is away: one that was begun, or a new one."""

    def __init__(self, location: Path, files: SQLiteFiles, snapshots: Snapshots) -> None:
        self.location = location
        self.path = names.path(location.parent, "fallback", uuid4())
        self._files = files
        self._snapshots = snapshots

    @property
    def series(self) -> str:
        """The series of its snapshots."""
        return names.series_of(names.id_of(self.path))

    def choose(self) -> None:
        """Find the file that was begun, on the disk or in a snapshot."""
        directory = self.location.parent
        if not names.find("fallback", [directory]):
            self._files.restore_unmoved(directory)
        begun = names.find("fallback", [directory])
        self.path = begun[0] if begun else self.path

    def restore(self) -> None:
        """Put its newest snapshot there."""
        self._snapshots.restore(self.series, self.path)


def _count_rows(file: Path) -> int:
    try:
        return sum(count_rows(read_only(file), at_most=COUNTED_AT_MOST).values())
    except SQLAlchemyError as error:
        logger.warning("%s cannot be read: %s", file.name, connection_reason(error))
        return 0
