"""What is in an SQLite file, read without writing to it."""

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, func, inspect, select, table, text
from sqlalchemy.pool import NullPool

COUNTED_AT_MOST = 100_000
"""The limit per table: counting more at every check would slow the application down."""


def read_only(file: Path) -> Engine:
    """Return an engine that cannot write to the file, and does not create it if it is missing."""
    uri = f"{file.absolute().as_uri()}?mode=ro"
    return create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True, timeout=5), poolclass=NullPool
    )


def count_rows(source: Engine, *, at_most: int = -1) -> dict[str, int]:
    """Return how many rows each table has, counting up to `at_most`; leave out empty tables."""
    counts = {}
    with source.connect() as connection:
        for name in data_tables(connection):
            rows = select(text("1")).select_from(table(name)).limit(at_most).subquery()
            if count := connection.scalar(select(func.count()).select_from(rows)):
                counts[name] = count
    return counts


def data_tables(connection: Connection) -> list[str]:
    """Return the tables of an SQLite database, without virtual tables and their shadow tables.

    Virtual tables, such as a full-text index, are taken to be derived from other rows. SQLite
    before 3.37 cannot tell them apart, so they are included there.
    """
    tables = connection.execute(text("PRAGMA table_list"))
    derived = {row.name for row in tables if row.type in ("virtual", "shadow")}
    names = inspect(connection).get_table_names()
    return [name for name in names if name not in derived | {"alembic_version"}]
