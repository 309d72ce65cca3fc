"""How Alembic runs: on the application's own engine, under its lock.

At start the application hands over its connection; on the command line the engine is made from
the same environment variables.
"""

from alembic import context
from sqlalchemy import Connection

from src.database.base import Base
from src.database.lifecycle import engine_for_commands
from src.database.migrations import locked
from src.items import models as items_models  # noqa: F401  (registers the tables)


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


if "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    with engine_for_commands() as engine, locked(engine) as own_connection:
        run(own_connection)
