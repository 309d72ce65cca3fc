"""A load generator: some connections, each of which sends its next request when it has its answer.

Plain sockets and one `epoll`, because a client library would take more of the machine than the servers that it is
meant to measure.
"""

import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

SECONDS_FOR_AN_ANSWER = 30


@dataclass(frozen=True)
class Answers:
    """How many came a second, and how long each took, in milliseconds, the shortest first."""

    per_second: float
    milliseconds: list[float]

    def percentile(self, percent: int) -> float:
        """The time within which so many of a hundred came."""
        return self.milliseconds[len(self.milliseconds) * percent // 100]


class _Connection:
    """One client: a socket and the answer that is on its way."""

    def __init__(self, port: int, request: Callable[[], bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS_FOR_AN_ANSWER)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._received = b""
        self._length = 0
        self.sent = 0.0

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.socket.sendall(self._request())

    def receive(self) -> bool:
        """Take what has come; return whether the answer is complete. Anything but a success ends the measurement."""
        part = self.socket.recv(65_536)
        self._received += part
        self._length = self._length or self._length_of_answer()
        if not part:
            raise AssertionError(f"The server answered {self._received!r}")
        if not self._length or len(self._received) < self._length:
            return False
        self._received, self._length = b"", 0
        return True

    def _length_of_answer(self) -> int:
        """Return how many bytes the answer has, head and body; 0 if that is not known yet."""
        end_of_head = self._received.find(b"\r\n\r\n")
        if end_of_head < 0:
            return 0
        if not self._received.startswith(b"HTTP/1.1 2"):
            raise AssertionError(f"The server answered {self._received!r}")
        start = self._received.index(b"content-length: ") + len(b"content-length: ")
        return end_of_head + 4 + int(self._received[start : self._received.index(b"\r", start)])


def answers_per_second(port: int, clients: int, seconds: float, request: Callable[[], bytes]) -> float:
    """Return how many requests the server on `port` answers a second while `clients` keep asking."""
    return load(port, clients, seconds, request).per_second


def load(port: int, clients: int, seconds: float, request: Callable[[], bytes]) -> Answers:
    """Return what `clients` that keep asking the server on `port` get.

    Every answer is waited for, so that no work is left over for the time in which another server is asked.
    """
    unanswered = clients
    milliseconds: list[float] = []
    with selectors.DefaultSelector() as selector:
        connections = [_Connection(port, request) for _ in range(clients)]
        started = time.perf_counter()
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        while unanswered:
            ready = selector.select(timeout=SECONDS_FOR_AN_ANSWER)
            if not ready:
                raise AssertionError(f"{unanswered} requests had no answer within {SECONDS_FOR_AN_ANSWER} s.")
            for key, _ in ready:
                connection = key.data
                if not connection.receive():
                    continue
                now = time.perf_counter()
                milliseconds.append((now - connection.sent) * 1000)
                if now < started + seconds:
                    connection.send()
                else:
                    unanswered -= 1
        elapsed = time.perf_counter() - started
        for connection in connections:
            connection.socket.close()
    return Answers(len(milliseconds) / elapsed, sorted(milliseconds))
