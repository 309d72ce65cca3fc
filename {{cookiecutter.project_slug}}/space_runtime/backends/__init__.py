"""The two databases behind one protocol: how engines are made, and how transactions begin."""

from sqlalchemy import URL, Engine

from space_runtime.backends.postgresql import PostgreSQL
from space_runtime.backends.protocol import Backend
from space_runtime.backends.sqlite import SQLite

POSTGRESQL: Backend = PostgreSQL()
SQLITE: Backend = SQLite()
_BACKENDS = {backend.name: backend for backend in (POSTGRESQL, SQLITE)}


def backend_of(target: Engine | URL) -> Backend:
    """Return the backend of an engine or a URL."""
    name = target.dialect.name if isinstance(target, Engine) else target.get_backend_name()
    return _BACKENDS[name]  # type: ignore[index]  # the resolver lets no other one through
