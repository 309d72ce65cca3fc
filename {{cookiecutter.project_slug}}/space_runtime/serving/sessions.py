"""Sessions for textbook code: they hold nothing while nothing is asked of them.

item = session.get(Item, item_id)        # a connection, as long as this statement takes
label = model.predict(item.description)  # nothing
session.add(Label(text=label))           # still nothing
session.commit()                         # a connection and a transaction; then nothing again
"""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import finalize

from sqlalchemy import Connection, Engine, Executable, Result, Select, TextClause, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import (
    FromStatement,
    ORMExecuteState,
    Session,
    SessionTransaction,
    SessionTransactionOrigin,
    sessionmaker,
)

from space_runtime.backends.errors import DatabaseUnavailable, OutcomeUnknown, running_reason
from space_runtime.backends.protocol import Backend
from space_runtime.serving.pools import Serving
from space_runtime.serving.worker_pool import WorkerPool

_REPLACED = "Another database serves since this request began; nothing was stored."
_ENDED = (
    "The session of this request has ended, so nothing would store this change: in a background"
    " task or a stream, use `with SessionLocal.begin() as session:`"
)
_ONLY_READS = "this session only reads: use SessionDep, or database.write()"
_LONGEST_STATEMENT_SECONDS = 15.0
"""A little more than both databases allow a statement of a request."""
_READING_TEXT = re.compile(r"\s*(select|with|values|table|show|explain)\b", re.IGNORECASE)
_FROM = re.compile(r"\bfrom\b", re.IGNORECASE)


class WriteSession(Session):
    """Knows whether COMMIT was sent, even by the work itself: then the work must not run again."""

    sent_commit = False
    has_written = True
    """Whether there is something to commit."""

    def finish(self, backend: Backend) -> None:
        """Commit, unless a statement has failed: PostgreSQL would silently roll back."""
        if self.in_transaction():
            backend.refuse_failed_transaction(self)
        self.commit()


@event.listens_for(WriteSession, "before_commit")
def _note_commit(session: WriteSession) -> None:
    if not session.in_nested_transaction():
        session.flush()
        session.sent_commit = session.sent_commit or session.has_written


@contextlib.contextmanager
def outcome_known(session: WriteSession) -> Iterator[None]:
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


class OnDemandSession(WriteSession):
    """Takes a place and a connection when it needs them, and gives them back as soon as it can.

    Until it writes, each statement has its own snapshot, and its result is read as a whole. The
    first flush, INSERT, UPDATE, DELETE or `with_for_update()` takes the writer's turn and begins a
    transaction, which lasts until commit() or rollback(). So does everything that is not known to
    only read, such as begin(), begin_nested() and connection().

    What was read before the transaction may have been changed by others since then. A change that
    depends on it needs `with_for_update()`, which reads the row anew, or a `version_id_col`.
    """

    def __init__(
        self,
        bind: Engine,
        *,
        admit: Callable[[bool], Serving],
        loop: asyncio.AbstractEventLoop | None,
        may_write: bool = True,
        **options: Any,
    ) -> None:
        """`admit` returns what serves, or raises DatabaseUnavailable if it must not be written to.

        Places are taken in the queue of `loop`; without one, nothing limits how many are taken.
        """
        super().__init__(bind, **options)
        self.writes_since: float | None = None
        """When its transaction began, if it is in one."""
        self.has_committed = False
        """Whether something is stored."""
        self.refusal: Exception | None = None
        """Why nothing can be written any more."""
        self.is_reading = False
        """Whether a statement that only reads is being executed."""
        self._admit = admit
        self._loop = loop
        self._may_write = may_write
        self._serving: Serving | None = None
        self._place: finalize[Any, Any] | None = None
        self._pool: WorkerPool | None = None
        self._statement = threading.Lock()
        """Held while a statement runs in its transaction, and while another thread ends that."""
        self._in_statement = False
        self._closing_thread: int | None = None

    @property
    def serving(self) -> Serving:
        """What it uses; raise RuntimeError if it has used nothing yet."""
        if self._serving is None:
            raise RuntimeError("this session has not used a database yet")
        return self._serving

    @property
    def has_changes(self) -> bool:
        """Whether something is left to be committed."""
        return self.has_written or bool(self.new or self.dirty or self.deleted)

    @property
    def has_written(self) -> bool:  # type: ignore[override]
        """Whether it has the writer's turn."""
        return self.writes_since is not None

    def get_bind(self, mapper: Any = None, *, bind: Any = None, **_options: Any) -> Any:
        """Return the engine for what is to be executed now; take the writer's turn if need be."""
        if bind is not None:
            return bind
        if self.is_reading:
            return self.serving.for_reading_on_demand
        if self.writes_since is None:
            self.check_that_it_may_write()
            self._take_place(self._admitted(writes=True).writers)
            self.writes_since = time.monotonic()
        elif self.refusal is not None:
            raise self.refusal
        return self.serving.for_writing

    def begin_nested(self) -> SessionTransaction:
        """Begin a savepoint, in a transaction that writes."""
        self.get_bind()
        return super().begin_nested()

    def close(self) -> None:
        """Give back what it holds."""
        super().close()
        self.leave()

    async def enter(self) -> None:
        """Take the writer's turn without blocking the event loop, which calls this."""
        if self.writes_since is None:
            self.check_that_it_may_write()
            writers = self._admitted(writes=True).writers
            await writers.enter()
            self._hold(writers)
            self.writes_since = time.monotonic()

    def leave(self) -> None:
        """Give its place back, from any thread."""
        self.writes_since = None
        place, self._place = self._place, None
        # Whoever detaches it gives it back: this thread, another one, or the garbage collector.
        if place is not None and place.detach() is not None and self._pool is not None:
            self._pool.leave_from_thread(self._loop)

    def check_that_it_may_write(self) -> None:
        """Raise what it may not do."""
        if self.refusal is not None:
            raise self.refusal
        if not self._may_write:
            raise RuntimeError(_ONLY_READS)

    def close_between_statements(self, seconds: float = 0) -> None:
        """Close it, from another thread than the one that uses it.

        Raise SQLAlchemyError if a statement runs or is about to, for longer than `seconds`. With a
        refusal none can begin later. Without this, a statement that follows ROLLBACK on the same
        connection would be outside of any transaction, and stored.
        """
        if not self._statement.acquire(timeout=seconds):
            raise SQLAlchemyError("a statement of this session is running")
        self._closing_thread = threading.get_ident()
        try:
            self.close()
        finally:
            self._closing_thread = None
            self._statement.release()

    def abandon(self) -> None:
        """Close it; where a thread that nobody waits for still uses it, give back its place."""
        try:
            self.close_between_statements(_LONGEST_STATEMENT_SECONDS)
        except SQLAlchemyError:
            self.leave()

    def refuse_writes(self) -> None:
        """Refuse whatever would be written from now on, because its request is over."""
        self.refusal = self.refusal or RuntimeError(_ENDED)

    def end(self) -> None:
        """Let it read on, in streams, background tasks and lazy attributes, but not write."""
        if (transaction := self.get_transaction()) is not None:
            transaction.close()

    def begin_statement(self) -> None:
        """Keep other threads from ending the transaction; raise what must not be done any more."""
        if self._closing_thread == threading.get_ident():
            return  # It leaves a savepoint, by a statement.
        self._statement.acquire()
        self._in_statement = True
        if self.refusal is not None:
            raise self.refusal

    def end_statement(self) -> None:
        """Let other threads end the transaction."""
        if self._in_statement:
            self._in_statement = False
            self._statement.release()

    def read(self, state: ORMExecuteState) -> Result[Any] | None:
        """Return the result of a statement that only reads, or None if it may write."""
        if not self._can_read(state.statement):
            return None
        try:
            return self._read_once(state)
        except DBAPIError as error:
            if error.connection_invalidated:
                # Nothing else was done on that connection, which may have died while it was idle.
                return self._read_once(state)
            if running_reason(error) != "read_only":
                raise
            if not self._may_write:
                raise RuntimeError(_ONLY_READS) from error
            return None

    def _can_read(self, statement: Executable) -> bool:
        transaction = self.get_transaction()
        if self.is_reading or self.writes_since is not None:
            return False
        if transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN:
            return False
        if self.autoflush and (self.new or self.dirty or self.deleted):
            return False
        return not self._may_write or _only_reads(statement)

    def _read_once(self, state: ORMExecuteState) -> Result[Any]:
        self._take_place(self._admitted(writes=False).readers)
        self.is_reading = True
        # A cursor on the server would need a transaction.
        state.update_execution_options(yield_per=None, stream_results=False)
        try:
            return _read_as_a_whole(state.invoke_statement())
        finally:
            self.is_reading = False
            if (transaction := self.get_transaction()) is not None:
                transaction.close()
            self.leave()

    def _admitted(self, *, writes: bool) -> Serving:
        serving = self._admit(writes)
        before = self._serving.for_writing if self._serving else None
        if before not in (None, serving.for_writing) and len(self.identity_map):
            # There, other rows may have the keys of the objects that it has read.
            raise DatabaseUnavailable(_REPLACED, retry_after=1)
        self._serving, self.bind = serving, serving.for_writing
        return serving

    def _take_place(self, pool: WorkerPool) -> None:
        if self._loop is not None:
            pool.enter_from_thread(self._loop)
            self._hold(pool)

    def _hold(self, pool: WorkerPool) -> None:
        if self._loop is not None:
            self._pool = pool
            self._place = finalize(self, _leave_later, pool, self._loop)
            self._place.atexit = False


def _leave_later(pool: WorkerPool, loop: asyncio.AbstractEventLoop) -> None:
    """Give back the place of a session that nobody has closed.

    Called by the garbage collector, which may be interrupting the limiter itself.
    """
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(pool.limiter.leave)


@event.listens_for(OnDemandSession, "do_orm_execute")
def _read(state: ORMExecuteState) -> Result[Any] | None:
    session = state.session
    if not isinstance(session, OnDemandSession):
        return None
    result = session.read(state)
    if result is None and _locks(state.statement) and (session.autoflush or not session.dirty):
        # The rows may have been read before, without a lock.
        state.update_execution_options(populate_existing=True)
    return result


@event.listens_for(OnDemandSession, "after_transaction_create")
def _refuse_late_changes(session: OnDemandSession, transaction: SessionTransaction) -> None:
    if session.refusal is not None and not session.is_reading:
        raise session.refusal


@event.listens_for(OnDemandSession, "after_begin")
def _name_session(
    session: OnDemandSession, transaction: SessionTransaction, connection: Connection
) -> None:
    if session.has_written:
        connection.execution_options(session=session)


def watch_statements(engine: Engine) -> None:
    """Tell each session of this engine when a statement of its transaction begins and ends."""
    event.listen(engine, "before_cursor_execute", _begin_statement)
    event.listen(engine, "after_cursor_execute", _end_statement)
    event.listen(engine, "handle_error", _end_failed_statement)


def _begin_statement(connection: Connection, *_: object) -> None:
    session = connection.get_execution_options().get("session")
    if session is not None:
        session.begin_statement()


def _end_statement(connection: Connection, *_: object) -> None:
    session = connection.get_execution_options().get("session")
    if session is not None:
        session.end_statement()


def _end_failed_statement(context: ExceptionContext) -> None:
    if context.connection is not None:
        _end_statement(context.connection)


@event.listens_for(OnDemandSession, "after_commit")
def _note_success(session: OnDemandSession) -> None:
    session.has_committed = session.has_committed or session.has_written


@event.listens_for(OnDemandSession, "after_transaction_end")
def _leave(session: OnDemandSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.leave()


class SessionFactory(sessionmaker[Session]):
    """Sessions for scripts, hooks and tasks, bound while a database serves."""

    def __init__(self, **options: Any) -> None:
        """The options are those of every session."""
        super().__init__(class_=OnDemandSession, **options)

    def __call__(self, **options: Any) -> Session:
        """Return a session; raise RuntimeError if no database has been chosen yet."""
        if "bind" in options:
            return Session(**options)
        if self.kw.get("bind") is None:
            raise RuntimeError(
                "SessionLocal is bound when the database is chosen, and that has not happened yet:"
                " in a script, use `with open_database():` from src.main; in a task, wait with"
                " `await database.ready()`"
            )
        return super().__call__(**options)


def _locks(statement: Executable) -> bool:
    return getattr(statement, "_for_update_arg", None) is not None


def _only_reads(statement: Executable) -> bool:
    """Return False if it may write, lock, or change a setting of the transaction.

    A wrong True does no harm to rows: a connection for reading refuses to write.
    """
    if isinstance(statement, FromStatement):
        statement = statement.element
    if isinstance(statement, TextClause):
        # A function without a table may be one that locks, or sets something for a transaction.
        is_harmless = "(" not in statement.text or _FROM.search(statement.text) is not None
        return is_harmless and _READING_TEXT.match(statement.text) is not None
    if isinstance(statement, Select) and not (
        statement.columns_clause_froms or statement.get_final_froms()
    ):
        return False
    return bool(statement.is_select) and not _locks(statement)


def _read_as_a_whole(result: Result[Any]) -> Result[Any]:
    """Return the same result, all rows of which are in memory."""
    # Whether the rows are to be made unique is for the caller to say, who is not asked here.
    unique, result._unique_filter_state = result._unique_filter_state, None
    whole = result.freeze()()
    whole._unique_filter_state = unique
    return whole
