"""What is in an SQLite file: read without leaving a trace beside it."""

import sqlite3
from pathlib import Path

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    func,
    inspect,
    literal,
    select,
    table,
    text,
)
from sqlalchemy.pool import NullPool

COUNTED_AT_MOST = 100_000
"""More rows of a table are not counted again and again while the application serves."""


def read_only(file: Path) -> Engine:
    """Return an engine that reads the file and leaves no trace beside it."""
    uri = f"{file.absolute().as_uri()}?mode=ro"
    return create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True, timeout=5), poolclass=NullPool
    )


def count_rows(source: Engine, *, at_most: int = -1) -> dict[str, int]:
    """Return how many rows each table has, without the empty ones; negative: without a limit."""
    with source.connect() as connection:
        counts = {}
        for name in data_tables(connection):
            counted = select(literal(1)).select_from(table(name)).limit(at_most).subquery()
            counts[name] = connection.scalar(select(func.count()).select_from(counted)) or 0
    return {name: count for name, count in counts.items() if count}


def data_tables(connection: Connection) -> list[str]:
    """Return the tables of an SQLite database that hold rows of its own.

    Virtual tables, such as those of a full-text search, and what SQLite keeps of them are made of
    other rows. An SQLite without this pragma (before 3.37) returns nothing.
    """
    derived = {
        row.name
        for row in connection.execute(text("PRAGMA table_list"))
        if row.type in ("virtual", "shadow")
    }
    names = inspect(connection).get_table_names()
    return [name for name in names if name not in derived | {"alembic_version"}]
