"""How many requests a second are served, as a multiple of what a textbook's application serves: `make bench`.

Four applications serve the same items from SQLite and from PostgreSQL, and are asked by turns, so that what else the
machine does meets all alike. All are started several times: where a process happens to lie in memory alone makes it up
to a tenth faster or slower.

- `textbook`: a `def` endpoint, a session from `yield` and a response model, without middleware or log;
- `ours`: this project, which also adds ids, headers and metrics. No line for each request, as in `textbook`;
- `bypassed`: this project without what chooses and watches the database;
- `logging`: this project as it is on a Space, with a JSON line for each request.
"""

import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import answers_per_second
from tests.support.bakery import Bakery
from tests.support.postgres import new_postgres
from tests.support.server import Server, serve

PEERS = Path(__file__).parent / "peers"
CLIENTS = (16, 64)
ROWS = 1_000

TIMES_TEXTBOOK = 1.5
OF_BYPASSED = 0.97
OF_BARE = 0.85

QUIET = {"LOG_LEVEL": "warning", "UVICORN_ACCESS_LOG": "false"}
AS_ON_A_SPACE = {"LOG_FORMAT": "json"}
Apps = dict[str, tuple[str, dict[str, str]]]
"""The module and the environment of each application."""

ITEM_APPS: Apps = {
    "textbook": ("textbook:app", QUIET),
    "bypassed": ("bypassed:app", QUIET),
    "ours": ("src.main:app", QUIET),
    "logging": ("src.main:app", AS_ON_A_SPACE),
}
TRIVIAL_APPS: Apps = {"bare": ("bare:app", QUIET), "trivial": ("trivial:app", AS_ON_A_SPACE)}

WITHOUT_LIFECYCLE = frozenset(["textbook", "bypassed"])

Request = Callable[[], bytes]


@dataclass(frozen=True)
class Extent:
    """How often all servers are started, how often each start is measured, and for how long each time."""

    starts: int
    rounds: int
    seconds: float


ITEM_EXTENT = Extent(starts=3, rounds=3, seconds=0.7)
TRIVIAL_EXTENT = Extent(starts=24, rounds=4, seconds=0.2)
"""Shorter and more often, since what is looked for is a difference of a tenth."""


@dataclass(frozen=True)
class Served:
    """What each application served a second, round by round, in one situation."""

    situation: str
    clients: int
    rounds: dict[str, list[float]]

    def ratios(self, of: str, to: str) -> list[float]:
        """One application's figures as multiples of another's, each of the same round."""
        return [one / other for one, other in zip(self.rounds[of], self.rounds[to], strict=True)]


def sqlite_url() -> str:
    """Name a file in the project's folder, which every server has for itself."""
    return "sqlite:///./app.db"


def http(method: str, path: str, body: bytes = b"") -> bytes:
    """One request as it goes over the wire."""
    head = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


LIST = http("GET", "/api/items?limit=20")
CREATE = http("POST", "/api/items", json.dumps({"title": "A title", "description": "Some words. " * 10}).encode())
TRIVIAL = http("GET", "/trivial")


def requests_for_items(server: Server) -> dict[str, Request]:
    """What is asked of a server; it gets the items that are asked for."""
    made = [server.post("/api/items", json={"title": f"Item {number}"}).json()["id"] for number in range(ROWS)]
    reads = itertools.cycle([http("GET", f"/api/items/{key}") for key in made])
    return {"list of 20": lambda: LIST, "read one": lambda: next(reads), "create": lambda: CREATE}


def requests_for_nothing(server: Server) -> dict[str, Request]:
    """The trivial route."""
    return {"trivial": lambda: TRIVIAL}


@contextmanager
def servers(apps: Apps, project: Path, new_url: Callable[[], str]) -> Iterator[dict[str, Server]]:
    """Start every application, each in a copy of the project and with a database of its own."""
    with ExitStack() as stack:
        started = {}
        for name, (app, environ) in apps.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")), "project")
            shutil.copytree(project, folder)
            shutil.copytree(PEERS, folder, dirs_exist_ok=True)
            started[name] = stack.enter_context(serve(folder, environ | {"DATABASE_URL": new_url()}, app=app))
        for name in started.keys() - WITHOUT_LIFECYCLE:
            assert started[name].settled()["status"] == "ok"  # noqa: S101
        yield started


def measure(
    apps: Apps,
    project: Path,
    new_url: Callable[[], str],
    requests: Callable[[Server], dict[str, Request]],
    extent: Extent,
) -> list[Served]:
    """Ask every application for everything, one after the other, round after round, in an order that changes."""
    table: dict[tuple[str, int], Served] = {}
    for _ in range(extent.starts):
        with servers(apps, project, new_url) as started:
            asked = {name: requests(server) for name, server in started.items()}
            for number in range(extent.rounds + 1):
                for situation, clients in itertools.product(next(iter(asked.values())), CLIENTS):
                    row = table.setdefault(
                        (situation, clients), Served(situation, clients, {name: [] for name in started})
                    )
                    for name in random.sample(list(started), len(started)):
                        request = asked[name][situation]
                        figure = answers_per_second(started[name].port, clients, extent.seconds, request)
                        if number > 0:  # the first round fills the caches
                            row.rounds[name].append(figure)
    return list(table.values())


def show(title: str, table: list[Served]) -> None:
    """Print the medians."""
    names = list(table[0].rounds)
    print(f"\n{title:24}" + "".join(f"{name:>12}" for name in names))
    for row in table:
        figures = "".join(f"{statistics.median(row.rounds[name]):12.0f}" for name in names)
        print(f"{row.situation:18}c={row.clients:<4}{figures}")


def judge(what: str, ratios: list[float], least: float) -> bool:
    """Print a ratio and whether it is high enough."""
    ratio = statistics.median(ratios)
    print(f"{'ok    ' if ratio >= least else 'MISSED'} {ratio:5.2f} (at least {least:.2f})  {what}")
    return ratio >= least


def main() -> None:
    """Print requests a second and the ratios that matter; the exit code is 1 when one of them is too low."""
    with tempfile.TemporaryDirectory() as folder, new_postgres() as postgres:
        project = Bakery(Path(folder))().path
        trivial = measure(TRIVIAL_APPS, project, sqlite_url, requests_for_nothing, TRIVIAL_EXTENT)
        tables = {
            "SQLite": measure(ITEM_APPS, project, sqlite_url, requests_for_items, ITEM_EXTENT),
            "PostgreSQL": measure(ITEM_APPS, project, postgres.create_database, requests_for_items, ITEM_EXTENT),
        }
    for title, table in {**tables, "no database": trivial}.items():
        show(title, table)
    print()
    held = [
        judge(
            f"ours / textbook, {database}, {row.situation}, c={row.clients}",
            row.ratios("ours", "textbook"),
            TIMES_TEXTBOOK,
        )
        for database, table in tables.items()
        for row in table
    ]
    every = [ratio for row in tables["PostgreSQL"] for ratio in row.ratios("ours", "bypassed")]
    held.append(judge("ours / bypassed, PostgreSQL, all together", every, OF_BYPASSED))
    held += [
        judge(
            f"trivial route with middleware and log / without, c={row.clients}", row.ratios("trivial", "bare"), OF_BARE
        )
        for row in trivial
    ]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
