"""This project without what chooses and watches the database: its engine goes straight to the gate."""

import os

from space_runtime.backends import postgresql, sqlite
from space_runtime.backends.opening import build_engine
from src.database.base import Base
from src.database.resolver import DatabaseURLResolver
from src.database.session import DEFAULT_POOL_SIZE, Database
from src.main import create_app


class Bypass:
    """Stands where the lifecycle stands."""

    def __init__(self, database: Database) -> None:
        """`database` is the application's gate."""
        resolution = DatabaseURLResolver(os.environ).resolve()
        assert resolution.url is not None  # noqa: S101
        self._database = database
        self._pool_size = DEFAULT_POOL_SIZE[resolution.backend]
        self._engine = build_engine(resolution, pool_size=self._pool_size + 1)
        if resolution.backend == "postgresql":
            postgresql.configure_for_serving(self._engine, transaction_pooler=False)
        else:
            sqlite.configure_for_serving(self._engine)

    def start(self) -> None:
        """Open the gate."""
        with self._engine.connect().execution_options(postgresql_readonly=False) as connection:
            Base.metadata.create_all(connection)
            connection.commit()
        self._database.open(self._engine, self._pool_size, instead_of_postgresql=False)

    def stop(self) -> None:
        """Close it."""
        self._database.close("The server is stopping.")
        self._engine.dispose()


app = create_app()
app.state.lifecycle = Bypass(app.state.database)
