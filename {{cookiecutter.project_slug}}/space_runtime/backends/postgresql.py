"""PostgreSQL through psycopg: what is set on each connection, and how transactions begin."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.backends.protocol import Backend, Name, Secrets

logger = logging.getLogger(__name__)

STATEMENT_TIMEOUT_MILLISECONDS = 10_000
# A number that no other application in the same database is likely to use.
_LOCK = 7_860_201_811
_SECONDS_FOR_OTHERS = 60.0
_BY_HOST = frozenset(["host", "hostaddr", "port"])
# A table lock that the old container holds must not block the new one forever.
_WHILE_MIGRATING = (
    "statement_timeout = 0",
    "idle_in_transaction_session_timeout = 0",
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
        hosts = url.host or url.query.get("host", "this machine")
        return f"PostgreSQL, {url.database} on {hosts}"

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
        """Connect to the host that answered last, for as long as it answers.

        Otherwise each connection would first wait for a primary that is gone. Once it is back, some
        would reach it, although another server has taken its place and has rows of its own. While
        no host answers, each attempt begins with the next one: the silent ones may together take
        longer than an attempt may.
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

    @contextlib.contextmanager
    def lock_migrations(self, engine: Engine) -> Iterator[Connection]:
        """Hold an advisory lock of the connection's session, which is lost only together with it.

        A transaction pooler may change the session at each COMMIT, so each transaction behind one
        takes the lock itself; it is free during an autocommit_block().
        """
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(engine.connect())
            # Requests must not get a connection with these settings.
            stack.callback(connection.invalidate)
            driver_connection: Any = connection.connection.driver_connection
            # In a transaction it could hold up another's CREATE INDEX CONCURRENTLY while it waits.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            process_id = connection.scalar(text("SELECT pg_backend_pid()"))
            if connection.info.get("pooled", driver_connection.info.backend_pid != process_id):
                self._lock_each_transaction(connection)
            else:
                stack.callback(_release_lock, driver_connection)
                _take_lock(connection, "pg_try_advisory_lock")
                for setting in _WHILE_MIGRATING:
                    connection.exec_driver_sql(f"SET {setting}")
            connection.rollback()  # what SQLAlchemy takes for a transaction; the driver began none
            connection.execution_options(isolation_level=connection.default_isolation_level)
            yield connection

    def _lock_each_transaction(self, connection: Connection) -> None:
        @event.listens_for(connection, "begin")
        def begin(connection: Connection) -> None:
            if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
                return  # where a setting would reach other clients
            if "pooled" in connection.info:  # the engine's own listener comes too late
                self.begin(connection, reading=False, bounded=False)
            _take_lock(connection, "pg_try_advisory_xact_lock")
            for setting in _WHILE_MIGRATING:
                connection.exec_driver_sql(f"SET LOCAL {setting}")

    def is_being_migrated(self, engine: Engine) -> bool:
        """Return whether another session or transaction holds the advisory lock."""
        with engine.begin() as connection:
            return not connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})"))

    def terminate_connections(self, engine: Engine) -> None:
        """Shut down the sockets, since psycopg's close() is unsafe while another thread waits."""
        self._terminate(engine)

    def _terminate(self, engine: Engine, *, all_but: Any = None) -> None:
        with self._lock:
            connections = list(self._open_connections.get(engine, ()))
        for connection in connections:
            if connection is not all_but:
                _shut_down(connection)


def _take_lock(connection: Connection, function: str) -> None:
    """Take the lock; raise DatabaseUnavailable if another process keeps it for a minute.

    The server is asked again and again: a statement that waited there would keep its snapshot, and
    a CREATE INDEX CONCURRENTLY of the process that has the lock would wait for that in turn.
    """
    began = time.monotonic()
    while not connection.exec_driver_sql(f"SELECT {function}({_LOCK})").scalar():
        if time.monotonic() > began + _SECONDS_FOR_OTHERS:
            raise DatabaseUnavailable("Another process migrates the database.", reason="locked")
        time.sleep(0.1)
    if (waited := time.monotonic() - began) > 1:
        logger.info("waited %.0f s for another process that migrated or moved rows", waited)


def _release_lock(connection: Any) -> None:
    """Release the lock now: after a connection is closed, the server keeps it for a moment."""
    import psycopg  # here, so that a start on SQLite does not load the driver

    with contextlib.suppress(psycopg.Error):  # the connection is lost, and the lock with it
        connection.rollback()
        connection.autocommit = True
        connection.execute("SELECT pg_advisory_unlock_all()")


def _shut_down(connection: Any) -> None:
    """Shut down the socket of a connection that another thread may be waiting on."""
    import psycopg  # here, so that a start on SQLite does not load the driver

    # A connection that was closed in the meantime raises psycopg's own error.
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as wire,
    ):
        wire.shutdown(socket.SHUT_RDWR)
