"""A few threads for one kind of database work, with one connection each."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from anyio.to_thread import current_default_thread_limiter

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.observability.metrics import REFUSED
from space_runtime.serving.limiter import Closed, ConcurrencyLimiter, NoPlace

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_Jobs = SimpleQueue[Callable[[], None] | None]

_NO_PLACE = {
    "full": "Too many requests are waiting for the database.",
    "waited": "The database is busy; nothing was stored.",
    "blocked": "The database is busy; nothing was stored.",
}


class WorkerPool:
    """Threads for database work, and a limiter with a place for each connection they use.

    They are its own: a ThreadPoolExecutor takes twice as long to hand over a job.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.limiter = ConcurrencyLimiter(threads)
        self._jobs: _Jobs = SimpleQueue()
        self._threads = 0
        self._lock = Lock()

    async def enter(self) -> None:
        """Take a place; raise DatabaseUnavailable if none becomes free in time."""
        try:
            await self.limiter.enter()
        except (NoPlace, Closed) as error:
            raise _refusal(error) from None

    def enter_from_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take a place, in the queue of the event loop; raise DatabaseUnavailable if none is free.

        In the loop's own thread nobody can queue, and everybody else has to wait meanwhile, so
        that is not for long.
        """
        try:
            if self.limiter.try_to_enter():
                return
            if _is_running_here(loop):
                self.limiter.enter_while_blocking()
            else:
                asyncio.run_coroutine_threadsafe(self._enter_for_thread(), loop).result()
        except (NoPlace, Closed) as error:
            raise _refusal(error) from None

    def leave_from_thread(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Give a place back, from any thread."""
        self.limiter.give_back()
        if loop is not None and self.limiter.waiting:
            with contextlib.suppress(RuntimeError):  # The loop has ended, and with it who waited.
                loop.call_soon_threadsafe(self.limiter.let_in)

    async def run(self, job: Callable[[], Result]) -> Result:
        """Return what the job returns; raise DatabaseUnavailable if no thread is free in time."""
        await self.enter()
        try:
            future = self.start(job, gives_back=True)
        except RuntimeError:  # The process may have no more threads.
            self.limiter.leave()
            raise
        return await future

    def start(
        self, job: Callable[[], Result], *, gives_back: bool = False
    ) -> asyncio.Future[Result]:
        """Run a job for someone who has a place, and may want it given back; return its future.

        If that is cancelled, because a client disconnects, the job goes on, and its place stays
        taken. It is no run_in_executor(), whose futures take a twelfth of a read's processor time.
        """
        loop, context = asyncio.get_running_loop(), copy_context()
        future: asyncio.Future[Result] = loop.create_future()

        def run_in_thread() -> None:
            try:
                result = context.run(job)
            except BaseException as error:
                end(future.set_exception, error)
            else:
                end(future.set_result, result)

        def end(settle: Callable[[Any], None], outcome: object) -> None:
            if gives_back:
                # In the thread, because the event loop may end before the job does.
                self.limiter.give_back()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, settle, outcome)

        def tell(settle: Callable[[Any], None], outcome: object) -> None:
            if gives_back:
                self.limiter.let_in()
            if not future.done():
                settle(outcome)

        with self._lock:
            if self.limiter.is_closed:
                # A session has a place, and goes on, while the threads end.
                self._start_thread(run_in_thread)
                return future
            if self._threads < self.limiter.places:
                try:
                    self._start_thread(partial(_work, self._jobs))
                    self._threads += 1
                except RuntimeError:
                    if not self._threads:
                        raise
            self._jobs.put(run_in_thread)
        return future

    def close(self) -> None:
        """Take no more work; running work continues, and each thread ends with its own."""
        self.limiter.close()
        with self._lock:
            while self._threads:
                self._threads -= 1
                self._jobs.put(None)

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait, after close(), for running work; return whether all of it has ended."""
        return self.limiter.wait_until_empty(seconds)

    def _start_thread(self, target: Callable[[], None]) -> None:
        # A daemon, since work that never ends must not keep the process from ending.
        Thread(target=target, name=f"database-{self.name}", daemon=True).start()

    async def _enter_for_thread(self) -> None:
        # Endpoints wait in the threads that answers are made in. If all of them waited, whoever has
        # a place could not end: so a thread that waits is replaced by another one.
        threads = current_default_thread_limiter()
        threads.total_tokens += 1
        try:
            await self.limiter.enter()
        finally:
            threads.total_tokens -= 1


def _work(jobs: _Jobs) -> None:
    """Run jobs, in a thread of the pool, until None comes in place of one."""
    for job in iter(jobs.get, None):
        job()
        # Until the next one comes, nothing that it has used may be kept alive.
        del job


def _refusal(error: NoPlace | Closed) -> DatabaseUnavailable:
    if isinstance(error, Closed):
        return DatabaseUnavailable("The database is being replaced.", retry_after=1)
    if str(error) == "blocked":
        logger.warning(
            "an `async def` endpoint could not wait for the database, since it blocks the event"
            " loop: write `def`, or use `await database.write(...)`"
        )
    REFUSED.labels(str(error)).inc()
    return DatabaseUnavailable(_NO_PLACE[str(error)])


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
