"""How long `/health` takes, and how many lists are served, beside slow SQL: `make bench`."""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.load import Answers, load
from benchmarks.serving import AS_ON_A_SPACE, LIST, http, judge, servers, sqlite_url
from benchmarks.streams import requests
from tests.support.bakery import Bakery
from tests.support.postgres import new_postgres

LISTING, SLOW = 16, 4
"""How many clients ask for lists, and for what takes long."""
ROUNDS = 5
SECONDS = 2.0
SECONDS_BETWEEN_LOOKS = 0.01
MOST_MILLISECONDS = 15.0
OF_LISTS_ALONE = 0.5

# Not lambdas: these are sent to other processes, so that what asks for one does not hold up what asks for another.
HEALTH, LISTS, COUNT = (partial(bytes, http("GET", path)) for path in ("/health", "/api/items?limit=20", "/slow"))
SITUATIONS = {"slow SQL": (0, SLOW), "lists": (LISTING, 0), "lists and slow SQL": (LISTING, SLOW)}


def look(port: int, seconds: float) -> float:
    """Ask for /health every few milliseconds; return within which time 99 of 100 answers came."""
    end, milliseconds = time.monotonic() + seconds, []
    while time.monotonic() < end:
        milliseconds += load(port, 1, 0, HEALTH).milliseconds
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return Answers(0, sorted(milliseconds)).percentile(99)


def judged(database: str, project: Path, new_url: Callable[[], str], processes: ProcessPoolExecutor) -> list[bool]:
    """Print what holds on one database."""
    health: dict[str, list[float]] = {}
    lists: dict[str, list[float]] = {}
    with servers({"slow": ("slow:app", AS_ON_A_SPACE)}, project, new_url) as started:
        port = started["slow"].port
        requests(started["slow"])
        load(port, LISTING, SECONDS, lambda: LIST)  # fills the caches
        for _ in range(ROUNDS):
            for situation, (listing, slow) in SITUATIONS.items():
                looking = processes.submit(look, port, SECONDS)
                asking = [
                    processes.submit(load, port, clients, SECONDS, request)
                    for clients, request in ((listing, LISTS), (slow, COUNT))
                    if clients
                ]
                answers = [answer.result() for answer in asking]
                health.setdefault(situation, []).append(looking.result())
                lists.setdefault(situation, []).append(answers[0].per_second)
    held = [
        judge(f"ms, p99 of /health beside {situation}, {database}", milliseconds, MOST_MILLISECONDS, most=True)
        for situation, milliseconds in health.items()
    ]
    ratios = [beside / alone for beside, alone in zip(lists["lists and slow SQL"], lists["lists"], strict=True)]
    return [*held, judge(f"lists beside slow SQL / alone, {database}", ratios, OF_LISTS_ALONE)]


def main() -> None:
    """Print the figures; the exit code is 1 if one is out of its bound."""
    with tempfile.TemporaryDirectory() as folder, new_postgres() as postgres, ProcessPoolExecutor(3) as processes:
        project = Bakery(Path(folder))().path
        databases = {"SQLite": sqlite_url, "PostgreSQL": postgres.create_database}
        held = [judged(database, project, new_url, processes) for database, new_url in databases.items()]
    sys.exit(not all(map(all, held)))


if __name__ == "__main__":
    main()
