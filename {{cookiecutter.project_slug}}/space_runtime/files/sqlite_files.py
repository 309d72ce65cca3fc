"""The SQLite files of one deployment: the one that serves, and those that wait for PostgreSQL."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import URL, Engine, MetaData
from sqlalchemy.exc import SQLAlchemyError

from space_runtime.backends.errors import connection_reason
from space_runtime.file_locks import Busy, FileLock, exclusive, setting_up
from space_runtime.files import names
from space_runtime.files.contents import COUNTED_AT_MOST, count_rows, read_only
from space_runtime.files.locations import Locations, is_memory, is_usable
from space_runtime.migrations import Migrations
from space_runtime.migrations.opening import CannotServe, Opened, open_sqlite
from space_runtime.records import generated_keys
from space_runtime.snapshots.schedule import Snapshots
from space_runtime.snapshots.store import CONFIGURED, FALLBACK, file_state, new_series

logger = logging.getLogger(__name__)

CONFIGURED_FILE = "app.db"


@dataclass(frozen=True)
class OpenedFile:
    """A file that serves."""

    path: Path
    opened: Opened
    series: str | None
    lock: FileLock
    stat: os.stat_result
    """Taken when the file was opened, to notice when another file is at its path."""
    problem: str | None
    """Why it is a substitute for the configured or for a damaged file; a reason's code."""


_Choice = tuple[Path, str | None, bool]
"""A file, the series of its snapshots, and whether the file was begun or restored just now.

A series of None continues the newest one of the configured file.
"""


class SQLiteFiles:
    """Opens files, restoring them from snapshots if need be, and locks the one that serves."""

    def __init__(
        self, locations: Locations, migrations: Migrations, snapshots: Snapshots, models: MetaData
    ) -> None:
        self._locations = locations
        self._migrations = migrations
        self._snapshots = snapshots
        self._models = models
        self._serving: OpenedFile | None = None

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
        if is_memory(url):
            location = self._locations.in_memory()
            return self._open(location, lambda path: (path, None, True), connections)
        location, problem = self._configured_location(url)
        file = self._open(location, self._choose_configured, connections)
        self._snapshots.begin(file.path, file.series)
        return replace(file, problem=problem or file.problem)

    def open_fallback(self, connections: int) -> OpenedFile:
        """Open the file for rows that belong in PostgreSQL; raise CannotServe or Busy."""
        file = self._open(self._fallback_location(), self._choose_fallback, connections)
        self._snapshots.begin(file.path, file.series)
        # What it replaces if it was damaged says less than why PostgreSQL does not serve.
        return replace(file, problem=None)

    def leave(self) -> None:
        """Release the lock on the file that served; the last process removes one in memory."""
        file, self._serving = self._serving, None
        if file is None:
            return
        if file.path.name.startswith("memory-"):
            with suppress(Busy):
                file.lock.take_exclusively()
                names.remove(file.path)
        file.lock.release()

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
        files = (directory / CONFIGURED_FILE for directory in self._locations.directories())
        # Path.exists() raises PermissionError in a directory that may not be entered.
        return sum(map(_count_rows, filter(os.path.exists, files)))

    def _configured_location(self, url: URL | None) -> tuple[Path | None, str | None]:
        """Return the path, and "no_writable_path" if it is a substitute."""
        file_name, passed_over = CONFIGURED_FILE, ""
        if url is not None:
            configured = self._locations.configured(str(url.database))
            if is_usable(configured):
                return configured, None
            file_name, passed_over = configured.name, "the path in DATABASE_URL"
        path, is_substitute = self._locations.find(file_name, passed_over)
        return path, "no_writable_path" if is_substitute else None

    def _fallback_location(self) -> Path | None:
        """Return where fallback files are: beside an existing one, else in the best directory."""
        for file in self._find("fallback"):
            if is_usable(file):
                return names.location_of(file)
        return self._locations.find(names.LOCATION).path

    def _choose_configured(self, path: Path) -> _Choice:
        """Return this path, with a restored file if there was none and a snapshot is left."""
        if path.exists():
            return path, None, False
        return path, self._snapshots.restore(CONFIGURED, path) or new_series(), True

    def _choose_fallback(self, location: Path) -> _Choice:
        """Return an existing file, else restore the newest one, else return a new path."""
        directory = location.parent
        if existing := names.find("fallback", [directory]):
            return existing[0], names.series_of(names.id_of(existing[0])), False
        for series, has_tombstone in reversed(self._snapshots.series(FALLBACK).items()):
            file_id = names.id_in(series)
            if not has_tombstone and file_id not in self._ids():
                path = names.path(directory, "fallback", file_id)
                if self._snapshots.restore(series, path):
                    return path, series, True
                break
        file_id = uuid4()
        return names.path(directory, "fallback", file_id), names.series_of(file_id), True

    def _open(
        self, location: Path | None, choose: Callable[[Path], _Choice], connections: int
    ) -> OpenedFile:
        """Open the file that `choose` returns for a location; raise CannotServe or Busy.

        A damaged file is set aside, and `choose` is called again.
        """
        if location is None:
            raise CannotServe("no_writable_path", is_there=False)
        lock, problem = FileLock(location), None
        try:
            with setting_up(location):
                lock.share()
                while True:
                    path, series, is_new_here = choose(location)
                    try:
                        opened = open_sqlite(path, self._migrations, connections=connections)
                        break
                    except CannotServe as error:
                        if problem or error.reason != "corrupt":
                            raise
                        problem = error.reason
                    lock.take_exclusively()
                    names.set_aside(path)
                    lock.share()
                if names.state_of(path) == "fallback":
                    self._choose_range(opened.engine, anew=is_new_here)
            self._serving = OpenedFile(path, opened, series, lock, path.stat(), problem)
        except BaseException:
            lock.release()
            raise
        return self._serving

    def _choose_range(self, engine: Engine, *, anew: bool) -> None:
        """Choose the numbers that the file gives to rows, before any process uses it."""
        # On a full disk they begin at 1, and rows get others when they move.
        with suppress(SQLAlchemyError), engine.begin() as connection:
            generated_keys.choose_range(connection, self._models, anew=anew)

    def _ids(self) -> set[UUID]:
        return {names.id_of(file) for file in [*self._waiting(), *self._find("moved")]}

    def _waiting(self) -> list[Path]:
        """Return the files whose rows belong in PostgreSQL, those of a handover first."""
        return self._find("handover") + self._find("fallback")

    def _find(self, state: names.FileState) -> list[Path]:
        return names.find(state, self._locations.directories())


def _count_rows(file: Path) -> int:
    try:
        return _count_rows_at(file, tuple(file_state(file)))
    except SQLAlchemyError as error:
        logger.warning("%s cannot be read: %s", file.name, connection_reason(error))
        return 0


@lru_cache
def _count_rows_at(file: Path, _state: tuple[tuple[int, int], ...]) -> int:
    """Count the rows, once for each state of the file: a health check asks every few seconds."""
    return sum(count_rows(read_only(file), at_most=COUNTED_AT_MOST).values())
