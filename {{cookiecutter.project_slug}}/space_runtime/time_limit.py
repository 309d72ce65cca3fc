"""Time limits for calls, including calls into libraries that have none."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Return function(), or raise TimeoutError if it takes longer.

    A call that takes longer is not interrupted: its daemon thread runs on.
    """
    return start(function).result(timeout=seconds)


def while_at_work(
    seconds: float,
    function: Callable[[], Result],
    is_at_work: Callable[[], bool],
    terminate: Callable[[], None],
) -> Result:
    """Return function(), or raise TimeoutError if it hangs and terminate() does not end it.

    It hangs if is_at_work() says no, which is asked every so many seconds. After terminate() it has
    as long again.
    """
    outcome = start(function)
    while wait([outcome], timeout=seconds).not_done and is_at_work():
        pass
    if not outcome.done():
        terminate()
    return outcome.result(timeout=seconds)


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
