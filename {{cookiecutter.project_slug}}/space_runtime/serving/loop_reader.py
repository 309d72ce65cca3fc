"""Short reads in the event loop itself, where handing them to a thread costs more than they do.

They must not hold up the other requests. So one runs in each turn of the loop, on a connection that
stops a statement when the time is over; the work is then run again, in a thread. Work runs in
threads, too, until it is known to be short: it might call a slow model.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic, thread_time
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from space_runtime.backends.protocol import Backend
from space_runtime.serving.worker_pool import WorkerPool

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


class RunInThread(Exception):
    """The work cannot be done in the event loop; nothing has come of it."""


class _Stint:
    """The time that one run of some work may take in the event loop."""

    def __init__(self) -> None:
        self._processor_end = thread_time() + SHORT_SECONDS
        self._end = monotonic() + HOLDING_SECONDS
        self.was_stopped = False

    def is_over(self) -> bool:
        return thread_time() > self._processor_end or monotonic() > self._end

    def is_to_stop(self) -> bool:
        self.was_stopped = self.was_stopped or self.is_over()
        return self.was_stopped


class LoopReader(WorkerPool):
    """Runs short reads in the event loop, one after the other, on a connection that it keeps."""

    def __init__(self, engine: Engine, backend: Backend) -> None:
        super().__init__("loop", 1)
        # A pool of its own: the event loop must not wait for a connection that a thread has.
        self._engine = Engine(
            engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=True
        )
        self._backend = backend
        self._connection: Connection | None = None
        self._in_use = threading.Lock()
        self._stint = _Stint()
        self._strikes: dict[object, float] = {}

    def takes(self, work: Callable[..., Any], others: WorkerPool) -> bool:
        """Return whether the work is known to be short; a few times is enough if `others` are full.

        Otherwise, work that was found long by mistake would wait there for work that is.
        """
        strikes = self._strikes.get(_key(work), _UNKNOWN)
        most = _UNKNOWN if others.limiter.inside >= others.limiter.places else _LONG
        return self._connection is not None and strikes < most

    async def read(self, work: Callable[..., Any], job: Callable[[Connection], Result]) -> Result:
        """Return what the job returns, which is the work on a connection; raise RunInThread."""
        await self.enter()
        try:
            return self._run(work, job)
        finally:
            # In the next turn, so that the loop sees to everybody else between two reads.
            asyncio.get_running_loop().call_soon(self.limiter.leave)

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
        """Take no more work, and close the connection as soon as nobody uses it."""
        super().close()
        with self._in_use:
            self._drop()
            self._engine.dispose()

    def _run(self, work: Callable[..., Any], job: Callable[[Connection], Result]) -> Result:
        with self._in_use:
            connection = self._connection
            if connection is None:
                raise RunInThread
            options = connection.get_execution_options()
            stint = self._stint = _Stint()
            try:
                result = job(connection)
            except Exception as error:
                # A thread replaces a lost connection and translates the error. And the work may
                # have made something else of the error with which it was stopped.
                if stint.was_stopped or isinstance(error, DBAPIError):
                    raise RunInThread from error
                raise
            finally:
                self._note(work, stint)
                is_as_before = connection.get_execution_options() is options
                if connection.closed or connection.invalidated or not is_as_before:
                    self._drop()
            if stint.was_stopped:
                raise RunInThread
            return result

    def _open(self) -> None:
        # Without a connection, reads run in threads.
        with self._in_use, contextlib.suppress(SQLAlchemyError, OSError):
            if self._connection is None and not self.limiter.is_closed:
                connection = self._engine.connect()
                self._backend.interrupt(connection, lambda: self._stint.is_to_stop())
                self._connection = connection

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


def _key(work: Callable[..., Any]) -> object:
    """Return the same for each lambda or inner function of one place in the code."""
    while isinstance(work, partial):
        work = work.func
    return getattr(work, "__code__", type(work))
