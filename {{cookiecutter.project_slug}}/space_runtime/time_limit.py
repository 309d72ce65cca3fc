"""Calls with a time limit, also to what has none of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Return function(), or raise TimeoutError; a call that hangs is left to its daemon thread."""
    return _wait_for(_begin(function), seconds)


def while_progressing(
    seconds: float,
    function: Callable[[], Result],
    progress: threading.Event,
    wake: Callable[[], None],
) -> Result:
    """Return function(), or raise TimeoutError once `progress` was not set for so many seconds.

    Before that, `wake` is called, and the function has as much time again to end by itself.
    """
    outcome = _begin(function)
    while True:
        try:
            return _wait_for(outcome, seconds)
        except TimeoutError:
            if not progress.is_set():
                break
            progress.clear()
    wake()
    return _wait_for(outcome, seconds)


def _begin(function: Callable[[], Result]) -> Future[Result]:
    outcome: Future[Result] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="time-limit", daemon=True).start()
    return outcome


def _wait_for(outcome: Future[Result], seconds: float) -> Result:
    # A TimeoutError of the function itself cannot be told from ours, and means the same.
    return outcome.result(timeout=max(seconds, 0.0))
