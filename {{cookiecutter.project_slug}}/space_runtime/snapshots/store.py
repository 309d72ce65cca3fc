"""Snapshots: copies of a live SQLite file at SNAPSHOT_URL, and their restore.

A snapshot is one object, `<series>-<number>-<digest>.db`; the snapshots of one database are a
series. Numbers, which increase across all series, give the order, because a clock could go back.
Object stores cannot rename an object once its upload is complete, so the digest is what tells a
complete object from a truncated one. `<series>-<number>.moved` is a tombstone: the rows of that
series are being moved to PostgreSQL or are there already, so SQLite must not serve them again.
`owner-<digest>.txt` says to which deployment the folder belongs, by the digest of its name, and
`running-<id>.txt` that a process of it uses the folder.
"""

import fcntl
import hashlib
import io
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from space_runtime.snapshots.folder import Folder, Misconfigured, SnapshotError, resolve

logger = logging.getLogger(__name__)

KEPT = 5
CONFIGURED = "app"
FALLBACK = "fallback"
"""The kinds of series, with which the names of the series begin."""

_SERIES = CONFIGURED + r"-[0-9a-f]{8}|" + FALLBACK + r"-[0-9a-f]{32}"
_NAME = re.compile("(" + _SERIES + r")-([0-9]{8})(?:-([0-9a-f]{16})\.db|\.moved)")
_OWNER = re.compile(r"owner-[0-9a-f]{16}\.txt")
_OWNER_TEXT = (
    "The snapshots in this folder belong to {}. Other deployments leave it alone. After this file"
    " is deleted, the next one that starts takes the folder over, with the rows in it.\n"
)
_RUNNING = re.compile(r"running-[0-9a-f]{8}\.txt")
_RUNNING_TEXT = b"A process takes snapshots, or has ended. The next one removes this file.\n"
_TOMBSTONE_TEXT = b"The rows of this database were moved to PostgreSQL.\n"


class DamagedSnapshot(SnapshotError):
    """The object is truncated, or the database in it is damaged."""


class BelongsToAnother(Misconfigured):
    """The folder is another deployment's."""


class Snapshot(NamedTuple):
    """A snapshot, or the tombstone of a series if the digest is empty; they sort by number."""

    number: int
    series: str
    digest: str

    @classmethod
    def parse(cls, name: str) -> "Snapshot | None":
        """Return the snapshot or tombstone of this name, or None if the object is not ours."""
        match = _NAME.fullmatch(name)
        return cls(int(match[2]), match[1], match[3] or "") if match else None

    @property
    def name(self) -> str:
        """The name of the object."""
        ending = f"-{self.digest}.db" if self.digest else ".moved"
        return f"{self.series}-{self.number:08}{ending}"

    @property
    def is_tombstone(self) -> bool:
        """Whether this marks a series whose rows were handed over to PostgreSQL."""
        return not self.digest

    def is_of(self, which: str) -> bool:
        """Whether this belongs to the series `which`, or to a series of the kind `which`."""
        return f"{self.series}-".startswith(f"{which}-")


class SnapshotStore:
    """The snapshots at one URL. The methods may block for long, and raise SnapshotError."""

    def __init__(
        self, url: str, folder: Path = Path(), deployment: Callable[[], str] = lambda: ""
    ) -> None:
        """`url` may be a path; a relative one starts at `folder`. `deployment` is the owner."""
        self._url = url
        self._project_folder = folder
        self._deployment = deployment
        self._taken: dict[str, tuple[FileState, str]] = {}
        self._running_mark = f"running-{uuid4().hex[:8]}.txt"
        self._has_attended = False
        self._refusal: str | None = None

    def attend(self) -> bool:
        """Try the URL, claim its folder, and leave a mark that this process uses it.

        Return whether another copy of this deployment is running: each removes the others' marks.
        """
        folder = self._open()
        listed = self._ours(folder, folder.listing(), claim=True)
        running = set(filter(_RUNNING.fullmatch, listed))
        was_removed = self._has_attended and self._running_mark not in running
        place = resolve(self._url, self._project_folder)
        if not self._has_attended and place != self._url:
            logger.info("snapshots go to the folder %s", place)
        if self._running_mark not in running:
            # Also tells whether this folder can be written to.
            folder.put(self._running_mark, io.BytesIO(_RUNNING_TEXT))
        for other in running - {self._running_mark}:
            # A place where nothing can be removed cannot tell of other copies.
            with suppress(SnapshotError):
                folder.remove(other)
        self._has_attended = True
        return was_removed

    def take(self, file: Path, series: str | None) -> Snapshot | None:
        """Store a copy of the live file; return None if it has not changed since the last one.

        A series of None continues the newest one of the kind CONFIGURED.
        """
        state = file_state(file)
        taken, digest = self._taken.get(series or "", (None, None))
        if taken == state:
            return None
        with _private_file(file) as copy:
            _copy(file, copy)
            new_digest = _digest(copy)
            if series is not None and new_digest == digest:
                self._taken[series] = state, new_digest
                return None
            folder, listed = self._look(claim=True)
            if series is None:
                known = [one.series for one in listed if one.is_of(CONFIGURED)]
                series = known[-1] if known else new_series()
            snapshot = Snapshot(_next_number(listed), series, new_digest)
            with copy.open("rb") as content:
                listed = _snapshots(folder.put(snapshot.name, content))
        self._taken[series] = state, new_digest
        ours = [one for one in listed if one.series == series and not one.is_tombstone]
        try:
            for old in ours[:-KEPT]:
                folder.remove(old.name)
        except SnapshotError as error:
            logger.warning("a snapshot was taken, but older ones stay: %s", error)
        return snapshot

    def restore(self, which: str, target: Path) -> Snapshot | None:
        """Create `target` from the newest sound snapshot of a series, or of a kind of series.

        Return None if there is none, or if the rows of the newest series of the kind were moved.
        If a snapshot is damaged, the one before is tried. If it cannot be fetched, no other is: it
        may be sound, and after restoring an older one, new snapshots would soon displace it.
        """
        folder, listed = self._look()
        ours = [one for one in listed if one.is_of(which)]
        # A caller that names one series has already checked that its rows were not moved.
        moved = {one.series for one in ours if one.is_tombstone and one.series != which}
        if not ours or ours[-1].series in moved:
            return None
        for snapshot in reversed(ours):
            if snapshot.is_tombstone or snapshot.series in moved:
                continue
            try:
                _fetch(folder, snapshot, target)
                return snapshot
            except DamagedSnapshot:
                logger.warning("snapshot %d is damaged: trying the one before", snapshot.number)
        raise DamagedSnapshot("Every snapshot of the database is damaged.")

    def series(self, kind: str) -> dict[str, bool]:
        """Return the series of this kind, oldest first, and whether each has a tombstone."""
        _, listed = self._look()
        ours = [one for one in listed if one.is_of(kind)]
        moved = {one.series for one in ours if one.is_tombstone}
        return {one.series: one.series in moved for one in ours}

    def add_tombstone(self, series: str) -> None:
        """Mark the rows of this series as handed over to PostgreSQL."""
        folder, listed = self._look(claim=True)
        if not any(one.is_tombstone and one.series == series for one in listed):
            tombstone = Snapshot(_next_number(listed), series, "")
            folder.put(tombstone.name, io.BytesIO(_TOMBSTONE_TEXT))

    def remove_tombstone(self, series: str) -> None:
        """Remove the mark: the rows were not moved after all."""
        folder, listed = self._look()
        for one in listed:
            if one.is_tombstone and one.series == series:
                folder.remove(one.name)

    def _open(self) -> Folder:
        if self._refusal:
            # Until a restart: what is here now did not begin with the rows that are there.
            raise BelongsToAnother(self._refusal)
        return Folder(resolve(self._url, self._project_folder))

    def _look(self, *, claim: bool = False) -> tuple[Folder, list[Snapshot]]:
        """Return the folder, and the snapshots and tombstones in it, in order of number."""
        folder = self._open()
        return folder, _snapshots(self._ours(folder, folder.listing(), claim=claim))

    def _ours(self, folder: Folder, listed: Collection[str], *, claim: bool) -> Collection[str]:
        """Return the names if they belong to this deployment, else raise BelongsToAnother.

        A folder without an owner is claimed first. Without `claim`, that is left out if there is
        nothing in it, and may fail: one that is read-only can still be restored from.
        """
        deployment = self._deployment()
        own = f"owner-{hashlib.sha256(deployment.encode()).hexdigest()[:16]}.txt"
        owners = sorted(filter(_OWNER.fullmatch, listed))
        if not owners and (claim or _snapshots(listed)):
            try:
                listed = folder.put(own, io.BytesIO(_OWNER_TEXT.format(deployment).encode()))
            except SnapshotError:
                if claim:
                    raise
            owners = sorted(filter(_OWNER.fullmatch, listed))
        # Few stores can create a name only if it is free. So two may claim a folder at once, and
        # both then find that it belongs to the one whose mark is first.
        if owners and owners[0] != own:
            self._refusal = (
                "SNAPSHOT_URL belongs to another deployment, so nothing is restored from there or"
                " stored there: give this one a folder of its own. If its snapshots are those of"
                f" this one, delete {owners[0]} there and restart."
            )
            if own in owners:
                with suppress(SnapshotError):
                    folder.remove(own)
            raise BelongsToAnother(self._refusal)
        return listed


def new_series() -> str:
    """Return a new series, so that snapshots of a new database do not displace older ones."""
    return f"{CONFIGURED}-{uuid4().hex[:8]}"


FileState = list[tuple[int, int]]
# The times of files are as coarse as this in places: milliseconds here, two seconds on some shares.
_COARSE_NS = 2_000_000_000


def file_state(file: Path) -> FileState:
    """Return times and sizes that change with the database, so that an idle one is left alone.

    No two are the same while its last change is so recent that another one could bear its time.
    """
    state, now = [], time.time_ns()
    for part in (file, file.with_name(f"{file.name}-wal")):
        with suppress(FileNotFoundError):
            stat = part.stat()
            state.append((stat.st_mtime_ns, stat.st_size))
            if now - stat.st_mtime_ns < _COARSE_NS:
                state.append((now, 0))
    return state


def _snapshots(names: Iterable[str]) -> list[Snapshot]:
    """Return the snapshots and tombstones among these names, in order of number."""
    return sorted(filter(None, map(Snapshot.parse, names)))


def _fetch(folder: Folder, snapshot: Snapshot, target: Path) -> None:
    """Create `target`, which must not exist, from a snapshot; raise DamagedSnapshot."""
    with _private_file(target) as copy:
        folder.fetch(snapshot.name, copy)
        if _digest(copy) != snapshot.digest or not _is_sound(copy):
            raise DamagedSnapshot("The snapshot is damaged.")
        # The caller may have given up waiting and created a database, which is now in use.
        if target.exists():
            raise SnapshotError("A database was begun meanwhile, which no snapshot replaces.")
        # SQLite would apply a journal left by an earlier file to this one.
        for ending in ("-wal", "-shm", "-journal"):
            target.with_name(target.name + ending).unlink(missing_ok=True)
        copy.replace(target)


@contextmanager
def _private_file(beside: Path) -> Iterator[Path]:
    """Yield an empty file that no other thread or process uses, and remove it afterwards.

    The name is always the same, so that a file left by a killed process is reused, not leaked.
    """
    path = beside.with_name(f"{beside.name}.snapshot")
    try:
        with path.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
    except BlockingIOError:
        raise SnapshotError("Another snapshot of this file is still under way.") from None
    except OSError as error:
        raise SnapshotError(f"No copy can be made beside the database: {error.strerror}.") from None


def _next_number(listed: Iterable[Snapshot]) -> int:
    return max((one.number for one in listed), default=0) + 1


def _copy(file: Path, copy: Path) -> None:
    """Copy a live database in a consistent state, without a journal, and check the copy."""
    try:
        # With mode=rw, a missing file is an error and not an empty database.
        with (
            closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        cause = getattr(error, "sqlite_errorname", type(error).__name__)
        raise SnapshotError(f"The database could not be copied: {cause}.") from None
    if not _is_sound(copy):
        raise DamagedSnapshot("The database is damaged; its older snapshots are kept.")


def _is_sound(file: Path) -> bool:
    try:
        # With immutable, SQLite takes no lock and ignores a journal beside the file.
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?immutable=1", uri=True)) as db:
            return db.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
