"""Short work runs in the event loop; what is long or fails there is done in a thread, with the same outcome."""

import asyncio
import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from space_runtime.backends import POSTGRESQL, SQLITE
from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.serving import limiter as limits
from space_runtime.serving import loop_worker
from space_runtime.serving.database import Admission, Database
from space_runtime.serving.loop_worker import LoopWorker
from space_runtime.serving.sessions import SessionFactory
from sqlalchemy import URL, Engine, make_url, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, OperationalError
from sqlalchemy.orm import Session

from tests.support.bakery import BakedProject

SOON = 10
"""Seconds after which a test fails instead of hanging."""
COUNT = text("WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < :end) SELECT max(n) FROM up")
"""SQLite counts in every step of it whether it has to stop."""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine as the lifecycle opens it; it would wait longer for another writer than a test takes."""
    monkeypatch.setattr("space_runtime.backends.sqlite.BUSY_TIMEOUT_SECONDS", 2 * SOON)
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
    monkeypatch.setattr(loop_worker, "SHORT_SECONDS", seconds)
    monkeypatch.setattr(loop_worker, "HOLDING_SECONDS", seconds)


def reader_of(database: Database) -> LoopWorker:
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


def add(session: Session, *numbers: int) -> bool:
    """Insert these, and return whether this is the main thread."""
    for number in numbers:
        session.execute(text("INSERT INTO notes VALUES (:number)"), {"number": number})
    return threading.current_thread() is threading.main_thread()


def add_many(session: Session, end: int) -> bool:
    """Insert as many as may take too long, and return whether this is the main thread."""
    session.execute(text(f"INSERT INTO notes {COUNT.text.replace('max(n)', 'n')}"), {"end": end})
    return threading.current_thread() is threading.main_thread()


def notes(session: Session) -> list[int]:
    """All that is stored."""
    return list(session.scalars(text("SELECT number FROM notes ORDER BY rowid")))


async def until_written_here(database: Database, work: Callable[..., object], *args: object) -> None:
    """Run the work until the event loop takes it, and empty the table again."""
    while not await database.write(work, *args):
        pass
    await database.write(lambda session: session.execute(text("DELETE FROM notes")) and None)


@pytest.fixture
def sticky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let work that was once short count as short for good."""
    monkeypatch.setattr(loop_worker, "_LEFT_AFTER_A_SHORT_RUN", 0.0)
    monkeypatch.setattr(loop_worker, "_LONG", 1_000.0)
    monkeypatch.setattr(loop_worker, "_UNKNOWN", 1_000.0)


def test_a_short_write_is_stored_when_it_returns(database: Database, engine: Engine) -> None:
    async def writes() -> None:
        await until_written_here(database, add, 0)
        assert await database.write(add, 1)
        with Session(engine) as session:
            assert notes(session) == [1]

    run(writes)


@pytest.mark.usefixtures("sticky")
@pytest.mark.parametrize(
    "goes_on", ["", "after the error", "after rollback()", "in a savepoint", "and commits", "and only returns"]
)
def test_a_write_that_is_stopped_is_made_once_and_as_a_whole_in_a_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch, goes_on: str
) -> None:
    def work(session: Session, end: int) -> bool:
        add(session, -1)
        try:
            with session.begin_nested() if goes_on == "in a savepoint" else contextlib.nullcontext():
                add_many(session, end)
        except OperationalError:
            if not goes_on:
                raise
            if goes_on == "after rollback()":
                session.rollback()
            if goes_on == "and only returns":
                return True
            with contextlib.suppress(Exception):
                add(session, -2)
            if goes_on == "and commits":
                with contextlib.suppress(Exception):
                    session.commit()
        return add(session, -3)

    async def writes() -> None:
        await until_written_here(database, work, 1)
        last_for(0, monkeypatch)
        assert not await database.write(work, 10_000)
        last_for(SOON, monkeypatch)
        assert await database.read(notes) == [-1, *range(1, 10_001), -3]
        await database.write(work, 1)
        assert await database.write(work, 1)

    run(writes)


@pytest.mark.usefixtures("sticky")
def test_work_that_commits_by_itself_is_done_once_in_a_thread(database: Database) -> None:
    def work(session: Session, commits: bool) -> bool:
        add(session, 1)
        if commits:
            session.commit()
        return add(session, 2)

    async def writes() -> None:
        await until_written_here(database, work, False)
        assert not await database.write(work, True)
        assert await database.read(notes) == [1, 2]

    run(writes)


@pytest.mark.usefixtures("sticky")
def test_a_write_that_fails_stores_nothing_wherever_it_runs_and_keeps_nobody_out(
    database: Database, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE owners (number INTEGER PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE pets (owner REFERENCES owners DEFERRABLE INITIALLY DEFERRED)"))

    def work(session: Session, fails: str) -> bool:
        add(session, 1)
        if fails == "lookup":
            raise LookupError
        if fails == "sql":
            session.execute(text("INSERT INTO owners VALUES (1), (1)"))
        if fails == "commit":
            session.execute(text("INSERT INTO pets VALUES (1)"))
        return add(session)

    async def fail() -> list[type[object]]:
        errors = [database.write(work, fails) for fails in ("lookup", "sql", "commit")]
        return [type(outcome) for outcome in await asyncio.gather(*errors, return_exceptions=True)]

    async def writes() -> None:
        in_threads = await fail()
        await until_written_here(database, work, "")
        for _ in range(3):
            assert await fail() == in_threads == [LookupError, IntegrityError, IntegrityError]
        assert await database.read(notes) == []
        await until_written_here(database, work, "")

    run(writes)


@pytest.mark.usefixtures("sticky")
def test_a_write_whose_commit_fails_is_not_made_again(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(connection: sqlite3.Connection) -> None:
        connection.commit()
        raise sqlite3.OperationalError("disk I/O error")

    async def writes() -> None:
        await until_written_here(database, add, 0)
        with monkeypatch.context() as patch:
            patch.setattr(engine.dialect, "do_commit", commit)
            with pytest.raises(DatabaseUnavailable):
                await database.write(add, 1)
        await database.write(add, 2)
        assert await database.read(notes) == [1, 2]

    run(writes)


@pytest.mark.usefixtures("sticky")
def test_a_write_that_needs_a_thread_keeps_its_turn(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def writes() -> None:
        await until_written_here(database, add_many, 1)
        last_for(0, monkeypatch)
        assert database._serving
        turns = database._serving.writers.limiter
        assert turns.try_to_enter()
        jobs = [database.write(add_many, 3_000), *(database.write(add, -number) for number in range(5))]
        writing = [asyncio.create_task(job) for job in jobs]
        while turns.waiting < len(jobs):
            await asyncio.sleep(0)
        turns.leave()
        assert not any(await asyncio.gather(*writing))
        last_for(SOON, monkeypatch)
        assert await database.read(notes) == [*range(1, 3_001), *range(0, -5, -1)]

    run(writes)


@pytest.mark.usefixtures("sticky")
def test_a_write_waits_for_another_process_in_a_thread(database: Database, engine: Engine) -> None:
    async def writes() -> None:
        await until_written_here(database, add, 0)
        with contextlib.closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = [asyncio.create_task(database.write(add, number)) for number in range(5)]
            for _ in range(100):
                await asyncio.sleep(0)
                assert await database.read(notes) == []
            other.execute("COMMIT")
            await asyncio.gather(*waiting)
        assert await database.read(notes) == list(range(5))

    run(writes)


@pytest.mark.usefixtures("sticky")
def test_the_log_of_short_writes_is_copied_to_the_database_in_a_thread(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_worker, "WRITES_BETWEEN_CHECKPOINTS", 50)

    def work(session: Session) -> bool:
        session.execute(text("INSERT INTO notes VALUES (zeroblob(100000))"))
        return threading.current_thread() is threading.main_thread()

    def size(suffix: str = "") -> int:
        return Path(f"{engine.url.database}{suffix}").stat().st_size

    async def writes() -> None:
        while await database.write(work) or await database.write(work):
            pass
        before = size()
        for _ in range(2):
            assert all([await database.write(work) for _ in range(50)])
            assert size() == before
            assert not any([await database.write(work) for _ in range(2)])
            assert size() > before + 50 * 100_000
            before = size()
        # it begins anew each time
        assert size("-wal") < 80 * 100_000

    run(writes)


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
        assert reader.pool.limiter.try_to_enter()
        with pytest.raises(DatabaseUnavailable, match="busy"):
            await database.read(is_here)
        monkeypatch.setattr(limits, "MAX_WAITING", 0)
        with pytest.raises(DatabaseUnavailable, match="Too many"):
            await database.read(is_here)
        reader.pool.limiter.leave()

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
def test_what_may_wait_or_has_one_connection_only_is_not_used_in_the_event_loop(url: str) -> None:
    backend = SQLITE if url.startswith("sqlite") else POSTGRESQL
    assert not backend.works_in_loop(backend.create_engine(make_url(url), {}, 1))


ROUTES = """
import threading

from sqlalchemy import text
from sqlalchemy.orm import Session

from space_runtime.serving import loop_worker
from src.database.session import DatabaseDep
from src.main import app

loop_worker.SHORT_SECONDS = loop_worker.HOLDING_SECONDS = 60
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
        while 'database_threads_busy{pool="read"} 2.0' not in server.get("/metrics").text:
            assert not any(request.done() for request in slow)
        for _ in range(20):
            assert server.get("/api/items").status_code == 200
            assert server.get("/health/live").status_code == 200
        server.get("/go")
        assert sorted(request.result().status_code for request in slow) in ([200] * 4, [200, 200, 503, 503])
