"""Migrations at start: only when the schema differs, and by one process at a time."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, inspect, text

from src.config.settings import PROJECT_ROOT

MIGRATIONS = PROJECT_ROOT / "migrations"
# any number that no other application on the same server is likely to take
_ADVISORY_LOCK = 7_860_201_811


def is_current(engine: Engine) -> bool:
    """Return whether there is nothing to migrate and nothing newer."""
    with engine.connect() as connection:
        return current_revision(connection) in revisions()[1]


def migrate(engine: Engine) -> bool:
    """Bring the schema to the newest revision; return False if it is newer than this code.

    A newer schema is left alone: during a deploy the old container runs beside the new one.
    Raise whatever a migration raises; nothing of it is kept then.
    """
    known, newest = revisions()
    with engine.connect() as connection:
        current = current_revision(connection)
    if current in newest:
        return True
    if current is not None and current not in known:
        return False
    # imported here because a start with nothing to migrate should not pay for it
    from alembic import command
    from alembic.config import Config

    config = Config(PROJECT_ROOT / "alembic.ini")
    with locked(engine) as connection:
        if current_revision(connection) not in newest:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return True


@contextmanager
def locked(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in a transaction that only one process at a time can be in."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # batch migrations rebuild tables, which foreign keys would not survive
            _set_foreign_keys(connection, "OFF")
            try:
                with connection.begin():
                    yield connection
            finally:
                _set_foreign_keys(connection, "ON")
            return
        with connection.begin():
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            # a table that the old container is using must not stop the new one for ever
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            yield connection


def revisions() -> tuple[set[str], set[str]]:
    """Return every revision in migrations/versions, and those that no other one follows."""
    known: set[str] = set()
    followed: set[str] = set()
    for script in (MIGRATIONS / "versions").glob("*.py"):
        for node in ast.parse(script.read_bytes()).body:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
                continue
            name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            if name in ("revision", "down_revision"):
                (known if name == "revision" else followed).update(_texts(node.value))
    return known, known - followed


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database's schema, or None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _set_foreign_keys(connection: Connection, value: str) -> None:
    driver_connection: Any = connection.connection.driver_connection
    driver_connection.execute(f"PRAGMA foreign_keys = {value}")


def _texts(value: ast.expr) -> list[str]:
    constants = (node.value for node in ast.walk(value) if isinstance(node, ast.Constant))
    return [constant for constant in constants if isinstance(constant, str)]
