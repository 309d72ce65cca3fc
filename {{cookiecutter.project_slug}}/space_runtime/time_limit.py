"""Time limits for calls, including calls into libraries that have none."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Return function(), or raise TimeoutError if it takes longer.

    A call that takes longer is not interrupted: its daemon thread runs on.
    """
    return start(function).result(timeout=seconds)


def while_progressing(
    seconds: float,
    function: Callable[[], Result],
    progress: threading.Event,
    terminate: Callable[[], None],
) -> Result:
    """Return function(), or raise TimeoutError if it hangs and terminate() does not end it.

    It hangs if it does not set `progress` for `seconds`. After terminate() it has as long again.
    """
    outcome = start(function)
    while wait([outcome], timeout=seconds).not_done and progress.is_set():
        progress.clear()
    if not outcome.done():
        terminate()
    return outcome.result(timeout=seconds)


@contextmanager
def taken_for_progress(
    on_progress: Callable[[], None], *, every: float, at_most: float
) -> Iterator[None]:
    """Report progress in this block, of which nothing is heard, for at most so many seconds."""
    has_ended = threading.Event()

    def report() -> None:
        for _ in range(int(at_most / every)):
            if has_ended.wait(every):
                break
            on_progress()

    start(report)
    try:
        yield
    finally:
        has_ended.set()


def start(function: Callable[[], Result]) -> Future[Result]:
    """Call the function in a daemon thread, which does not keep the process from ending."""
    outcome: Future[Result] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="time-limit", daemon=True).start()
    return outcome
