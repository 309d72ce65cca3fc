"""What the runtime needs of a database; all code outside this folder is written against it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.orm import Session

Name = Literal["postgresql", "sqlite"]
Secrets = Mapping[str, str | tuple[str, ...]]


class Backend(Protocol):
    """One kind of database."""

    name: Name
    default_pool_size: int
    """How many requests are served at once unless POOL_SIZE is set. Few, because their threads
    share one interpreter with the event loop; more for a server that is far away."""
    has_one_writer: bool
    """Whether writers wait for each other. Then they must not occupy the threads of readers."""

    def create_engine(self, url: URL, secrets: Secrets, pool_size: int) -> Engine:
        """Return an engine; nothing is opened. The driver also receives the secrets."""

    def prepare_to_serve(self, engine: Engine, *, transaction_pooler: bool) -> None:
        """Give statements a time limit, make reads unable to write, and refuse what cannot serve.

        Connections of the engine raise DatabaseUnavailable when such a server is met.
        """

    def begin(self, connection: Connection, *, reading: bool, bounded: bool) -> None:
        """Begin a transaction; for reading none is needed. `bounded`: statements get a limit."""

    def begin_by_options(self, engine: Engine) -> None:
        """Let transactions begin as the execution options `reading` and `bounded` say."""

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            options = connection.get_execution_options()
            reading, bounded = options.get("reading", False), options.get("bounded", False)
            self.begin(connection, reading=reading, bounded=bounded)

    def refuse_failed_transaction(self, session: Session) -> None:
        """Raise RuntimeError if COMMIT would silently roll back."""

    def try_to_write(self, connection: Connection) -> None:
        """Raise what a write would raise now, and change nothing."""

    def lock_migrations(self, engine: Engine) -> AbstractContextManager[Connection]:
        """Yield a connection in a transaction that one process at a time can be in."""

    def terminate_connections(self, engine: Engine) -> None:
        """Wake the threads that wait for a server that fell silent; they meet a lost connection."""
