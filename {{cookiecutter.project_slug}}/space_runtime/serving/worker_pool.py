"""A few threads for one kind of database work, with one connection each."""

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
    """Threads for database work, and a limiter with a place for each connection they use."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.limiter = ConcurrencyLimiter(threads)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"database-{name}")

    async def enter(self) -> None:
        """Take a place; raise DatabaseUnavailable if none becomes free in time."""
        try:
            await self.limiter.enter()
        except NoPlace as error:
            REFUSED.labels(str(error)).inc()
            raise DatabaseUnavailable(_NO_PLACE[str(error)]) from None
        except Closed:
            raise DatabaseUnavailable("The database is being replaced.", retry_after=1) from None

    async def run(self, job: Callable[[], Result]) -> Result:
        """Return what the job returns; raise DatabaseUnavailable if no thread is free in time."""
        await self.enter()
        # If the client disconnects, the thread keeps running, so its place must stay taken.
        return await asyncio.shield(self.run_last(job))

    def run_last(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a job that gives the caller's place back when it ends; return its future."""
        context = copy_context()
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: context.run(self._run_and_give_back, job)
        )
        work.add_done_callback(lambda _: self.limiter.let_in())
        return work

    def close(self) -> None:
        """Take no more work; running work continues."""
        self.limiter.close()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait, after close(), for running work; return whether all of it has ended."""
        if not self.limiter.wait_until_empty(seconds):
            return False
        self._executor.shutdown(wait=False)
        return True

    def _run_and_give_back(self, job: Callable[[], Result]) -> Result:
        try:
            return job()
        finally:
            # In the thread, because the event loop may end before the job does.
            self.limiter.give_back()
