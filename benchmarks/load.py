"""A load generator: some connections, each of which sends its next request when it has its answer.

Plain sockets and one `epoll`, because a client library would take more of the machine than the servers that it is
meant to measure.
"""

import selectors
import socket
import time
from collections.abc import Callable


class _Connection:
    """One client: a socket and the answer that is on its way."""

    def __init__(self, port: int, request: Callable[[], bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._received = b""

    def send(self) -> None:
        self.socket.sendall(self._request())

    def receive(self) -> bool:
        """Take what has come; return whether the answer is complete. Anything but a success ends the measurement."""
        part = self.socket.recv(65_536)
        self._received += part
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not part or (separator and not head.startswith(b"HTTP/1.1 2")):
            raise AssertionError(f"The server answered {self._received!r}")
        if not separator or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return False
        self._received = b""
        return True


def answers_per_second(port: int, clients: int, seconds: float, request: Callable[[], bytes]) -> float:
    """Return how many requests the server on `port` answers a second while `clients` keep asking."""
    with selectors.DefaultSelector() as selector:
        connections = [_Connection(port, request) for _ in range(clients)]
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        answered, started = 0, time.perf_counter()
        while (now := time.perf_counter()) < started + seconds:
            for key, _ in selector.select(timeout=30):
                connection = key.data
                if connection.receive():
                    answered += 1
                    connection.send()
        for connection in connections:
            connection.socket.close()
    return answered / (now - started)
