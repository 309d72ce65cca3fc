"""A concurrency limiter: first come, first served, with one deadline per request."""

import asyncio
import threading
import time
from collections import OrderedDict
from contextvars import ContextVar

MAX_WAITING = 1_000
MAX_WAIT_SECONDS = 5.0
BLOCKING_SECONDS = 0.2

arrived_at: ContextVar[float] = ContextVar("arrived_at")
"""When the current request arrived, on the monotonic clock. All its waits share one deadline,
MAX_WAIT_SECONDS later. Each wait may still last a fifth of that: otherwise, a request that has
called a slow model would be refused whenever another request is writing."""


class NoPlace(Exception):
    """No place: `full` if too many are waiting already, `waited` if none became free in time.

    Or `blocked`, if the event loop itself is kept waiting, so that no place can become free.
    """


class Closed(Exception):
    """The limiter lets nobody in any more."""


class ConcurrencyLimiter:
    """Lets up to `places` in at a time; the others wait until one leaves.

    Work that needs a database thread waits here, not in the executor's queue. From there, threads
    would take one job after another without a pause, and the event loop would get the GIL so
    rarely that /health would take seconds.

    Methods must be called in the event loop's thread, unless they say otherwise.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.inside = 0
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._blocking = 0
        self.is_closed = False
        self._is_empty = threading.Event()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    def try_to_enter(self) -> bool:
        """Take a place and return True, or return False because none is free; raise Closed.

        From any thread.
        """
        with self._lock:
            if self.is_closed:
                raise Closed
            if self._queue or self.inside >= self.places:
                return False
            self.inside += 1
            return True

    async def enter(self) -> None:
        """Take a place as soon as there is one; raise NoPlace or Closed."""
        if self.try_to_enter():
            return
        if len(self._queue) >= MAX_WAITING:
            raise NoPlace("full")
        now = time.monotonic()
        seconds = max(arrived_at.get(now) + MAX_WAIT_SECONDS - now, MAX_WAIT_SECONDS / 5)
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue[turn] = None
        # Another thread may have given its place back in the meantime.
        self.let_in()
        # Not asyncio.timeout(), which would cost every request that waits some microseconds more.
        timer = loop.call_later(seconds, _give_up, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()
            raise
        finally:
            timer.cancel()
            self._queue.pop(turn, None)

    def enter_while_blocking(self) -> None:
        """Take a place before those who wait, without returning to the event loop; raise NoPlace.

        Whoever has a place may need the event loop to give it back, so this takes BLOCKING_SECONDS
        at most.
        """
        with self._lock:
            self._blocking += 1
            is_free = self._left.wait_for(self._can_enter, BLOCKING_SECONDS)
            self._blocking -= 1
            if not is_free:
                raise NoPlace("blocked")
            if self.is_closed:
                raise Closed
            self.inside += 1

    def leave(self) -> None:
        """Give a place back, and let the next one in."""
        self.give_back()
        self.let_in()

    def give_back(self) -> None:
        """Give a place back, from any thread; call let_in() afterwards in the event loop's."""
        with self._lock:
            self.inside -= 1
            if self.is_closed and not self.inside:
                self._is_empty.set()
            if self._blocking:
                self._left.notify()

    def let_in(self) -> None:
        """Let in as many of those who wait as there are free places."""
        while self._queue:
            with self._lock:
                if self.inside >= self.places and not self.is_closed:
                    return
                turn, _ = self._queue.popitem(last=False)
                if turn.done():
                    continue
                if self.is_closed:
                    turn.set_exception(Closed())
                else:
                    self.inside += 1
                    turn.set_result(None)

    def close(self) -> None:
        """Let nobody in any more, from any thread; later, let_in() turns away those who wait."""
        with self._lock:
            self.is_closed = True
            if not self.inside:
                self._is_empty.set()

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait, after close() and in another thread; return whether all inside have left."""
        return self._is_empty.wait(max(seconds, 0.0))

    def _can_enter(self) -> bool:
        return self.is_closed or self.inside < self.places


def _give_up(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(NoPlace("waited"))
