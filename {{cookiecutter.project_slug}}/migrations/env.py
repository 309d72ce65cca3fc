"""Run Alembic on the application's own engine, under its migration lock.

At start the application passes its connection in; on the command line, the engine is made from the
same environment variables.
"""

from alembic import context

from space_runtime.backends import backend_of
from space_runtime.migrations.environment import run
from src.database.base import Base
from src.items import models as items_models

if "connection" in context.config.attributes:
    run(context.config.attributes["connection"], Base.metadata)
else:
    # Imported here, because it creates an application, and at start there already is one.
    from src.main import create_runtime

    with create_runtime().configured_engine() as engine:
        print(f"Database: {engine.dialect.name}")  # noqa: T201
        with backend_of(engine).lock_migrations(engine) as own_connection:
            run(own_connection, Base.metadata)
