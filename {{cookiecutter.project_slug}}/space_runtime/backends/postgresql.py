"""PostgreSQL through psycopg: what is set on each connection, and how transactions begin."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.backends.protocol import Backend, Name, Secrets

STATEMENT_TIMEOUT_MILLISECONDS = 10_000
# A number that no other application in the same database is likely to use.
_ADVISORY_LOCK = 7_860_201_811


class PostgreSQL(Backend):
    """See Backend for what each method is for."""

    name: Name = "postgresql"
    default_pool_size = 6
    has_one_writer = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_connections: WeakKeyDictionary[Engine, WeakSet[Any]] = WeakKeyDictionary()

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

        self.begin_by_options(engine)

    def begin(self, connection: Connection, *, reading: bool, bounded: bool) -> None:
        """Make the driver begin a transaction at the first statement, where one is needed."""
        pooled: bool = connection.info["pooled"]
        driver_connection: Any = connection.connection.driver_connection
        # The session is read-only anyway, and without BEGIN a read takes a single round trip.
        autocommit = reading and not pooled
        if driver_connection.autocommit != autocommit:
            driver_connection.autocommit = autocommit
        if pooled:
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
    def lock_migrations(self, engine: Engine) -> Iterator[Connection]:
        """Take an advisory lock, which the server releases when the transaction ends."""
        with engine.connect() as connection, connection.begin():
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            # A table lock that the old container holds must not block the new one forever.
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            yield connection

    def terminate_connections(self, engine: Engine) -> None:
        """Shut down the sockets, since psycopg's close() is unsafe while another thread waits."""
        # Imported here, so that a start on SQLite does not load the driver.
        import psycopg

        with self._lock:
            connections = list(self._open_connections.get(engine, ()))
        for connection in connections:
            # A connection that was closed in the meantime raises psycopg's own error.
            with (
                contextlib.suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(connection.fileno())) as wire,
            ):
                wire.shutdown(socket.SHUT_RDWR)
