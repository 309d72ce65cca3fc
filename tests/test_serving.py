"""Requests that wait, leave, are cancelled or take too long lose no place, connection or row."""

import asyncio
import contextlib
import gc
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from space_runtime.backends import SQLITE
from space_runtime.backends.errors import DatabaseUnavailable, OutcomeUnknown
from space_runtime.serving import limiter as limits
from space_runtime.serving.database import Admission, Database
from space_runtime.serving.limiter import Closed, ConcurrencyLimiter, NoPlace, arrived_at
from space_runtime.serving.sessions import SessionFactory
from space_runtime.serving.worker_pool import WorkerPool
from sqlalchemy import URL, Engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.support.bakery import ROOT, TEMPLATE_FOLDER

SOON = 10
"""Seconds after which a test fails instead of hanging."""


def full(places: int = 1) -> ConcurrencyLimiter:
    """Return a limiter with no place left."""
    limiter = ConcurrencyLimiter(places)
    while limiter.try_to_enter():
        pass
    return limiter


@contextlib.asynccontextmanager
async def waiting(limiter: ConcurrencyLimiter, number: int = 1) -> AsyncIterator[asyncio.Task[None]]:
    """Yield a task that waits for a place; it has to end within the block."""
    task = asyncio.create_task(limiter.enter())
    while limiter.waiting < number:
        await asyncio.sleep(0)
    yield task
    assert task.done()


def test_places_go_to_those_who_have_waited_longest() -> None:
    async def crowd() -> None:
        limiter = full()
        came_in: list[int] = []

        async def come(number: int) -> None:
            await limiter.enter()
            came_in.append(number)
            limiter.leave()

        comers = [asyncio.create_task(come(number)) for number in range(5)]
        await asyncio.sleep(0)
        # As in a thread of a pool: who comes before the event loop hears of it comes last, too.
        limiter.give_back()
        assert not limiter.try_to_enter()
        limiter.let_in()
        await asyncio.gather(*comers)
        assert came_in == [0, 1, 2, 3, 4]
        assert (limiter.inside, limiter.waiting) == (0, 0)

    asyncio.run(crowd())


def test_who_has_stopped_waiting_keeps_nobody_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITING", 1)

    async def crowd() -> None:
        limiter = full()
        async with waiting(limiter) as first:
            with pytest.raises(NoPlace, match="full"):
                await limiter.enter()
            first.cancel()
            await asyncio.wait([first])
        async with waiting(limiter) as second:
            limiter.leave()
            await second
        assert limiter.inside == 1

    asyncio.run(crowd())


@pytest.mark.parametrize("is_closed", [False, True])
def test_who_is_let_in_or_refused_just_as_the_time_is_over_is_told_so(
    monkeypatch: pytest.MonkeyPatch, is_closed: bool
) -> None:
    monkeypatch.setattr(limits, "MAX_WAIT_SECONDS", 0.02)

    async def crowd() -> None:
        limiter = full()

        def leave() -> None:
            if is_closed:
                limiter.close()
            limiter.leave()

        async with waiting(limiter) as task:
            # When the event loop comes round to it, it finds that the time is over, too, and sees to that next.
            asyncio.get_running_loop().call_soon(leave)
            time.sleep(0.05)
            await asyncio.wait([task])
        assert isinstance(task.exception(), Closed) is is_closed
        assert limiter.inside == (0 if is_closed else 1)

    asyncio.run(crowd())


@pytest.mark.parametrize("age", [1.8, 60.0])
def test_an_old_request_waits_for_its_turn_but_not_for_long(monkeypatch: pytest.MonkeyPatch, age: float) -> None:
    monkeypatch.setattr(limits, "MAX_WAIT_SECONDS", 2.0)

    async def crowd() -> None:
        arrived_at.set(time.monotonic() - age)
        limiter = full()
        async with waiting(limiter) as task:
            await asyncio.sleep(0)
            limiter.leave()
            await task
        begun = time.monotonic()
        with pytest.raises(NoPlace, match="waited"):
            await limiter.enter()
        assert time.monotonic() - begun < 1.6

    asyncio.run(crowd())


def test_a_client_that_leaves_does_not_free_the_place_of_the_thread_that_works_for_it() -> None:
    async def crowd() -> None:
        pool, go = WorkerPool("work", 1), threading.Event()
        gone = asyncio.create_task(pool.run(lambda: go.wait(SOON)))
        await asyncio.sleep(0)
        next_one = asyncio.create_task(pool.run(lambda: "done"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        assert gone.cancelled()
        assert (pool.limiter.inside, pool.limiter.waiting) == (1, 1)
        go.set()
        assert await next_one == "done"
        assert pool.limiter.inside == 0

    asyncio.run(crowd())


def test_a_place_outlives_the_event_loop_in_which_it_was_taken() -> None:
    pool, go = WorkerPool("work", 1), threading.Event()

    async def run(seconds: float) -> bool:
        return await asyncio.wait_for(pool.run(lambda: go.wait(SOON)), seconds)

    with pytest.raises(TimeoutError):
        asyncio.run(run(0.01))
    assert pool.limiter.inside == 1
    go.set()
    deadline = time.monotonic() + SOON
    while pool.limiter.inside:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert asyncio.run(run(SOON))
    pool.close()
    assert pool.wait_until_idle(SOON)


def test_a_pool_is_not_idle_while_one_of_its_threads_still_works() -> None:
    async def crowd() -> None:
        pool, go = WorkerPool("work", 2), threading.Event()
        slow = asyncio.create_task(pool.run(lambda: go.wait(SOON)))
        await pool.run(lambda: None)
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        last = asyncio.create_task(pool.run(lambda: None))
        await asyncio.sleep(0)
        pool.close()
        await last
        assert not await asyncio.to_thread(pool.wait_until_idle, 0.01)
        go.set()
        await slow
        assert pool.wait_until_idle(0)

    asyncio.run(crowd())


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01])
def test_a_pool_is_idle_only_when_all_work_has_ended_and_none_can_begin(delay: float) -> None:
    pool = WorkerPool("work", 3)
    done: list[int] = []

    def close() -> int:
        time.sleep(delay)
        pool.close()
        assert pool.wait_until_idle(SOON)
        return len(done)

    async def crowd() -> None:
        closing = asyncio.create_task(asyncio.to_thread(close))
        jobs = (pool.run(lambda: done.append(1)) for _ in range(200))
        for outcome in await asyncio.gather(*jobs, return_exceptions=True):
            assert outcome is None or isinstance(outcome, DatabaseUnavailable)
        assert await closing == len(done)

    asyncio.run(crowd())
    assert (pool.limiter.inside, pool.limiter.waiting) == (0, 0)


def test_a_thread_keeps_nothing_alive_between_two_jobs_and_ends_with_its_pool() -> None:
    class Model: ...

    pool, model, is_gone = WorkerPool("short-lived", 1), Model(), threading.Event()
    weakref.finalize(model, is_gone.set)
    asyncio.run(pool.run(partial(id, model)))
    del model
    assert is_gone.wait(SOON)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "database-short-lived")
    pool.close()
    assert pool.wait_until_idle(SOON)
    thread.join(SOON)
    assert not thread.is_alive()


def test_the_threads_of_a_pool_whose_work_takes_too_long_end_with_it() -> None:
    pool, begun, over = WorkerPool("outlived", 2), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        over.wait(2 * SOON)

    async def close_meanwhile() -> None:
        running = asyncio.ensure_future(pool.run(work))
        await asyncio.to_thread(begun.wait, SOON)
        pool.close()
        assert not pool.wait_until_idle(0.01)
        # such as that of a session that has a place
        await asyncio.wait_for(pool.start(lambda: None), SOON)
        over.set()
        await running

    asyncio.run(close_meanwhile())
    for thread in threading.enumerate():
        if thread.name == "database-outlived":
            thread.join(SOON)
            assert not thread.is_alive()


def test_a_thread_that_cannot_be_started_costs_one_job_and_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def jobs() -> None:
        pool = WorkerPool("work", 2)
        with monkeypatch.context() as busy:
            busy.setattr(threading.Thread, "start", start)
            for _ in range(3):
                with pytest.raises(RuntimeError):
                    await pool.run(lambda: 1)
        assert await asyncio.wait_for(pool.run(lambda: 1), SOON) == 1
        monkeypatch.setattr(threading.Thread, "start", start)
        # the thread that is there does it
        assert await asyncio.wait_for(pool.run(lambda: 2), SOON) == 2
        assert pool.limiter.inside == 0
        pool.close()

    asyncio.run(jobs())


WORK_WITHOUT_END = """
import asyncio, threading
from space_runtime.serving.worker_pool import WorkerPool

begun = threading.Event()

async def main():
    WorkerPool("work", 1).start(lambda: (begun.set(), threading.Event().wait()))
    await asyncio.to_thread(begun.wait)

asyncio.run(main())
"""


def test_work_that_never_ends_does_not_keep_the_process_from_ending() -> None:
    command = [sys.executable, "-c", WORK_WITHOUT_END]
    subprocess.run(command, cwd=ROOT / TEMPLATE_FOLDER, check=True, timeout=SOON)  # noqa: S603


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine whose database treats writers as PostgreSQL does: several threads may write."""
    monkeypatch.setattr(SQLITE, "has_one_writer", False)
    engine = SQLITE.create_engine(URL.create("sqlite", database=f"{tmp_path}/test.db"), {}, 3)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (number INTEGER)"))
    yield engine
    engine.dispose()


@pytest.fixture
def database(engine: Engine) -> Database:
    """A database that serves, as the lifecycle would leave it."""
    database = Database(SessionFactory())
    database.use(engine, 2)
    database.admission = Admission(reads=True, writes=True)
    return database


def insert(session: Session) -> None:
    session.execute(text("INSERT INTO notes VALUES (1)"))


def count(session: Session) -> int:
    return len(session.execute(text("SELECT * FROM notes")).all())


def check_nothing_is_held(database: Database, engine: Engine) -> None:
    """Check that all places and connections were given back."""
    database.leave()
    assert database.drain(SOON)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_session_that_is_cancelled_while_it_commits_is_closed_afterwards(database: Database, engine: Engine) -> None:
    commits, go = threading.Event(), threading.Event()

    @event.listens_for(engine, "commit")
    def wait(connection: object) -> None:
        commits.set()
        go.wait(SOON)

    async def use() -> None:
        async with database.session() as session:
            insert(session)

    async def request() -> None:
        task = asyncio.create_task(use())
        await asyncio.to_thread(commits.wait, SOON)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        go.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await database.read(count) == 1

    asyncio.run(request())
    check_nothing_is_held(database, engine)


def test_a_session_that_is_cancelled_before_it_commits_stores_nothing(database: Database, engine: Engine) -> None:
    async def use() -> None:
        async with database.session() as session:
            insert(session)
            await asyncio.sleep(SOON)

    async def request() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(use(), 0.05)
        assert await database.read(count) == 0

    asyncio.run(request())
    check_nothing_is_held(database, engine)


@pytest.mark.parametrize("moment", ["checkout", "begin", "before_cursor_execute"])
def test_a_session_whose_time_is_over_in_the_middle_of_a_statement_stores_nothing(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr("space_runtime.serving.database.MAX_SESSION_SECONDS", 0.05)
    begins, go = threading.Event(), threading.Event()

    def wait(*parameters: object) -> None:
        if moment == "before_cursor_execute" and "INSERT" not in str(parameters[2]):
            return
        begins.set()
        go.wait(SOON)

    event.listen(engine, moment, wait)

    async def use() -> None:
        async with database.session() as session:
            statement = asyncio.create_task(asyncio.to_thread(insert, session))
            await asyncio.to_thread(begins.wait, SOON)
            await asyncio.sleep(0.2)
            go.set()
            await asyncio.wait([statement])
            statement.exception()

    async def request() -> None:
        with pytest.raises(DatabaseUnavailable, match="took too long"):
            await use()
        assert await database.read(count) == 0

    asyncio.run(request())
    check_nothing_is_held(database, engine)


def test_a_session_that_is_left_in_a_savepoint_gives_everything_back(database: Database, engine: Engine) -> None:
    def begin(session: Session) -> None:
        session.begin_nested()
        insert(session)

    async def use() -> None:
        async with database.session() as session:
            await asyncio.to_thread(begin, session)
            raise LookupError

    async def request() -> None:
        with pytest.raises(LookupError):
            await asyncio.wait_for(use(), SOON)
        assert await database.read(count) == 0

    asyncio.run(request())
    check_nothing_is_held(database, engine)


def test_a_session_whose_time_is_over_in_a_savepoint_gives_everything_back(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("space_runtime.serving.database.MAX_SESSION_SECONDS", 0.05)

    async def use() -> None:
        async with database.session() as session:
            with session.begin_nested():
                insert(session)
                while session.in_transaction():
                    await asyncio.sleep(0.01)
                insert(session)

    async def request() -> None:
        with pytest.raises(DatabaseUnavailable, match="took too long"):
            await asyncio.wait_for(use(), SOON)
        assert await database.read(count) == 0

    asyncio.run(request())
    check_nothing_is_held(database, engine)


def test_when_the_answer_to_a_commit_is_lost_after_the_time_was_over_the_outcome_is_unknown(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("space_runtime.serving.database.MAX_SESSION_SECONDS", 0.05)
    commit = engine.dialect.do_commit

    def commit_and_lose_the_answer(connection: Any) -> None:
        commit(connection)
        is_over.wait(SOON)
        raise sqlite3.OperationalError("the connection was closed")

    is_over = threading.Event()
    monkeypatch.setattr(engine.dialect, "do_commit", commit_and_lose_the_answer)
    event.listen(engine, "handle_error", lambda context: setattr(context, "is_disconnect", True))

    def insert_and_commit(session: Session) -> None:
        insert(session)
        session.commit()

    async def use() -> None:
        async with database.session() as session:
            storing = asyncio.create_task(asyncio.to_thread(insert_and_commit, session))
            while session.refusal is None:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
            is_over.set()
            await storing

    async def request() -> None:
        with pytest.raises(OutcomeUnknown):
            await use()

    asyncio.run(request())
    monkeypatch.undo()
    assert asyncio.run(database.read(count)) == 1


def test_a_session_that_waits_for_its_turn_and_leaves_keeps_nobody_out(database: Database, engine: Engine) -> None:
    async def request() -> None:
        async with database.session() as first, database.session() as second:
            for session in (first, second):
                await session.enter()  # type: ignore[attr-defined]
            async with database.session() as third:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(third.enter(), 0.02)  # type: ignore[attr-defined]
        await asyncio.wait_for(database.write(insert), SOON)
        assert await database.read(count) == 1

    asyncio.run(request())
    check_nothing_is_held(database, engine)


def test_a_session_that_only_reads_holds_nothing_back_and_is_not_continued_on_another_database(
    database: Database, engine: Engine
) -> None:
    class Base(DeclarativeBase): ...

    class Note(Base):
        __tablename__ = "notes"
        number: Mapped[int] = mapped_column(primary_key=True)

    async def request() -> None:
        await database.write(insert)
        async with database.session() as session, database.session() as unused:
            note = session.get(Note, 1)
            await asyncio.to_thread(database.leave)
            assert await asyncio.to_thread(database.drain, 0)
            with pytest.raises(DatabaseUnavailable):
                count(session)
            other = SQLITE.create_engine(engine.url, {}, 3)
            database.use(other, 2)
            with pytest.raises(DatabaseUnavailable, match="Another database"):
                count(session)
            assert count(unused) == 1
            assert note
        other.dispose()

    asyncio.run(request())
    check_nothing_is_held(database, engine)


def test_a_session_that_nobody_closes_keeps_nobody_out(database: Database, engine: Engine) -> None:
    async def request() -> None:
        database.loop = asyncio.get_running_loop()
        database.use(engine, 2)
        for _ in range(3):
            insert(database._sessions())
            gc.collect()
            await asyncio.sleep(0)
        assert await database.read(count) == 0

    asyncio.run(request())
    check_nothing_is_held(database, engine)


def test_a_database_that_is_left_waits_for_a_session_and_stores_what_it_did(database: Database, engine: Engine) -> None:
    async def request() -> None:
        async with database.session() as session:
            insert(session)
            await asyncio.to_thread(database.leave)
            with pytest.raises(DatabaseUnavailable):
                await database.read(count)
            assert not await asyncio.to_thread(database.drain, 0.01)
        assert await asyncio.to_thread(database.drain, SOON)

    asyncio.run(request())
    with Session(engine) as session:
        assert count(session) == 1
    check_nothing_is_held(database, engine)
