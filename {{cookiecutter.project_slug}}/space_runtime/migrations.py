"""Migrations at start: only when the schema differs, and by one process at a time."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from space_runtime.backends import backend_of
from space_runtime.failback import records
from space_runtime.files import seeds


class Migrations:
    """The migrations of a project, in `migrations/versions`, which Alembic applies."""

    def __init__(self, project_folder: Path) -> None:
        self._folder = project_folder

    def is_current(self, engine: Engine) -> bool:
        """Return whether the schema is at the newest revision."""
        with engine.connect() as connection:
            return current_revision(connection) in self.revisions()[1]

    def migrate(self, engine: Engine) -> bool:
        """Bring the schema to the newest revision; return False if it is newer than this code.

        A newer schema is left alone: in a deploy, the old container overlaps with the new one.
        Raise whatever a migration raises; its changes are rolled back.
        """
        known, newest = self.revisions()
        with engine.connect() as connection:
            current = current_revision(connection)
        if current in newest:
            return True
        if current is not None and current not in known:
            return False
        # Imported here because a start with nothing to migrate should not pay for it.
        from alembic import command
        from alembic.config import Config

        config = Config(self._folder / "alembic.ini")
        with backend_of(engine).lock_migrations(engine) as connection, around(connection):
            if current_revision(connection) not in newest:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        return True

    def revisions(self) -> tuple[set[str], set[str]]:
        """Return all revisions, and which of them are heads.

        The scripts are only parsed, because importing Alembic would double the startup time.
        """
        found: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
        for script in (self._folder / "migrations" / "versions").glob("*.py"):
            for node in ast.parse(script.read_bytes()).body:
                match node:
                    case (
                        ast.Assign(targets=[ast.Name(name), *_], value=value)
                        | ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value)
                    ) if name in found:
                        found[name].update(_strings_in(value))
        return found["revision"], found["revision"] - found["down_revision"]


@contextmanager
def around(connection: Connection) -> Iterator[None]:
    """Keep the runtime's own records of the migrations that are applied in this block."""
    if connection.dialect.name == "sqlite":
        with seeds.recording(connection):
            yield
    else:
        yield
        records.create_tables(connection)


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database's schema, or None if it was never migrated."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _strings_in(value: ast.expr) -> list[str]:
    constants = (node.value for node in ast.walk(value) if isinstance(node, ast.Constant))
    return [constant for constant in constants if isinstance(constant, str)]
