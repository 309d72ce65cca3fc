"""What this application sets on each connection to PostgreSQL."""

import contextlib
import os
import socket
import threading
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from src.database.errors import DatabaseUnavailable

STATEMENT_TIMEOUT_MILLISECONDS = 10_000

_open_connections_lock = threading.Lock()
_open_connections: WeakKeyDictionary[Engine, WeakSet[Any]] = WeakKeyDictionary()


def configure(engine: Engine) -> None:
    """Never prepare statements on the server: behind a transaction pooler they would go astray."""

    @event.listens_for(engine, "connect")
    def without_prepared_statements(connection: Any, record: ConnectionPoolEntry) -> None:
        connection.prepare_threshold = None


def configure_for_serving(engine: Engine, *, transaction_pooler: bool) -> None:
    """Make reads unable to write and statements unable to run for ever; refuse read-only servers.

    Session settings outlive the client behind a transaction pooler and would reach strangers.
    Such a pooler invents the process id that it tells its clients, which gives it away.
    """

    @event.listens_for(engine, "connect")
    def inspect_server(connection: Any, record: ConnectionPoolEntry) -> None:
        with _open_connections_lock:
            _open_connections.setdefault(engine, WeakSet()).add(connection)
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

    @event.listens_for(engine, "begin")
    def begin_as_asked(connection: Connection) -> None:
        options = connection.get_execution_options()
        begin(
            connection,
            reading=options.get("reading", False),
            bounded=options.get("bounded", False),
        )


def begin(connection: Connection, *, reading: bool, bounded: bool) -> None:
    """Let the driver begin a transaction with the first statement; for reading, if it must.

    `bounded`: also where no session setting bounds the time of statements.
    """
    pooled: bool = connection.info["pooled"]
    driver_connection: Any = connection.connection.driver_connection
    # one round trip a statement where the session's own settings make writing impossible
    autocommit = reading and not pooled
    if driver_connection.autocommit != autocommit:
        driver_connection.autocommit = autocommit
    if pooled:
        driver_connection.read_only = reading
        if bounded:
            connection.exec_driver_sql(
                f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MILLISECONDS}"
            )


def refuse_failed_transaction(session: Session) -> None:
    """Raise RuntimeError if the server would answer COMMIT with a silent ROLLBACK."""
    connection: Any = session.connection().connection.driver_connection
    if connection.info.transaction_status.name == "INERROR":
        raise RuntimeError("work caught a database error and went on: use session.begin_nested()")


def sever(engine: Engine) -> None:
    """Cut the engine's connections, so that threads which wait for a silent server wake up.

    psycopg has no call for this: close() from another thread would free what that thread uses.
    """
    with _open_connections_lock:
        connections = list(_open_connections.get(engine, ()))
    if not connections:
        return
    import psycopg  # here, because SQLite has no use for it

    for connection in connections:
        # a connection may end by itself at any moment
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(connection.fileno())) as wire,
        ):
            wire.shutdown(socket.SHUT_RDWR)
