"""Many clients at once: everyone is answered, nothing hangs, no update is lost and no commit is made up."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Postgres
from tests.support.server import Server, one_client_for_each_process, wait_until_ready
from tests.test_database_restarts import wait_until_missed_twice

pytestmark = pytest.mark.slow

# More than the app has places, threads and connections; and what a link that goes round brings.
SOME_CLIENTS = 100
MANY_CLIENTS = 500


@pytest.fixture
def environ(database_url: str) -> dict[str, str]:
    """DATABASE_URL for either database."""
    return {"DATABASE_URL": database_url}


async def ask(server: Server, method: str, path: str, body: bytes = b"") -> int:
    """Send one request on a connection of its own and return the status; httpx would be too slow for 500 at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", "Content-Type: application/json"]
    writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    answer = await asyncio.wait_for(reader.read(), timeout=60)
    writer.close()
    assert answer, "the connection was closed without an answer"
    return int(answer.split(b" ", 2)[1])


async def burst(server: Server, clients: int) -> Counter[int]:
    """Let each client create and list twice; return how often each status was the answer."""
    statuses: Counter[int] = Counter()

    async def client(number: int) -> None:
        for turn in range(2):
            title = json.dumps({"title": f"{number}-{turn}"}).encode()
            statuses[await ask(server, "POST", "/api/items", title)] += 1
            statuses[await ask(server, "GET", "/api/items")] += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return statuses


# Asks for /health over and over until its input ends. A process of its own, since 500 clients keep ours busy.
PROBE = """
import http.client, sys, threading, time
slowest, asked, over = 0.0, 0, threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
while not over.wait(0.05):
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    slowest, asked = max(slowest, time.monotonic() - started), asked + 1
print(slowest, asked)
"""


@contextmanager
def asking_for_health(server: Server) -> Iterator[list[float]]:
    """Yield a list that holds, after the block, the seconds that the slowest /health took."""
    probe = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", PROBE, str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    slowest: list[float] = []
    try:
        yield slowest
    finally:
        output, _ = probe.communicate(timeout=60)
    seconds, asked = output.split()
    assert int(asked) > 10
    slowest.append(float(seconds))


def check_answers(server: Server, statuses: Counter[int], clients: int) -> None:
    """Everyone was answered, most were served, and what is stored is what was acknowledged."""
    assert statuses.total() == clients * 4
    assert set(statuses) <= {200, 201, 503}, server.log()
    assert statuses[201] > clients
    assert len(server.titles()) == statuses[201]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_100_clients_at_once_are_all_answered(bake: Bakery, environ: dict[str, str]) -> None:
    with bake().boot(environ | {"LOG_LEVEL": "warning"}) as server:
        server.settled()
        check_answers(server, asyncio.run(burst(server, SOME_CLIENTS)), SOME_CLIENTS)


@pytest.mark.alone
def test_500_clients_at_once_are_all_answered_and_health_at_once(bake: Bakery, environ: dict[str, str]) -> None:
    with bake().boot(environ | {"LOG_LEVEL": "warning"}) as server:
        server.settled()
        with asking_for_health(server) as slowest:
            statuses = asyncio.run(burst(server, MANY_CLIENTS))
        check_answers(server, statuses, MANY_CLIENTS)
        assert slowest[0] < 1


# Leaves a file when somebody is inside, and one for each who has to wait. Who is inside stays until there is a file,
# and who waits does not give up before there is another.
CROWDED_APP = """
import asyncio
from itertools import count
from pathlib import Path
from space_runtime.http import middleware
from space_runtime.serving import limiter

middleware.PLACES, middleware.HOLD_SECONDS, limiter.MAX_WAITING, limiter.MAX_WAIT_SECONDS = 1, 60, 3, 0.5
enter, numbers, give_up = limiter.ConcurrencyLimiter.enter, count(1), limiter._give_up


async def noted_enter(self: limiter.ConcurrencyLimiter) -> None:
    Path(f"waits-{next(numbers)}").touch()
    await enter(self)


def give_up_when_all_are_here(turn: asyncio.Future[None]) -> None:
    if turn.done() or Path("all-are-here").exists():
        give_up(turn)
    else:
        asyncio.get_running_loop().call_later(0.02, give_up_when_all_are_here, turn)


limiter.ConcurrencyLimiter.enter, limiter._give_up = noted_enter, give_up_when_all_are_here
from src.main import app


@app.get("/slow")
async def slow() -> None:
    Path("inside").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.02)
"""


def test_who_cannot_come_in_soon_is_told_to_come_again(project: BakedProject) -> None:
    (project.path / "crowded.py").write_text(CROWDED_APP)

    answers: list[tuple[str, int, str]] = []
    headers = {"Origin": "https://good.example", "Access-Control-Request-Method": "GET"}

    async def ask(name: str, client: httpx2.AsyncClient) -> None:
        answer = await client.request("OPTIONS" if name == "preflight" else "GET", "/slow")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://good.example"
        answers.append((name, answer.status_code, answer.headers.get("Retry-After", "")))

    async def until_there(name: str) -> None:
        async with asyncio.timeout(30):
            while not (project.path / name).exists():
                await asyncio.sleep(0.01)

    async def crowd(url: str) -> None:
        async with (
            httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False, headers=headers) as client,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(ask("inside", client))
            await until_there("inside")
            waiting = []
            for number in (1, 2, 3):
                waiting.append(group.create_task(ask("waits", client)))
                await until_there(f"waits-{number}")
            await ask("preflight", client)
            await ask("one too many", client)
            (project.path / "all-are-here").touch()
            await asyncio.wait(waiting)
            (project.path / "go").touch()

    with project.boot({"CORS_ORIGINS": "https://good.example"}, in_place=True, app="crowded:app") as server:
        server.settled()
        asyncio.run(crowd(server.url))
    assert answers == [
        ("preflight", 200, ""),
        ("one too many", 503, "2"),
        *[("waits", 503, "2")] * 3,
        ("inside", 200, ""),
    ]


ROUTES = """
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from src.database.session import DatabaseDep, SessionDep
from src.items.models import Item
from src.main import app


@app.post("/append")
async def append(database: DatabaseDep) -> None:
    def work(session: Session) -> None:
        item = session.scalars(select(Item).with_for_update()).one()
        item.description = (item.description or "") + "x"

    await database.write(work)


@app.post("/append-by-session")
def append_by_session(session: SessionDep) -> None:
    item = session.scalars(select(Item).with_for_update()).one()
    item.description = (item.description or "") + "x"


def orphan(session: Session) -> None:
    session.execute(text("INSERT INTO children VALUES (1, 42)"))


@app.post("/deferred-by-session")
def deferred_by_session(session: SessionDep) -> str:
    orphan(session)
    return "not true"


@app.post("/deferred")
async def deferred(database: DatabaseDep) -> str:
    await database.write(orphan)
    return "not true"


@app.post("/sleep-and-write")
async def sleep_and_write(database: DatabaseDep) -> str:
    def work(session: Session) -> None:
        session.add(Item(title="slow"))
        session.flush()
        session.execute(text("SELECT pg_sleep(30)"))

    await database.write(work)
    return "stored"


@app.post("/make-tables")
async def make_tables(database: DatabaseDep) -> None:
    def work(session: Session) -> None:
        session.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
        session.execute(text(
            "CREATE TABLE children (id INTEGER PRIMARY KEY,"
            " parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
        ))

    await database.write(work)
"""


@pytest.fixture
def project(project: BakedProject) -> BakedProject:
    """The copy with routes that a test needs and the sample does not have, in `extra.py`."""
    (project.path / "extra.py").write_text(ROUTES)
    return project


@pytest.mark.parametrize(
    ("database_url", "route"),
    [
        ("sqlite", "/append-by-session"),
        ("postgresql", "/append"),
        pytest.param("sqlite", "/append", marks=pytest.mark.thorough),
        pytest.param("postgresql", "/append-by-session", marks=pytest.mark.thorough),
    ],
    indirect=["database_url"],
)
def test_40_clients_that_change_one_row_lose_no_update(
    project: BakedProject, environ: dict[str, str], route: str
) -> None:
    async def change(url: str) -> list[httpx2.Response]:
        async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False, verify=False) as http:
            return list(await asyncio.gather(*(http.post(route) for _ in range(40 * 5))))

    # two processes: within one, a single thread writes to SQLite anyway
    with project.boot(environ | {"WEB_CONCURRENCY": "2"}, in_place=True, app="extra:app") as server:
        for process in one_client_for_each_process(server, 2):
            wait_until_ready(process)
        server.post("/api/items", json={"title": "counter"})
        answers = asyncio.run(change(server.url))
        assert {answer.status_code for answer in answers} == {200}, server.log()
        assert server.get("/api/items").json()["items"][0]["description"] == "x" * 200
        assert "locked" not in server.log_at_the_end()


def test_a_commit_that_fails_is_never_a_success(project: BakedProject, environ: dict[str, str]) -> None:
    with project.boot(environ, in_place=True, app="extra:app") as server:
        server.settled()
        assert server.post("/make-tables").status_code == 200
        for route in ("/deferred", "/deferred-by-session"):
            answer = server.post(route)
            assert answer.status_code == 409, server.log()
            assert "children" not in answer.text
            # and it is in nobody's way
            assert server.post("/api/items", json={"title": route}).status_code == 201
        assert server.titles() == ["/deferred-by-session", "/deferred"]


async def until_work_is_under_way(postgres: Postgres, url: str) -> None:
    """Return when the server executes what /sleep-and-write asks of it."""
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(is_asleep, postgres, url):
            await asyncio.sleep(0.02)


def is_asleep(postgres: Postgres, url: str) -> bool:
    """Whether a statement of the app sleeps in this database: one of an earlier test may still sleep in another."""
    asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    with postgres.connect(url) as connection:
        return bool(connection.execute(asleep).fetchall())


def test_a_write_whose_server_is_killed_is_never_a_success(project: BakedProject, postgres: Postgres) -> None:
    url = postgres.create_database()

    async def write_and_kill(server: Server) -> int:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, trust_env=False, verify=False) as http:
            writing = asyncio.create_task(http.post("/sleep-and-write"))
            await until_work_is_under_way(postgres, url)
            await asyncio.to_thread(postgres.kill)
            return (await writing).status_code

    with project.boot({"DATABASE_URL": url}, in_place=True, app="extra:app") as server:
        server.settled()
        assert asyncio.run(write_and_kill(server)) == 503
        postgres.start()
        server.health_when(lambda report: report["status"] == "ok", within=30)
        assert server.titles() == []
        assert server.post("/api/items", json={"title": "works again"}).status_code == 201


# Promised are 5 s until the silence is noticed, where the machine has time.
@pytest.mark.parametrize("most", [15, pytest.param(7, marks=pytest.mark.alone)])
def test_a_request_under_way_when_postgresql_falls_silent_is_answered_in_time(
    project: BakedProject, postgres: Postgres, most: float
) -> None:
    url = postgres.create_database()

    async def write_and_pause(server: Server) -> tuple[httpx2.Response, float]:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, trust_env=False, verify=False) as http:
            writing = asyncio.create_task(http.post("/sleep-and-write"))
            await until_work_is_under_way(postgres, url)
            await asyncio.to_thread(postgres.pause)
            begun = time.monotonic()
            return await writing, time.monotonic() - begun

    with project.boot({"DATABASE_URL": url}, in_place=True, app="extra:app") as server:
        server.settled()
        answer, seconds = asyncio.run(write_and_pause(server))
        assert answer.status_code == 503
        # COMMIT was not sent yet
        assert "Nothing was stored" in answer.json()["detail"]
        assert seconds < most
        postgres.resume()
        server.health_when(lambda report: report["status"] == "ok", within=30)
        assert server.post("/api/items", json={"title": "works again"}).status_code == 201


def test_postgresql_that_restarts_costs_idle_connections_no_request(bake: Bakery, postgres: Postgres) -> None:
    with bake().boot({"DATABASE_URL": postgres.create_database()}) as server:
        server.settled()
        for number in range(5):
            assert server.post("/api/items", json={"title": str(number)}).status_code == 201
        postgres.stop("immediate")
        postgres.start()
        looked_at = server.health()["database"]["checked_at"]
        server.health_when(lambda report: report["status"] == "ok" and report["database"]["checked_at"] != looked_at)
        assert server.post("/api/items", json={"title": "after"}).status_code == 201
        assert len(server.titles()) == 6


@pytest.mark.parametrize(
    ("times", "most"),
    [(1, 20), pytest.param(2, 20, marks=pytest.mark.thorough), pytest.param(1, 8, marks=pytest.mark.alone)],
)
def test_a_silent_postgresql_is_reported_and_found_again_each_time(
    bake: Bakery, postgres: Postgres, times: int, most: float
) -> None:
    with bake().boot({"DATABASE_URL": postgres.create_database()}) as server:
        server.settled()
        for _ in range(times):
            postgres.pause()
            server.health_when(lambda report: report["status"] == "unavailable", within=most)
            assert server.post("/api/items", json={"title": "x"}).status_code == 503
            # then the app has cut the connections that hang
            wait_until_missed_twice(server)
            postgres.resume()
            server.health_when(lambda report: report["status"] == "ok", within=most + 2)
            assert server.post("/api/items", json={"title": "x"}).status_code == 201
        assert server.stop() == -15


@pytest.mark.parametrize("turns", [50, pytest.param(250, marks=pytest.mark.thorough)])
def test_memory_loses_no_acknowledged_row_under_load(bake: Bakery, turns: int) -> None:
    async def create_many(url: str) -> list[str]:
        async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False, verify=False) as http:

            async def client(number: int) -> list[str]:
                acknowledged = []
                for turn in range(turns):
                    title = f"{number}-{turn}"
                    if (await http.post("/api/items", json={"title": title})).status_code == 201:
                        acknowledged.append(title)
                return acknowledged

            return [title for titles in await asyncio.gather(*(client(n) for n in range(8))) for title in titles]

    with bake().boot({"DATABASE_URL": "sqlite://", "LOG_LEVEL": "warning"}) as server:
        server.settled()
        acknowledged = asyncio.run(create_many(server.url))
        assert len(acknowledged) == 8 * turns
        assert sorted(server.titles()) == sorted(acknowledged)
