"""File locks with which the processes of one deployment agree on who uses an SQLite file.

They are advisory locks on files next to it, and the kernel releases them when the process ends.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_SECONDS_FOR_OTHERS = 10.0


class Busy(Exception):
    """Another process uses these files."""


class FileLock:
    """A lock on an SQLite file: shared to serve it, exclusive to move, remove or copy it."""

    def __init__(self, location: Path) -> None:
        self.location = location
        self._descriptor: int | None = None

    def share(self) -> None:
        """Take the shared lock; raise Busy while another process has the exclusive one."""
        try:
            self._lock(fcntl.LOCK_SH)
        except BlockingIOError:
            raise Busy from None
        except OSError:
            # The disk may be full, for example: serving without a lock is better than not serving.
            logger.warning("the SQLite file cannot be locked: let only one process use it")

    def take_exclusively(self) -> None:
        """Take the exclusive lock; if that fails, raise Busy and keep a shared lock held before.

        The cause is a BlockingIOError if another process has the lock, else what is wrong here.
        """
        was_shared = self._descriptor is not None
        try:
            self._lock(fcntl.LOCK_EX)
        except OSError as error:
            # flock() does not upgrade a lock atomically: a failed attempt may lose the shared one.
            self.release()
            if was_shared:
                self.share()
            raise Busy from error

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, kind: int) -> None:
        if self._descriptor is None:
            path = self.location.with_name(self.location.name + ".lock")
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)


def setting_up(location: Path) -> AbstractContextManager[None]:
    """Let no other process create, restore or move files at this location during the block.

    If another one is at it, wait up to ten seconds, then raise Busy.
    """
    return _alone(location.with_name(location.name + ".setup"))


def alone(path: Path) -> AbstractContextManager[None]:
    """Let no other process migrate this file during the block.

    If another one is at it, wait up to ten seconds, then raise Busy.
    """
    return _alone(path.with_name(path.name + ".migrating"))


@contextmanager
def _alone(lock_path: Path) -> Iterator[None]:
    deadline = time.monotonic() + _SECONDS_FOR_OTHERS
    with ExitStack() as stack:
        # If no lock file can be opened, as on a read-only disk, nothing can be written either.
        with suppress(OSError):
            while not _is_taken(lock := stack.enter_context(lock_path.open("w")), lock_path):
                if time.monotonic() > deadline:
                    raise Busy
                lock.close()
                time.sleep(0.05)
            stack.callback(_remove, lock_path)
        yield


def _remove(lock_path: Path) -> None:
    # Many an SQLite file has a name that never comes back, so its locks would pile up.
    with suppress(OSError):
        lock_path.unlink()


def _is_taken(lock: IO[str], path: Path) -> bool:
    """Try to lock an open file; return whether it is locked, and still the one at its path."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def exclusive(locations: Iterable[Path], own: FileLock | None = None) -> Iterator[None]:
    """Lock these locations exclusively until the block ends; raise Busy while others share them.

    `own` is the lock under which this process serves; it is shared again at the end.
    """
    locks = {location: FileLock(location) for location in locations}
    if own:
        locks[own.location] = own
    with ExitStack() as stack:
        # Every process locks in the same order, so that no two wait for each other.
        for location, lock in sorted(locks.items()):
            stack.enter_context(setting_up(location))
            stack.callback(lock.share if lock is own else lock.release)
            lock.take_exclusively()
        yield
