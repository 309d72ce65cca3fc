"""Engines, sessions, and the dependencies through which endpoints get them.

item = await database.write(service.create_item, data)  # DatabaseDep, in `async def` endpoints
session.add(item)                                        # SessionDep, in plain `def` ones
with SessionLocal.begin() as session: ...                # in scripts, hooks and background tasks
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy import URL, Engine, make_url
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection

from space_runtime.backends import backend_of
from space_runtime.serving.database import Database
from space_runtime.serving.sessions import SessionFactory
from space_runtime.url.building import hide_secrets
from space_runtime.url.resolution import Resolution

SessionLocal = SessionFactory(expire_on_commit=False)
"""Sessions outside of endpoints. Reading never keeps others from writing. Before a database is
open, a call raises RuntimeError, which says what to do."""


def build_engine(target: Resolution | URL | str, *, pool_size: int = 5) -> Engine:
    """Return an engine with this backend's options; nothing is opened and no directory is made.

    The driver also receives a resolution's secrets, which its URL does not contain. SQL parameters
    never appear in errors or logs (`hide_parameters`), and printing `engine.url` shows no secret.
    Raise ValueError for a resolution without a URL.
    """
    if isinstance(target, Resolution):
        if target.url is None:
            raise ValueError(
                f"{target.message} Which database serves instead, if any, is decided at start:"
                " use open_database() from src.main."
            )
        url, secrets = target.url, dict(target.secrets)
    else:
        url, secrets = hide_secrets(make_url(target))
    return backend_of(url).create_engine(url, secrets, pool_size)


async def get_database(connection: HTTPConnection) -> Database:
    """Return the application's database, for requests and WebSockets."""
    database: Database = connection.app.state.runtime.database
    return database


DatabaseDep = Annotated[Database, Depends(get_database)]
"""The database, for `async def` endpoints: `await database.read(f, ...)`, or `write`, runs f, with
a Session as its first argument, without blocking others. When write() returns, it is committed."""


async def get_session(database: DatabaseDep) -> AsyncIterator[Session]:
    """Yield a session, for plain `def` endpoints."""
    async with database.session() as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session, scope="function")]
"""A session, committed before the answer is sent: that is what scope="function" does.

It holds a connection only while a statement is executed, until you change something: the flush,
`session.execute(insert(...))` or `with_for_update()` begins a transaction, in which it stays until
commit(). What you read before that may have changed since: if the change depends on it, read the
row with `session.get(Item, item_id, with_for_update=True)`, which waits for its turn."""


async def get_read_session(database: DatabaseDep) -> AsyncIterator[Session]:
    """Yield a session that cannot write, for plain `def` endpoints."""
    async with database.session(may_write=False) as session:
        yield session


ReadSessionDep = Annotated[Session, Depends(get_read_session, scope="function")]
"""A session that cannot write, and works also while the database can only be read."""
