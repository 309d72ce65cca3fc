"""First come, first served: a few threads, a bounded queue, a bounded wait."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from src.database.errors import DatabaseUnavailable

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

    async def run(self, job: Callable[[], Result]) -> Result:
        """Return what the job returns; raise DatabaseUnavailable if its turn does not come."""
        if self._admitted >= self._capacity:
            raise DatabaseUnavailable("Too many requests are waiting for the database.")
        self._admitted += 1
        try:
            try:
                async with asyncio.timeout(MAX_WAIT_SECONDS):
                    await self._turn.acquire()
            except TimeoutError:
                raise DatabaseUnavailable("The database is busy; nothing was stored.") from None
            return await self._run(job)
        finally:
            self._admitted -= 1

    async def _run(self, job: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._executor, job)
        except RuntimeError:
            self._turn.release()
            raise DatabaseUnavailable("The database is being changed.", retry_after=1) from None
        # a client that leaves does not free the thread that works for it
        future.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(future)

    def close(self, *, wait: bool) -> None:
        """Take no more work; with `wait`, return when the work that runs is done."""
        self._executor.shutdown(wait=wait)
