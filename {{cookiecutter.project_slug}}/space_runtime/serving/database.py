"""How requests use the database: one function, in one go, on one connection.

    item = await database.read(service.get_item, item_id)
    item = await database.write(service.create_item, data)

The function receives a Session, then the other arguments. A write is committed, and the connection
returned to the pool, before the response is validated and sent. If the connection turns out to be
dead, the function runs a second time, so it must have no side effects outside the database. It runs
in a thread; on SQLite a short read runs in the event loop itself (see LoopReader).
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from space_runtime.backends.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    running_reason,
    unavailable,
)
from space_runtime.backends.protocol import Backend
from space_runtime.observability.metrics import THREADS, THREADS_BUSY, WAITING
from space_runtime.serving.loop_reader import RunInThread
from space_runtime.serving.pools import Serving
from space_runtime.serving.sessions import (
    OnDemandSession,
    SessionFactory,
    WriteSession,
    outcome_known,
    watch_statements,
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Work = Callable[Concatenate[Session, Arguments], Result]

MAX_SESSION_SECONDS = 60.0
_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Admission:
    """What requests may do now. It follows from the state of the lifecycle."""

    reads: bool
    writes: bool
    refusal: str = ""
    """What a client is told if its work is not admitted."""
    is_fallback: bool = False
    """Whether SQLite serves because PostgreSQL could not."""


class Database:
    """Runs requests' work on the current database; the lifecycle says which one that is."""

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions
        self._serving: Serving | None = None
        self._ending: list[Serving] = []
        self.admission = Admission(reads=False, writes=False)
        self.loop: asyncio.AbstractEventLoop | None = None
        """In which requests are served, and sessions of SessionLocal queue; None in a script."""
        self.on_trouble: Callable[[str | None], None] = lambda reason: None
        for gauge, figure in ((THREADS, "places"), (THREADS_BUSY, "inside"), (WAITING, "waiting")):
            for name in ("read", "write", "work", "loop"):
                gauge.labels(name).set_function(partial(self._figure, name, figure))

    def use(self, engine: Engine, pool_size: int) -> None:
        """Use this engine from now on, and bind SessionLocal to it."""
        watch_statements(engine)
        self._serving = Serving(engine, pool_size)
        self._sessions.configure(bind=engine, admit=self._admitted, loop=self.loop)

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
        serving = self._admitted(writes=False)

        def job(session: Session) -> Result:
            return work(session, *args, **kwargs)

        def in_thread() -> Result:
            return self._run(_read, serving, job)

        reader = serving.loop_reader
        if reader is None:
            return await serving.readers.run(in_thread)
        if reader.takes(work, serving.readers):
            with contextlib.suppress(RunInThread):
                return await reader.read(
                    work, lambda connection: _read_on(connection, serving.backend, job)
                )
        return await serving.readers.run(lambda: reader.observe(work, in_thread))

    async def write(
        self, work: Work[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return work(session, ...) after its transaction was committed.

        Raise DatabaseUnavailable if the database cannot serve and nothing was stored, or
        OutcomeUnknown if the connection was lost during COMMIT.
        """
        serving = self._admitted(writes=True)
        return await serving.writers.run(
            lambda: self._run(_write, serving, lambda session: work(session, *args, **kwargs))
        )

    @contextlib.asynccontextmanager
    async def session(self, *, may_write: bool = True) -> AsyncIterator[Session]:
        """Yield a session that is committed at the end, or rolled back on an error.

        It holds nothing until it is used (see OnDemandSession). Its transaction is rolled back
        after MAX_SESSION_SECONDS, and its next use raises DatabaseUnavailable.
        """
        session = OnDemandSession(
            self._admitted(writes=False).for_writing,
            admit=self._admitted,
            loop=asyncio.get_running_loop(),
            may_write=may_write,
            expire_on_commit=False,
            execution_options={"bounded": True},
        )
        with (
            _stored_part_told(session),
            self._trouble_reported(),
            _refusal_told(session),
            outcome_known(session),
        ):
            try:
                async with _limited_in_time(session):
                    yield session
                if session.refusal is not None:
                    raise session.refusal
                if session.has_changes:
                    await session.enter()
                    await _run_to_its_end(session, partial(session.finish, session.serving.backend))
            finally:
                session.refuse_writes()
                if session.writes_since is not None:
                    await _run_to_its_end(session, session.abandon)
                session.end()

    async def ready(self, seconds: float = 60.0) -> None:
        """Return as soon as a database serves; raise DatabaseUnavailable if none does in time."""
        deadline = time.monotonic() + seconds
        while not self.admission.writes:
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(self.admission.refusal)
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    def _admitted(self, writes: bool) -> Serving:
        serving, admission = self._serving, self.admission
        if serving is None or not (admission.writes if writes else admission.reads):
            raise DatabaseUnavailable(admission.refusal)
        return serving

    def _run(
        self,
        transaction: Callable[[Serving, Callable[[Session], Result]], Result],
        serving: Serving,
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


@contextlib.contextmanager
def _stored_part_told(session: OnDemandSession) -> Iterator[None]:
    """Raise OutcomeUnknown instead of a refusal, if the session has committed before."""
    try:
        yield
    except DatabaseUnavailable as refusal:
        if not session.has_committed or isinstance(refusal, OutcomeUnknown):
            raise
        raise OutcomeUnknown(
            "A part of the change was stored; the rest may or may not be there."
            " Look before you try again.",
            reason=refusal.reason,
        ) from refusal


@contextlib.contextmanager
def _refusal_told(session: OnDemandSession) -> Iterator[None]:
    """Raise why the session was closed, instead of what that led to in the work."""
    try:
        yield
    except SQLAlchemyError as error:
        if isinstance(session.refusal, DatabaseUnavailable):
            raise session.refusal from error
        raise


@contextlib.asynccontextmanager
async def _limited_in_time(session: OnDemandSession) -> AsyncIterator[None]:
    """Roll the session back once its transaction has lasted too long."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(MAX_SESSION_SECONDS, lambda: look())
    closing: asyncio.Future[None] | None = None

    def look() -> None:
        nonlocal closing, timer
        now = time.monotonic()
        seconds = (session.writes_since or now) + MAX_SESSION_SECONDS - now
        if seconds <= 0:
            session.refusal = DatabaseUnavailable("The request took too long; nothing was stored.")
            if closing is None or closing.done():
                closing = session.serving.writers.start(session.close_between_statements)
                # While a statement runs it fails, and is tried again.
                closing.add_done_callback(lambda future: future.exception())
        timer = loop.call_later(max(seconds, _SECONDS_BETWEEN_LOOKS), look)

    try:
        yield
    finally:
        timer.cancel()
        if closing is not None:
            await asyncio.wait([closing])


async def _run_to_its_end(session: OnDemandSession, job: Callable[[], None]) -> None:
    """Run a job of a session that has the writer's turn, even if the request is cancelled."""
    work = session.serving.writers.start(job)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        work.exception()
        raise


_READ_THAT_WRITES = "database.read() was given work that writes: use write()"


def _read(serving: Serving, work: Callable[[Session], Result]) -> Result:
    return _read_on(serving.for_reading, serving.backend, work)


def _read_on(
    bind: Engine | Connection, backend: Backend, work: Callable[[Session], Result]
) -> Result:
    with Session(bind, expire_on_commit=False) as session:
        backend.begin(session.connection(), reading=True, bounded=True)
        try:
            result = _result(work, session)
        except DBAPIError as error:
            if running_reason(error) == "read_only":
                raise RuntimeError(_READ_THAT_WRITES) from error
            raise
        if session.new or session.dirty or session.deleted:
            raise RuntimeError(_READ_THAT_WRITES)
        return result


def _write(serving: Serving, work: Callable[[Session], Result]) -> Result:
    session = WriteSession(
        serving.for_writing,
        expire_on_commit=False,
        # Using it later must fail, not begin a transaction that nothing limits.
        close_resets_only=False,
        execution_options={"bounded": True},
    )
    with session, outcome_known(session):
        result = _result(work, session)
        session.finish(serving.backend)
        return result


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
