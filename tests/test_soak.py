"""Under mixed load and faults for a long time, memory stays flat and no descriptor or thread is left behind.

`make soak` takes half an hour, `make test-all` a minute; SOAK_MINUTES says how many. What each fault would leave
behind shows after a few already.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import psutil
import pytest

from tests.support.bakery import Bakery
from tests.support.load import PAUSE_SECONDS, Behaviour, Client, Told, clients, dawdle, hang_up, read_and_write
from tests.support.postgres import Postgres
from tests.support.server import Server
from tests.test_acknowledged_writes import titles_in_postgresql, titles_in_sqlite
from tests.test_database_restarts import wait_for_successes, wait_until_missed_twice

MINUTES = float(os.environ.get("SOAK_MINUTES", "1"))
# Pools fill, caches grow and the allocator finds its size at first: none of that is a leak. What comes after counts,
# and is compared window with window, since a single sample may meet any moment of a fault.
WINDOW_SECONDS = min(120.0, MINUTES * 60 / 4)
SECONDS_BETWEEN_SAMPLES = 0.25
pytestmark = [pytest.mark.slow, pytest.mark.timeout(MINUTES * 60 + 600)]


@dataclass(frozen=True)
class Sample:
    """What a process held at a moment."""

    moment: float
    megabytes: float
    descriptors: int
    threads: int


def stopped(postgres: Postgres, server: Server) -> None:
    """A fault: PostgreSQL says good-bye and is away until the app has missed it."""
    postgres.stop()
    wait_until_missed_twice(server)
    postgres.start()


def crashed(postgres: Postgres, server: Server) -> None:
    """A fault: PostgreSQL drops everything, and is back at once."""
    postgres.stop("immediate")
    postgres.start()


def killed(postgres: Postgres, server: Server) -> None:
    """A fault: PostgreSQL is killed and has to recover."""
    postgres.kill()
    postgres.start()


def cut(postgres: Postgres, server: Server) -> None:
    """A fault: an administrator ends all connections."""
    with postgres.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


def silent(postgres: Postgres, server: Server) -> None:
    """A fault: PostgreSQL says nothing until the app gives its connections up."""
    postgres.pause()
    wait_until_missed_twice(server)
    postgres.resume()


Fault = Callable[[Postgres, Server], None]
QUICK_FAULTS: list[Fault] = [stopped, crashed, killed, cut]


def read_and_write_now_and_then(client: Client) -> None:
    """Use the app as a person would, which leaves the machine to others."""
    read_and_write(client)
    time.sleep(PAUSE_SECONDS)


Crowd = Iterable[tuple[int, Behaviour]]
MANY: Crowd = ((4, read_and_write), (2, hang_up), (2, dawdle))
FEW: Crowd = ((1, read_and_write_now_and_then), (1, hang_up), (2, dawdle))


@dataclass
class Watched:
    """A running app, what its clients were told, and what its process held, several times a second."""

    name: str
    server: Server
    told: Told = field(default_factory=Told)
    samples: list[Sample] = field(default_factory=list)

    @contextmanager
    def under_load(self, crowd: Crowd) -> Iterator[None]:
        """Let clients of all kinds use the app, and take samples, until the block ends."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=[over])
        watcher.start()
        try:
            with ExitStack() as stack:
                for count, behaviour in crowd:
                    stack.enter_context(clients(count, behaviour, self.server.port, self.told))
                yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        process = psutil.Process(self.server.process.pid)
        while not over.wait(SECONDS_BETWEEN_SAMPLES):
            with process.oneshot():
                megabytes = process.memory_info().rss / 2**20
                self.samples.append(Sample(time.monotonic(), megabytes, process.num_fds(), process.num_threads()))

    def next_samples(self, count: int = 5) -> Sample:
        """Wait for so many samples, and return their medians."""
        begun, deadline = len(self.samples), time.monotonic() + 60
        while len(self.samples) < begun + count:
            assert time.monotonic() < deadline
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        return self.window(self.samples[begun].moment, self.samples[-1].moment)

    def window(self, start: float, end: float) -> Sample:
        """The medians of the samples of a window."""
        inside = [sample for sample in self.samples if start <= sample.moment <= end]
        return Sample(
            start,
            statistics.median(sample.megabytes for sample in inside),
            round(statistics.median(sample.descriptors for sample in inside)),
            round(statistics.median(sample.threads for sample in inside)),
        )

    def __str__(self) -> str:
        """What it did and holds by now, in one line."""
        now = self.samples[-1]
        return (
            f"{self.name}: {len(self.told.answers)} requests, {now.megabytes:.1f} MB, "
            f"{now.descriptors} descriptors, {now.threads} threads"
        )

    def check_that_nothing_grew(self, early: Sample, late: Sample) -> None:
        """Compare two windows."""
        print(f"{self.name}: from {early} to {late}")
        assert late.megabytes < 1.1 * early.megabytes
        # a few more or less are connections of clients; a leak has one for each fault or request
        assert late.descriptors <= early.descriptors + 3
        assert late.threads <= early.threads + 1


@pytest.mark.thorough
def test_under_load_and_faults_nothing_grows(bake: Bakery, postgres: Postgres, tmp_path: Path) -> None:
    project, url = bake().copy_to(tmp_path), postgres.create_database()
    with (
        bake().boot({"DATABASE_URL": url}) as postgresql_server,
        project.boot(in_place=True) as sqlite_server,
    ):
        on_postgresql, on_sqlite = Watched("PostgreSQL", postgresql_server), Watched("SQLite", sqlite_server)
        both = (on_postgresql, on_sqlite)
        for app in both:
            assert app.server.settled()["status"] == "ok"
        with on_postgresql.under_load(MANY), on_sqlite.under_load(MANY):
            break_again_and_again(postgres, on_postgresql, both)
        postgresql_server.health_when(lambda report: report["status"] == "ok")
        on_postgresql.told.check(titles_in_postgresql(postgres, url))
        on_sqlite.told.check(titles_in_sqlite(project.path / "data" / "app.db"))
    assert set(on_postgresql.told.statuses()) == {200, 201, 503}
    assert set(on_sqlite.told.statuses()) == {200, 201}
    for app in both:
        start, end = app.samples[0].moment, app.samples[-1].moment
        app.check_that_nothing_grew(
            early=app.window(start + WINDOW_SECONDS, start + 2 * WINDOW_SECONDS),
            late=app.window(end - WINDOW_SECONDS, end),
        )


def break_again_and_again(postgres: Postgres, broken: Watched, apps: Iterable[Watched]) -> None:
    """Meet the apps with one fault after the other until the time is over, and tell once a minute how they are."""
    started = time.monotonic()
    told_minutes = 0
    for fault in cycle([*QUICK_FAULTS, silent]):
        wait_for_successes(broken.told, 200, broken.server)
        fault(postgres, broken.server)
        minutes = int((time.monotonic() - started) / 60)
        if minutes > told_minutes:
            told_minutes = minutes
            print(f"{minutes} min;", "; ".join(map(str, apps)), flush=True)
        if time.monotonic() > started + MINUTES * 60:
            return


def test_no_fault_leaves_anything_behind(bake: Bakery, postgres: Postgres) -> None:
    url = postgres.create_database()
    with bake().boot({"DATABASE_URL": url}) as server:
        app = Watched("PostgreSQL", server)
        assert server.settled()["status"] == "ok"

        def break_and_look() -> Sample:
            for fault in QUICK_FAULTS:
                fault(postgres, server)
                wait_for_successes(app.told, 20, server)
            # all threads and connections that there may be
            with clients(10, read_and_write, server.port, app.told):
                wait_for_successes(app.told, 200, server)
            return app.next_samples()

        with app.under_load(FEW):
            wait_for_successes(app.told, 40, server)
            # the first time fills what is kept
            early, _, late = (break_and_look() for _ in range(3))
        app.told.check(titles_in_postgresql(postgres, url))
    app.check_that_nothing_grew(early, late)
