"""HTTP by hand, for what no client library would send."""

import socket
from contextlib import suppress
from dataclasses import dataclass

SECONDS_TO_ANSWER = 20


@dataclass(frozen=True)
class Answer:
    """What came back on one connection until it was closed: the first answer, and whatever followed it."""

    status: int
    headers: dict[str, str]
    rest: bytes
    everything: bytes


def send(port: int, *parts: bytes) -> Answer:
    """Send bytes as they are, then read until the server closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_TO_ANSWER) as connection:
        # a server that has refused may close while we still send
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        with suppress(ConnectionError):
            while some := connection.recv(65536):
                received += some
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    status = int(first.split(" ")[1]) if first else 0
    return Answer(status, {name.lower(): value.strip() for name, _, value in fields}, rest, received)


def request(port: int, method_and_target: bytes, *headers: bytes, body: bytes = b"") -> Answer:
    """Send one request, which says that it is the last one."""
    lines = [method_and_target + b" HTTP/1.1", b"Host: example", b"Connection: close", *headers]
    return send(port, b"\r\n".join([*lines, b"", b""]) + body)
