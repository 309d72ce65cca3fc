"""When snapshots are taken and restored, within time limits; store.py says how."""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from space_runtime.file_locks import Busy, FileLock
from space_runtime.observability.metrics import SNAPSHOT_AGE, SNAPSHOTS
from space_runtime.snapshots.folder import Misconfigured, SnapshotError
from space_runtime.snapshots.store import DamagedSnapshot, SnapshotStore
from space_runtime.time_limit import start, within

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

CONFIGURED = "app"
FALLBACK = "fallback"
"""The kinds of series, with which the names of the series begin."""


class Snapshots:
    """The snapshots of the SQLite file that serves. Without a store, the methods do nothing."""

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
        """When the newest snapshot was last up to date, on the monotonic clock, or None."""
        return self._timer.taken_at if self._timer else None

    def restore(self, which: str, target: Path) -> str | None:
        """Create `target` from the newest sound snapshot of a series, or of a kind of series.

        Return its series, or None if there is none or it cannot be fetched.
        """
        store, self._trouble = self._store, None
        if store is None:
            return None
        snapshot = None
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                snapshot = within(RESTORE_SECONDS, lambda: store.restore(which, target))
                break
            except (SnapshotError, TimeoutError) as error:
                is_final = isinstance(error, DamagedSnapshot | Misconfigured | TimeoutError)
                if is_final or not attempts_left:
                    self._trouble = _text_of(error)
                    logger.error("no snapshot could be restored: %s", self._trouble)
                    return None
            time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        if snapshot is None:
            return None
        logger.info("restored snapshot %d", snapshot.number)
        return snapshot.series

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
        """Return a sentence about the newest snapshot, or "" without SNAPSHOT_URL."""
        if self._store is None:
            return ""
        timer, trouble = self._timer, self._trouble
        if timer is not None and (timer.has_tried or timer.trouble):
            trouble = timer.trouble
        if trouble is not None:
            told = f"Snapshots fail: {trouble}"
        elif self.taken_at is not None:
            told = f"The newest snapshot is {time.monotonic() - self.taken_at:.0f} s old."
        elif timer is not None and timer.is_trying:
            told = "SNAPSHOT_URL is being tried."
        else:
            told = f"A snapshot is taken every {self._interval_seconds:g} s."
        return told if timer is None or timer.is_alone else f"{told} {_NOT_ALONE}"

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
        self.is_trying = True
        self.has_tried = False
        self.trouble: str | None = None
        self.taken_at: float | None = None
        self._store = store
        # Not a link to it: SQLite's log, which tells of changes, is beside the file itself.
        self._file = Path(os.path.realpath(file))
        self._series = series
        self._interval_seconds = interval_seconds
        # Only one of the processes that serve a file takes its snapshots.
        self._lock = FileLock(file.with_name("snapshots"))
        self._state_taken: object = None
        self._intervals_alone = INTERVALS_ALONE
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    @property
    def is_alone(self) -> bool:
        """Whether no other copy of the deployment was noticed lately."""
        return self._intervals_alone >= INTERVALS_ALONE

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
        try:
            self._lock.take_exclusively()
            step()
        except Busy:
            pass
        except SnapshotError as error:
            SNAPSHOTS.labels("failed").inc()
            self._note_trouble(str(error))
        else:
            self.trouble = None
        self.is_trying = False

    def _attend(self) -> None:
        outcome = start(self._store.attend)
        wait([outcome], timeout=SECONDS_OF_SILENCE)
        if not outcome.done():
            self._note_trouble(f"SNAPSHOT_URL has not answered within {SECONDS_OF_SILENCE:g} s.")
        if outcome.result():
            if self.is_alone:
                logger.warning(_NOT_ALONE)
            self._intervals_alone = 0
        else:
            self._intervals_alone += 1
        if self.is_trying and (folder := self._store.found_folder):
            logger.info("snapshots go to the folder %s", folder)

    def _attend_and_take(self) -> None:
        self._attend()
        # The file may be another's by the time that SNAPSHOT_URL answers.
        if not self._stopping.is_set():
            self._take()

    def _take(self) -> None:
        self.has_tried = True
        started, state = time.monotonic(), _state_of(self._file)
        if self._series is None:
            known = self._store.series(CONFIGURED)
            unmoved = [series for series, is_moved in known.items() if not is_moved]
            self._series = unmoved[-1] if unmoved else new_series()
        if state != self._state_taken:
            self._store.take(self._file, self._series)
            SNAPSHOTS.labels("taken").inc()
        self.taken_at, self._state_taken = started, state

    def _note_trouble(self, trouble: str) -> None:
        if self.trouble != trouble:
            logger.error("no snapshot can be taken: %s", trouble)
        self.trouble = trouble


def new_series() -> str:
    """Return a new series, so that snapshots of a new database do not displace older ones."""
    return f"{CONFIGURED}-{uuid4().hex[:8]}"


def _text_of(error: SnapshotError | TimeoutError) -> str:
    return str(error) or "SNAPSHOT_URL did not answer in time."


def _state_of(file: Path) -> list[tuple[int, int]]:
    """Return times and sizes that change with the database, so that an idle one is not copied."""
    state = []
    for part in (file, file.with_name(f"{file.name}-wal")):
        with suppress(FileNotFoundError):
            stat = part.stat()
            state.append((stat.st_mtime_ns, stat.st_size))
    return state
