"""Under mixed load and faults for a long time, memory stays flat and no descriptor or thread is left behind.

`make soak` takes half an hour, the suite two minutes; SOAK_MINUTES says how many.
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
from tests.support.load import Told, clients, dawdle, hang_up, read_and_write
from tests.support.postgres import Postgres
from tests.support.server import Server
from tests.test_acknowledged_writes import titles_in_postgresql, titles_in_sqlite

MINUTES = float(os.environ.get("SOAK_MINUTES", "2"))
# Pools fill, caches grow and the allocator finds its size at first: none of that is a leak. What comes after counts,
# and is compared window with window, since a single sample may meet any moment of a fault.
WINDOW_SECONDS = min(120.0, MINUTES * 60 / 4)
CALM_SECONDS = 4
pytestmark = [pytest.mark.slow, pytest.mark.timeout(MINUTES * 60 + 600)]


@dataclass(frozen=True)
class Sample:
    """What a process held at a moment."""

    moment: float
    megabytes: float
    descriptors: int
    threads: int


def away(end: Callable[[Postgres], None], seconds: float) -> Callable[[Postgres], None]:
    """A fault: PostgreSQL is ended in some way and started again after so many seconds."""

    def fault(postgres: Postgres) -> None:
        end(postgres)
        time.sleep(seconds)
        postgres.start()

    return fault


def silent(postgres: Postgres) -> None:
    """A fault: PostgreSQL says nothing for so long that the app gives its connections up."""
    postgres.pause()
    time.sleep(8)
    postgres.resume()


def cut(postgres: Postgres) -> None:
    """A fault: an administrator ends all connections."""
    with postgres.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


FAULTS = [
    away(Postgres.stop, seconds=1),
    away(lambda postgres: postgres.stop("immediate"), seconds=3),
    away(Postgres.kill, seconds=0),
    silent,
    cut,
]


@dataclass
class Watched:
    """A running app, what its clients were told, and what its process held twice a second."""

    name: str
    server: Server
    told: Told = field(default_factory=Told)
    samples: list[Sample] = field(default_factory=list)

    @contextmanager
    def under_load(self) -> Iterator[None]:
        """Let clients of all kinds use the app, and take samples, until the block ends."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=[over])
        watcher.start()
        try:
            with ExitStack() as stack:
                for count, behaviour in ((4, read_and_write), (2, hang_up), (2, dawdle)):
                    stack.enter_context(clients(count, behaviour, self.server.port, self.told))
                yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        process = psutil.Process(self.server.process.pid)
        while not over.wait(0.5):
            with process.oneshot():
                megabytes = process.memory_info().rss / 2**20
                self.samples.append(Sample(time.monotonic(), megabytes, process.num_fds(), process.num_threads()))

    def window(self, start: float) -> Sample:
        """The medians of the samples of a window."""
        inside = [sample for sample in self.samples if start <= sample.moment <= start + WINDOW_SECONDS]
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

    def check_that_nothing_grew(self) -> None:
        """Compare the window after the first one with the last one."""
        start, end = self.samples[0].moment, self.samples[-1].moment
        early, late = self.window(start + WINDOW_SECONDS), self.window(end - WINDOW_SECONDS)
        print(f"{self.name}: from {early} to {late}")
        assert late.megabytes < 1.1 * early.megabytes
        # a few more or less are connections of clients; a leak has one for each fault or request
        assert late.descriptors <= early.descriptors + 3
        assert late.threads <= early.threads + 1


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
        with on_postgresql.under_load(), on_sqlite.under_load():
            break_again_and_again(postgres, both)
        postgresql_server.health_when(lambda report: report["status"] == "ok")
        on_postgresql.told.check(titles_in_postgresql(postgres, url))
        on_sqlite.told.check(titles_in_sqlite(project.path / "data" / "app.db"))
    assert set(on_postgresql.told.statuses()) == {200, 201, 503}
    assert set(on_sqlite.told.statuses()) == {200, 201}
    for app in both:
        app.check_that_nothing_grew()


def break_again_and_again(postgres: Postgres, apps: Iterable[Watched]) -> None:
    """Meet the apps with one fault after the other until the time is over, and tell once a minute how they are."""
    started = time.monotonic()
    told_minutes = 0
    for fault in cycle(FAULTS):
        time.sleep(CALM_SECONDS)
        fault(postgres)
        minutes = int((time.monotonic() - started) / 60)
        if minutes > told_minutes:
            told_minutes = minutes
            print(f"{minutes} min;", "; ".join(map(str, apps)), flush=True)
        if time.monotonic() > started + MINUTES * 60:
            return
