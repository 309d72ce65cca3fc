"""Run Alembic on the application's own engine, under its migration lock.

At start the application passes its connection in; on the command line, the engine is made from the
same environment variables.
"""

from alembic import context

from space_runtime.migrations.environment import run, run_command
from src.database.base import Base

if "connection" in context.config.attributes:
    run(context.config.attributes["connection"], Base.metadata)
else:
    # Imported here, because it creates an application, and at start there already is one.
    from src.main import create_runtime

    with create_runtime().configured_engine() as engine:
        run_command(engine, Base.metadata)
