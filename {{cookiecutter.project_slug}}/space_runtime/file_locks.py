"""Locks by which the processes of one deployment agree about an SQLite file.

They are advisory locks on files beside it, and the system ends them with the process.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_SECONDS_FOR_OTHERS = 10.0


class Busy(Exception):
    """Another process works with these files."""


class FileLock:
    """Shared by the processes that serve a file, exclusive for the one that moves its rows."""

    def __init__(self, location: Path) -> None:
        self.location = location
        self._descriptor: int | None = None

    def share(self) -> None:
        """Take the shared lock; raise Busy while another process has the exclusive one."""
        try:
            self._lock(fcntl.LOCK_SH)
        except OSError:
            # On a full disk, say: better to serve without a lock than not at all.
            logger.warning("the SQLite file cannot be locked: let only one process use it")

    def take_exclusively(self) -> None:
        """Take the exclusive lock; raise Busy, keeping what there was, while others share it."""
        was_shared = self._descriptor is not None
        try:
            self._lock(fcntl.LOCK_EX)
        except (Busy, OSError):
            self.release()
            if was_shared:
                self.share()
            raise Busy from None

    def release(self) -> None:
        """Give the lock up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, kind: int) -> None:
        if self._descriptor is None:
            path = self.location.with_name(self.location.name + ".lock")
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None


@contextmanager
def setting_up(location: Path) -> Iterator[None]:
    """Be the only process that begins, restores or moves files at this location.

    Wait some seconds for another one, then raise Busy.
    """
    deadline = time.monotonic() + _SECONDS_FOR_OTHERS
    try:
        lock = location.with_name(location.name + ".setup").open("w")
    except OSError:
        # Nothing can be begun where nothing can be written, so there is nothing to agree on.
        yield
        return
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy from None
                time.sleep(0.05)
        yield


@contextmanager
def exclusive(locations: Iterable[Path], own: FileLock | None = None) -> Iterator[None]:
    """Have these locations exclusively until the block ends; raise Busy while others serve them.

    `own` is the lock under which this process serves; it is shared again at the end.
    """
    every = set(locations) | ({own.location} if own else set())
    with ExitStack() as stack:
        for location in sorted(every):
            stack.enter_context(setting_up(location))
            lock = own if own and own.location == location else FileLock(location)
            stack.callback(lock.share if lock is own else lock.release)
            lock.take_exclusively()
        yield
