"""Servers, networks, names and clocks that misbehave, on loopback."""

import contextlib
import socket
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.disks import in_namespace
from tests.support.machine import built_to_preload
from tests.support.processes import free_port

CLOCK = Path(__file__).with_name("clock.c")
SECONDS_TO_CUT = 30
# SQLite serves after three seconds, not after ten: enough even for a busy machine to learn why PostgreSQL is away.
SOON = {"DATABASE_CONNECT_SECONDS": "3"}


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept connections on a free port and hand each to `answer`; yield the port."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    accepted.append(connection)
                    answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            shut(server)
            thread.join(10)
            for connection in accepted:
                connection.close()


def silence(connection: socket.socket) -> None:
    """Never say a word."""


def web_page(connection: socket.socket) -> None:
    """Answer as a web server would."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        connection.close()


class Network:
    """Forwards the connections to its `port`, until it is told to refuse, to say nothing or to cut."""

    def __init__(self, target: int) -> None:
        """`target` is the port that it leads to."""
        self._target = target
        self._flowing = threading.Event()
        self._flowing.set()
        self._cut_after: deque[bytes] = deque()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        # not one that the system may hand out to somebody else while nobody listens
        self.port = free_port()
        self._listen()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """End all connections, and accept none."""
        self._hang_up()
        yield
        self._listen()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Accept connections, and hold back whatever is sent on any: it arrives when the silence ends."""
        self._flowing.clear()
        yield
        self._flowing.set()

    def cut_after(self, texts: Iterable[bytes]) -> None:
        """Deliver the first of these when a client sends it, and cut that connection; the same for all the others."""
        self._cut_after.extend(texts)

    def expect_cuts(self) -> None:
        """Return when all of them were sent."""
        deadline = time.monotonic() + SECONDS_TO_CUT
        while self._cut_after:
            assert time.monotonic() < deadline, f"Nobody has sent these: {self._cut_after}"
            time.sleep(0.05)

    def close(self) -> None:
        """Leave nothing behind."""
        self._hang_up()
        self._flowing.set()
        for thread in self._threads:
            thread.join(10)
        for connection in self._sockets:
            connection.close()

    def _listen(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._sockets.append(self._server)
        self._acceptor = self._start(self._accept, self._server)

    def _hang_up(self) -> None:
        shut(self._server)
        # what it has accepted just now is cut, too
        self._acceptor.join(10)
        for connection in self._sockets:
            shut(connection)

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                self._sockets.append(client)
                target = socket.create_connection(("127.0.0.1", self._target))
                self._sockets.append(target)
                self._start(self._forward, client, target, self._cut_after)
                self._start(self._forward, target, client, deque())

    def _forward(self, source: socket.socket, sink: socket.socket, cut_after: deque[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
                if cut_after and cut_after[0] in data:
                    cut_after.popleft()
                    break
        shut(source)
        shut(sink)

    def _start(self, function: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread


def shut(connection: socket.socket) -> None:
    """End a connection, or the listening, and wake the threads that wait for it; closing alone would not."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Names:
    """A file of host names that one process finds as its /etc/hosts, and no name server beside it."""

    def __init__(self, folder: Path) -> None:
        """`folder` receives the files that the process finds in place of the system's."""
        self._hosts, self._resolver = folder / "hosts", folder / "resolv.conf"
        self._hosts.touch()
        self._resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def prefix(self) -> list[str]:
        """A prefix for the command."""
        mounts = {self._hosts: "/etc/hosts", self._resolver: "/etc/resolv.conf"}
        return in_namespace("; ".join(f"mount --bind {ours} {theirs}" for ours, theirs in mounts.items()))

    def resolve(self, *names: str) -> None:
        """From now on, these names and no others are known, as loopback."""
        # in place, because the process sees this very file
        self._hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in names))


class Clock:
    """What a process takes for the time of day. Its other clocks, and the kernel, know better."""

    def __init__(self, folder: Path) -> None:
        """`folder` receives what makes the process wrong about the time."""
        self._seconds = folder / "seconds"
        if not sysconfig.get_config_var("HAVE_SEM_CLOCKWAIT"):
            pytest.skip("this Python waits by the time of day (make PYTHON=/usr/bin/python3): a clock that goes wrong")
        self._library = built_to_preload(CLOCK, folder, "a process that is wrong about the time of day")
        self._seconds.write_bytes(bytes(8))

    def environ(self) -> dict[str, str]:
        """The environment of the process."""
        return {"LD_PRELOAD": str(self._library), "WRONG_BY_SECONDS": str(self._seconds)}

    def set_back(self, *, seconds: int) -> None:
        """Let the clock be this much behind, from now on."""
        with self._seconds.open("r+b") as file:
            file.write((-seconds).to_bytes(8, sys.byteorder, signed=True))
