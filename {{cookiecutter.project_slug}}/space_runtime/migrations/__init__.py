"""Migrations at start: only when the schema differs, and by one process at a time."""

from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, Engine, MetaData, Table, inspect, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.schema import SetTableComment

from space_runtime.backends import SQLITE, backend_of
from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.migrations.history import OwnNames, own_names, read_revisions
from space_runtime.reasons import REASONS
from space_runtime.records import failbacks, seeds

VERSION_TABLE = "alembic_version"
_PROJECT = "project:"


class Migrations:
    """The migrations of a project, in `migrations/versions`, which Alembic applies."""

    def __init__(self, project_folder: Path) -> None:
        self._folder = project_folder
        self._scripts = project_folder / "migrations" / "versions"

    def is_current(self, engine: Engine) -> bool:
        """Return whether the schema is at the newest revision; raise what migrate() raises."""
        with engine.connect() as connection:
            return self.position(connection) == "current"

    def is_behind(self, engine: Engine) -> bool:
        """Return whether migrate() would change the schema; raise what it raises."""
        with engine.connect() as connection:
            return self.position(connection) == "behind"

    def migrate(self, engine: Engine) -> bool:
        """Bring the schema to the newest revision; return False if it is newer than this code.

        A newer schema is left alone: in a deploy, the old container overlaps with the new one.
        Raise DatabaseUnavailable for the schema of another project, and whatever a migration
        raises; its changes are rolled back.
        """
        with engine.connect() as connection:
            position = self.position(connection)
        if position != "behind":
            return position == "current"
        # Imported here because a start with nothing to migrate should not pay for it.
        from alembic import command
        from alembic.config import Config

        config = Config(self._folder / "alembic.ini")
        with backend_of(engine).lock_migrations(engine) as connection:
            position = self.position(connection)
            connection.rollback()  # Alembic begins its own transactions.
            if position == "behind":
                config.attributes["connection"] = connection
                command.upgrade(config, "heads")
        return position != "newer"

    def revisions(self) -> tuple[set[str], set[str]]:
        """Return all revisions, and which of them are heads."""
        revisions = read_revisions(self._scripts)
        return set(revisions), set(revisions).difference(*revisions.values())

    def record(self, connection: Connection) -> None:
        """Record the project and its revisions, for other projects and older code to read."""
        if not connection.dialect.supports_comments:
            return
        project, recorded = _recorded(connection)
        project = self._project() or project
        revisions = sorted(self.revisions()[0] | recorded)
        comment = " ".join([f"{_PROJECT}{project}", *revisions] if project else revisions)
        version_table = Table(VERSION_TABLE, MetaData(), comment=comment)
        # Only the table's owner may do it. For the others, the tables have to tell.
        with suppress(ProgrammingError), connection.begin_nested():
            connection.execute(SetTableComment(version_table))

    def own_names(self) -> OwnNames:
        """Return what the migrations have created and not removed again."""
        return own_names(self._scripts)

    def _project(self) -> str:
        config = ConfigParser(interpolation=None)
        config.read(self._folder / "alembic.ini", encoding="utf-8")
        return config.get("alembic", "project", fallback="").replace(" ", "")

    def position(self, connection: Connection) -> Literal["behind", "current", "newer"]:
        """Return how the schema compares with this code.

        Raise DatabaseUnavailable if another project migrated it. A newer version of this project
        has recorded the revisions of this code among its own. Where nothing is recorded, as on
        SQLite, the tables tell.
        """
        known, newest = self.revisions()
        current = current_revisions(connection)
        project, recorded = _recorded(connection) if current else ("", set())
        if project and self._project() not in ("", project):
            # The first migration comes with the template, so it is the same in all projects.
            is_own = False
        elif current <= known:
            return "current" if current == newest else "behind"
        elif recorded:
            is_own = newest <= recorded
        else:
            inspector = inspect(connection)
            tables = self.own_names().tables
            is_own = all(inspector.has_table(name, schema) for schema, name in tables)
        if not is_own:
            raise DatabaseUnavailable(
                REASONS["foreign_schema"].explanation, reason="foreign_schema"
            )
        return "newer"


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


def _recorded(connection: Connection) -> tuple[str, set[str]]:
    """Return the project and the revisions of its newest code, as far as they are recorded."""
    words: list[str] = []
    if connection.dialect.supports_comments:
        words = (inspect(connection).get_table_comment(VERSION_TABLE)["text"] or "").split()
    projects = [word for word in words if word.startswith(_PROJECT)]
    project = projects[0].removeprefix(_PROJECT) if projects else ""
    return project, {*words}.difference(projects)
