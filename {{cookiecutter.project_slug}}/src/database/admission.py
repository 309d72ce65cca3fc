"""First come, first served: a few threads, a bounded queue, a bounded wait."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from src.database.errors import DatabaseUnavailable
from src.observability.metrics import REFUSED

Result = TypeVar("Result")

MAX_WAITING = 1_000
MAX_WAIT_SECONDS = 5.0


class Lane:
    """A few threads that do one kind of work, and the queue in front of them.

    The queue is the event loop's, not the executor's: a thread that has finished rests until the
    loop hands it the next job. Threads that never rest would leave the loop so little of the
    interpreter that under load even /health would wait for seconds.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"database-{name}")
        self._turn = asyncio.Semaphore(threads)
        self._capacity = threads + MAX_WAITING
        self._admitted = 0
        self._answers: dict[asyncio.Future[Any], Exception] = {}
        self.name = name
        self.threads = threads

    @property
    def busy(self) -> int:
        """How many threads are at work."""
        return len(self._answers)

    @property
    def waiting(self) -> int:
        """How many requests wait for a thread, which may still work for a client that left."""
        return max(0, self._admitted - self.busy)

    async def run(self, job: Callable[[], Result], if_abandoned: Exception) -> Result:
        """Return what the job returns; raise DatabaseUnavailable if its turn does not come.

        Raise `if_abandoned` when abandon() is called meanwhile.
        """
        if self._admitted >= self._capacity:
            REFUSED.labels("full").inc()
            raise DatabaseUnavailable("Too many requests are waiting for the database.")
        self._admitted += 1
        try:
            try:
                async with asyncio.timeout(MAX_WAIT_SECONDS):
                    await self._turn.acquire()
            except TimeoutError:
                REFUSED.labels("waited").inc()
                raise DatabaseUnavailable("The database is busy; nothing was stored.") from None
            return await self._run(job, if_abandoned)
        finally:
            self._admitted -= 1

    def abandon(self) -> None:
        """Answer for the work under way, whose threads wait for a silent server (thread-safe)."""
        for answer in list(self._answers):
            answer.get_loop().call_soon_threadsafe(self._give_up, answer)

    def close(self, *, wait: bool) -> None:
        """Take no more work; with `wait`, return when the work that runs is done."""
        self._executor.shutdown(wait=wait)

    async def _run(self, job: Callable[[], Result], if_abandoned: Exception) -> Result:
        loop = asyncio.get_running_loop()
        try:
            work = loop.run_in_executor(
                self._executor, copy_context().run, _without_stop_iteration, job
            )
        except RuntimeError:
            self._turn.release()
            raise DatabaseUnavailable("The database is being changed.", retry_after=1) from None
        answer: asyncio.Future[Result] = loop.create_future()
        self._answers[answer] = if_abandoned
        work.add_done_callback(lambda _: self._finish(work, answer))
        # a client that leaves does not free the thread that works for it
        return await answer

    def _finish(self, work: asyncio.Future[Result], answer: asyncio.Future[Result]) -> None:
        self._turn.release()
        del self._answers[answer]
        error = work.exception()
        if answer.done():
            return
        if error is None:
            answer.set_result(work.result())
        else:
            answer.set_exception(error)

    def _give_up(self, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            answer.set_exception(self._answers[answer])


def _without_stop_iteration(job: Callable[[], Result]) -> Result:
    """Return what the job returns. Python 3.11 could hand this one error to nobody who waits."""
    try:
        return job()
    except StopIteration as error:
        raise RuntimeError("work raised StopIteration: is there a next() without a row?") from error
