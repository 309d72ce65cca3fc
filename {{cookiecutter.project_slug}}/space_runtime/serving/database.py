"""How requests use the database: one function, in one thread, on one connection.

    item = await database.read(service.get_item, item_id)
    item = await database.write(service.create_item, data)

The function receives a Session, then the other arguments. A write is committed, and the connection
returned to the pool, before the response is validated and sent. If the connection turns out to be
dead, the function runs a second time, so it must have no side effects outside the database.
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from space_runtime.backends import backend_of
from space_runtime.backends.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    running_reason,
    unavailable,
)
from space_runtime.observability.metrics import THREADS, THREADS_BUSY, WAITING
from space_runtime.serving.worker_pool import WorkerPool

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Work = Callable[Concatenate[Session, Arguments], Result]

MAX_SESSION_SECONDS = 60.0


@dataclass(frozen=True)
class Admission:
    """What requests may do now. It follows from the state of the lifecycle."""

    reads: bool
    writes: bool
    refusal: str = ""
    """What a client is told if its work is not admitted."""
    is_fallback: bool = False
    """Whether SQLite serves because PostgreSQL could not."""


class SessionFactory(sessionmaker[Session]):
    """Sessions for scripts, bound while a database serves."""

    def __call__(self, **options: Any) -> Session:
        """Return a session; raise RuntimeError if no database has been chosen yet."""
        if self.kw.get("bind") is None and "bind" not in options:
            raise RuntimeError(
                "SessionLocal is bound when the database is chosen, and that has not happened yet:"
                " in a script, use `with open_database():` from src.main"
            )
        return super().__call__(**options)


class _Serving:
    """An engine and its worker pools. Each thread uses one connection; checks have one more."""

    def __init__(self, engine: Engine, pool_size: int) -> None:
        self.for_writing = engine
        # A second Engine without event listeners, which would slow down every read.
        self.for_reading = Engine(engine.pool, engine.dialect, engine.url, hide_parameters=True)
        self.backend = backend_of(engine)
        if self.backend.has_one_writer and pool_size > 1:
            self.readers = WorkerPool("read", pool_size - 1)
            self.writers = WorkerPool("write", 1)
        else:
            self.readers = self.writers = WorkerPool("work", pool_size)
        self.pools = {self.readers, self.writers}


class Database:
    """Runs requests' work on the current database; the lifecycle says which one that is."""

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions
        self._serving: _Serving | None = None
        self._ending: list[_Serving] = []
        self.admission = Admission(reads=False, writes=False)
        self.on_trouble: Callable[[str | None], None] = lambda reason: None
        for gauge, figure in ((THREADS, "places"), (THREADS_BUSY, "inside"), (WAITING, "waiting")):
            for name in ("read", "write", "work"):
                gauge.labels(name).set_function(partial(self._figure, name, figure))

    def use(self, engine: Engine, pool_size: int) -> None:
        """Use this engine from now on, and bind SessionLocal to it."""
        self._serving = _Serving(engine, pool_size)
        self._sessions.configure(bind=engine)

    def leave(self) -> None:
        """Admit no more work on the engine; running work continues."""
        serving, self._serving = self._serving, None
        if serving is not None:
            self._sessions.configure(bind=None)
            self._ending.append(serving)
            for pool in serving.pools:
                pool.close()

    def drain(self, seconds: float) -> bool:
        """Wait for the work on engines no longer in use; return whether all of it has ended."""
        deadline = time.monotonic() + seconds
        self._ending = [
            serving
            for serving in self._ending
            if not all(pool.wait_until_idle(deadline - time.monotonic()) for pool in serving.pools)
        ]
        return not self._ending

    async def read(
        self, work: Work[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return work(session, ...), run on a connection that cannot write.

        Each statement sees its own snapshot: there is no transaction, except behind a transaction
        pooler. Raise DatabaseUnavailable if no database serves or no thread becomes free in time.
        """
        serving = self._admitted(self.admission.reads)
        return await serving.readers.run(
            lambda: self._run(_read, serving, lambda session: work(session, *args, **kwargs))
        )

    async def write(
        self, work: Work[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return work(session, ...) after its transaction was committed.

        Raise DatabaseUnavailable if the database cannot serve and nothing was stored, or
        OutcomeUnknown if the connection was lost during COMMIT.
        """
        serving = self._admitted(self.admission.writes)
        return await serving.writers.run(
            lambda: self._run(_write, serving, lambda session: work(session, *args, **kwargs))
        )

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Yield a session whose transaction is committed at the end, or rolled back on an error.

        It waits for a place as write() does and keeps it until the end. After MAX_SESSION_SECONDS
        the session is rolled back and closed, and its commit raises DatabaseUnavailable.
        """
        serving = self._admitted(self.admission.writes)
        await serving.writers.enter()
        turn = _Turn(serving)
        try:
            with self._trouble_reported(), _outcome_known(turn.session):
                yield turn.session
                await turn.commit()
        finally:
            await turn.end()

    def _admitted(self, is_admitted: bool) -> _Serving:
        serving = self._serving
        if serving is None or not is_admitted:
            raise DatabaseUnavailable(self.admission.refusal)
        return serving

    def _run(
        self,
        transaction: Callable[[_Serving, Callable[[Session], Result]], Result],
        serving: _Serving,
        work: Callable[[Session], Result],
    ) -> Result:
        """Run the transaction; retry once if its connection was lost before COMMIT was sent."""
        with self._trouble_reported():
            try:
                return transaction(serving, work)
            except DBAPIError as error:
                if not (error.connection_invalidated and self.admission.reads):
                    raise
                return transaction(serving, work)

    @contextlib.contextmanager
    def _trouble_reported(self) -> Iterator[None]:
        """Report errors that mean the database cannot serve now; raise DatabaseUnavailable."""
        try:
            yield
        except SQLAlchemyError as error:
            refusal = unavailable(error)
            if refusal is None:
                raise
            self.on_trouble(refusal.reason)
            raise refusal from error
        except DatabaseUnavailable as refusal:
            self.on_trouble(refusal.reason)
            raise

    def _figure(self, name: str, figure: str) -> int:
        """Return a figure of the pool of this name; 0 while there is none."""
        pools = self._serving.pools if self._serving else ()
        return sum(getattr(pool.limiter, figure) for pool in pools if pool.name == name)


class _WriteSession(Session):
    """Knows whether COMMIT was sent, even by the work itself: then the work must not run again."""

    sent_commit = False

    def __init__(self, serving: _Serving) -> None:
        super().__init__(
            serving.for_writing,
            expire_on_commit=False,
            # If it is used after its turn, it must fail, not begin a transaction without a place.
            close_resets_only=False,
            execution_options={"bounded": True},
        )
        self._backend = serving.backend

    def finish(self) -> None:
        """Commit, unless a statement has failed: PostgreSQL would silently roll back."""
        if self.in_transaction():
            self._backend.refuse_failed_transaction(self)
        self.commit()


@event.listens_for(_WriteSession, "before_commit")
def _note_commit(session: _WriteSession) -> None:
    if not session.in_nested_transaction():
        session.flush()
        session.sent_commit = True


class _Turn:
    """A session and its place in the pool, until the request ends or its time is up.

    A turn ends with one job in the pool, which commits or rolls back and then gives the place back.
    So the place is not lost if the request is cancelled while that job runs.
    """

    def __init__(self, serving: _Serving) -> None:
        self.session = _WriteSession(serving)
        self._pool = serving.writers
        self._last_job: asyncio.Future[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(MAX_SESSION_SECONDS, self._finish, self.session.close)

    async def commit(self) -> None:
        """Commit and close; raise DatabaseUnavailable if the time is up."""
        if self._last_job is not None:
            raise DatabaseUnavailable("The request took too long; nothing was stored.")
        await asyncio.shield(self._finish(self._commit_and_close))

    async def end(self) -> None:
        """Roll back what was not committed, and wait until the place is free."""
        last_job = self._last_job or self._finish(self.session.close)
        await asyncio.wait([last_job])
        if last_job.exception() is not None:
            # The timer could not close the session, because a statement was just starting.
            await asyncio.to_thread(self.session.close)

    def _finish(self, job: Callable[[], None]) -> asyncio.Future[None]:
        self._timer.cancel()
        self._last_job = self._pool.run_last(job)
        return self._last_job

    def _commit_and_close(self) -> None:
        with self.session:
            self.session.finish()


_READ_THAT_WRITES = "database.read() was given work that writes: use write()"


def _read(serving: _Serving, work: Callable[[Session], Result]) -> Result:
    with Session(serving.for_reading, expire_on_commit=False) as session:
        serving.backend.begin(session.connection(), reading=True, bounded=True)
        try:
            result = _result(work, session)
        except DBAPIError as error:
            if running_reason(error) == "read_only":
                raise RuntimeError(_READ_THAT_WRITES) from error
            raise
        if session.new or session.dirty or session.deleted:
            raise RuntimeError(_READ_THAT_WRITES)
        return result


def _write(serving: _Serving, work: Callable[[Session], Result]) -> Result:
    with _WriteSession(serving) as session, _outcome_known(session):
        result = _result(work, session)
        session.finish()
        return result


@contextlib.contextmanager
def _outcome_known(session: _WriteSession) -> Iterator[None]:
    """Raise OutcomeUnknown if the connection was lost between COMMIT and the server's reply."""
    try:
        yield
    except DBAPIError as error:
        if not (session.sent_commit and error.connection_invalidated):
            raise
        raise OutcomeUnknown(
            "The database was lost while the change was being stored: it may or may not be there."
            " Look before you try again.",
            reason="connection_lost",
        ) from error


def _result(work: Callable[[Session], Result], session: Session) -> Result:
    try:
        result = work(session)
    except StopIteration as error:
        # A Future cannot hold a StopIteration, so the caller would wait forever.
        raise RuntimeError("work raised StopIteration: is there a next() without a row?") from error
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("work must be a plain function: this `async def` one was never run")
    return result
