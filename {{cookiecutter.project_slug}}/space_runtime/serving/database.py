"""Where requests meet the database: one function, in one thread, in one transaction.

    item = await database.read(service.get_item, item_id)
    item = await database.write(service.create_item, data)

The function gets a Session first, then what else was passed. Its connection goes back before the
answer is validated and sent, and its commit comes before the answer. It may be run a second time
if its connection turns out to be dead, so it touches the database only.
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from prometheus_client import Gauge
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
    """What the database does for requests now. It follows from the state of the lifecycle."""

    reads: bool
    writes: bool
    refusal: str = ""
    """What a client is told whose work is not admitted."""
    is_fallback: bool = False
    """Whether SQLite serves because PostgreSQL could not."""


class SessionFactory(sessionmaker[Session]):
    """Sessions for scripts, bound while a database serves."""

    def __call__(self, **options: Any) -> Session:
        """Return a session; raise RuntimeError before a database was chosen."""
        if self.kw.get("bind") is None and "bind" not in options:
            raise RuntimeError(
                "SessionLocal is bound when the database is chosen, and that has not happened yet:"
                " in a script, use `with open_database():` from src.main"
            )
        return super().__call__(**options)


class _Serving:
    """An engine and its worker pools; each thread uses one connection, and one is for checks."""

    def __init__(self, engine: Engine, pool_size: int) -> None:
        self.for_writing = engine
        # Without the listeners, for each kind of which SQLAlchemy would look at every read.
        self.for_reading = Engine(engine.pool, engine.dialect, engine.url, hide_parameters=True)
        self.backend = backend_of(engine)
        if self.backend.has_one_writer and pool_size > 1:
            self.readers = WorkerPool("read", pool_size - 1)
            self.writers = WorkerPool("write", 1)
        else:
            self.readers = self.writers = WorkerPool("work", pool_size)


class Database:
    """What stands between requests and the database that serves; the lifecycle says which does."""

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions
        self._serving: _Serving | None = None
        self._ending: list[_Serving] = []
        self.admission = Admission(reads=False, writes=False)
        self.on_trouble: Callable[[str | None], None] = lambda reason: None
        figures: dict[Gauge, Callable[[WorkerPool], int]] = {
            THREADS: lambda pool: pool.limiter.places,
            THREADS_BUSY: lambda pool: pool.limiter.inside,
            WAITING: lambda pool: pool.limiter.waiting,
        }
        for gauge, figure in figures.items():
            for name in ("read", "write", "work"):
                gauge.labels(name).set_function(partial(self._figure, name, figure))

    def _figure(self, name: str, figure: Callable[[WorkerPool], int]) -> int:
        """Return a figure of the pool of this name; 0 while there is none."""
        serving = self._serving
        pools = (serving.readers, serving.writers) if serving else ()
        return next((figure(pool) for pool in pools if pool.name == name), 0)

    def use(self, engine: Engine, pool_size: int) -> None:
        """Work on this engine from now on, and bind SessionLocal to it."""
        self._serving = _Serving(engine, pool_size)
        self._sessions.configure(bind=engine)

    def leave(self) -> None:
        """Admit no more work on the engine; what is under way goes on."""
        serving, self._serving = self._serving, None
        if serving is not None:
            self._sessions.configure(bind=None)
            self._ending.append(serving)
            serving.readers.close()
            serving.writers.close()

    def drain(self, seconds: float) -> bool:
        """Wait for the work on engines that were left; return whether all of it has ended."""
        deadline = time.monotonic() + seconds
        self._ending = [
            serving
            for serving in self._ending
            if not all(
                pool.wait_until_idle(deadline - time.monotonic())
                for pool in (serving.readers, serving.writers)
            )
        ]
        return not self._ending

    async def read(
        self,
        work: Work[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Return work(session, ...), run without a transaction on a connection that cannot write.

        Raise DatabaseUnavailable when no database serves or the work's turn does not come.
        """
        serving = self._admitted(self.admission.reads)
        return await serving.readers.run(
            lambda: self._run(
                partial(_read, serving), lambda session: work(session, *args, **kwargs)
            )
        )

    async def write(
        self,
        work: Work[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Return work(session, ...) after its transaction was committed.

        Raise DatabaseUnavailable when nothing was stored, OutcomeUnknown when nobody can tell.
        """
        serving = self._admitted(self.admission.writes)
        return await serving.writers.run(
            lambda: self._run(
                partial(_write, serving), lambda session: work(session, *args, **kwargs)
            )
        )

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Yield a session whose transaction is committed at the end, or rolled back on an error.

        It waits for its turn as write() does, and holds it until the end, at most for
        MAX_SESSION_SECONDS: then it raises DatabaseUnavailable, and nothing was stored.
        """
        serving = self._admitted(self.admission.writes)
        await serving.writers.enter()
        session = _new_session(serving)
        turn = _Turn(serving.writers, session)
        try:
            with _outcome_known(session):
                yield session
                if turn.is_over:
                    raise DatabaseUnavailable("The request took too long; nothing was stored.")
                await serving.writers.run_inside(partial(_commit, serving, session))
        except SQLAlchemyError as error:
            if refusal := self._refusal_for(error):
                raise refusal from error
            raise
        except DatabaseUnavailable as refusal:
            self.on_trouble(refusal.reason)
            raise
        finally:
            await turn.end()

    def _admitted(self, is_admitted: bool) -> _Serving:
        serving = self._serving
        if serving is None or not is_admitted:
            raise DatabaseUnavailable(self.admission.refusal)
        return serving

    def _run(
        self,
        transaction: Callable[[Callable[[Session], Result]], Result],
        work: Callable[[Session], Result],
    ) -> Result:
        """Run the transaction; once more if its connection had died before COMMIT was sent."""
        try:
            try:
                return transaction(work)
            except DBAPIError as error:
                if not (error.connection_invalidated and self.admission.reads):
                    raise
                return transaction(work)
        except SQLAlchemyError as error:
            if refusal := self._refusal_for(error):
                raise refusal from error
            raise
        except DatabaseUnavailable as refusal:
            self.on_trouble(refusal.reason)
            raise

    def _refusal_for(self, error: SQLAlchemyError) -> DatabaseUnavailable | None:
        """Return what a client is to be told, or None if the error is about the work."""
        refusal = unavailable(error)
        if refusal is not None:
            self.on_trouble(refusal.reason)
        return refusal


class _Turn:
    """The turn of a session, ended by its user, or by the clock so that it keeps nobody out."""

    def __init__(self, pool: WorkerPool, session: Session) -> None:
        self._pool = pool
        self._session = session
        self._ending: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(MAX_SESSION_SECONDS, self._begin_to_end)

    @property
    def is_over(self) -> bool:
        """Whether the session is closed, or about to be."""
        return self._ending is not None

    async def end(self) -> None:
        """Roll back what was not committed, and let the next one have the place."""
        self._timer.cancel()
        await asyncio.shield(self._ending or self._begin_to_end())

    def _begin_to_end(self) -> asyncio.Task[None]:
        self._ending = asyncio.ensure_future(self._end())
        return self._ending

    async def _end(self) -> None:
        try:
            # A rollback may have to wait for the server, so not in the event loop's thread.
            await self._pool.run_inside(self._session.close)
        finally:
            self._pool.limiter.leave()


_READ_THAT_WRITES = "database.read() was given work that writes: use write()"


class _WriteSession(Session):
    """Knows whether COMMIT was sent, which the work may do by itself: then it cannot run again."""

    sent_commit = False


@event.listens_for(_WriteSession, "before_commit")
def _note_commit(session: _WriteSession) -> None:
    if not session.in_nested_transaction():
        session.flush()
        session.sent_commit = True


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
    with _new_session(serving) as session, _outcome_known(session):
        result = _result(work, session)
        _commit(serving, session)
        return result


@contextlib.contextmanager
def _outcome_known(session: _WriteSession) -> Iterator[None]:
    """Raise OutcomeUnknown where COMMIT was sent and the connection lost before its answer."""
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


def _new_session(serving: _Serving) -> _WriteSession:
    return _WriteSession(
        serving.for_writing,
        expire_on_commit=False,
        # Closed for good at the end: a session used afterwards would begin anew outside the gate.
        close_resets_only=False,
        execution_options={"bounded": True},
    )


def _commit(serving: _Serving, session: _WriteSession) -> None:
    session.flush()
    if session.in_transaction():
        serving.backend.refuse_failed_transaction(session)
    session.commit()


def _result(work: Callable[[Session], Result], session: Session) -> Result:
    result = work(session)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("work must be a plain function: this `async def` one was never run")
    return result
