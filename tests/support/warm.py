"""Starts apps as forks of a process that has imported their libraries: half of what a start costs is importing them.

What is forked has no code of the project in it, and goes on as `python -m uvicorn` does: in its own folder, session and
environment, with its own `src`. It serves the many tests that look at what an app does once it runs. The start itself
is tested with processes that begin from nothing, too: containers, workers, `make demo`, every app with a prefix.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.support.processes import bare_environment

LIBRARIES = (
    "alembic.command",
    "fastapi",
    "prometheus_client",
    "psycopg",
    "pydantic_settings",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
    "uvicorn.lifespan.on",
    "uvicorn.main",
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)
# An interpreter reads these when it begins, or whoever loads a program does.
READ_AT_THE_BEGINNING = ("LD_", "PYTHON", "WEB_CONCURRENCY")
PARENT = Path(__file__).with_name("warm_parent.py")


class Fork:
    """An app that was forked from the warm parent, which tells how it ended."""

    def __init__(self, replies: socket.socket) -> None:
        """`replies` tells its id, and when it has ended its exit code."""
        self._replies, self._said = replies, b""
        replies.settimeout(30)
        self.returncode: int | None = None
        self.pid = self._reply()

    def _reply(self) -> int:
        while not self._said.endswith(b"\n"):
            part = self._replies.recv(1)
            assert part, f"the warm parent ended after {self._said!r}"
            self._said += part
        number, self._said = int(self._said), b""
        return number

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return the exit code."""
        if self.returncode is None:
            self._replies.settimeout(timeout)
            try:
                self.returncode = self._reply()
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired("uvicorn", timeout or 0) from None
            self._replies.close()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def can_be_forked(environ: Mapping[str, str]) -> bool:
    """Whether an app with this environment behaves the same when its interpreter began without it."""
    return not any(name.startswith(READ_AT_THE_BEGINNING) for name in environ)


def fork(arguments: Sequence[str], folder: Path, environ: Mapping[str, str], log: int) -> Fork:
    """Run `python -m uvicorn` with these arguments in this folder and environment; it prints to this descriptor."""
    ours, theirs = socket.socketpair()
    with theirs:
        message = json.dumps({"arguments": list(arguments), "folder": str(folder), "environ": dict(environ)})
        socket.send_fds(parent(), [message.encode()], [log, theirs.fileno()])
    return Fork(ours)


@cache
def parent() -> socket.socket:
    """Where the warm parent of this test process takes requests; it ends when this end is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, PARENT, str(theirs.fileno()), *LIBRARIES],
            env=bare_environment(os.devnull),
            cwd="/",
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait(10)

    return ours
