"""How Alembic runs: on the application's own engine, under its lock.

At start the application hands over its connection; on the command line the engine is made from
the same environment variables.
"""

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import DATETIME, Connection
from sqlalchemy.types import TypeDecorator

from space_runtime.backends import backend_of
from space_runtime.failback.rows import OWN_TABLES
from src.database.base import Base, PortableJSON
from src.items import models as items_models  # noqa: F401  (registers the tables)


def render_item(kind: str, value: object, autogen: AutogenContext) -> str | Literal[False]:
    """Write the application's own types as the plain ones they are: a migration stands alone.

    PostgreSQL knows no DATETIME, which is what SQLite calls the times of a table that is dropped.
    """
    if kind == "type" and isinstance(value, PortableJSON):
        autogen.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    if kind == "type" and isinstance(value, DATETIME):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(value, TypeDecorator):
        return f"sa.{value.impl!r}"
    return False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # also on PostgreSQL: what is written there must run on SQLite, too
        render_as_batch=True,
        render_item=render_item,
        # tables that no migration may change
        include_name=lambda name, kind, parents: kind != "table" or name not in OWN_TABLES,
    )
    with context.begin_transaction():
        context.run_migrations()


if "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    # Here, because an application that migrates as it starts is being imported itself.
    from src.main import create_runtime

    with create_runtime().configured_engine() as engine:
        print(f"Database: {engine.dialect.name}")  # noqa: T201
        with backend_of(engine).lock_migrations(engine) as own_connection:
            run(own_connection)
