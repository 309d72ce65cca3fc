"""Run Alembic on the application's own engine, under its migration lock.

At start the application passes its connection in; on the command line, the engine is made from the
same environment variables.
"""

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import DATETIME, Connection
from sqlalchemy.types import TypeDecorator

from space_runtime.backends import backend_of
from space_runtime.files.tables import OWN_PREFIX
from src.database.base import Base, PortableJSON
from src.items import models as items_models  # noqa: F401  (registers the tables)


def render_item(kind: str, value: object, autogen: AutogenContext) -> str | Literal[False]:
    """Render the application's own types as SQLAlchemy's, so that migrations do not import them.

    When a table is dropped, SQLite reports its times as DATETIME, which PostgreSQL does not have.
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
        # also on PostgreSQL: a migration that is generated there must run on SQLite, too
        render_as_batch=True,
        render_item=render_item,
        # tables that no migration may change
        include_name=lambda name, kind, parents: (
            kind != "table" or not str(name).startswith(OWN_PREFIX)
        ),
    )
    with context.begin_transaction():
        context.run_migrations()


if "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    # Imported here, because it creates an application, and at start there already is one.
    from src.main import create_runtime

    with create_runtime().configured_engine() as engine:
        print(f"Database: {engine.dialect.name}")  # noqa: T201
        with backend_of(engine).lock_migrations(engine) as own_connection:
            run(own_connection)
