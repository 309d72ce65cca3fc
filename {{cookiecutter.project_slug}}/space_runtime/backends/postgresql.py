"""PostgreSQL through psycopg: what is set on each connection, and how transactions begin."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import URL, Column, Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.backends.protocol import Backend, Name, Secrets

logger = logging.getLogger(__name__)

STATEMENT_TIMEOUT_MILLISECONDS = 10_000
# A number that no other application in the same database is likely to use.
_LOCK = 7_860_201_811
_SECONDS_FOR_OTHERS = 60.0
_SECONDS_BETWEEN_HEARTBEATS = 1.0
# Shows whether the session lives, keeps the server from ending it, and, unlike a SELECT, takes no
# snapshot for which CREATE INDEX CONCURRENTLY would wait until the end of the transaction.
_HEARTBEAT = "SET LOCAL idle_in_transaction_session_timeout = 0"
_BY_HOST = frozenset(["host", "hostaddr", "port"])
# A table lock that the old container holds must not block the new one forever.
_WHILE_MIGRATING = (
    "statement_timeout = 0",
    "lock_timeout = '5s'",
    "default_transaction_read_only = off",
)


class PostgreSQL(Backend):
    """See Backend for what each method is for."""

    name: Name = "postgresql"
    default_pool_size = 6
    has_one_writer = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_connections: WeakKeyDictionary[Engine, WeakSet[Any]] = WeakKeyDictionary()
        self._attempts_in_vain = 0

    def describe(self, url: URL) -> str:
        """Name the database and its server; with several in the URL, all of them."""
        hosts = url.host or url.query.get("host") or "this machine"
        return (
            f"PostgreSQL, {url.database} on {hosts if isinstance(hosts, str) else ','.join(hosts)}"
        )

    def create_engine(self, url: URL, secrets: Secrets, pool_size: int) -> Engine:
        """Return an engine; connections that are five minutes old are replaced."""
        engine = create_engine(
            url,
            connect_args=dict(secrets),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_recycle=300,
            hide_parameters=True,
        )

        @event.listens_for(engine, "connect")
        def without_prepared_statements(connection: Any, record: ConnectionPoolEntry) -> None:
            # Behind a transaction pooler, a statement might be prepared on one server connection
            # and executed on another.
            connection.prepare_threshold = None

        return engine

    def prepare_to_serve(self, engine: Engine, *, transaction_pooler: bool) -> None:
        """Make sessions read-only by default and limit how long statements run.

        Behind a transaction pooler, begin() does both for each transaction instead, because session
        settings would leak to other clients. A pooler is recognized by the process ID that it
        reports at connect, which is not the server's.
        """

        @event.listens_for(engine, "connect")
        def inspect_server(connection: Any, record: ConnectionPoolEntry) -> None:
            with self._lock:
                self._open_connections.setdefault(engine, WeakSet()).add(connection)
            connection.read_only = False
            connection.autocommit = True
            process_id, read_only, in_recovery, timeout = connection.execute(
                "SELECT pg_backend_pid(), current_setting('default_transaction_read_only'),"
                " pg_is_in_recovery(), current_setting('statement_timeout')"
            ).fetchone()
            if read_only == "on" or in_recovery:
                connection.close()
                raise DatabaseUnavailable("The database accepts no writes.", reason="read_only")
            record.info["pooled"] = transaction_pooler or process_id != connection.info.backend_pid
            if not record.info["pooled"]:
                connection.execute("SET default_transaction_read_only = on")
                if timeout == "0":
                    connection.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_MILLISECONDS}")

        if "," in str(engine.url.query.get("host")):
            self._stay_with_one_host(engine)
        self.begin_by_options(engine)

    def _stay_with_one_host(self, engine: Engine) -> None:
        """Let all connections be to the same host: to the one that answered last, if it still does.

        Otherwise each would wait first for a primary that is gone. Later, some would be made to it
        when it comes back, although another server has taken its place and has rows of its own.
        While none has answered, each attempt begins with the next one: those that are silent may
        take more time together than an attempt has.
        """
        last: tuple[str, str] | None = None

        @event.listens_for(engine, "connect")
        def note_host(connection: Any, record: ConnectionPoolEntry) -> None:
            nonlocal last
            self._attempts_in_vain = 0
            before, last = last, (connection.info.host, str(connection.info.port))
            if before not in (None, last):
                self._terminate(engine, all_but=connection)

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> Any:
            hosts = options["host"].split(",")
            ports = [port or "5432" for port in options.get("port", "").split(",")]
            places = list(zip(hosts, ports * (len(hosts) // len(ports)), strict=False))
            first = self._attempts_in_vain % len(places)
            if last in places:
                first = places.index(last)
            self._attempts_in_vain += 1
            split = {name: options[name].split(",") for name in _BY_HOST & options.keys()}
            turned = {name: ",".join(some[first:] + some[:first]) for name, some in split.items()}
            return dialect.connect(*arguments, **options | turned)

    def works_in_loop(self, engine: Engine) -> bool:
        """Return False: even a short statement waits for the network."""
        return False

    def interrupt(self, driver_connection: Any, is_to_stop: Callable[[], bool]) -> None:
        """Raise NotImplementedError, since no work runs in the event loop."""
        raise NotImplementedError

    def begin(self, connection: Connection, *, reading: bool, bounded: bool) -> None:
        """Make the driver begin a transaction at the first statement, where one is needed."""
        pooled: bool = connection.info["pooled"]
        driver_connection: Any = connection.connection.driver_connection
        # The session is read-only anyway, and without BEGIN a read takes a single round trip.
        autocommit = reading and not pooled
        if driver_connection.autocommit != autocommit:
            driver_connection.autocommit = autocommit
        if pooled:
            if driver_connection.read_only != reading:
                driver_connection.read_only = reading
            if bounded:
                connection.exec_driver_sql(
                    f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MILLISECONDS}"
                )

    def refuse_failed_transaction(self, session: Session) -> None:
        """Raise RuntimeError if a statement failed: PostgreSQL would roll back at COMMIT."""
        connection: Any = session.connection().connection.driver_connection
        if connection.info.transaction_status.name == "INERROR":
            raise RuntimeError(
                "work caught a database error and continued: use session.begin_nested()"
            )

    def try_to_write(self, connection: Connection) -> None:
        """Do nothing: a server that accepts no writes is refused when a connection is made."""

    @contextlib.contextmanager
    def lock_migrations(
        self, engine: Engine, on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[Connection]:
        """Hold an advisory lock in a transaction on a session of its own, outside of the pool.

        If that session is lost, the server lets others in: then the migrating connection is shut
        down within two seconds. A transaction pooler may have no second session for us, so each
        transaction behind one takes the lock itself; it is free during an autocommit_block().
        """
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(engine.connect())
            # Requests must not get a connection with these settings.
            stack.callback(connection.invalidate)
            driver_connection: Any = connection.connection.driver_connection
            process_id = connection.scalar(text("SELECT pg_backend_pid()"))
            connection.rollback()
            pooled = connection.info.get("pooled", driver_connection.info.backend_pid != process_id)
            if not pooled:
                session = stack.enter_context(_lock_session(engine, on_wait))
                stack.enter_context(_watching(session, driver_connection))

            @event.listens_for(connection, "begin")
            def begin(connection: Connection) -> None:
                options = connection.get_execution_options()
                if options.get("isolation_level") != "AUTOCOMMIT":
                    if "pooled" in connection.info:  # the engine's own listener comes too late
                        self.begin(connection, reading=False, bounded=False)
                    if pooled:
                        _take_lock(connection.exec_driver_sql, on_wait)
                    for setting in _WHILE_MIGRATING:
                        connection.exec_driver_sql(f"SET LOCAL {setting}")
                elif not pooled:  # where a setting would reach other clients
                    for setting in _WHILE_MIGRATING:
                        connection.exec_driver_sql(f"SET {setting}")

            yield connection

    def is_being_migrated(self, engine: Engine) -> bool:
        """Return whether another session or transaction holds the advisory lock."""
        with engine.begin() as connection:
            return not connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})"))

    def is_stored_the_same(
        self, connection: Connection, existing: Column[Any], wanted: Column[Any]
    ) -> bool:
        """Return False: let Alembic compare the types, which PostgreSQL reports in full."""
        return False

    def terminate_connections(self, engine: Engine) -> None:
        """Shut down the sockets, since psycopg's close() is unsafe while another thread waits."""
        self._terminate(engine)

    def _terminate(self, engine: Engine, *, all_but: Any = None) -> None:
        with self._lock:
            connections = list(self._open_connections.get(engine, ()))
        for connection in connections:
            if connection is not all_but:
                _shut_down(connection)


@contextlib.contextmanager
def _lock_session(engine: Engine, on_wait: Callable[[], None]) -> Iterator[Any]:
    """Yield a driver's connection that holds the lock; it takes no place in the pool."""
    import psycopg  # here, so that a start on SQLite does not load the driver

    pool = engine.pool.recreate()
    fairy = pool.connect()
    session: Any = fairy.driver_connection
    try:
        session.autocommit = False
        # In any other isolation level the transaction would keep its snapshot, for which CREATE
        # INDEX CONCURRENTLY waits.
        session.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        try:
            _take_lock(session.execute, on_wait)
        except psycopg.Error as error:
            message = "The connection to the server was lost."
            raise DatabaseUnavailable(message, reason="connection_lost") from error
        yield session
    finally:
        # The work is done by now, even if the session was lost.
        with contextlib.suppress(psycopg.Error):
            session.rollback()
        fairy.invalidate()
        pool.dispose()


def _take_lock(execute: Callable[[str], Any], on_wait: Callable[[], None]) -> None:
    """Take the lock; raise DatabaseUnavailable if another process keeps it for a minute.

    The server is asked again and again: a statement that waited there would keep its snapshot, and
    a CREATE INDEX CONCURRENTLY of the process that has the lock would wait for that in turn.
    """
    began = time.monotonic()
    execute(_HEARTBEAT)
    # Without parameters: the protocol for them leaves a portal open, and with it a snapshot.
    while not execute(f"SELECT pg_try_advisory_xact_lock({_LOCK})").fetchone()[0]:
        if time.monotonic() > began + _SECONDS_FOR_OTHERS:
            raise DatabaseUnavailable("Another process migrates the database.", reason="locked")
        on_wait()
        time.sleep(0.1)
    if (waited := time.monotonic() - began) > 1:
        logger.info("waited %.0f s for another process that migrated or moved rows", waited)


@contextlib.contextmanager
def _watching(session: Any, migrating: Any) -> Iterator[None]:
    """Shut down the migrating connection if the session that holds the lock is lost."""
    import psycopg  # here, so that a start on SQLite does not load the driver

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS_BETWEEN_HEARTBEATS):
            try:
                session.execute(_HEARTBEAT)
            except psycopg.Error:
                logger.error("the session with the migrations' lock was lost")
                _shut_down(migrating)
                return

    thread = threading.Thread(target=watch, name="migration-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_SECONDS_BETWEEN_HEARTBEATS)
        if thread.is_alive():  # it waits for an answer from a silent server
            _shut_down(session)
            thread.join()


def _shut_down(connection: Any) -> None:
    """Shut down the socket of a connection that another thread may be waiting on."""
    import psycopg  # here, so that a start on SQLite does not load the driver

    # A connection that was closed in the meantime raises psycopg's own error.
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as wire,
    ):
        wire.shutdown(socket.SHUT_RDWR)
