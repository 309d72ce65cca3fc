"""How many may be inside at a time: first come, first served, and one deadline for each request."""

import asyncio
import threading
import time
from collections import deque
from contextvars import ContextVar

MAX_WAITING = 1_000
MAX_WAIT_SECONDS = 5.0

arrived_at: ContextVar[float] = ContextVar("arrived_at")
"""When the request that is being answered arrived, on the monotonic clock. However often it has to
wait, it waits MAX_WAIT_SECONDS in all."""


class NoPlace(Exception):
    """There is no place: `full` because too many wait, `waited` because none came free in time."""


class Closed(Exception):
    """The limiter lets nobody in any more."""


class ConcurrencyLimiter:
    """Lets `places` in at a time, and the others as soon as one leaves.

    With `hold_seconds`, whoever stays inside for longer keeps nobody out: in so many seconds, as
    many are let in as there are places. The event loop's queue is in front of its threads on
    purpose: a thread that has finished rests until the loop hands it the next job, and threads that
    never rest would leave the loop so little of the interpreter that /health would take seconds.
    """

    def __init__(self, places: int, *, hold_seconds: float | None = None) -> None:
        self.places = places
        self.inside = 0
        self._hold_seconds = hold_seconds
        self._queue: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        # close() is called by another thread than all the rest.
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_empty = threading.Event()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not turn.done() for turn in self._queue)

    def try_to_enter(self) -> bool:
        """Take a place and return True, or return False because none is free; raise Closed."""
        with self._lock:
            if self._is_closed:
                raise Closed
            if self.inside >= self.places:
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
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._watch()
        try:
            async with asyncio.timeout(arrived_at.get(now) + MAX_WAIT_SECONDS - now):
                await turn
        except TimeoutError:
            # Its turn may have come at the very moment at which the time was over.
            if not turn.done() or turn.cancelled():
                raise NoPlace("waited") from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self.inside -= 1
            if self._is_closed and not self.inside:
                self._is_empty.set()
        if self._queue and self.inside < self.places:
            self._let_one_in()

    def close(self) -> None:
        """Let nobody in any more; those who wait are told when they would have come in."""
        with self._lock:
            self._is_closed = True
            if not self.inside:
                self._is_empty.set()

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait, after close(), for those inside to leave; return whether all have."""
        return self._is_empty.wait(max(seconds, 0.0))

    def _let_one_in(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if turn.done():
                continue
            with self._lock:
                if not self._is_closed:
                    self.inside += 1
                    turn.set_result(None)
                    return
            turn.set_exception(Closed())

    def _watch(self) -> None:
        if self._hold_seconds is not None and self._timer is None and self._queue:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._hold_seconds / self.places, self._let_one_more_in)

    def _let_one_more_in(self) -> None:
        self._timer = None
        self._let_one_in()
        self._watch()
