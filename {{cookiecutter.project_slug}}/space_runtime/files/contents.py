"""What is in an SQLite file, read without leaving a trace beside it."""

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, func, inspect, select, table, text
from sqlalchemy.pool import NullPool

COUNTED_AT_MOST = 100_000
"""Rows of one table; counting more again and again would slow down the application."""


def read_only(file: Path) -> Engine:
    """Return an engine that reads the file and leaves no trace beside it."""
    uri = f"{file.absolute().as_uri()}?mode=ro"
    return create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True, timeout=5), poolclass=NullPool
    )


def count_rows(source: Engine, *, at_most: int = -1) -> dict[str, int]:
    """Return how many rows each table has, up to a limit if any, without the empty tables."""
    counts = {}
    with source.connect() as connection:
        for name in data_tables(connection):
            rows = select(text("1")).select_from(table(name)).limit(at_most).subquery()
            if count := connection.scalar(select(func.count()).select_from(rows)):
                counts[name] = count
    return counts


def data_tables(connection: Connection) -> list[str]:
    """Return the tables of an SQLite database that hold rows of its own.

    Virtual tables, such as those of a full-text search, and their shadow tables are left out: they
    are made of other rows. SQLite before 3.37 cannot tell them apart, and they count there.
    """
    tables = connection.execute(text("PRAGMA table_list"))
    derived = {row.name for row in tables if row.type in ("virtual", "shadow")}
    names = inspect(connection).get_table_names()
    return [name for name in names if name not in derived | {"alembic_version"}]
