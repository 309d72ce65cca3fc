"""What programmers write without thinking: a session in a plain `def`, which holds nothing for longer than needed."""

import contextlib
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Postgres
from tests.support.server import Server

pytestmark = pytest.mark.slow

SOON = 30

ROUTES = """
import asyncio
import threading
import time
from uuid import UUID

from fastapi import BackgroundTasks, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.serving import limiter
from src.database.session import DatabaseDep, ReadSessionDep, SessionDep, SessionLocal
from src.items.models import Item
from src.main import app

inside, go = threading.Event(), threading.Event()
async_inside, async_go = asyncio.Event(), asyncio.Event()


class Read(BaseModel):
    title: str
    description: str | None


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Item))


@app.post("/inside")
def is_inside() -> bool:
    return inside.wait(30)


@app.post("/go")
async def let_go() -> None:
    go.set()
    async_go.set()


@app.post("/think")
def think(session: SessionDep) -> Read:
    count(session)
    time.sleep(0.5)
    item = Item(title="thought")
    session.add(item)
    session.flush()
    return item


@app.post("/quick")
def quick(session: SessionDep) -> Read:
    item = Item(title="quick")
    session.add(item)
    session.flush()
    return item


@app.get("/wait/{kind}")
def wait(kind: str, session: SessionDep, read_session: ReadSessionDep) -> int:
    def rest() -> None:
        go.clear()
        inside.set()
        assert go.wait(30)
        inside.clear()

    if kind == "SessionLocal":
        with SessionLocal() as session:
            before = count(session)
            rest()
            return count(session) - before
    session = session if kind == "SessionDep" else read_session
    before = count(session)
    rest()
    return count(session) - before


@app.post("/textbook")
def textbook(session: SessionDep) -> Read:
    item = Item(title="textbook")
    session.add(item)
    session.commit()
    session.refresh(item)
    item.description = "changed"
    return item


@app.post("/local")
def local() -> int:
    with SessionLocal.begin() as session:
        session.execute(insert(Item).values(title="local"))
    with SessionLocal() as session:
        session.execute(update(Item).values(description="never committed"))
    with SessionLocal() as session:
        return session.scalar(text("SELECT count(*) FROM items WHERE description IS NULL"))


@app.post("/late-lock")
def late_lock(session: SessionDep, how: str) -> str | None:
    item = session.scalars(select(Item)).one()
    with SessionLocal.begin() as other:
        other.execute(update(Item).values(description="by another"))
    if how == "select":
        session.scalars(select(Item).with_for_update()).one()
    elif how == "query":
        session.query(Item).with_for_update().one()
    else:
        session.get(Item, item.id, with_for_update=True)
    return item.description


@app.post("/read-only-writes")
def read_only_writes(session: ReadSessionDep, how: str) -> None:
    if how == "add":
        session.add(Item(title="never stored"))
    elif how == "flush":
        session.add(Item(title="never stored"))
        session.flush()
    else:
        session.execute(insert(Item).values(title="never stored"))


@app.get("/stream")
def stream(session: SessionDep) -> StreamingResponse:
    return StreamingResponse(title + "\\n" for title in session.scalars(
        select(Item.title).execution_options(yield_per=1)
    ))


@app.get("/stream-lazily")
def stream_lazily(session: SessionDep) -> StreamingResponse:
    item = session.scalars(select(Item).options(defer(Item.description))).one()

    def body():
        yield f"{item.description} {count(session)}"

    return StreamingResponse(body())


@app.post("/task")
def task(session: SessionDep, tasks: BackgroundTasks) -> None:
    item = session.scalars(select(Item)).one()
    tasks.add_task(lambda: setattr(item, "description", "too late"))


@app.get("/lazy")
async def lazy(database: DatabaseDep) -> str | None:
    item = await database.read(lambda session: session.scalars(select(Item).options(defer(Item.description))).one())
    return item.description


@app.websocket("/socket")
async def socket(socket: WebSocket, database: DatabaseDep, session: SessionDep) -> None:
    await socket.accept()
    async for title in socket.iter_text():
        if title == "not now":
            raise DatabaseUnavailable(title)
        session.add(Item(title=title))
        session.commit()
        await socket.send_json([count(session), await database.read(count)])


@app.post("/async-holds")
async def async_holds(session: SessionDep) -> None:
    session.add(Item(title="held"))
    session.flush()
    async_go.clear()
    inside.set()
    await async_go.wait()
    inside.clear()


@app.post("/async-wants")
async def async_wants(session: SessionDep) -> None:
    session.execute(text("DELETE FROM items WHERE title = 'nobody has it'"))


@app.post("/broken-rule")
def broken_rule(session: SessionDep, which: str) -> None:
    if which == "NOT NULL":
        session.add(Item(description="a secret value"))
    elif which == "CHECK":
        session.execute(text("INSERT INTO checked VALUES (:number)"), {"number": int("8642" "7531")})
    else:
        session.execute(text("INSERT INTO checked VALUES (1)"))
        session.execute(text("INSERT INTO checked VALUES (1)"))


@app.post("/make-table")
def make_table(session: SessionDep) -> None:
    session.execute(text(
        "CREATE TABLE checked (number INTEGER CONSTRAINT ck_small CHECK (number < 5) CONSTRAINT uq_one UNIQUE)"
    ))


@app.post("/caught")
def caught(session: SessionDep) -> str:
    session.execute(text("INSERT INTO checked VALUES (2)"))
    try:
        with session.begin_nested():
            session.execute(text("INSERT INTO checked VALUES (2)"))
    except IntegrityError:
        return "caught"


@app.post("/patience")
async def patience(seconds: float) -> None:
    limiter.MAX_WAIT_SECONDS = seconds


@app.post("/lost-later")
def lost_later(session: SessionDep) -> None:
    session.add(Item(title="stored"))
    session.commit()
    lost(session)


@app.post("/lost")
def lost(session: SessionDep) -> None:
    session.add(Item(title="lost"))
    session.flush()
    session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@app.post("/empty")
def empty(session: SessionDep) -> None:
    session.execute(text("DELETE FROM items"))
"""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(
    request: pytest.FixtureRequest, bake: Bakery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str]]:
    """The app with these routes on each database, and the database's URL."""
    folder = tmp_path_factory.mktemp("sessions")
    if request.param == "sqlite":
        url = f"sqlite:///{folder}/test.db"
    else:
        postgres: Postgres = request.getfixturevalue("running_postgres")
        postgres.start()
        url = postgres.create_database()
    project: BakedProject = bake().copy_to(folder)
    (project.path / "extra.py").write_text(ROUTES)
    with project.boot({"DATABASE_URL": url}, in_place=True, app="extra:app") as server:
        assert server.settled()["status"] == "ok"
        assert server.post("/make-table").status_code == 200
        yield server, url


@pytest.fixture
def server(running: tuple[Server, str]) -> Server:
    """The server, without an item."""
    server, _ = running
    assert server.post("/empty").status_code == 200
    return server


def create(server: Server, title: str = "first") -> None:
    assert server.post("/api/items", json={"title": title}).status_code == 201


@contextlib.contextmanager
def patience_of(server: Server, seconds: float) -> Iterator[None]:
    """Change how long requests wait for their turn, until the block ends."""
    server.post(f"/patience?seconds={seconds}")
    try:
        yield
    finally:
        server.post("/patience?seconds=5")


@contextlib.contextmanager
def under_way(server: Server, method: str, path: str) -> Iterator[Future[httpx2.Response]]:
    """Send a request, and yield once its endpoint is inside; it ends at the end of the block."""
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(server.client.request, method, path)
        try:
            assert server.post("/inside").json()
            yield answer
        finally:
            server.post("/go")
        answer.result(SOON)


def test_clients_that_compute_between_a_read_and_a_write_are_all_served(server: Server) -> None:
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda _: server.post("/think"), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20, server.log()
    assert server.titles() == ["thought"] * 20


@pytest.mark.parametrize("running", ["sqlite"], indirect=True)
def test_more_clients_than_threads_do_not_wait_for_each_other_forever(server: Server) -> None:
    # it takes a while until all sixty wait
    with ThreadPoolExecutor(60) as clients, patience_of(server, SOON):
        with under_way(server, "POST", "/async-holds"):
            answers = [clients.submit(server.post, "/quick") for _ in range(60)]
            # all have a thread, although there are 40 for those who do not wait
            server.health_when(lambda _: 'waiting{pool="write"} 60.0' in server.get("/metrics").text)
        assert [answer.result().status_code for answer in answers] == [200] * 60
    assert sorted(server.titles()) == ["held", *["quick"] * 60]


@pytest.mark.parametrize("kind", ["SessionDep", "ReadSessionDep", "SessionLocal"])
def test_a_session_that_reads_and_then_works_delays_no_writer(server: Server, kind: str) -> None:
    with under_way(server, "GET", f"/wait/{kind}") as answer:
        create(server)
        assert server.get("/health/ready").status_code == 200
    # and it sees what was written meanwhile
    assert answer.result().json() == 1


def test_what_textbooks_write_is_stored(server: Server) -> None:
    assert server.post("/textbook").json() == {"title": "textbook", "description": "changed"}
    assert server.get("/api/items").json()["items"][0]["description"] == "changed"
    assert server.post("/local").json() == 1
    assert server.titles() == ["local", "textbook"]


@pytest.mark.parametrize("how", ["select", "query", "get"])
def test_a_row_that_is_locked_is_read_anew(server: Server, how: str) -> None:
    create(server)
    assert server.post("/late-lock", params={"how": how}).json() == "by another"


@pytest.mark.parametrize("how", ["add", "flush", "execute"])
def test_a_session_for_reading_cannot_write(server: Server, how: str) -> None:
    length = len(server.log())
    assert server.post("/read-only-writes", params={"how": how}).status_code == 500
    server.log_when_it_tells("this session only reads: use SessionDep", since=length)
    assert server.titles() == []


def test_a_body_that_streams_may_still_read(server: Server) -> None:
    create(server)
    assert server.get("/stream").text == "first\n"
    assert server.get("/stream-lazily").text == "None 1"


def test_a_change_after_the_answer_says_what_to_write_instead(server: Server) -> None:
    create(server)
    length = len(server.log())
    # a connection of its own, which the server closes when the task fails
    assert httpx2.post(f"{server.url}/task", trust_env=False, verify=False).status_code == 200
    server.log_when_it_tells("use `with SessionLocal.begin() as session:`", since=length)


def test_a_value_that_was_not_read_says_what_to_write_instead(server: Server) -> None:
    create(server)
    length = len(server.log())
    assert server.get("/lazy").status_code == 500
    server.log_when_it_tells("selectinload()", since=length)


def test_sessions_and_the_database_work_in_websockets(server: Server) -> None:
    with connect(server.url.replace("http", "ws") + "/socket") as socket:
        socket.send("from a socket")
        assert socket.recv(SOON) == "[1,1]"
        create(server)
        socket.send("from a socket")
        assert socket.recv(SOON) == "[3,3]"
        socket.send("not now")
        with pytest.raises(ConnectionClosed):
            socket.recv(SOON)
        assert socket.close_code == 1013


def test_who_waits_for_the_writer_in_vain_is_told_to_come_again(running: tuple[Server, str]) -> None:
    server, url = running
    with under_way(server, "POST", "/async-holds"):
        with patience_of(server, 0.2):
            answer = server.post("/textbook")
        assert server.get("/api/items").status_code == 200
    if url.startswith("sqlite"):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert "nothing was stored" in answer.json()["detail"]
    else:
        assert answer.status_code == 200


def test_a_session_on_the_event_loop_neither_blocks_it_for_long_nor_forever(running: tuple[Server, str]) -> None:
    server, url = running
    with under_way(server, "POST", "/async-holds"):
        # several may write to PostgreSQL at once
        expected = 503 if url.startswith("sqlite") else 200
        assert server.post("/async-wants").status_code == expected
    assert server.post("/async-wants").status_code == 200
    if expected == 503:
        server.log_when_it_tells("write `def`")
    else:
        assert "write `def`" not in server.log()


@pytest.mark.parametrize(("which", "name"), [("NOT NULL", "title"), ("CHECK", "ck_small")])
def test_a_rule_that_the_code_broke_is_an_error_with_its_name_in_the_log(server: Server, which: str, name: str) -> None:
    length = len(server.log())
    assert server.post("/broken-rule", params={"which": which}).status_code == 500
    server.log_when_it_tells(name, since=length)
    log = server.log_when_it_tells(which, since=length)
    assert "a secret value" not in log
    assert "86427531" not in log


def test_a_value_that_is_taken_is_a_conflict_unless_the_code_expects_it(server: Server) -> None:
    assert server.post("/broken-rule", params={"which": "UNIQUE"}).status_code == 409
    assert server.post("/caught").json() == "caught"


def test_what_a_session_raises_is_answered_as_write_would(running: tuple[Server, str]) -> None:
    server, url = running
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(Path(url.removeprefix("sqlite:///")))) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = server.post("/textbook")
    else:
        answer = server.post("/lost")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "Nothing was stored" in answer.json()["detail"]
    server.health_when(lambda report: report["status"] == "ok")
    assert server.post("/textbook").status_code == 200


@pytest.mark.parametrize("running", ["postgresql"], indirect=True)
def test_a_session_that_has_committed_does_not_say_that_nothing_was_stored(server: Server) -> None:
    answer = server.post("/lost-later")
    assert answer.status_code == 503
    assert "may or may not" in answer.json()["detail"]
