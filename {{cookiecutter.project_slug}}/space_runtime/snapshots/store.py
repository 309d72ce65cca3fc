"""Snapshots: copies of a live SQLite file at SNAPSHOT_URL, and their restore.

A snapshot is one object, `<series>-<number>-<digest>.db`; the snapshots of one database are a
series. Numbers, which increase across all series, give the order, because a clock could go back.
Object stores cannot rename an object once its upload is complete, so the digest is what tells a
complete object from a truncated one. `<series>-<number>.moved` is a tombstone: the rows of that
series are being moved to PostgreSQL or are there already, so SQLite must not serve them again.
"""

import fcntl
import hashlib
import io
import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

logger = logging.getLogger(__name__)

KEPT = 5
_SERIES = r"app-[0-9a-f]{8}|fallback-[0-9a-f]{32}"
_NAME = re.compile("(" + _SERIES + r")-([0-9]{8})(?:-([0-9a-f]{16})\.db|\.moved)")


class SnapshotError(Exception):
    """Why a snapshot failed: one sentence without URLs, users or secrets."""


class DamagedSnapshot(SnapshotError):
    """The object is truncated, or the database in it is damaged."""


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

    def __init__(self, url: str, folder: Path = Path()) -> None:
        """`url` may be a path; a relative one starts at `folder`."""
        is_path = "://" not in url and "::" not in url
        self._url = str((folder / os.path.expanduser(url)).absolute()) if is_path else url
        self._last_digests: dict[str, str] = {}

    def take(self, file: Path, series: str) -> Snapshot | None:
        """Store a copy of the live file; return None if it has not changed since the last one."""
        with _private_file(file) as copy:
            _copy(file, copy)
            digest = _digest(copy)
            if digest == self._last_digests.get(series):
                return None
            folder = _Folder(self._url)
            listed = folder.listing()
            snapshot = Snapshot(_next_number(listed), series, digest)
            with copy.open("rb") as content:
                folder.put(snapshot, content)
        self._last_digests[series] = digest
        ours = [one for one in [*listed, snapshot] if one.series == series and not one.is_tombstone]
        try:
            for old in ours[:-KEPT]:
                folder.remove(old)
        except SnapshotError as error:
            logger.warning("a snapshot was taken, but older ones stay: %s", error)
        return snapshot

    def restore(self, which: str, target: Path) -> Snapshot | None:
        """Create `target` from the newest sound snapshot of a series, or of a kind of series.

        Return None if there is none, or if the rows of the newest series of the kind were moved.
        If a snapshot is damaged, the one before is tried. If it cannot be fetched, no other is: it
        may be sound, and after restoring an older one, new snapshots would soon displace it.
        """
        folder = _Folder(self._url)
        ours = [one for one in folder.listing() if one.is_of(which)]
        # A caller that names one series has already checked that its rows were not moved.
        moved = {one.series for one in ours if one.is_tombstone and one.series != which}
        if not ours or ours[-1].series in moved:
            return None
        for snapshot in reversed(ours):
            if snapshot.is_tombstone or snapshot.series in moved:
                continue
            try:
                folder.fetch(snapshot, target)
                return snapshot
            except DamagedSnapshot:
                logger.warning("snapshot %d is damaged: trying the one before", snapshot.number)
        raise DamagedSnapshot("Every snapshot of the database is damaged.")

    def series(self, kind: str) -> dict[str, bool]:
        """Return the series of this kind, oldest first, and whether each has a tombstone."""
        ours = [one for one in _Folder(self._url).listing() if one.is_of(kind)]
        moved = {one.series for one in ours if one.is_tombstone}
        return {one.series: one.series in moved for one in ours}

    def add_tombstone(self, series: str) -> None:
        """Mark the rows of this series as handed over to PostgreSQL."""
        folder = _Folder(self._url)
        listed = folder.listing()
        if not any(one.is_tombstone and one.series == series for one in listed):
            content = io.BytesIO(b"The rows of this database were moved to PostgreSQL.\n")
            folder.put(Snapshot(_next_number(listed), series, ""), content)

    def remove_tombstone(self, series: str) -> None:
        """Remove the mark: the rows were not moved after all."""
        folder = _Folder(self._url)
        for one in folder.listing():
            if one.is_tombstone and one.series == series:
                folder.remove(one)


class _Folder:
    """The folder at a URL, opened with fsspec for one operation.

    A file system object that is reused would return old listings and use dead connections.
    """

    def __init__(self, url: str) -> None:
        # By default, huggingface_hub draws progress bars in the log and needs a writable home.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_XET_CACHE", f"{tempfile.gettempdir()}/xet-{os.getuid()}")
        with _errors_named("opened"):
            # Imported here because it is slow, and only applications with snapshots need it.
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            self._files, path = url_to_fs(url, skip_instance_cache=True)
        self._path = path.rstrip("/")

    def listing(self) -> dict[Snapshot, int]:
        """Return the snapshots and tombstones, in order of number, with their sizes in bytes."""
        with _errors_named("listed"):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._path, detail=True)
            except FileNotFoundError as error:
                # A cause means that the whole bucket or repository is missing, not just the folder.
                if error.__cause__ is not None:
                    raise
                entries = []
        sizes = {Snapshot.parse(os.path.basename(one["name"])): one["size"] for one in entries}
        return {snapshot: sizes[snapshot] for snapshot in sorted(filter(None, sizes))}

    def put(self, snapshot: Snapshot, content: BinaryIO) -> None:
        """Store the content under the name of the snapshot, and check that it is complete."""
        with _errors_named("written to"):
            path = f"{self._path}/{snapshot.name}"
            try:
                stored = self._files.open(path, "wb")
            except FileNotFoundError:
                # Not done up front, because on S3 it may need the right to create buckets.
                self._files.makedirs(self._path, exist_ok=True)
                stored = self._files.open(path, "wb")
            try:
                with stored:
                    shutil.copyfileobj(content, stored)
            finally:
                # When an upload fails, huggingface_hub leaves its own copy behind.
                if temporary := getattr(stored, "temp_file", None):
                    Path(temporary.name).unlink(missing_ok=True)
        if self.listing().get(snapshot) != content.tell():
            raise SnapshotError("SNAPSHOT_URL did not keep the whole snapshot.")

    def fetch(self, snapshot: Snapshot, target: Path) -> None:
        """Create `target`, which must not exist, from a snapshot; raise DamagedSnapshot."""
        with _private_file(target) as copy:
            with _errors_named("read"):
                self._files.get_file(f"{self._path}/{snapshot.name}", str(copy))
            if _digest(copy) != snapshot.digest or not _is_sound(copy):
                raise DamagedSnapshot("The snapshot is damaged.")
            # The caller may have given up waiting and created a database, which is now in use.
            if target.exists():
                raise SnapshotError("A database was begun meanwhile, which no snapshot replaces.")
            # SQLite would apply a journal left by an earlier file to this one.
            for ending in ("-wal", "-shm", "-journal"):
                target.with_name(target.name + ending).unlink(missing_ok=True)
            copy.replace(target)

    def remove(self, snapshot: Snapshot) -> None:
        """Remove a snapshot or a tombstone."""
        with _errors_named("pruned"):
            self._files.rm_file(f"{self._path}/{snapshot.name}")


@contextmanager
def _errors_named(done: str) -> Iterator[None]:
    """Turn errors into SnapshotError: their own texts may contain URLs and secrets."""
    try:
        yield
    except Exception as error:  # A file system is a plug-in and may raise anything.
        status = getattr(getattr(error, "response", None), "status_code", None)
        # The errors of hf_xet have the status only in their text.
        refused = status in (401, 403) or "403 Forbidden" in str(error)
        if isinstance(error, ImportError):
            cause = f"a package is missing from requirements.txt ({error})"
        elif refused or isinstance(error, PermissionError):
            cause = "access is refused; check the credentials"
        elif isinstance(error, FileNotFoundError):
            cause = "it does not exist, or these credentials may not see it"
        elif isinstance(error, OSError) and error.errno:
            cause = os.strerror(error.errno)
        elif status is not None:
            cause = f"HTTP {status}"
        else:
            cause = type(error).__name__
        raise SnapshotError(f"SNAPSHOT_URL could not be {done}: {cause}.") from None


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
