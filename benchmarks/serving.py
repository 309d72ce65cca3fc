"""How many requests a second are served, as multiples of what others serve: `make bench`.

All serve the same items from SQLite and from PostgreSQL, with one process each, and are asked by turns, so that what
else the machine does meets all alike. All are started several times: where a process happens to lie in memory alone
makes it up to a tenth faster or slower.

- `ours`: this project as it is on a Space, with ids, headers, metrics and a JSON line for each request;
- `generated`: what `fastapi_template` generates, where the package index can be reached;
- `textbook`: a `def` endpoint, a session from `yield` and a response model, without middleware or log;
- `loop`, `threads`: the limit, which is the bare driver under Starlette, the same queries and the same bytes;
- `quiet`: this project without the line for each request, as in `textbook`;
- `bypassed`: `quiet` without what chooses and watches the database.
"""

import itertools
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.generated import generated, serve_generated
from benchmarks.load import Answers, load
from tests.support.bakery import Bakery
from tests.support.postgres import new_postgres
from tests.support.server import Server, one_client_for_each_process, serve, wait_until_ready

PEERS = Path(__file__).parent / "peers"
ARTIFACTS = Path(__file__).parents[1] / "test-artifacts"
RESULTS, VERDICTS = ARTIFACTS / "serving.json", ARTIFACTS / "bench.txt"
CLIENTS = (16, 48)
ROWS = 1_000

# What `ours` must be at least, as a multiple of what each other one serves.
AT_LEAST = {
    ("SQLite", "generated"): {"list of 20": 2.7, "read one": 3.0, "create": 3.0},
    ("PostgreSQL", "generated"): {"list of 20": 2.2, "read one": 2.2, "create": 1.8},
    ("SQLite", "textbook"): {"list of 20": 2.2, "read one": 2.2, "create": 2.2},
    ("PostgreSQL", "textbook"): {"list of 20": 1.8, "read one": 1.8, "create": 1.8},
    ("SQLite", "loop"): {"list of 20": 0.5, "read one": 0.5},
    ("PostgreSQL", "threads"): {"list of 20": 0.5, "read one": 0.5},
}
OF_BYPASSED = 0.97
OF_BARE = 0.85

QUIET = {"LOG_LEVEL": "warning", "UVICORN_ACCESS_LOG": "false"}
AS_ON_A_SPACE = {"LOG_FORMAT": "json"}
Apps = dict[str, tuple[str, dict[str, str]]]
"""The module and the environment of each application."""

ITEM_APPS: Apps = {
    "ours": ("src.main:app", AS_ON_A_SPACE),
    "textbook": ("textbook:app", QUIET),
    "loop": ("raw:loop", QUIET),
    "threads": ("raw:threads", QUIET),
    "quiet": ("src.main:app", QUIET),
    "bypassed": ("bypassed:app", QUIET),
}
TRIVIAL_APPS: Apps = {"trivial": ("trivial:app", AS_ON_A_SPACE), "bare": ("bare:app", QUIET)}

WITHOUT_LIFECYCLE = frozenset(["textbook", "loop", "threads", "bypassed"])

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
    """What each application served, round by round, in one situation."""

    situation: str
    clients: int
    rounds: dict[str, list[Answers]]

    def ratios(self, of: str, to: str) -> list[float]:
        """One application's figures as multiples of another's, each of the same round."""
        pairs = zip(self.rounds[of], self.rounds[to], strict=True)
        return [one.per_second / other.per_second for one, other in pairs]

    def median(self, name: str) -> float:
        """Requests a second."""
        return statistics.median(answers.per_second for answers in self.rounds[name])

    def percentile(self, name: str, percent: int) -> float:
        """Milliseconds within which so many of a hundred were answered, in the median round."""
        return statistics.median(answers.percentile(percent) for answers in self.rounds[name])


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
    made = []
    for number in range(ROWS):
        created = server.post("/api/items", json={"title": f"Item {number}"})
        assert created.status_code == 201, server.log()  # noqa: S101
        made.append(created.json()["id"])
    reads = itertools.cycle([http("GET", f"/api/items/{key}") for key in made])
    return {"list of 20": lambda: LIST, "read one": lambda: next(reads), "create": lambda: CREATE}


def requests_for_nothing(server: Server) -> dict[str, Request]:
    """The trivial route."""
    return {"trivial": lambda: TRIVIAL}


@contextmanager
def servers(
    apps: Apps, project: Path, new_url: Callable[[], str], peer: Path | None = None
) -> Iterator[dict[str, Server]]:
    """Start every application, each in a copy of the project and with a database of its own."""
    with ExitStack() as stack:
        started = {}
        for name, (app, environ) in apps.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")), "project")
            shutil.copytree(project, folder)
            shutil.copytree(PEERS, folder, dirs_exist_ok=True)
            started[name] = stack.enter_context(serve(folder, environ | {"DATABASE_URL": new_url()}, app=app))
        if peer is not None:
            started["generated"] = stack.enter_context(serve_generated(peer, new_url()))
        for name in apps.keys() - WITHOUT_LIFECYCLE:
            assert started[name].settled()["status"] == "ok"  # noqa: S101
            if workers := int(apps[name][1].get("WEB_CONCURRENCY", 0)):
                for client in one_client_for_each_process(started[name], workers):
                    wait_until_ready(client)
        yield started


def measure(
    apps: Apps,
    project: Path,
    new_url: Callable[[], str],
    requests: Callable[[Server], dict[str, Request]],
    extent: Extent,
    peer: Path | None = None,
    crowds: Sequence[int] = CLIENTS,
) -> list[Served]:
    """Ask every application for everything, one after the other, round after round, in an order that changes."""
    table: dict[tuple[str, int], Served] = {}
    for _ in range(extent.starts):
        with servers(apps, project, new_url, peer) as started:
            asked = {name: requests(server) for name, server in started.items()}
            for number in range(extent.rounds + 1):
                for situation, clients in itertools.product(next(iter(asked.values())), crowds):
                    row = table.setdefault(
                        (situation, clients), Served(situation, clients, {name: [] for name in started})
                    )
                    for name in random.sample(list(started), len(started)):
                        request = asked[name][situation]
                        answers = load(started[name].port, clients, extent.seconds, request)
                        if number > 0:  # the first round fills the caches
                            row.rounds[name].append(answers)
    return list(table.values())


def show(title: str, table: list[Served]) -> None:
    """Print what `ours` serves, and as which multiple of what each other one serves."""
    first, *others = table[0].rounds
    print(f"\n{title:20}{first:>10}{'p50 ms':>10}{'p99 ms':>10}" + "".join(f"{'/ ' + name:>12}" for name in others))
    for row in table:
        times = "".join(f"{row.percentile(first, percent):10.1f}" for percent in (50, 99))
        ratios = "".join(f"{statistics.median(row.ratios(first, name)):12.2f}" for name in others)
        print(f"{row.situation:14}c={row.clients:<4}{row.median(first):10.0f}{times}{ratios}")


def machine() -> dict[str, object]:
    """What else decides on the figures."""
    cores = Path("/proc/cpuinfo")
    lines = cores.read_text().splitlines() if cores.exists() else []
    return {
        "processor": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), ""),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "libraries": {name: version(name) for name in ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "pydantic")},
    }


def write(before: dict[str, object], tables: dict[str, list[Served]]) -> None:
    """Write everything that was measured beside the screenshots of the tests."""
    figures = [
        {
            "database": database,
            "situation": row.situation,
            "clients": row.clients,
            "application": name,
            "per_second": [round(answers.per_second) for answers in rounds],
            "p50_ms": round(row.percentile(name, 50), 2),
            "p99_ms": round(row.percentile(name, 99), 2),
        }
        for database, table in tables.items()
        for row in table
        for name, rounds in row.rounds.items()
    ]
    ARTIFACTS.mkdir(exist_ok=True)
    after = {"load_afterwards": os.getloadavg()}
    RESULTS.write_text(json.dumps({"machine": before | after, "figures": figures}, indent=1) + "\n")
    print(f"\nAll figures: {RESULTS}")


def judge(what: str, figures: list[float], bound: float, *, most: bool = False) -> bool:
    """Print a ratio or another figure, the median, and whether it is high enough, or with `most` low enough."""
    figure = statistics.median(figures)
    is_held = figure <= bound if most else figure >= bound
    line = f"{'ok    ' if is_held else 'MISSED'} {figure:8.3f} (at {'most' if most else 'least'} {bound:.2f})  {what}"
    print(line)
    ARTIFACTS.mkdir(exist_ok=True)
    with VERDICTS.open("a") as verdicts:
        print(line, file=verdicts)
    return is_held


@contextmanager
def peer_if_there() -> Iterator[Path | None]:
    """Yield what `generated()` does; None, and say why, where the package index cannot be reached."""
    with ExitStack() as stack:
        try:
            peer: Path | None = stack.enter_context(generated())
        except (AssertionError, OSError) as problem:
            print(f"Without the generated peer: {problem}")
            peer = None
        yield peer


def main() -> None:
    """Print one table of ratios, and whether those that must hold do; the exit code is 1 if one does not."""
    before = machine()
    with tempfile.TemporaryDirectory() as folder, new_postgres() as postgres, peer_if_there() as peer:
        project = Bakery(Path(folder))().path
        tables = {
            name: measure(ITEM_APPS, project, new_url, requests_for_items, ITEM_EXTENT, peer)
            for name, new_url in (("SQLite", sqlite_url), ("PostgreSQL", postgres.create_database))
        }
        tables["no database"] = measure(TRIVIAL_APPS, project, sqlite_url, requests_for_nothing, TRIVIAL_EXTENT)
    print(f"\n{before['processor']}, {before['cores']} cores, load {os.getloadavg()}, Python {before['python']}")
    for title, table in tables.items():
        show(title, table)
    write(before, tables)
    print()
    held = [
        judge(f"ours / {name}, {database}, {row.situation}, c={row.clients}", row.ratios("ours", name), least)
        for (database, name), bounds in AT_LEAST.items()
        for row in tables[database]
        if name in row.rounds and (least := bounds.get(row.situation)) is not None
    ]
    every = [ratio for row in tables["PostgreSQL"] for ratio in row.ratios("quiet", "bypassed")]
    held.append(judge("quiet / bypassed, PostgreSQL, all together", every, OF_BYPASSED))
    held += [
        judge(f"trivial route with middleware and log / bare, c={row.clients}", row.ratios("trivial", "bare"), OF_BARE)
        for row in tables["no database"]
    ]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
