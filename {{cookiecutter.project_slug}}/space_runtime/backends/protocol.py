"""The interface through which the rest of the runtime uses a database."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

from sqlalchemy import URL, Column, Connection, Engine, event
from sqlalchemy.orm import Session

Name = Literal["postgresql", "sqlite"]
Secrets = Mapping[str, str | tuple[str, ...]]


class Backend:
    """One kind of database."""

    name: Name
    default_pool_size: int
    """How many requests may use the database at once unless POOL_SIZE is set. Low, because their
    threads compete with the event loop for the GIL; higher if they mostly wait for a network."""
    has_one_writer: bool
    """Whether only one write runs at a time. If so, waiting writes must not block the readers'
    threads."""

    def describe(self, url: URL) -> str:
        """Return which database this is, for its owner's eyes: the host, but no user or secret."""
        raise NotImplementedError

    def create_engine(self, url: URL, secrets: Secrets, pool_size: int) -> Engine:
        """Return an engine that passes the secrets to the driver; nothing is opened yet."""
        raise NotImplementedError

    def prepare_to_serve(self, engine: Engine, *, transaction_pooler: bool) -> None:
        """Limit how long statements run, keep reads from writing, and refuse an unusable server.

        Connecting to such a server then raises DatabaseUnavailable.
        """
        raise NotImplementedError

    def begin(self, connection: Connection, *, reading: bool, bounded: bool) -> None:
        """Begin a transaction if `reading` needs one; `bounded` limits how long statements run."""
        raise NotImplementedError

    def reads_in_loop(self, engine: Engine) -> bool:
        """Return whether short reads may run in the event loop, since nothing makes them wait."""
        return False

    def interrupt(self, connection: Connection, is_to_stop: Callable[[], bool]) -> None:
        """Stop a statement of this connection when is_to_stop() says so, or if it had to wait.

        Raise NotImplementedError where no read runs in the event loop.
        """
        raise NotImplementedError

    def begin_by_options(self, engine: Engine) -> None:
        """Call begin() for every transaction, with the execution options `reading`, `bounded`."""

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            options = connection.get_execution_options()
            if options.get("isolation_level") == "AUTOCOMMIT":
                return  # a migration's autocommit_block(), which wants no transaction
            reading, bounded = options.get("reading", False), options.get("bounded", False)
            self.begin(connection, reading=reading, bounded=bounded)

    def refuse_failed_transaction(self, session: Session) -> None:
        """Raise RuntimeError if COMMIT would silently roll back."""

    def try_to_write(self, connection: Connection) -> None:
        """Raise what a write would raise now, and change nothing."""

    def lock_migrations(self, engine: Engine) -> AbstractContextManager[Connection]:
        """Yield a connection, not in a transaction, that only one process can have at a time.

        The caller may begin and commit as often as it likes. Raise DatabaseUnavailable if another
        process keeps the lock for too long.
        """
        raise NotImplementedError

    def is_being_migrated(self, engine: Engine) -> bool:
        """Return whether a session has the lock of lock_migrations(), and may keep it for long."""
        return False

    def is_stored_the_same(
        self, connection: Connection, existing: Column[Any], wanted: Column[Any]
    ) -> bool:
        """Return whether a column is known to be declared as a model's column would be."""
        return False

    def terminate_connections(self, engine: Engine) -> None:
        """Wake threads that wait for an unresponsive server; to them the connection is lost."""
