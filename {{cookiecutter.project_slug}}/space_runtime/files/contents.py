"""What is in an SQLite file, read without writing to it."""

# ruff: noqa: S608  (names of tables and columns are quoted)

import sqlite3
from pathlib import Path

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from space_runtime.records import seeds
from space_runtime.records.tables import data_tables, quote

COUNTED_AT_MOST = 100_000
"""The limit per table: counting more at every check would slow the application down."""


def read_only(file: Path) -> Engine:
    """Return an engine that cannot write to the file, and does not create it if it is missing."""
    uri = f"{file.absolute().as_uri()}?mode=ro"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, timeout=5)
        # Text that is not UTF-8 is the fault of one row, and must not end the reading of a table.
        connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        return connection

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def count_rows(source: Engine, *, at_most: int = -1) -> dict[str, int]:
    """Return how many rows people wrote to each table, counting up to `at_most`.

    Tables without such rows are left out. Rows that migrations inserted are not counted, unless
    somebody changed or deleted them since.
    """
    counts = {}
    with source.connect() as connection:
        for name in data_tables(connection):
            unchanged = seeds.count_unchanged(connection, name)
            deleted = len(seeds.deleted(connection, name))
            limit = at_most + unchanged if at_most >= 0 else -1
            rows = f"SELECT 1 FROM {quote(name)} LIMIT {limit}"
            found = connection.exec_driver_sql(f"SELECT count(*) FROM ({rows})").scalar_one()
            if written := found - unchanged + deleted:
                counts[name] = written
    return counts
