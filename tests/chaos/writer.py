"""Clients that never stop creating items, and remember what they were told about each."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2

CLIENTS = 2
# tests/test_load.py says how many are too many; here a request is lost that gets no answer at all
SECONDS_TO_ANSWER = 30
PAUSE_SECONDS = 0.03
# who has not begun to send by then waits for an answer
SECONDS_TO_SEND = 1


class Writer:
    """Creates items with titles of their own. A 201 acknowledges one, a 503 with Retry-After refuses it."""

    def __init__(self, url: str) -> None:
        """`url` is where the app answers."""
        self._url = url
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._server_stops = False
        self._may_begin = threading.Event()
        self._may_begin.set()
        self._on_their_way = 0
        self._turns = [0] * CLIENTS
        self.sent: list[str] = []
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.lost: list[str] = []

    @contextmanager
    def at_work(self) -> Iterator["Writer"]:
        """Create items until the block ends, and then wait for the last answers."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def expect_answers(self, count: int, within: float) -> None:
        """Return when this many more requests were answered, whatever the answer."""
        self._expect(lambda: len(self.acknowledged) + len(self.refused) + len(self.lost), count, within)

    def expect_items(self, count: int, within: float) -> None:
        """Return when this many more items were acknowledged."""
        self._expect(lambda: len(self.acknowledged), count, within)

    def send_more(self) -> None:
        """Return when each client sends another request, or still waits for the answer to the last one."""
        with self._changed:
            before = list(self._turns)
            self._changed.wait_for(
                lambda: all(now > then for now, then in zip(self._turns, before, strict=True)), SECONDS_TO_SEND
            )

    def server_stops(self, in_hand: Callable[[], int]) -> None:
        """From now on a request that nobody takes is not a lost one. Return when the server has those on their way.

        These must be answered. `in_hand` tells how many the server has.
        """
        with self._changed:
            self._may_begin.clear()
            self._server_stops = True
        deadline = time.monotonic() + SECONDS_TO_ANSWER
        # one that was answered meanwhile is no longer on its way
        while in_hand() < self._on_their_way:
            assert time.monotonic() < deadline, "the server does not take what is sent to it"
            time.sleep(0.01)
        self._may_begin.set()

    def _expect(self, number: Callable[[], int], more: int, within: float) -> None:
        with self._changed:
            enough = number() + more
            if not self._changed.wait_for(lambda: number() >= enough, within):
                raise AssertionError(
                    f"Within {within} s there were {number() - enough + more} instead of {more}; lost: {self.lost}"
                )

    def _work(self, client_number: int) -> None:
        with httpx2.Client(base_url=self._url, timeout=SECONDS_TO_ANSWER, trust_env=False, verify=False) as client:
            while not self._over.wait(PAUSE_SECONDS):
                self._may_begin.wait()
                with self._changed:
                    self._turns[client_number] += 1
                    may_be_missed = self._server_stops
                    self._on_their_way += not may_be_missed
                    self._changed.notify_all()
                goes_on = self._create(client, f"{client_number}-{self._turns[client_number]}", may_be_missed)
                with self._changed:
                    self._on_their_way -= not may_be_missed
                if not goes_on:
                    return

    def _create(self, client: httpx2.Client, title: str, may_be_missed: bool) -> bool:
        """Create one item; return whether there is a server to create more on."""
        self.sent.append(title)
        try:
            answer = client.post("/api/items", json={"title": title})
        except httpx2.TransportError as error:
            if may_be_missed:
                return False
            self._note(self.lost, f"{title}: {error!r}")
            return not self._server_stops
        if answer.status_code == 201:
            self._note(self.acknowledged, title)
        elif answer.status_code == 503 and "Retry-After" in answer.headers:
            self._note(self.refused, title)
        else:
            self._note(self.lost, f"{title}: {answer.status_code} {answer.text}")
        return True

    def _note(self, where: list[str], what: str) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()
