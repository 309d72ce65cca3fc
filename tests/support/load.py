"""Clients that keep at it while servers and databases come and go, and remember what they were told."""

import math
import socket
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2

ITEMS = "/api/items"
PAUSE_SECONDS = 0.05
SERVING = None
"""The moment at which an app has acknowledged some rows, and goes on to."""
SOME_ROWS, SECONDS_FOR_THEM = 10, 30


@dataclass
class Told:
    """What clients were told. Their threads only append, which needs no lock."""

    stored: list[str] = field(default_factory=list)
    """Titles of items that were acknowledged with 201."""
    refused: list[str] = field(default_factory=list)
    """Titles of items that were certainly not stored, if the app tells the truth."""
    uncertain: list[str] = field(default_factory=list)
    """Titles of items of which nobody said anything, or only that nobody knows."""
    answers: list[tuple[float, int]] = field(default_factory=list)
    """When (time.monotonic) which status came; 0 where none came."""

    def statuses(self) -> Counter[int]:
        """How often each status was the answer."""
        return Counter(status for _, status in self.answers)

    def first_success_after(self, moment: float) -> float:
        """The seconds from a moment to the first answer that was a success."""
        successes = (when for when, status in self.answers if when > moment and 200 <= status < 300)
        return min(successes, default=math.inf) - moment

    def check(self, titles: Counter[str]) -> None:
        """Compare with the titles that are stored: what was acknowledged once, what was refused never."""
        print(f"acknowledged {len(self.stored)}, refused {len(self.refused)}, uncertain {len(self.uncertain)}")
        assert self.stored, "nothing was acknowledged"
        self.compare(titles)

    def compare(self, titles: Counter[str]) -> None:
        """Like check(), where nothing may have been acknowledged yet."""
        assert not [title for title in self.stored if titles[title] != 1]
        assert not [title for title in self.refused if titles[title]]
        assert not [title for title in self.uncertain if titles[title] > 1]

    def wait_until(self, moment: float | None) -> None:
        """Wait so many seconds, or until SERVING.

        The moment is what is tested: at any of them the app may still import, start up or serve.
        """
        if moment is not SERVING:
            time.sleep(moment)
            return
        deadline = time.monotonic() + SECONDS_FOR_THEM
        while len(self.stored) < SOME_ROWS:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@dataclass
class Client:
    """One of several that share what they are told."""

    name: str
    port: int
    told: Told
    http: httpx2.Client
    turn: int = 0

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response | None:
        """Send a request and return the answer, if there was one. After a refusal, wait for a moment.

        Raise ConnectError, having sent nothing, while nobody listens.
        """
        try:
            answer = self.http.request(method, path, **options)
        except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
            answer = None
        status = 0 if answer is None else answer.status_code
        self.told.answers.append((time.monotonic(), status))
        assert answer is None or status != 503 or answer.headers["Retry-After"]
        if status in (0, 503):
            time.sleep(PAUSE_SECONDS)
        return answer

    def create(self) -> str | None:
        """Create an item with a title that no other one has; return its path if that was acknowledged."""
        title = f"{self.name} {self.turn}"
        answer = self.ask("POST", ITEMS, json={"title": title})
        if answer is not None and answer.status_code == 201:
            self.told.stored.append(title)
            return answer.headers["Location"]
        if answer is None or "may or may not" in answer.text:
            self.told.uncertain.append(title)
        else:
            self.told.refused.append(title)
        return None


def titles_in(file: Path) -> list[str]:
    """The titles of the items in an SQLite file, the oldest first."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return [title for (title,) in connection.execute("SELECT title FROM items ORDER BY created_at")]


Behaviour = Callable[[Client], object]


def write(client: Client) -> None:
    """Create an item."""
    client.create()


def read_and_write(client: Client) -> None:
    """Create an item, and look at it, at a page of items and at the state of the app."""
    path = client.create()
    client.ask("GET", ITEMS)
    if path is not None:
        client.ask("PATCH", path, json={"description": "changed"})
        client.ask("GET", path)


def hang_up(client: Client) -> None:
    """Send a request, or a part of one, and be gone before the answer comes."""
    title = f"{client.name} {client.turn}"
    request = post(title)
    client.told.uncertain.append(title)
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        # zero seconds to linger: the app meets a reset instead of a good-bye
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", client.turn % 2, 0))
        connection.sendall(request[: len(request) - client.turn % 3 * 10])
    time.sleep(PAUSE_SECONDS)


def dawdle(client: Client) -> None:
    """Send a request drop by drop."""
    title = f"{client.name} {client.turn}"
    request = post(title)
    client.told.uncertain.append(title)
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        for start in range(0, len(request), 20):
            connection.sendall(request[start : start + 20])
            time.sleep(0.1)
        connection.recv(4096)


def post(title: str) -> bytes:
    """A request that creates an item, as it is on the wire."""
    body = b'{"title": "%s"}' % title.encode()
    head = f"POST {ITEMS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def clients(count: int, behaviour: Behaviour, port: int, told: Told | None = None) -> Iterator[Told]:
    """Let so many clients of an app on this machine behave in this way over and over until the block ends."""
    told = told or Told()
    over = threading.Event()
    crowd = uuid4().hex[:8]

    def run(number: int) -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, verify=False) as http:
            client = Client(f"{crowd} {behaviour.__name__} {number}", port, told, http)
            while not over.is_set():
                client.turn += 1
                try:
                    behaviour(client)
                except httpx2.ConnectError:
                    told.answers.append((time.monotonic(), 0))
                    time.sleep(PAUSE_SECONDS)

    with ThreadPoolExecutor(count) as threads:
        running = [threads.submit(run, number) for number in range(count)]
        try:
            yield told
        finally:
            over.set()
    for client in running:
        client.result()
