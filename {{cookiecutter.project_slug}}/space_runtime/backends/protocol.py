"""What the runtime asks of a database, in whose terms all code outside this folder is written."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session

Name = Literal["postgresql", "sqlite"]
Secrets = Mapping[str, str | tuple[str, ...]]


class Backend(Protocol):
    """One kind of database."""

    name: Name
    default_pool_size: int
    """How many requests are served at once unless POOL_SIZE says so. Few, because their threads
    share one interpreter with the event loop; a server that is far away is worth more of them."""
    has_one_writer: bool
    """Whether those who write wait for each other, and must therefore keep no reader waiting."""

    def create_engine(self, url: URL, secrets: Secrets, pool_size: int) -> Engine:
        """Return an engine; nothing is opened. The driver also receives the secrets."""

    def prepare_to_serve(self, engine: Engine, *, transaction_pooler: bool) -> None:
        """Give statements a time limit, make reads unable to write, and refuse what cannot serve.

        Connections of the engine raise DatabaseUnavailable when such a server is met.
        """

    def begin(self, connection: Connection, *, reading: bool, bounded: bool) -> None:
        """Begin a transaction; for reading none is needed. `bounded`: statements get a limit."""

    def refuse_failed_transaction(self, session: Session) -> None:
        """Raise RuntimeError if COMMIT would silently roll back."""

    def try_to_write(self, connection: Connection) -> None:
        """Raise what a write would raise now, and change nothing."""

    def lock_migrations(self, engine: Engine) -> AbstractContextManager[Connection]:
        """Yield a connection in a transaction that one process at a time can be in."""

    def terminate_connections(self, engine: Engine) -> None:
        """Wake the threads that wait for a server that fell silent; they meet a lost connection."""
