"""Short work in the event loop itself, where handing it to a thread costs more than it does.

It must not hold up the other requests. So one read and one write run in each turn of the loop, on
connections that stop a statement when the time is over; the work is then run again, in a thread.
Work runs in threads, too, until it is known to be short: it might call a slow model.
"""

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic, thread_time
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from space_runtime.backends.protocol import Backend
from space_runtime.serving.worker_pool import RunInThread, WorkerPool

Result = TypeVar("Result")

SHORT_SECONDS = 0.003
"""Of processor time, since what another thread takes meanwhile is not the work's fault."""
HOLDING_SECONDS = 0.1
"""Of any time, for work that waits. Longer, since a busy machine pauses the whole process."""

# A long run is a strike, and a short one takes back a fifth of them. So a single long run, which
# may have met a garbage collection, changes nothing; one in two does.
_LONG = 3.0
_UNKNOWN = 8.0
_LEFT_AFTER_A_SHORT_RUN = 0.8

WRITES_BETWEEN_CHECKPOINTS = 100
"""After so many, two are made in a thread: only there, the first copies the WAL to the database if
it has become long, and the second begins it anew. Both wait for the disk."""


class _Stint:
    """The time that one run of some work may take in the event loop."""

    def __init__(self) -> None:
        self._processor_end = thread_time() + SHORT_SECONDS
        self._end = monotonic() + HOLDING_SECONDS
        self.was_stopped = False
        self.may_commit = False
        self.commits = False

    def is_over(self) -> bool:
        return thread_time() > self._processor_end or monotonic() > self._end

    def is_to_stop(self) -> bool:
        self.was_stopped = self.was_stopped or self.is_over()
        return self.was_stopped


class LoopWorker:
    """Runs short work in the event loop, one after the other, on a connection that it keeps."""

    def __init__(self, engine: Engine, backend: Backend, pool: WorkerPool) -> None:
        self.pool = pool
        """Whoever uses the connection has a place in this pool."""
        self._backend = backend
        # A pool of its own: the event loop must not wait for a connection that a thread has.
        self._engine = Engine(
            engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=True
        )
        event.listen(self._engine.pool, "connect", self._prepare)
        self._connection: Connection | None = None
        self._in_use = threading.Lock()
        self._stint = _Stint()
        self._strikes: dict[object, float] = {}

    def takes(self, work: Callable[..., Any], others: WorkerPool | None = None) -> bool:
        """Return whether the work is known to be short; a few times is enough if `others` are full.

        Otherwise, work that was found long by mistake would wait there for work that is.
        """
        strikes = self._strikes.get(_key(work), _UNKNOWN)
        are_full = others is not None and others.limiter.inside >= others.limiter.places
        return self._connection is not None and strikes < (_UNKNOWN if are_full else _LONG)

    def run(self, work: Callable[..., Any], job: Callable[[Connection], Result]) -> Result:
        """Return what the job returns, which is the work on a connection; raise RunInThread."""
        with self._in_use:
            connection = self._connection
            if connection is None:
                raise RunInThread
            options = connection.get_execution_options()
            stint = self._stint = _Stint()
            try:
                result = job(connection)
                if stint.was_stopped and not stint.commits:
                    raise RunInThread
            except Exception as error:
                # A thread replaces a lost connection and translates the error. And the work may
                # have made something else of the error with which it was stopped.
                if stint.was_stopped or isinstance(error, DBAPIError):
                    self._drop()
                    if not stint.commits:
                        raise RunInThread from error
                raise
            finally:
                self._note(work, stint)
                is_as_before = connection.get_execution_options() is options
                if connection.closed or connection.invalidated or not is_as_before:
                    self._drop()
            return result

    def observe(self, work: Callable[..., Any], job: Callable[[], Result]) -> Result:
        """Return what the job returns, and note how long it took; in a thread."""
        stint = _Stint()
        try:
            return job()
        finally:
            self._note(work, stint)
            if self._connection is None:
                self._open()

    def close(self) -> None:
        """Close the connection as soon as nobody uses it, and open none any more."""
        with self._in_use:
            self._drop()
            self._engine.dispose()

    def _prepare(self, driver_connection: Any, record: ConnectionPoolEntry) -> None:
        self._backend.interrupt(driver_connection, lambda: self._stint.is_to_stop())

    def _open(self) -> None:
        # Without it, work runs in threads, and what was just committed is not to fail.
        with self._in_use, contextlib.suppress(SQLAlchemyError, OSError):
            if self._connection is None and not self.pool.limiter.is_closed:
                self._connection = self._engine.connect()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _note(self, work: Callable[..., Any], stint: _Stint) -> None:
        strikes = self._strikes.get(_key(work), _UNKNOWN)
        if stint.was_stopped or stint.is_over():
            strikes = min(strikes + 1, _UNKNOWN)
        else:
            strikes *= _LEFT_AFTER_A_SHORT_RUN
        self._strikes[_key(work)] = strikes


class LoopWriter(LoopWorker):
    """Runs short writes. One that was stopped may be rolled back already, so it must not go on."""

    def __init__(self, engine: Engine, backend: Backend, pool: WorkerPool) -> None:
        super().__init__(engine, backend, pool)
        self._writes = 0
        event.listen(self._engine, "begin", self._begin)
        event.listen(self._engine, "before_cursor_execute", self._refuse_what_was_stopped)
        event.listen(self._engine, "commit", self._commit)

    def takes(self, work: Callable[..., Any], others: WorkerPool | None = None) -> bool:
        """Return whether the work is known to be short, and there is no checkpoint to be made."""
        self._writes += 1
        is_for_thread = self._writes % (WRITES_BETWEEN_CHECKPOINTS + 2) < 2
        return super().takes(work, others) and not is_for_thread

    def let_commit(self) -> None:
        """Let the work be committed, as it has ended."""
        self._stint.may_commit = True

    def _begin(self, connection: Connection) -> None:
        self._backend.begin(connection, reading=False, bounded=True)

    def _refuse_what_was_stopped(self, *_: object) -> None:
        if self._stint.was_stopped:
            raise RunInThread

    def _commit(self, connection: Connection) -> None:
        """Refuse work that commits by itself: if it was stopped later, it could not run again."""
        self._stint.was_stopped = self._stint.was_stopped or not self._stint.may_commit
        self._refuse_what_was_stopped()
        self._stint.commits = True


def _key(work: Callable[..., Any]) -> object:
    """Return the same for each lambda or inner function of one place in the code."""
    while isinstance(work, partial):
        work = work.func
    return getattr(work, "__code__", type(work))
