"""Migrations at start: only when the schema differs, and by one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, MetaData, Table, inspect, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.schema import SetTableComment

from space_runtime.backends import SQLITE, backend_of
from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.migrations.history import own_names, read_revisions
from space_runtime.reasons import REASONS
from space_runtime.records import failbacks, seeds

VERSION_TABLE = "alembic_version"


class Migrations:
    """The migrations of a project, in `migrations/versions`, which Alembic applies."""

    def __init__(self, project_folder: Path) -> None:
        self._folder = project_folder
        self._scripts = project_folder / "migrations" / "versions"

    def is_current(self, engine: Engine) -> bool:
        """Return whether the schema is at the newest revision."""
        with engine.connect() as connection:
            return current_revisions(connection) == self.revisions()[1]

    def is_behind(self, engine: Engine) -> bool:
        """Return whether migrate() would change the schema; raise what it raises."""
        with engine.connect() as connection:
            is_newer = self._is_newer(connection)
            return not is_newer and current_revisions(connection) != self.revisions()[1]

    def migrate(self, engine: Engine) -> bool:
        """Bring the schema to the newest revision; return False if it is newer than this code.

        A newer schema is left alone: in a deploy, the old container overlaps with the new one.
        Raise DatabaseUnavailable for the schema of another project, and whatever a migration
        raises; its changes are rolled back.
        """
        with engine.connect() as connection:
            if self._is_newer(connection):
                return False
            if current_revisions(connection) == self.revisions()[1]:
                return True
        # Imported here because a start with nothing to migrate should not pay for it.
        from alembic import command
        from alembic.config import Config

        config = Config(self._folder / "alembic.ini")
        with backend_of(engine).lock_migrations(engine) as connection:
            if self._is_newer(connection):
                return False
            is_done = current_revisions(connection) == self.revisions()[1]
            connection.rollback()  # Alembic begins its own transactions.
            if not is_done:
                config.attributes["connection"] = connection
                command.upgrade(config, "heads")
        return True

    def revisions(self) -> tuple[set[str], set[str]]:
        """Return all revisions, and which of them are heads."""
        revisions = read_revisions(self._scripts)
        return set(revisions), set(revisions).difference(*revisions.values())

    def refuse_foreign(self, connection: Connection) -> None:
        """Raise DatabaseUnavailable if the schema belongs to the migrations of another project."""
        self._is_newer(connection)

    def record(self, connection: Connection) -> None:
        """Write into the database which revisions this project has, for older code to read."""
        if not connection.dialect.supports_comments:
            return
        revisions = sorted(self.revisions()[0] | _recorded_revisions(connection))
        version_table = Table(VERSION_TABLE, MetaData(), comment=" ".join(revisions))
        # Only the table's owner may do it. For the others, the tables have to tell.
        with suppress(ProgrammingError), connection.begin_nested():
            connection.execute(SetTableComment(version_table))

    def _is_newer(self, connection: Connection) -> bool:
        """Return whether a newer version of this project migrated the schema.

        Raise DatabaseUnavailable if another project did. Newer code has recorded the revisions of
        this code among its own. Where nothing is recorded, as on SQLite, the tables tell.
        """
        known, newest = self.revisions()
        if current_revisions(connection) <= known:
            return False
        if recorded := _recorded_revisions(connection):
            is_foreign = not newest <= recorded
        else:
            inspector = inspect(connection)
            tables = own_names(self._scripts).tables
            is_foreign = not all(inspector.has_table(name, schema) for schema, name in tables)
        if is_foreign:
            raise DatabaseUnavailable(
                REASONS["foreign_schema"].explanation, reason="foreign_schema"
            )
        return True


@contextmanager
def around(connection: Connection) -> Iterator[None]:
    """Surround the migrations, in their transaction: at start, and at `alembic upgrade`.

    On SQLite, record the rows that they insert; on PostgreSQL, create the tables for failbacks, so
    that a role which may only write rows can use them. A migration with an autocommit_block()
    commits what was done before it.
    """
    if backend_of(connection.engine) is SQLITE:
        with seeds.recording(connection):
            yield
    else:
        yield
        failbacks.create_tables(connection)


def current_revisions(connection: Connection) -> set[str]:
    """Return the revisions of the database's schema: none if it was never migrated."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return set()
    return set(connection.scalars(text("SELECT version_num FROM alembic_version")))


def _recorded_revisions(connection: Connection) -> set[str]:
    if not connection.dialect.supports_comments:
        return set()
    return set((inspect(connection).get_table_comment(VERSION_TABLE)["text"] or "").split())
