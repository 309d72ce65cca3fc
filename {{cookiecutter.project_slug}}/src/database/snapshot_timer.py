"""When snapshots are taken and restored, within bounds of time; snapshots.py says how."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from src.database.handover import Busy, Claim
from src.database.opening import bounded
from src.database.snapshots import DamagedSnapshot, SnapshotError, SnapshotStore
from src.observability.metrics import SNAPSHOT_AGE, SNAPSHOTS

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

RESTORE_SECONDS = 60.0
MARK_SECONDS = 10.0
SECONDS_BETWEEN_ATTEMPTS = 1.0
ATTEMPTS = 5

ASKED_FOR = "app"
FALLBACK = "fallback"


class Snapshots:
    """The snapshots of the SQLite file that serves; none of it does anything without a URL."""

    def __init__(self, url: str | None, interval_seconds: float) -> None:
        self._store = SnapshotStore(url) if url else None
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._taking: Callable[[], None] = lambda: None
        self._trouble: str | None = None
        self.taken_at: float | None = None
        """When the newest snapshot was taken, on the monotonic clock; it is as old as its data."""

    def restore(self, which: str, target: Path) -> str | None:
        """Make `target` from the newest sound snapshot; return its stem, or None if there is none.

        A stem is what the snapshots of one database have in common.
        """
        if self._store is None:
            return None
        store, self._trouble = self._store, None
        for attempt in range(ATTEMPTS):
            try:
                snapshot = bounded(lambda: store.restore(which, target), RESTORE_SECONDS)
            except (SnapshotError, TimeoutError) as error:
                self._trouble = str(error) or "SNAPSHOT_URL did not answer in time."
                if isinstance(error, (DamagedSnapshot, TimeoutError)):
                    break
                if attempt < ATTEMPTS - 1:
                    time.sleep(SECONDS_BETWEEN_ATTEMPTS)
            else:
                if snapshot is not None:
                    logger.info("restored snapshot %d", snapshot.number)
                return snapshot.stem if snapshot else None
        logger.error("no snapshot could be restored, a new database begins: %s", self._trouble)
        return None

    def stems(self, kind: str) -> dict[str, bool]:
        """Return the stems of a kind, oldest first, and whether their rows were moved."""
        if self._store is None:
            return {}
        store = self._store
        return self._attempt(lambda: store.stems(kind), MARK_SECONDS) or {}

    def mark(self, stem: str) -> None:
        """Say at SNAPSHOT_URL that the rows of this stem are on their way to PostgreSQL."""
        if self._store is not None:
            store = self._store
            self._attempt(lambda: store.mark(stem), MARK_SECONDS)

    def unmark(self, stem: str) -> None:
        """Take the mark back."""
        if self._store is not None:
            store = self._store
            self._attempt(lambda: store.unmark(stem), MARK_SECONDS)

    def begin(self, file: Path, stem: str | None) -> None:
        """Take a snapshot of the file every interval, until end(); None continues the newest."""
        if self._store is None:
            return
        # one process takes the snapshots of a file that several serve
        claim = Claim(file.with_name("snapshots"))
        store, stems = self._store, [stem] if stem else []
        kept: list[object] = [None]

        def take() -> None:
            started, state = time.monotonic(), _state_of(file)
            try:
                claim.own()
                if not stems:
                    stems.append(self._stem_to_continue(store))
                if state != kept[0]:
                    store.take(file, stems[0])
                    SNAPSHOTS.labels("taken").inc()
            except Busy:
                return
            except SnapshotError as error:
                SNAPSHOTS.labels("failed").inc()
                if self._trouble != str(error):
                    logger.error("no snapshot could be taken: %s", error)
                self._trouble = str(error)
            else:
                self._trouble, self.taken_at, kept[0] = None, started, state

        def take_last() -> None:
            try:
                take()
            finally:
                claim.release()

        def take_in_turn() -> None:
            while not stopping.wait(self._interval_seconds):
                take()
            claim.release()

        SNAPSHOT_AGE.set_function(
            lambda: float("nan") if self.taken_at is None else time.monotonic() - self.taken_at
        )
        self._taking, self._stopping = take_last, threading.Event()
        stopping = self._stopping
        self._thread = threading.Thread(target=take_in_turn, name="snapshots", daemon=True)
        self._thread.start()

    def end(self, *, last_within: float = 0.0) -> None:
        """Take no more snapshots; the last one if there are seconds for it."""
        self._stopping.set()
        if self._thread is None:
            return
        deadline = time.monotonic() + last_within
        self._thread.join(timeout=max(last_within, 1.0))
        self._thread = None
        if last_within > 0:
            try:
                bounded(self._taking, deadline - time.monotonic())
            except TimeoutError:
                logger.error("there was no time for the last snapshot")

    def describe(self) -> str:
        """Return a sentence about the newest snapshot, or nothing without a URL."""
        if self._store is None:
            return ""
        if self._trouble is not None:
            return f"Snapshots fail: {self._trouble}"
        if self.taken_at is None:
            return f"A snapshot is taken every {self._interval_seconds:g} s."
        return f"The newest snapshot is {time.monotonic() - self.taken_at:.0f} s old."

    def _attempt(self, call: Callable[[], Result], seconds: float) -> Result | None:
        try:
            return bounded(call, seconds)
        except (SnapshotError, TimeoutError) as error:
            logger.error("%s", str(error) or "SNAPSHOT_URL did not answer in time.")
            return None

    def _stem_to_continue(self, store: SnapshotStore) -> str:
        stems = [stem for stem, moved in store.stems(ASKED_FOR).items() if not moved]
        return stems[-1] if stems else new_stem()


def _state_of(file: Path) -> list[tuple[int, int]]:
    """Return what changes whenever the database does."""
    parts = [part for part in (file, file.with_name(f"{file.name}-wal")) if part.exists()]
    return [(part.stat().st_mtime_ns, part.stat().st_size) for part in parts]


def new_stem() -> str:
    """Return a stem for a database begun anew, so that it pushes out no other's snapshots."""
    return f"{ASKED_FOR}-{uuid4().hex[:8]}"
