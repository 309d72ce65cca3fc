"""Starting programs with nothing of the tests' own environment, and ending exactly what was started."""

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Protocol


class Process(Protocol):
    """What tests need of a process that they started; `subprocess.Popen` has it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return the exit code."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it has not ended."""

    def kill(self) -> None:
        """Kill it."""


def bare_environment(home: str | Path) -> dict[str, str]:
    """What a program gets: a path that begins with the tests' interpreter, a private home, UTF-8, nothing else."""
    programs = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    return {"PATH": os.pathsep.join(programs), "HOME": str(home), "LANG": "C.UTF-8"}


def free_port() -> int:
    """A TCP port that nobody listens on, and that no other test takes before somebody does."""
    for port in own_ports():
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: the ports of a process have no end")


@cache
def own_ports() -> Iterator[int]:
    """A hundred ports, again and again, which no other process takes on which these tests run on this machine.

    They are below those that the system hands out to clients of its own accord.
    """
    # not of the generator that a test may seed
    for hundred in random.SystemRandom().sample(range(100, 320), 220):
        # closed when this process ends
        lock = os.open(Path(tempfile.gettempdir(), f"ports-{hundred}00-of-{os.getuid()}.lock"), os.O_CREAT | os.O_RDWR)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cycle(range(hundred * 100, hundred * 100 + 100))
        os.close(lock)
    raise AssertionError("All ports are taken by other test runs on this machine")


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on this machine's port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Have something that there is only once: other processes of these tests wait for their turn."""
    with Path(tempfile.gettempdir(), f"{name}-of-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def reserved(port: int, patience: float = 30) -> Iterator[None]:
    """Have a port that a test cannot choose for itself."""
    with turn(f"port-{port}"):
        deadline = time.monotonic() + patience
        while is_listening(port):
            assert time.monotonic() < deadline, f"Port {port} is taken on this machine"
            time.sleep(0.1)
        yield


def end(process: Process, patience: float = 30) -> int:
    """End a process that leads its own session, first politely, then with everything it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(10)
