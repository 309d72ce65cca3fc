"""Snapshots: copies of a live SQLite file at SNAPSHOT_URL, and the way back.

A snapshot is one whole object, `<series>-<number>-<digest>.db`. All snapshots of one database are a
series. The number is one more than the highest there, of any series, because clocks go back. The
digest tells a whole object from a torn one, so that nothing has to be renamed into its place.
`<series>-<number>.moved` is a tombstone: the rows of that series are in PostgreSQL and must not
come back.
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
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

logger = logging.getLogger(__name__)

KEPT = 5
_SERIES = r"app-[0-9a-f]{8}|fallback-[0-9a-f]{32}"
_NAME = re.compile("(" + _SERIES + r")-([0-9]{8})(?:-([0-9a-f]{16})\.db|\.moved)")


class SnapshotError(Exception):
    """Why a snapshot failed: one sentence that names no place, no user and no secret."""


class DamagedSnapshot(SnapshotError):
    """The object is torn, or holds no sound database."""


class Snapshot(NamedTuple):
    """A snapshot, or with an empty digest the tombstone of a series; they sort by number."""

    number: int
    series: str
    digest: str

    @classmethod
    def parse(cls, name: str) -> "Snapshot | None":
        """Return what an object of this name is, or None if it is not ours."""
        match = _NAME.fullmatch(name)
        return cls(int(match[2]), match[1], match[3] or "") if match else None

    @property
    def name(self) -> str:
        """The name of the object."""
        ending = f"-{self.digest}.db" if self.digest else ".moved"
        return f"{self.series}-{self.number:08}{ending}"

    @property
    def is_tombstone(self) -> bool:
        """Whether this says that the rows of its series were moved."""
        return not self.digest

    def is_of(self, which: str) -> bool:
        """Whether this belongs to a series, or to a kind of series, which is how they begin."""
        return f"{self.series}-".startswith(f"{which}-")


class SnapshotStore:
    """The snapshots at one URL. Its methods may block for long, and raise SnapshotError."""

    def __init__(self, url: str, folder: Path = Path()) -> None:
        """A URL that is the path of a directory begins at `folder`, unless it is absolute."""
        is_path = "://" not in url and "::" not in url
        self._url = str((folder / os.path.expanduser(url)).absolute()) if is_path else url
        self._last_digests: dict[str, str] = {}

    def take(self, file: Path, series: str) -> Snapshot | None:
        """Keep a copy of the live file; return None if it is as this store kept it last."""
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
        """Make `target` from the newest sound snapshot of a series, or of a kind of series.

        None means that there is none, or that the rows of the newest series of the kind were moved.
        One that is damaged is passed over for the one before. One that cannot be fetched is not:
        it may be whole, and snapshots of what is written after an older one would push it out.
        """
        folder = _Folder(self._url)
        ours = [one for one in folder.listing() if one.is_of(which)]
        # who names a series knows what became of its rows
        moved = {one.series for one in ours if one.is_tombstone and one.series != which}
        if not ours or ours[-1].series in moved:
            return None
        sound = [one for one in ours if one.series not in moved and not one.is_tombstone]
        for snapshot in reversed(sound):
            try:
                _fetch(folder, snapshot, target)
            except DamagedSnapshot:
                logger.warning("snapshot %d is damaged and is passed over", snapshot.number)
            else:
                return snapshot
        raise DamagedSnapshot("Every snapshot of the database is damaged.")

    def series(self, kind: str) -> dict[str, bool]:
        """Return the series of this kind, oldest first, and whether they have a tombstone."""
        ours = [one for one in _Folder(self._url).listing() if one.is_of(kind)]
        moved = {one.series for one in ours if one.is_tombstone}
        return {one.series: one.series in moved for one in ours}

    def add_tombstone(self, series: str) -> None:
        """Say that the rows of this series were moved to PostgreSQL."""
        folder = _Folder(self._url)
        listed = folder.listing()
        if not any(one.is_tombstone and one.series == series for one in listed):
            content = io.BytesIO(b"The rows of this database were moved to PostgreSQL.\n")
            folder.put(Snapshot(_next_number(listed), series, ""), content)

    def remove_tombstone(self, series: str) -> None:
        """Remove the tombstone: the rows were not moved after all."""
        folder = _Folder(self._url)
        for one in folder.listing():
            if one.is_tombstone and one.series == series:
                folder.remove(one)


class _Folder:
    """What a URL names, through fsspec. Each operation looks with new eyes: fsspec remembers."""

    def __init__(self, url: str) -> None:
        # huggingface_hub would draw progress bars into the log, and wants a writable home
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_XET_CACHE", f"{tempfile.gettempdir()}/xet-{os.getuid()}")
        with _errors_named("opened"):
            # imported when it is used: that takes a while, and few applications need it
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            self._files, path = url_to_fs(url, skip_instance_cache=True)
        self._path = path.rstrip("/")

    def listing(self) -> list[Snapshot]:
        """Return what is ours, sorted by number."""
        return sorted(self._sizes())

    def put(self, snapshot: Snapshot, content: BinaryIO) -> None:
        """Store the content under the name of the snapshot, and look whether it is all there."""
        with _errors_named("written to"):
            path = f"{self._path}/{snapshot.name}"
            try:
                stored = self._files.open(path, "wb")
            except FileNotFoundError:
                # not before: on S3 that may ask for the right to make buckets
                self._files.makedirs(self._path, exist_ok=True)
                stored = self._files.open(path, "wb")
            try:
                with stored:
                    shutil.copyfileobj(content, stored)
            finally:
                # huggingface_hub leaves its own copy behind when an upload fails
                if temporary := getattr(stored, "temp_file", None):
                    Path(temporary.name).unlink(missing_ok=True)
        if self._sizes().get(snapshot) != content.tell():
            raise SnapshotError("SNAPSHOT_URL did not keep the whole snapshot.")

    def get(self, snapshot: Snapshot, file: Path) -> None:
        """Fetch the content of a snapshot into a file."""
        with _errors_named("read"):
            self._files.get_file(f"{self._path}/{snapshot.name}", str(file))

    def remove(self, snapshot: Snapshot) -> None:
        """Remove a snapshot or a tombstone."""
        with _errors_named("pruned"):
            self._files.rm_file(f"{self._path}/{snapshot.name}")

    def _sizes(self) -> dict[Snapshot, int]:
        with _errors_named("listed"):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._path, detail=True)
            except FileNotFoundError as error:
                # a cause means that the bucket or repository is missing, and not only the folder
                if error.__cause__ is not None:
                    raise
                entries = []
        sizes = {Snapshot.parse(os.path.basename(one["name"])): one["size"] for one in entries}
        return {snapshot: size for snapshot, size in sizes.items() if snapshot is not None}


@contextmanager
def _errors_named(done: str) -> Iterator[None]:
    """Tell what went wrong in words of our own: the texts of others hold URLs and secrets."""
    try:
        yield
    except Exception as error:  # a file system is a plug-in of anybody's: it may raise anything
        status = getattr(getattr(error, "response", None), "status_code", None)
        # hf_xet tells the status in its text alone
        refused = status in (401, 403) or "403 Forbidden" in str(error)
        if isinstance(error, ImportError):
            cause = f"a package is missing from requirements.txt ({error})"
        elif refused or isinstance(error, PermissionError):
            cause = "access is refused; check the credentials"
        elif isinstance(error, FileNotFoundError):
            cause = "it does not exist, or is not shown to these credentials"
        elif isinstance(error, OSError) and error.errno:
            cause = os.strerror(error.errno)
        elif status is not None:
            cause = f"HTTP {status}"
        else:
            cause = type(error).__name__
        raise SnapshotError(f"SNAPSHOT_URL could not be {done}: {cause}.") from None


@contextmanager
def _private_file(beside: Path) -> Iterator[Path]:
    """Yield an empty file that no other thread or process has, and remove it afterwards.

    What a killed process left behind is used again.
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
        raise SnapshotError(f"No copy can lie beside the database: {error.strerror}.") from None


def _next_number(listed: list[Snapshot]) -> int:
    return listed[-1].number + 1 if listed else 1


def _copy(file: Path, copy: Path) -> None:
    """Copy a live database as it is at one moment, without its journal, and check the copy."""
    try:
        # mode=rw: a file that is missing is an error, and not an empty database
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
        raise DamagedSnapshot("The database is damaged; its older snapshots stay.")


def _fetch(folder: _Folder, snapshot: Snapshot, target: Path) -> None:
    with _private_file(target) as copy:
        folder.get(snapshot, copy)
        if _digest(copy) != snapshot.digest or not _is_sound(copy):
            raise DamagedSnapshot("The snapshot is damaged.")
        # who waited for this may have lost patience, and begun a database that is in use
        if target.exists():
            raise SnapshotError("A database was begun meanwhile, which no snapshot replaces.")
        # the journal of a file that is gone would be applied to this one
        for ending in ("-wal", "-shm", "-journal"):
            target.with_name(target.name + ending).unlink(missing_ok=True)
        copy.replace(target)


def _is_sound(file: Path) -> bool:
    try:
        # immutable: no lock, and no journal that might lie beside it
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?immutable=1", uri=True)) as db:
            return db.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
