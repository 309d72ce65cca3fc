"""Where requests meet the database: one function, in one thread, in one transaction.

    item = await database.read(service.get_item, item_id)
    item = await database.write(service.create_item, data)

The function gets a Session first, then what else was passed. Its connection goes back before the
answer is validated and sent, and its commit comes before the answer. It may be run a second time
if its connection turns out to be dead, so it touches the database only.
"""

import asyncio
import concurrent.futures
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import ModuleType
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

from fastapi import Depends, Request
from prometheus_client import Gauge
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from src.database import postgresql, sqlite
from src.database.admission import Lane
from src.database.errors import DatabaseUnavailable, OutcomeUnknown, running_reason, unavailable
from src.database.opening import build_engine, is_memory
from src.observability.metrics import THREADS, THREADS_BUSY, WAITING

__all__ = ["Database", "DatabaseDep", "SessionDep", "SessionLocal", "build_engine", "get_session"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Work = Callable[Concatenate[Session, Arguments], Result]

MAX_SESSION_SECONDS = 60.0
# few, because they share one interpreter with the event loop; a far-away server is worth more
DEFAULT_POOL_SIZE = {"postgresql": 6, "sqlite": 3}


class _SessionFactory(sessionmaker[Session]):
    def __call__(self, **options: Any) -> Session:
        if self.kw.get("bind") is None and "bind" not in options:
            raise RuntimeError(
                "SessionLocal is bound when the database is chosen, and that has not happened yet:"
                " in a script, use `with open_database():` from src.commands"
            )
        return super().__call__(**options)


SessionLocal = _SessionFactory(expire_on_commit=False)
"""Sessions for scripts; bound while a database serves."""


class _Serving:
    """An engine and its threads; each thread uses one connection, and one is left for checks."""

    def __init__(self, engine: Engine, pool_size: int, *, instead_of_postgresql: bool) -> None:
        self.for_writing = engine
        # without the listeners, of which SQLAlchemy would look for each kind at every read
        self.for_reading = Engine(engine.pool, engine.dialect, engine.url, hide_parameters=True)
        self.instead_of_postgresql = instead_of_postgresql
        if engine.dialect.name == "postgresql":
            self.readers = self.writers = Lane("work", pool_size)
        elif is_memory(engine.url) or pool_size == 1:
            self.readers = self.writers = Lane("work", 1)
        else:
            # SQLite has one writer: those that wait for it must not keep readers waiting
            self.readers = Lane("read", pool_size - 1)
            self.writers = Lane("write", 1)


class Database:
    """The gate between requests and the database that serves; the lifecycle opens and closes it."""

    def __init__(self) -> None:
        self._serving: _Serving | None = None
        self._ending: list[_Serving] = []
        self._refusal = "The database is being chosen; try again in a moment."
        self._refuses_reads = self._refuses_writes = False
        self.on_trouble: Callable[[str | None], None] = lambda reason: None
        figures: dict[Gauge, Callable[[Lane], int]] = {
            THREADS: lambda lane: lane.threads,
            THREADS_BUSY: lambda lane: lane.busy,
            WAITING: lambda lane: lane.waiting,
        }
        for gauge, figure in figures.items():
            for name in ("read", "write", "work"):
                gauge.labels(name).set_function(partial(self._figure, name, figure))

    def _figure(self, name: str, figure: Callable[[Lane], int]) -> int:
        """Return a figure of the lane of this name; 0 while there is none."""
        serving = self._serving
        lanes = (serving.readers, serving.writers) if serving else ()
        return next((figure(lane) for lane in lanes if lane.name == name), 0)

    @property
    def is_open(self) -> bool:
        """Whether work is admitted."""
        return self._serving is not None and not self._refuses_writes

    @property
    def serves_instead_of_postgresql(self) -> bool:
        """Whether SQLite serves because PostgreSQL could not."""
        return self._serving is not None and self._serving.instead_of_postgresql

    def open(self, engine: Engine, pool_size: int, *, instead_of_postgresql: bool) -> None:
        """Admit work on this engine, and bind SessionLocal to it."""
        self._serving = _Serving(engine, pool_size, instead_of_postgresql=instead_of_postgresql)
        SessionLocal.configure(bind=engine)

    def suspend(self, refusal: str, *, reads: bool) -> None:
        """Answer `refusal` to new writes, and to reads, until resume(); the engine stays."""
        self._refusal, self._refuses_writes, self._refuses_reads = refusal, True, reads

    def resume(self) -> None:
        """Admit work again after suspend()."""
        self._refuses_reads = self._refuses_writes = False

    def abandon(self) -> None:
        """Answer requests whose work waits for a database that fell silent; its threads go on."""
        if self._serving is not None:
            self._serving.readers.abandon()
            self._serving.writers.abandon()

    def close(self, refusal: str, *, wait: bool = True) -> None:
        """Admit no more work, answering `refusal`; with `wait`, let the admitted work finish.

        So does the work of an earlier close() that was not waited for to its end.
        """
        serving, self._serving, self._refusal = self._serving, None, refusal
        if serving is not None:
            SessionLocal.configure(bind=None)
            self._ending.append(serving)
        for one in list(self._ending):
            one.readers.close(wait=wait)
            one.writers.close(wait=wait)
            if wait:
                # two may have waited for it
                with contextlib.suppress(ValueError):
                    self._ending.remove(one)

    async def read(
        self,
        work: Work[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Return work(session, ...), run without a transaction on a connection that cannot write.

        Raise DatabaseUnavailable when no database serves or the work's turn does not come.
        """
        serving = self._admit(refused=self._refuses_reads)
        return await serving.readers.run(
            lambda: self._run(
                _read, serving.for_reading, lambda session: work(session, *args, **kwargs)
            ),
            if_abandoned=DatabaseUnavailable("The database fell silent.", reason="timeout"),
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
        serving = self._admit(refused=self._refuses_writes)
        return await serving.writers.run(
            lambda: self._run(
                _write, serving.for_writing, lambda session: work(session, *args, **kwargs)
            ),
            if_abandoned=_unknown_outcome(),
        )

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Yield a session whose transaction is committed at the end, or rolled back on an error.

        It passes the same gate as write(): one of the database's threads holds the transaction
        open for as long as the caller takes, at most MAX_SESSION_SECONDS.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Session] = loop.create_future()
        finished: concurrent.futures.Future[None] = concurrent.futures.Future()

        def hold(session: Session) -> None:
            if not finished.done():
                loop.call_soon_threadsafe(opened.set_result, session)
            try:
                finished.result(timeout=MAX_SESSION_SECONDS)
            except TimeoutError:
                raise DatabaseUnavailable(
                    "The request took too long; nothing was stored."
                ) from None

        serving = self._admit(refused=self._refuses_writes)
        transaction = asyncio.ensure_future(
            serving.writers.run(
                lambda: self._run(_write, serving.for_writing, hold, attempts=1), _unknown_outcome()
            )
        )
        try:
            waiting: set[asyncio.Future[Any]] = {opened, transaction}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                await transaction
            yield opened.result()
        except BaseException:
            finished.set_exception(_RolledBack())
            if not opened.done():
                transaction.cancel()
            await asyncio.gather(transaction, return_exceptions=True)
            raise
        finished.set_result(None)
        await transaction

    def _admit(self, *, refused: bool) -> _Serving:
        serving = self._serving
        if serving is None or refused:
            raise DatabaseUnavailable(self._refusal)
        return serving

    def _run(
        self,
        transaction: Callable[[Engine, Callable[[Session], Result]], Result],
        engine: Engine,
        work: Callable[[Session], Result],
        attempts: int = 2,
    ) -> Result:
        """Run the transaction; once more if its connection had died before COMMIT was sent."""
        try:
            try:
                return transaction(engine, work)
            except DBAPIError as error:
                if not error.connection_invalidated or attempts == 1 or self._refuses_reads:
                    raise
                return transaction(engine, work)
        except SQLAlchemyError as error:
            refusal = unavailable(error)
            if refusal is None:
                raise
            self.on_trouble(refusal.reason)
            raise refusal from error
        except DatabaseUnavailable as refusal:
            self.on_trouble(refusal.reason)
            raise


def _unknown_outcome() -> OutcomeUnknown:
    return OutcomeUnknown(
        "The database was lost while the change was being stored: it may or may not be there."
        " Look before you try again.",
        reason="connection_lost",
    )


_READ_THAT_WRITES = "database.read() was given work that writes: use write()"


class _RolledBack(Exception):
    """The caller of session() raised; its own exception is what counts."""


class _WriteSession(Session):
    """Knows whether COMMIT was sent, which the work may do by itself: then it cannot run again."""

    sent_commit = False


@event.listens_for(_WriteSession, "before_commit")
def _note_commit(session: _WriteSession) -> None:
    if not session.in_nested_transaction():
        session.flush()
        session.sent_commit = True


def _read(engine: Engine, work: Callable[[Session], Result]) -> Result:
    with Session(engine, expire_on_commit=False) as session:
        _backend(engine).begin(session.connection(), reading=True, bounded=True)
        try:
            result = _result(work, session)
        except DBAPIError as error:
            if running_reason(error) == "read_only":
                raise RuntimeError(_READ_THAT_WRITES) from error
            raise
        if session.new or session.dirty or session.deleted:
            raise RuntimeError(_READ_THAT_WRITES)
        return result


def _write(engine: Engine, work: Callable[[Session], Result]) -> Result:
    # closed for good at the end: a session used afterwards would begin anew outside the gate
    with _WriteSession(
        engine,
        expire_on_commit=False,
        close_resets_only=False,
        execution_options={"bounded": True},
    ) as session:
        try:
            result = _result(work, session)
            session.flush()
            _backend(engine).refuse_failed_transaction(session)
            session.commit()
        except DBAPIError as error:
            if not (session.sent_commit and error.connection_invalidated):
                raise
            raise _unknown_outcome() from error
        return result


def _result(work: Callable[[Session], Result], session: Session) -> Result:
    result = work(session)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("work must be a plain function: this `async def` one was never run")
    return result


def _backend(engine: Engine) -> ModuleType:
    return postgresql if engine.dialect.name == "postgresql" else sqlite


async def get_database(request: Request) -> Database:
    """Return the application's database."""
    database: Database = request.app.state.database
    return database


DatabaseDep = Annotated[Database, Depends(get_database)]
"""The database, for `async def` endpoints that call its read() and write()."""


async def get_session(database: DatabaseDep) -> AsyncIterator[Session]:
    """Yield a session in a write transaction, for those who prefer a plain `def` endpoint."""
    async with database.session() as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session, scope="function")]
"""A session, committed before the answer is sent: that is what scope="function" does."""
