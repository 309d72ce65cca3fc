"""Migrations at start: only when the schema differs, and by one process at a time."""

import ast
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from space_runtime.backends import backend_of


class Migrations:
    """What stands in a project's `migrations/`, which Alembic applies."""

    def __init__(self, project_folder: Path) -> None:
        self._folder = project_folder

    def is_current(self, engine: Engine) -> bool:
        """Return whether there is nothing to migrate and nothing newer."""
        with engine.connect() as connection:
            return current_revision(connection) in self.revisions()[1]

    def migrate(self, engine: Engine) -> bool:
        """Bring the schema to the newest revision; return False if it is newer than this code.

        A newer schema is left alone: during a deploy the old container runs beside the new one.
        Raise whatever a migration raises; nothing of it is kept then.
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
        with backend_of(engine).lock_migrations(engine) as connection:
            if current_revision(connection) not in newest:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        return True

    def revisions(self) -> tuple[set[str], set[str]]:
        """Return every revision in migrations/versions, and those that no other one follows.

        Read without running them, since to import Alembic takes as long as the rest of a start.
        """
        known: set[str] = set()
        followed: set[str] = set()
        for script in (self._folder / "migrations" / "versions").glob("*.py"):
            for node in ast.parse(script.read_bytes()).body:
                if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
                    continue
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                name = ast.unparse(target)
                if name in ("revision", "down_revision"):
                    (known if name == "revision" else followed).update(_texts(node.value))
        return known, known - followed


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database's schema, or None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _texts(value: ast.expr) -> list[str]:
    constants = (node.value for node in ast.walk(value) if isinstance(node, ast.Constant))
    return [constant for constant in constants if isinstance(constant, str)]
