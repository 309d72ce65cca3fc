"""SQLite files: where they can live, which one serves, and which wait for PostgreSQL."""

import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from src.config.settings import PROJECT_ROOT
from src.database import handover, promotion
from src.database.errors import connection_reason
from src.database.handover import Busy, Claim
from src.database.opening import CannotServe, Opened, is_memory, open_sqlite, set_aside
from src.database.snapshot_timer import ASKED_FOR, FALLBACK, Snapshots, new_stem

logger = logging.getLogger(__name__)

ASKED_FOR_FILE = "app.db"


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
    return PROJECT_ROOT / os.path.expanduser(database)


def is_usable(path: Path) -> bool:
    """Return whether SQLite can work at this path; its directory is made if it is missing.

    A file that is there already counts even on a full disk: its rows can be read, and an empty
    database elsewhere would hide them.
    """
    probe = path.parent / f".probe-{uuid4().hex}"
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


class SQLiteFiles:
    """The SQLite files of one deployment, on disk and in its snapshots."""

    def __init__(self, sqlite_dir: str | None, snapshots: Snapshots) -> None:
        self._sqlite_dir = sqlite_dir
        self._snapshots = snapshots
        self._claim: Claim | None = None
        self._opened: tuple[Path, os.stat_result] | None = None

    @property
    def are_in_place(self) -> bool:
        """Whether the file that serves is still the one at its path; nobody may have removed it."""
        if self._opened is None:
            return True
        path, opened = self._opened
        try:
            return os.path.samestat(path.stat(), opened)
        except OSError:
            return False

    def open_asked_for(self, url: URL | None, connections: int) -> tuple[Opened, str | None]:
        """Open the file that was asked for, or the best there is in its place.

        Return also why that is not what was asked for, if so. Raise CannotServe.
        """
        path, reason = self._asked_for_path(url)
        if path is None:
            return open_sqlite(None, connections=connections), reason
        stem: str | None = None

        def restore() -> None:
            nonlocal stem
            stem = self._snapshots.restore(ASKED_FOR, path) or new_stem()

        def choose() -> Path:
            if not path.exists():
                restore()
            return path

        opened, was_damaged = self._open(path, choose, restore, connections)
        self._snapshots.begin(path, stem)
        return opened, "corrupt" if was_damaged and reason is None else reason

    def open_fallback(self, connections: int) -> Opened:
        """Open the file for rows that PostgreSQL should have had; raise CannotServe."""
        place = self._fallback_place()
        if place is None:
            return open_sqlite(None, connections=connections)
        path = place

        def restore() -> None:
            self._snapshots.restore(_stem_of(path), path)

        def choose() -> Path:
            nonlocal path
            if not handover.find("fallback", [place.parent]):
                self._restore_unmoved(place.parent)
            begun = handover.find("fallback", [place.parent])
            path = begun[0] if begun else handover.new_file(place.parent)
            return path

        opened, _ = self._open(place, choose, restore, connections)
        self._snapshots.begin(path, _stem_of(path))
        return opened

    def leave(self) -> None:
        """Give up the claim on the file that served."""
        self._opened = None
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def fetch_waiting(self, target: Engine) -> None:
        """Restore what waits for PostgreSQL in snapshots only, since the disk it was on is lost.

        Raise CannotServe if PostgreSQL does not tell what was moved already.
        """
        here = {handover.id_of(file) for file in [*self._waiting(), *self._find("promoted")]}
        for stem, moved in self._snapshots.stems(FALLBACK).items():
            file_id = UUID(hex=stem.removeprefix(f"{FALLBACK}-"))
            place = self._fallback_place()
            if file_id in here or place is None:
                continue
            try:
                is_promoted = promotion.is_promoted(target, file_id)
            except SQLAlchemyError as error:
                raise CannotServe(connection_reason(error), reached=False) from None
            if not is_promoted:
                self._snapshots.restore(stem, handover.new_file(place.parent, file_id))
            elif not moved:
                self._snapshots.mark(stem)

    @contextmanager
    def owned(self) -> Iterator[list[Path]]:
        """Yield the files that wait for PostgreSQL, owned; raise Busy if others serve them.

        Those that cannot be written to wait on, since every step of a hand-over is a rename.
        """
        with handover.owning(filter(is_usable, self._waiting()), self._claim):
            yield list(filter(is_usable, self._waiting()))

    def promoted(self) -> list[UUID]:
        """Return the ids of the files whose rows were moved."""
        return [handover.id_of(file) for file in self._find("promoted")]

    def count_waiting(self, but: str | None = None) -> int:
        """Return how many rows of other files than `but` wait for PostgreSQL."""
        return sum(_count_rows(file) for file in self._waiting() if str(file) != but)

    def count_asked_for(self) -> int:
        """Return how many rows were written while SQLite was what was asked for."""
        path = find_place(ASKED_FOR_FILE, self._sqlite_dir).path
        return _count_rows(path) if path and path.exists() else 0

    def _asked_for_path(self, url: URL | None) -> tuple[Path | None, str | None]:
        """Return the file (None: memory), and "no_writable_path" if it is not the right one."""
        if url is None:
            path, passed_over = find_place(ASKED_FOR_FILE, self._sqlite_dir)
            return path, "no_writable_path" if passed_over or path is None else None
        if is_memory(url):
            return None, None
        asked = path_of(str(url.database))
        if is_usable(asked):
            return asked, None
        return find_place(asked.name, self._sqlite_dir).path, "no_writable_path"

    def _fallback_place(self) -> Path | None:
        """Return where fallback files are: beside one that was begun, else at the best place."""
        for file in self._find("fallback"):
            if is_usable(file):
                return file.with_name("fallback")
        return find_place("fallback", self._sqlite_dir).path

    def _restore_unmoved(self, directory: Path) -> None:
        unmoved = [stem for stem, moved in self._snapshots.stems(FALLBACK).items() if not moved]
        here = {handover.id_of(file) for file in self._find("handover") + self._find("promoted")}
        for stem in reversed(unmoved):
            file_id = UUID(hex=stem.removeprefix(f"{FALLBACK}-"))
            if file_id not in here:
                self._snapshots.restore(stem, handover.new_file(directory, file_id))
                return

    def _open(
        self,
        place: Path,
        choose: Callable[[], Path],
        restore: Callable[[], None],
        connections: int,
    ) -> tuple[Opened, bool]:
        """Return the engine and whether a damaged file was set aside; raise CannotServe."""
        claim = Claim(place)
        try:
            with handover.changing(place):
                claim.share()
                path = choose()
                try:
                    opened, was_damaged = open_sqlite(path, connections=connections), False
                except CannotServe as error:
                    if error.reason != "corrupt":
                        raise
                    claim.own()
                    set_aside(path)
                    restore()
                    opened, was_damaged = open_sqlite(path, connections=connections), True
                    claim.share()
        except (Busy, CannotServe) as error:
            claim.release()
            if isinstance(error, Busy):
                raise CannotServe("locked", reached=True) from None
            raise
        self._claim, self._opened = claim, (path, path.stat())
        return opened, was_damaged

    def _waiting(self) -> list[Path]:
        """Return the files whose rows PostgreSQL should have, handed-over ones first."""
        return self._find("handover") + self._find("fallback")

    def _find(self, state: handover.State) -> list[Path]:
        return handover.find(state, directories(self._sqlite_dir))


def _stem_of(file: Path) -> str:
    return f"{FALLBACK}-{handover.id_of(file).hex}"


def _count_rows(file: Path) -> int:
    try:
        return sum(promotion.count_rows(handover.read_only(file)).values())
    except SQLAlchemyError as error:
        logger.warning("%s cannot be read: %s", file.name, connection_reason(error))
        return 0


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
