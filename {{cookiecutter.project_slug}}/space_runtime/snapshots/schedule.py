"""When snapshots are taken and restored, within time limits; store.py says how."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from space_runtime.file_locks import Busy, FileLock
from space_runtime.observability.metrics import SNAPSHOT_AGE, SNAPSHOTS
from space_runtime.snapshots.store import DamagedSnapshot, SnapshotError, SnapshotStore
from space_runtime.time_limit import within

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

RESTORE_SECONDS = 60.0
TOMBSTONE_SECONDS = 10.0
SECONDS_BETWEEN_ATTEMPTS = 1.0
ATTEMPTS = 5

CONFIGURED = "app"
FALLBACK = "fallback"
"""The kinds of series: their names begin with these."""


class Snapshots:
    """The snapshots of the SQLite file that serves; none of it does anything without a store."""

    def __init__(self, store: SnapshotStore | None, interval_seconds: float) -> None:
        self._store = store
        self._interval_seconds = interval_seconds
        self._timer: _Timer | None = None
        self._trouble: str | None = None
        SNAPSHOT_AGE.set_function(
            lambda: float("nan") if self.taken_at is None else time.monotonic() - self.taken_at
        )

    @property
    def taken_at(self) -> float | None:
        """When the newest snapshot was begun, on the monotonic clock; None if there is none yet."""
        return self._timer.taken_at if self._timer else None

    def restore(self, which: str, target: Path) -> str | None:
        """Make `target` from the newest sound snapshot of a series, or of a kind of series.

        Return its series, or None if there is none.
        """
        if self._store is None:
            return None
        store, self._trouble = self._store, None
        for attempt in range(ATTEMPTS):
            try:
                snapshot = within(RESTORE_SECONDS, lambda: store.restore(which, target))
            except (SnapshotError, TimeoutError) as error:
                self._trouble = _told(error)
                if isinstance(error, (DamagedSnapshot, TimeoutError)):
                    break
                if attempt < ATTEMPTS - 1:
                    time.sleep(SECONDS_BETWEEN_ATTEMPTS)
            else:
                if snapshot is not None:
                    logger.info("restored snapshot %d", snapshot.number)
                return snapshot.series if snapshot else None
        logger.error("no snapshot could be restored, a new database begins: %s", self._trouble)
        return None

    def series(self, kind: str) -> dict[str, bool]:
        """Return the series of a kind, oldest first, and whether they have a tombstone."""
        return self._attempt(lambda store: store.series(kind)) or {}

    def add_tombstone(self, series: str) -> None:
        """Say at SNAPSHOT_URL that the rows of this series are on their way to PostgreSQL."""
        self._attempt(lambda store: store.add_tombstone(series))

    def remove_tombstone(self, series: str) -> None:
        """Say that they are not."""
        self._attempt(lambda store: store.remove_tombstone(series))

    def begin(self, file: Path, series: str | None) -> None:
        """Take a snapshot of the file every interval, until end(); None continues the newest."""
        if self._store is not None:
            self._timer = _Timer(self._store, file, series, self._interval_seconds)
            self._timer.start()

    def end(self, *, last_within: float = 0.0) -> None:
        """Take no more snapshots; the last one if there are seconds for it."""
        if self._timer is not None:
            self._timer.stop(last_within)

    def describe(self) -> str:
        """Return a sentence about the newest snapshot, or nothing without a URL."""
        if self._store is None:
            return ""
        trouble = self._timer.trouble if self._timer and self._timer.has_tried else self._trouble
        if trouble is not None:
            return f"Snapshots fail: {trouble}"
        if self.taken_at is None:
            return f"A snapshot is taken every {self._interval_seconds:g} s."
        return f"The newest snapshot is {time.monotonic() - self.taken_at:.0f} s old."

    def _attempt(self, call: Callable[[SnapshotStore], Result]) -> Result | None:
        if self._store is None:
            return None
        store = self._store
        try:
            return within(TOMBSTONE_SECONDS, lambda: call(store))
        except (SnapshotError, TimeoutError) as error:
            logger.error("%s", _told(error))
            return None


class _Timer:
    """Takes snapshots of one file, in a thread of its own."""

    def __init__(
        self, store: SnapshotStore, file: Path, series: str | None, interval_seconds: float
    ) -> None:
        self._store = store
        self._file = file
        self._series = series
        self._interval_seconds = interval_seconds
        # Of the processes that serve a file, one takes its snapshots.
        self._lock = FileLock(file.with_name("snapshots"))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._kept_state: object = None
        self.has_tried = False
        self.trouble: str | None = None
        self.taken_at: float | None = None

    def start(self) -> None:
        """Take the first one after an interval."""
        self._thread.start()

    def stop(self, last_within: float) -> None:
        """End, after a last snapshot if there are seconds for it."""
        if self._stopping.is_set():
            return
        deadline = time.monotonic() + last_within
        self._stopping.set()
        self._thread.join(timeout=max(last_within, 1.0))
        try:
            if last_within > 0:
                within(deadline - time.monotonic(), self._take)
        except TimeoutError:
            logger.error("there was no time for the last snapshot")
        else:
            self._lock.release()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_seconds):
            self._take()

    def _take(self) -> None:
        started, state = time.monotonic(), _state_of(self._file)
        try:
            self._lock.take_exclusively()
            if self._series is None:
                self._series = self._series_to_continue()
            if state != self._kept_state:
                self._store.take(self._file, self._series)
                SNAPSHOTS.labels("taken").inc()
        except Busy:
            return
        except SnapshotError as error:
            SNAPSHOTS.labels("failed").inc()
            if self.trouble != str(error):
                logger.error("no snapshot could be taken: %s", error)
            self.trouble = str(error)
        else:
            self.trouble, self.taken_at, self._kept_state = None, started, state
        self.has_tried = True

    def _series_to_continue(self) -> str:
        known = self._store.series(CONFIGURED)
        continued = [series for series, has_tombstone in known.items() if not has_tombstone]
        return continued[-1] if continued else new_series()


def new_series() -> str:
    """Return a series for a database begun anew, so that it pushes out no other's snapshots."""
    return f"{CONFIGURED}-{uuid4().hex[:8]}"


def _told(error: SnapshotError | TimeoutError) -> str:
    return str(error) or "SNAPSHOT_URL did not answer in time."


def _state_of(file: Path) -> list[tuple[int, int]]:
    """Return what changes whenever the database does."""
    parts = [part for part in (file, file.with_name(f"{file.name}-wal")) if part.exists()]
    return [(part.stat().st_mtime_ns, part.stat().st_size) for part in parts]
