"""Short reads run in the event loop; what is long or fails there is done in a thread, with the same outcome."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from space_runtime.backends import POSTGRESQL, SQLITE
from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.serving import limiter as limits
from space_runtime.serving import loop_reader
from space_runtime.serving.database import Admission, Database
from space_runtime.serving.loop_reader import LoopReader
from space_runtime.serving.sessions import SessionFactory
from sqlalchemy import URL, Engine, make_url, text
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.orm import Session

from tests.support.bakery import BakedProject

SOON = 10
"""Seconds after which a test fails instead of hanging."""
COUNT = text("WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < :end) SELECT max(n) FROM up")
"""SQLite counts in every step of it whether it has to stop."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine as the lifecycle opens it."""
    engine = SQLITE.create_engine(URL.create("sqlite", database=f"{tmp_path}/test.db"), {}, 4)
    SQLITE.prepare_to_serve(engine, transaction_pooler=False)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (number INTEGER)"))
    yield engine
    engine.dispose()


@pytest.fixture
def database(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database that serves and takes nothing for long, whatever else the machine does."""
    last_for(SOON, monkeypatch)
    database = Database(SessionFactory())
    database.use(engine, 3)
    database.admission = Admission(reads=True, writes=True)
    yield database
    database.leave()
    assert database.drain(SOON)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def last_for(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let work be short if it takes less."""
    monkeypatch.setattr(loop_reader, "SHORT_SECONDS", seconds)
    monkeypatch.setattr(loop_reader, "HOLDING_SECONDS", seconds)


def reader_of(database: Database) -> LoopReader:
    """What runs reads in the event loop."""
    assert database._serving
    assert database._serving.loop_reader
    return database._serving.loop_reader


def highest(session: Session, end: int) -> tuple[int, int]:
    """Count, and say in which thread."""
    return session.execute(COUNT, {"end": end}).scalar_one(), threading.get_ident()


def is_here(session: Session) -> bool:
    """Read something, and return whether this is the main thread."""
    session.execute(COUNT, {"end": 1})
    return threading.current_thread() is threading.main_thread()


def run(*steps: Callable[[], Awaitable[object]]) -> None:
    """Run these in one event loop."""

    async def all_steps() -> None:
        for step in steps:
            await asyncio.wait_for(step(), SOON)

    asyncio.run(all_steps())


async def until_short(database: Database, work: Callable[..., object], *args: object) -> None:
    """Run the work until it is known to be short."""
    while not is_short(database, work):
        await database.read(work, *args)


def is_short(database: Database, work: Callable[..., object]) -> bool:
    """Whether the event loop takes the work, although there are threads."""
    assert database._serving
    return reader_of(database).takes(work, database._serving.readers)


def test_work_runs_in_a_thread_until_it_is_known_to_be_short(database: Database) -> None:
    async def reads() -> None:
        assert not await database.read(is_here)
        await until_short(database, is_here)
        assert await database.read(is_here)
        assert not await database.read(lambda session: is_here(session))

    run(reads)


def test_work_that_takes_too_long_is_run_again_in_a_thread_with_the_same_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reads() -> None:
        await until_short(database, highest, 10)
        here = threading.get_ident()
        assert await database.read(highest, 10) == (10, here)
        last_for(0, monkeypatch)
        for _ in range(20):
            number, thread = await database.read(highest, 100_000)
            assert (number, thread == here) == (100_000, False)
        # it is long again and again, so it is not even tried
        assert not is_short(database, highest)

    run(reads)


def test_one_slow_run_does_not_send_work_to_the_threads(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reads() -> None:
        await until_short(database, is_here)
        for _ in range(20):
            assert await database.read(is_here)
        last_for(0, monkeypatch)
        await database.read(is_here)
        last_for(SOON, monkeypatch)
        assert await database.read(is_here)

    run(reads)


def test_many_short_statements_are_stopped_like_one_long_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def many(session: Session, times: int) -> tuple[int, bool]:
        return sum(highest(session, 1)[0] for _ in range(times)), is_here(session)

    async def reads() -> None:
        await until_short(database, many, 1)
        last_for(0, monkeypatch)
        assert await database.read(many, 100) == (100, False)

    run(reads)


def test_work_that_makes_something_else_of_being_stopped_is_run_again_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suppress(session: Session, end: int) -> int:
        with contextlib.suppress(OperationalError):
            return highest(session, end)[0]
        return -1

    def translate(session: Session, end: int) -> int:
        try:
            return highest(session, end)[0]
        except OperationalError:
            raise LookupError from None

    async def reads() -> None:
        for work in (suppress, translate):
            last_for(SOON, monkeypatch)
            await until_short(database, work, 10)
            last_for(0, monkeypatch)
            assert await database.read(work, 100_000) == 100_000

    run(reads)


def test_a_read_that_writes_is_refused_wherever_it_runs(database: Database) -> None:
    def work(session: Session, writes: bool) -> int:
        if writes:
            session.execute(text("INSERT INTO notes VALUES (1)"))
        return len(session.execute(text("SELECT * FROM notes")).all())

    async def reads() -> None:
        with pytest.raises(RuntimeError, match="use write"):
            await database.read(work, True)
        await until_short(database, work, False)
        with pytest.raises(RuntimeError, match="use write"):
            await database.read(work, True)
        assert await database.read(work, False) == 0

    run(reads)


def test_an_error_of_the_work_is_the_same_wherever_it_runs(database: Database) -> None:
    def work(session: Session, error: str) -> None:
        if error == "lookup":
            raise LookupError
        if error == "stop":
            raise StopIteration
        if error == "sql":
            session.execute(text("SELECT * FROM no_such_table"))

    async def fail() -> list[type[object]]:
        errors = (database.read(work, error) for error in ("lookup", "stop", "sql"))
        return [type(outcome) for outcome in await asyncio.gather(*errors, return_exceptions=True)]

    async def reads() -> None:
        in_threads = await fail()
        await until_short(database, work, "")
        assert await fail() == in_threads == [LookupError, RuntimeError, OperationalError]

    run(reads)


@pytest.mark.parametrize("harm", ["lost", "closed", "changed"])
def test_a_connection_that_was_lost_or_changed_is_replaced(database: Database, harm: str) -> None:
    def work(session: Session, does_harm: bool) -> bool:
        if does_harm and harm == "closed":
            session.connection().close()
        elif does_harm and harm == "changed":
            session.connection().execution_options(stream_results=True)
        return is_here(session)

    async def reads() -> None:
        await until_short(database, work, False)
        reader = reader_of(database)
        kept = reader._connection
        assert kept
        if harm == "lost":
            kept.connection.driver_connection.close()  # type: ignore[union-attr]
            assert not await database.read(work, True)
        with contextlib.suppress(InvalidRequestError):
            await database.read(work, True)
        await until_short(database, work, False)
        assert await database.read(work, False)
        assert reader._connection is not kept

    run(reads)


def test_reads_take_turns_in_the_order_in_which_they_came(database: Database) -> None:
    order: list[object] = []

    def work(session: Session, number: int) -> None:
        order.append(number)

    async def reads() -> None:
        await until_short(database, work, -1)
        order.clear()
        loop = asyncio.get_running_loop()

        def turn() -> None:
            order.append("turn")
            if order.count("turn") < 50:
                loop.call_soon(turn)

        waiting = asyncio.gather(*(database.read(work, number) for number in range(5)))
        turn()
        await waiting

    run(reads)
    assert [entry for entry in order if entry != "turn"] == [0, 1, 2, 3, 4]
    for before, after in itertools.pairwise(order):
        assert "turn" in (before, after)


def test_slow_reads_keep_neither_short_ones_nor_anything_else_from_going_on(database: Database) -> None:
    go = threading.Event()

    async def reads() -> None:
        await until_short(database, is_here)
        slow = [asyncio.create_task(database.read(lambda session: go.wait(SOON))) for _ in range(4)]
        await asyncio.sleep(0)
        assert all(await asyncio.gather(*(database.read(is_here) for _ in range(20))))
        assert not any(task.done() for task in slow)
        go.set()
        assert await asyncio.gather(*slow) == [True] * 4

    run(reads)


def test_work_that_was_once_short_does_not_wait_behind_slow_reads_though_it_was_long_lately(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def blocks(session: Session) -> bool:
        return go.wait(SOON)

    async def reads() -> None:
        await until_short(database, is_here)
        last_for(0, monkeypatch)
        for _ in range(5):
            await database.read(is_here)
        last_for(SOON, monkeypatch)
        assert not await database.read(is_here)
        assert not is_short(database, is_here)
        slow = [asyncio.create_task(database.read(blocks)) for _ in range(4)]
        await asyncio.sleep(0)
        assert await database.read(is_here)
        assert not any(task.done() for task in slow)
        go.set()
        assert await asyncio.gather(*slow) == [True] * 4

    run(reads)


def test_who_waits_for_the_event_loop_has_the_same_queue_and_deadline(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reads() -> None:
        await until_short(database, is_here)
        reader = reader_of(database)
        monkeypatch.setattr(limits, "MAX_WAIT_SECONDS", 0.01)
        assert reader.limiter.try_to_enter()
        with pytest.raises(DatabaseUnavailable, match="busy"):
            await database.read(is_here)
        monkeypatch.setattr(limits, "MAX_WAITING", 0)
        with pytest.raises(DatabaseUnavailable, match="Too many"):
            await database.read(is_here)
        reader.limiter.leave()

    run(reads)


def test_a_database_that_is_left_keeps_no_connection(database: Database) -> None:
    async def reads() -> None:
        await until_short(database, is_here)
        reader = reader_of(database)
        waiting = asyncio.gather(*(database.read(is_here) for _ in range(3)), return_exceptions=True)
        await asyncio.sleep(0)
        await asyncio.to_thread(database.leave)
        assert await asyncio.to_thread(database.drain, SOON)
        outcomes = await waiting
        assert {type(outcome) for outcome in outcomes} <= {bool, DatabaseUnavailable}
        assert reader._connection is None
        assert not reader._engine.pool.checkedout()  # type: ignore[attr-defined]

    run(reads)


@pytest.mark.parametrize("url", ["sqlite://", "postgresql+psycopg://u@h/d"])
def test_what_may_wait_or_has_one_connection_only_is_not_read_in_the_event_loop(url: str) -> None:
    backend = SQLITE if url.startswith("sqlite") else POSTGRESQL
    assert not backend.reads_in_loop(backend.create_engine(make_url(url), {}, 1))


ROUTES = """
import threading

from sqlalchemy import text
from sqlalchemy.orm import Session

from space_runtime.serving import loop_reader
from src.database.session import DatabaseDep
from src.main import app

loop_reader.SHORT_SECONDS = loop_reader.HOLDING_SECONDS = 60
go = threading.Event()


def slow_query(session: Session) -> int:
    session.connection().connection.driver_connection.create_function("wait", 0, lambda: go.wait(60))
    return session.execute(text("SELECT wait()")).scalar_one()


@app.get("/slow")
async def slow(database: DatabaseDep) -> int:
    return await database.read(slow_query)


@app.get("/go")
async def end() -> None:
    go.set()
"""


@pytest.mark.slow
def test_lists_and_health_are_answered_while_every_thread_is_busy_with_a_slow_query(project: BakedProject) -> None:
    (project.path / "extra.py").write_text(ROUTES)
    with project.boot(in_place=True, app="extra:app") as server, ThreadPoolExecutor(4) as clients:
        assert server.settled()["status"] == "ok"
        for _ in range(30):
            assert server.get("/api/items").status_code == 200
        slow = [clients.submit(server.get, "/slow") for _ in range(4)]
        server.health_when(lambda _: 'database_threads_busy{pool="read"} 2.0' in server.get("/metrics").text)
        assert not any(request.done() for request in slow)
        for _ in range(20):
            assert server.get("/api/items").status_code == 200
            assert server.get("/health/live").status_code == 200
        server.get("/go")
        # two had a thread; the others may have waited for too long
        statuses = [request.result().status_code for request in slow]
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 2
