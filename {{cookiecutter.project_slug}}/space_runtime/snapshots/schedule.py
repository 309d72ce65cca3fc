"""When snapshots are taken and restored, within time limits; store.py says how."""

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from space_runtime.file_locks import Busy, FileLock
from space_runtime.observability.metrics import SNAPSHOT_AGE, SNAPSHOTS
from space_runtime.snapshots.folder import Misconfigured, SnapshotError
from space_runtime.snapshots.store import DamagedSnapshot, SnapshotStore
from space_runtime.time_limit import within

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

RESTORE_SECONDS = 60.0
SECONDS_OF_SILENCE = 30.0
TOMBSTONE_SECONDS = 10.0
SECONDS_BETWEEN_ATTEMPTS = 1.0
ATTEMPTS = 5
INTERVALS_ALONE = 3
"""After so many intervals without a sign of another copy, it has ended."""

_NOT_ALONE = (
    "Another copy of this application uses SNAPSHOT_URL at the same time, and their snapshots"
    " displace each other: let only one run (in a deploy, the old one ends by itself), or give"
    " each a folder of its own."
)


class Snapshots:
    """The snapshots of the SQLite file that serves. Without a store, the methods do nothing."""

    def __init__(self, store: SnapshotStore | None, interval_seconds: float) -> None:
        self._store = store
        self._interval_seconds = interval_seconds
        self._timer: _Timer | None = None
        SNAPSHOT_AGE.set_function(
            lambda: float("nan") if self.taken_at is None else time.monotonic() - self.taken_at
        )

    @property
    def taken_at(self) -> float | None:
        """When the newest snapshot was last up to date, on the monotonic clock, or None."""
        return self._timer.taken_at if self._timer else None

    def restore(self, which: str, target: Path) -> str | None:
        """Create `target` from the newest sound snapshot of a series, or of a kind of series.

        Return its series, or None if there is none or it cannot be fetched.
        """
        if self._store is None:
            return None
        restore = partial(self._store.restore, which, target)
        trouble = ""
        for _ in range(ATTEMPTS):
            try:
                snapshot = within(RESTORE_SECONDS, restore)
            except (SnapshotError, TimeoutError) as error:
                trouble = _text_of(error)
                if isinstance(error, DamagedSnapshot | Misconfigured | TimeoutError):
                    break
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
            else:
                if snapshot is None:
                    return None
                logger.info("restored snapshot %d", snapshot.number)
                return snapshot.series
        logger.error("no snapshot could be restored: %s", trouble)
        return None

    def series(self, kind: str) -> dict[str, bool]:
        """Return the series of a kind, oldest first, and whether each has a tombstone."""
        return self._attempt(lambda store: store.series(kind)) or {}

    def add_tombstone(self, series: str) -> None:
        """Record at SNAPSHOT_URL that the rows of this series are being moved to PostgreSQL."""
        self._attempt(lambda store: store.add_tombstone(series))

    def remove_tombstone(self, series: str) -> None:
        """Record that they were not moved after all."""
        self._attempt(lambda store: store.remove_tombstone(series))

    def begin(self, file: Path, series: str | None) -> None:
        """Take a snapshot every interval until end(); a series of None continues the newest one."""
        if self._store is not None:
            self._timer = _Timer(self._store, file, series, self._interval_seconds)

    def end(self, *, last_within: float = 0.0) -> None:
        """Take no more snapshots, except a last one if `last_within` leaves time for it."""
        if self._timer is not None:
            self._timer.stop(last_within)

    def describe(self) -> str:
        """Return a sentence about the newest snapshot, or "" if none is taken."""
        return self._timer.describe() if self._timer else ""

    def _attempt(self, call: Callable[[SnapshotStore], Result]) -> Result | None:
        if (store := self._store) is None:
            return None
        try:
            return within(TOMBSTONE_SECONDS, lambda: call(store))
        except (SnapshotError, TimeoutError) as error:
            logger.error("%s", _text_of(error))
            return None


class _Timer:
    """Takes snapshots of one file in a thread of its own.

    SNAPSHOT_URL is tried at once, and the first snapshot is taken after an interval.
    """

    def __init__(
        self, store: SnapshotStore, file: Path, series: str | None, interval_seconds: float
    ) -> None:
        self.taken_at: float | None = None
        self._asked_at: float | None = time.monotonic()
        self._trouble = ""
        self._store = store
        # Not a link to it: SQLite's log, which tells of changes, is beside the file itself.
        self._file = Path(os.path.realpath(file))
        self._series = series
        self._interval_seconds = interval_seconds
        # Only one of the processes that serve a file takes its snapshots.
        self._lock = FileLock(file.with_name("snapshots"))
        self._intervals_alone = INTERVALS_ALONE
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def describe(self) -> str:
        """Return a sentence about the newest snapshot."""
        now, asked_at = time.monotonic(), self._asked_at
        if asked_at is not None and now - asked_at > SECONDS_OF_SILENCE:
            self._note_trouble(f"SNAPSHOT_URL has not answered within {SECONDS_OF_SILENCE:g} s.")
        if self._trouble:
            told = f"Snapshots fail: {self._trouble}"
        elif self.taken_at is not None:
            told = f"The newest snapshot is {now - self.taken_at:.0f} s old."
        elif asked_at is not None:
            told = "SNAPSHOT_URL is being tried."
        else:
            told = f"A snapshot is taken every {self._interval_seconds:g} s."
        return told if self._intervals_alone >= INTERVALS_ALONE else f"{told} {_NOT_ALONE}"

    def stop(self, last_within: float) -> None:
        """Stop, after a last snapshot if `last_within` leaves time for it."""
        if self._stopping.is_set():
            return
        deadline = time.monotonic() + last_within
        self._stopping.set()
        self._thread.join(timeout=max(last_within, 1.0))
        if last_within > 0:
            try:
                within(deadline - time.monotonic(), lambda: self._attempt(self._take))
            except TimeoutError:
                logger.error("there was no time for the last snapshot")
                return
        self._lock.release()

    def _run(self) -> None:
        self._attempt(self._attend)
        while not self._stopping.wait(self._interval_seconds):
            self._attempt(self._attend_and_take)

    def _attempt(self, step: Callable[[], None]) -> None:
        self._asked_at = time.monotonic()
        try:
            self._lock.take_exclusively()
            step()
        except Busy as busy:
            # Else another process takes the snapshots.
            if not isinstance(busy.__cause__, BlockingIOError):
                self._note_trouble("No lock can be made beside the database: is its disk full?")
        except SnapshotError as error:
            SNAPSHOTS.labels("failed").inc()
            self._note_trouble(str(error))
        else:
            self._trouble = ""
        self._asked_at = None

    def _attend(self) -> None:
        self._intervals_alone += 1
        is_with_another = self._store.attend()
        # A snapshot that follows may take as long as it likes.
        self._asked_at = None
        if is_with_another:
            if self._intervals_alone > INTERVALS_ALONE:
                logger.warning(_NOT_ALONE)
            self._intervals_alone = 0

    def _attend_and_take(self) -> None:
        self._attend()
        # The file may be another's by the time that SNAPSHOT_URL answers.
        if not self._stopping.is_set():
            self._take()

    def _take(self) -> None:
        started = time.monotonic()
        if snapshot := self._store.take(self._file, self._series):
            SNAPSHOTS.labels("taken").inc()
            self._series = snapshot.series
        self.taken_at = started

    def _note_trouble(self, trouble: str) -> None:
        if self._trouble != trouble:
            logger.error("no snapshot can be taken: %s", trouble)
        self._trouble = trouble


def _text_of(error: SnapshotError | TimeoutError) -> str:
    return str(error) or "SNAPSHOT_URL did not answer in time."
