"""The SQLite files of one deployment: the one that serves, and those that wait for PostgreSQL."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from space_runtime.backends.errors import connection_reason
from space_runtime.backends.opening import CannotServe, Opened, open_sqlite
from space_runtime.file_locks import Busy, FileLock, exclusive, setting_up
from space_runtime.files import names
from space_runtime.files.contents import COUNTED_AT_MOST, count_rows, read_only
from space_runtime.files.locations import Locations, is_memory, is_usable
from space_runtime.migrations import Migrations
from space_runtime.records import generated_keys
from space_runtime.snapshots.schedule import CONFIGURED, FALLBACK, Snapshots, new_series

logger = logging.getLogger(__name__)

CONFIGURED_FILE = "app.db"


@dataclass(frozen=True)
class OpenedFile:
    """A file that serves."""

    path: Path
    opened: Opened
    problem: str | None = None
    """Why it is a substitute for the configured or for a damaged file; a reason's code."""


class _Serving(NamedTuple):
    path: Path
    stat: os.stat_result
    """Taken when the file was opened, to notice when another file is at its path."""
    lock: FileLock


class SQLiteFiles:
    """Opens files, restoring them from snapshots if need be, and locks the one that serves."""

    def __init__(self, locations: Locations, migrations: Migrations, snapshots: Snapshots) -> None:
        self._locations = locations
        self._migrations = migrations
        self._snapshots = snapshots
        self._serving: _Serving | None = None

    @property
    def is_present(self) -> bool:
        """Whether the file that serves, if any, was neither removed nor replaced."""
        if self._serving is None:
            return True
        try:
            return os.path.samestat(self._serving.path.stat(), self._serving.stat)
        except OSError:
            return False

    def open_configured(self, url: URL | None, connections: int) -> OpenedFile:
        """Open the configured file or the best substitute; raise CannotServe or Busy."""
        location, problem = self._configured_location(url)
        if is_memory(url):
            return self._open(location, lambda path: path, connections)
        series = None

        def choose(path: Path) -> Path:
            nonlocal series
            if not path.exists():
                series = self._snapshots.restore(CONFIGURED, path) or new_series()
            return path

        file = self._open(location, choose, connections)
        self._snapshots.begin(file.path, series)
        return OpenedFile(file.path, file.opened, problem or file.problem)

    def open_fallback(self, connections: int) -> OpenedFile:
        """Open the file for rows that belong in PostgreSQL; raise CannotServe or Busy."""
        is_new = False

        def choose(location: Path) -> Path:
            nonlocal is_new
            is_new = not names.find("fallback", [location.parent])
            return self._choose_fallback(location)

        def choose_range(engine: Engine) -> None:
            # On a full disk numbers begin at 1, and rows get others when they move.
            with suppress(SQLAlchemyError), engine.begin() as connection:
                generated_keys.choose_range(connection, self._locations.models, anew=is_new)

        file = self._open(self._fallback_location(), choose, connections, choose_range)
        self._snapshots.begin(file.path, names.series_of(names.id_of(file.path)))
        return OpenedFile(file.path, file.opened)

    def leave(self) -> None:
        """Release the lock on the file that served; the last process removes one in memory."""
        if self._serving is None:
            return
        (path, _, lock), self._serving = self._serving, None
        if path.name.startswith("memory-"):
            with suppress(Busy):
                lock.take_exclusively()
                names.remove(path)
        lock.release()

    def restore_waiting(self, is_moved: Callable[[UUID], bool]) -> None:
        """Restore files that wait for PostgreSQL but are missing from the disk; raise Busy.

        Another container may be moving the same rows. `is_moved` asks PostgreSQL whether they have
        arrived, because a tombstone is written before the move. Files are restored as handover
        files, which never serve, so their rows cannot change.
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

        Files that are not writable are left out, because a failback has to rename them.
        """
        files = filter(is_usable, self._waiting())
        own = self._serving.lock if self._serving else None
        with exclusive(map(names.location_of, files), own):
            yield list(filter(is_usable, self._waiting()))

    def count_waiting(self) -> int:
        """Return how many rows wait for PostgreSQL, counting up to COUNTED_AT_MOST per table."""
        return sum(map(_count_rows, self._waiting()))

    def count_configured(self) -> int:
        """Return how many rows are in app.db, from before DATABASE_URL was set."""
        path = self._locations.find(CONFIGURED_FILE).path
        return _count_rows(path) if path and path.exists() else 0

    def _configured_location(self, url: URL | None) -> tuple[Path | None, str | None]:
        """Return the path, and "no_writable_path" if it is a substitute."""
        if url is None:
            path, is_substitute = self._locations.find(CONFIGURED_FILE)
            return path, "no_writable_path" if is_substitute else None
        if is_memory(url):
            return self._locations.in_memory(), None
        configured = self._locations.configured(str(url.database))
        if is_usable(configured):
            return configured, None
        return self._locations.find(configured.name).path, "no_writable_path"

    def _fallback_location(self) -> Path | None:
        """Return where fallback files are: beside an existing one, else in the best directory."""
        for file in self._find("fallback"):
            if is_usable(file):
                return names.location_of(file)
        return self._locations.find(names.LOCATION).path

    def _choose_fallback(self, location: Path) -> Path:
        """Return an existing file, else restore the newest one, else return a new path."""
        directory = location.parent
        if existing := names.find("fallback", [directory]):
            return existing[0]
        for series, has_tombstone in reversed(self._snapshots.series(FALLBACK).items()):
            file_id = names.id_in(series)
            if not has_tombstone and file_id not in self._ids():
                path = names.path(directory, "fallback", file_id)
                if self._snapshots.restore(series, path):
                    return path
                break
        return names.path(directory, "fallback", uuid4())

    def _open(
        self,
        location: Path | None,
        choose: Callable[[Path], Path],
        connections: int,
        prepare: Callable[[Engine], None] = lambda engine: None,
    ) -> OpenedFile:
        """Open the file that `choose` returns for a location; raise CannotServe or Busy.

        A damaged file is set aside, and `choose` is called again. `prepare` is called while no
        other process opens the file.
        """
        if location is None:
            raise CannotServe("no_writable_path", is_there=False)
        lock, problem = FileLock(location), None
        try:
            with setting_up(location):
                lock.share()
                path = choose(location)
                try:
                    opened = open_sqlite(path, self._migrations, connections=connections)
                except CannotServe as error:
                    if error.reason != "corrupt":
                        raise
                    problem = error.reason
                    lock.take_exclusively()
                    names.set_aside(path)
                    path = choose(location)
                    opened = open_sqlite(path, self._migrations, connections=connections)
                    lock.share()
                prepare(opened.engine)
            self._serving = _Serving(path, path.stat(), lock)
        except BaseException:
            lock.release()
            raise
        return OpenedFile(path, opened, problem)

    def _ids(self) -> set[UUID]:
        return {names.id_of(file) for file in self._waiting()} | {
            names.id_of(file) for file in self._find("moved")
        }

    def _waiting(self) -> list[Path]:
        """Return the files whose rows belong in PostgreSQL, those of a handover first."""
        return self._find("handover") + self._find("fallback")

    def _find(self, state: names.FileState) -> list[Path]:
        return names.find(state, self._locations.directories())


def _count_rows(file: Path) -> int:
    try:
        return sum(count_rows(read_only(file), at_most=COUNTED_AT_MOST).values())
    except SQLAlchemyError as error:
        logger.warning("%s cannot be read: %s", file.name, connection_reason(error))
        return 0
