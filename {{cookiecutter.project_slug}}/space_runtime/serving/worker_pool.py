"""A few threads that do one kind of database work, a connection each."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.observability.metrics import REFUSED
from space_runtime.serving.limiter import Closed, ConcurrencyLimiter, NoPlace

Result = TypeVar("Result")

_NO_PLACE = {
    "full": "Too many requests are waiting for the database.",
    "waited": "The database is busy; nothing was stored.",
}


class WorkerPool:
    """Threads for work on the database, and the places of those who use one of its connections."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.limiter = ConcurrencyLimiter(threads)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"database-{name}")

    async def enter(self) -> None:
        """Take a place; raise DatabaseUnavailable if none comes free in time."""
        try:
            await self.limiter.enter()
        except NoPlace as error:
            REFUSED.labels(str(error)).inc()
            raise DatabaseUnavailable(_NO_PLACE[str(error)]) from None
        except Closed:
            raise DatabaseUnavailable("The database is being changed.", retry_after=1) from None

    async def run(self, job: Callable[[], Result]) -> Result:
        """Return what the job returns; raise DatabaseUnavailable if its turn does not come."""
        await self.enter()
        work = self._submit(job)
        # A client that leaves does not free the thread that works for it.
        work.add_done_callback(lambda _: self.limiter.leave())
        return await asyncio.shield(work)

    async def run_inside(self, job: Callable[[], Result]) -> Result:
        """Return what the job returns, for somebody who holds a place."""
        return await asyncio.shield(self._submit(job))

    def close(self) -> None:
        """Take no more work; what is under way goes on."""
        self.limiter.close()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait, after close(), for the work under way; return whether all of it has ended."""
        if not self.limiter.wait_until_empty(seconds):
            return False
        self._executor.shutdown(wait=False)
        return True

    def _submit(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(
            self._executor, copy_context().run, _without_stop_iteration, job
        )


def _without_stop_iteration(job: Callable[[], Result]) -> Result:
    """Return what the job returns. Python 3.11 could hand this one error to nobody who waits."""
    try:
        return job()
    except StopIteration as error:
        raise RuntimeError("work raised StopIteration: is there a next() without a row?") from error
