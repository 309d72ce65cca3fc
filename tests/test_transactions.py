"""What an endpoint does to the database is stored as a whole or not at all, and a mistake in it keeps nobody out."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.bakery import BakedProject
from tests.support.server import Server

pytestmark = pytest.mark.slow

# Uses the database in the ways that the sample does not.
ROUTES = """
import contextlib
import threading

from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from space_runtime.serving import database as serving
from src.database.session import DatabaseDep, SessionDep
from src.items.models import Item
from src.main import app


@app.post("/by-session")
def by_session(title: str, session: SessionDep) -> str:
    session.add(Item(title=title))
    if title == "stop":
        raise ValueError
    return title


@app.post("/read-that-writes")
async def read_that_writes(database: DatabaseDep) -> None:
    await database.read(lambda session: session.execute(text("DELETE FROM items")))


@app.post("/swallow")
async def swallow(database: DatabaseDep) -> str:
    def work(session: Session) -> None:
        session.add(Item(title="before the error"))
        session.flush()
        with contextlib.suppress(DBAPIError):
            session.execute(text("SELECT * FROM no_such_table"))

    await database.write(work)
    return "stored"


@app.post("/append")
async def append(database: DatabaseDep) -> None:
    def work(session: Session) -> None:
        item = session.scalars(select(Item).with_for_update()).one()
        item.description = (item.description or "") + "x"

    await database.write(work)


@app.post("/no-next-row")
async def no_next_row(database: DatabaseDep) -> None:
    await database.write(lambda session: next(session.scalars(select(Item))))


@app.post("/coroutine")
async def coroutine(database: DatabaseDep) -> None:
    async def work(session: Session) -> None:
        session.add(Item(title="never stored"))

    await database.write(work)


@app.post("/commits")
async def commits(database: DatabaseDep) -> None:
    def work(session: Session) -> None:
        session.add(Item(title="once"))
        session.commit()
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    await database.write(work)


@app.post("/hurry")
async def hurry() -> None:
    serving.MAX_SESSION_SECONDS = 0.1


@app.post("/slow")
def slow(session: SessionDep) -> str:
    has_ended = threading.Event()
    event.listen(session, "after_transaction_end", lambda *_: has_ended.set())
    session.execute(text("DELETE FROM items"))
    assert has_ended.wait(30)
    session.add(Item(title="too late"))
    session.flush()
    return "stored"
"""


@pytest.fixture
def server(project: BakedProject, database_url: str) -> Iterator[Server]:
    """The app with these routes, on an empty database."""
    (project.path / "extra.py").write_text(ROUTES)
    with project.boot({"DATABASE_URL": database_url}, in_place=True, app="extra:app") as server:
        assert server.settled()["status"] == "ok"
        yield server


def create(server: Server, title: str) -> None:
    assert server.post("/api/items", json={"title": title}).status_code == 201


def test_a_session_is_committed_when_the_endpoint_returns_and_not_when_it_raises(server: Server) -> None:
    assert server.post("/by-session?title=go").status_code == 200
    assert server.post("/by-session?title=stop").status_code == 500
    assert server.titles() == ["go"]


def test_a_read_cannot_write(server: Server) -> None:
    create(server, "stays")
    assert server.post("/read-that-writes").status_code in (500, 503)
    assert server.titles() == ["stays"]


def test_work_that_hides_an_error_is_stored_if_and_only_if_it_says_so(server: Server) -> None:
    # PostgreSQL answers the COMMIT of a failed transaction with a silent ROLLBACK
    answer = server.post("/swallow")
    assert server.titles() == (["before the error"] if answer.status_code == 200 else [])


def test_work_that_ends_in_a_mistake_is_answered_and_keeps_nobody_out(server: Server) -> None:
    for _ in range(10):
        assert server.post("/no-next-row").status_code == 500
    create(server, "stored")


def test_work_that_was_never_run_is_no_success(server: Server) -> None:
    assert server.post("/coroutine").status_code == 500
    assert server.titles() == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_work_that_committed_by_itself_is_not_run_again(server: Server) -> None:
    answer = server.post("/commits")
    assert answer.status_code == 503
    assert "may or may not" in answer.json()["detail"]
    server.health_when(lambda _: server.get("/health/ready").status_code == 200)
    assert server.titles() == ["once"]


def test_a_session_that_takes_too_long_is_rolled_back_and_keeps_nobody_out(server: Server) -> None:
    assert server.post("/hurry").status_code == 200
    assert server.post("/slow").status_code in (500, 503)
    create(server, "next")
    assert server.titles() == ["next"]


def test_concurrent_changes_of_one_row_are_all_kept(server: Server) -> None:
    create(server, "counter")
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda _: server.post("/append").status_code, range(100)))
    assert answers == [200] * 100
    assert server.get("/api/items").json()["items"][0]["description"] == "x" * 100
