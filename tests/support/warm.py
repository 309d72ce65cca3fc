"""Starts apps and tools as forks of a process that has imported their libraries: most of a start is importing them.

What is forked has no code of the project in it, and goes on as `python -m uvicorn` or `python -m tools.deploy` does: in
its own folder, session and environment, with its own `src`. It serves the many tests that look at what a program does
once it runs. The start itself is tested with processes that begin from nothing, too: containers, workers, the verbs of
both Makefiles, every app with a prefix.
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

# Not huggingface_hub, which reads the environment as it is imported.
LIBRARIES = (
    "alembic.command",
    "alembic.config",
    "anyio._backends._asyncio",
    "dotenv",
    "email_validator",
    "encodings.idna",
    "fastapi",
    "filelock",
    "graphlib",
    "httpx2",
    "prometheus_client",
    "psycopg",
    # FastAPI asks it of each field
    "pydantic.v1",
    "pydantic_settings",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
    "sqlite3",
    "starlette.middleware.cors",
    "structlog",
    "tqdm.auto",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.main",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
    "yaml",
)
# These look at the project from outside, and should not find more than a person's interpreter has.
FROM_NOTHING = ("mypy", "pytest", "ruff")
# An interpreter reads these when it begins, or whoever loads a program does.
READ_AT_THE_BEGINNING = ("LD_", "PYTHON", "WEB_CONCURRENCY")
PARENT = Path(__file__).with_name("warm_parent.py")


class Fork:
    """A program that was forked from the warm parent, which tells how it ended."""

    def __init__(self, replies: socket.socket) -> None:
        """`replies` tells its id, and when it has ended its exit code."""
        self._replies, self._said = replies, b""
        # the first one waits for all imports, on a machine that may be busy
        replies.settimeout(120)
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
                raise subprocess.TimeoutExpired("a fork", timeout or 0) from None
            self._replies.close()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def can_be_forked(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command is `python` with code or a module that may begin as a fork, in this environment.

    Who wants an interpreter that begins from nothing names it: `sys.executable`.
    """
    at_the_beginning = any(name.startswith(READ_AT_THE_BEGINNING) for name in environ)
    python = command[0] == "python" and command[1] in ("-c", "-m") and command[2] not in FROM_NOTHING
    return python and not at_the_beginning


def fork(command: Sequence[str], folder: Path, environ: Mapping[str, str], output: int) -> Fork:
    """Run `python -m MODULE` or `python -c CODE` in this folder and environment; it prints to this descriptor."""
    ours, theirs = socket.socketpair()
    with theirs:
        message = json.dumps({"arguments": list(command[1:]), "folder": str(folder), "environ": dict(environ)})
        socket.send_fds(parent(), [message.encode()], [output, theirs.fileno()])
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
