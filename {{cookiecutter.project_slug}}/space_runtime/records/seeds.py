"""The rows that migrations insert, recorded in each SQLite file beside the tables they are in.

They are nobody's rows: PostgreSQL has its own, so they are neither counted nor moved. A copy of
each is kept in a table of its own, so that a change to one can be noticed.
"""

# ruff: noqa: S608  (names of tables and columns are quoted)

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from space_runtime.records.tables import OWN_PREFIX, ROW_ID, data_tables, quote, shape

_PREFIX = f"{OWN_PREFIX}seeds_"
_ROW_ID = f"{OWN_PREFIX}row_id"
_LATER = f"{OWN_PREFIX}later"


class Seed(NamedTuple):
    """A row as a migration inserted it, and as it is now."""

    inserted: Mapping[str, Any]
    now: Mapping[str, Any]
    locator: tuple[Any, ...]
    later: bool
    """Inserted into a file that people had written to, so perhaps made from rows of theirs."""


@contextmanager
def recording(connection: Connection) -> Iterator[None]:
    """Record the rows that migrations insert in this block, in an SQLite file.

    A seed that people changed before counts as theirs from now on.
    """
    later = False
    for name in data_tables(connection):
        theirs = _temporary(name)
        keys = f"SELECT {_names(shape(connection, name).key, 'row')} FROM {quote(name)} row"
        if _is_recorded(connection, name):
            keys += f" EXCEPT {_unchanged(connection, name)}"
        connection.exec_driver_sql(f"CREATE TABLE {theirs} AS {keys}")
        later = later or connection.exec_driver_sql(f"SELECT 1 FROM {theirs}").first() is not None
    yield
    for recorded in _recorded(connection, "main"):
        connection.exec_driver_sql(f"DROP TABLE main.{quote(recorded)}")
    with_theirs = _recorded(connection, "temp")
    for name in data_tables(connection):
        _record(connection, name, has_theirs=_PREFIX + name in with_theirs, later=later)
    for recorded in with_theirs:
        connection.exec_driver_sql(f"DROP TABLE temp.{quote(recorded)}")


def count_unchanged(connection: Connection, table: str) -> int:
    """Return how many rows of a table are as a migration inserted them, and surely nobody's."""
    if not _is_recorded(connection, table):
        return 0
    query = f"SELECT count(*) FROM ({_unchanged(connection, table)} AND NOT seed.{_LATER})"
    return int(connection.exec_driver_sql(query).scalar_one())


def deleted(connection: Connection, table: str) -> list[dict[str, Any]]:
    """Return the recorded rows of a table that people deleted, as a migration inserted them."""
    if not _is_recorded(connection, table):
        return []
    shaped = shape(connection, table)
    query = (
        f"SELECT {_names(shaped.columns, 'seed')} FROM {_joined(connection, table, 'LEFT JOIN')}"
        f" WHERE row.{quote(shaped.key[0])} IS NULL AND NOT seed.{_LATER}"
    )
    rows = connection.exec_driver_sql(query)
    return [dict(zip(shaped.columns, row, strict=True)) for row in rows]


def read(connection: Connection, table: str) -> Iterator[Seed]:
    """Yield the recorded rows of a table that are still there."""
    if not _is_recorded(connection, table):
        return
    columns, _, locator = shape(connection, table)
    selected = (_names(columns, "seed"), _names(columns, "row"), _names(locator, "row"))
    query = f"SELECT seed.{_LATER}, {', '.join(selected)} FROM {_joined(connection, table)}"
    for later, *values in connection.exec_driver_sql(query):
        inserted, now = values[: len(columns)], values[len(columns) : 2 * len(columns)]
        yield Seed(
            dict(zip(columns, inserted, strict=True)),
            dict(zip(columns, now, strict=True)),
            tuple(values[2 * len(columns) :]),
            bool(later),
        )


def _record(connection: Connection, table: str, *, has_theirs: bool, later: bool) -> None:
    columns, key, locator = shape(connection, table)
    keys = _names(key, "row")
    seeds = f"SELECT {keys} FROM {quote(table)} row"
    if has_theirs:
        seeds += f" EXCEPT SELECT * FROM {_temporary(table)}"
    row_id = f"row.{ROW_ID}" if locator == (ROW_ID,) else "NULL"
    connection.exec_driver_sql(
        f"CREATE TABLE {quote(_PREFIX + table)} AS SELECT {row_id} AS {_ROW_ID},"
        f" {int(later)} AS {_LATER}, {_names(columns, 'row')} FROM {quote(table)} row"
        f" WHERE ({keys}) IN ({seeds})"
    )


def _recorded(connection: Connection, database: str) -> set[str]:
    """Return the names of the tables with copies of seeds, or with the keys of other rows."""
    names = connection.exec_driver_sql(f"SELECT name FROM {database}.sqlite_master").scalars()
    return {name for name in names if name.startswith(_PREFIX)}


def _is_recorded(connection: Connection, table: str) -> bool:
    found = text("SELECT 1 FROM main.sqlite_master WHERE name = :name")
    return connection.scalar(found, {"name": _PREFIX + table}) is not None


def _unchanged(connection: Connection, table: str) -> str:
    """Return a query for the keys of seeds that nobody changed."""
    columns, key, _ = shape(connection, table)
    same = " AND ".join(f"row.{quote(name)} IS seed.{quote(name)}" for name in columns)
    return f"SELECT {_names(key, 'row')} FROM {_joined(connection, table)} WHERE {same}"


def _joined(connection: Connection, table: str, join: str = "JOIN") -> str:
    same = " AND ".join(
        f"row.{quote(name)} = seed.{_ROW_ID if name == ROW_ID else quote(name)}"
        for name in shape(connection, table).key
    )
    return f"main.{quote(_PREFIX + table)} seed {join} main.{quote(table)} row ON {same}"


def _temporary(table: str) -> str:
    return f"temp.{quote(_PREFIX + table)}"


def _names(columns: Iterable[str], alias: str) -> str:
    return ", ".join(f"{alias}.{quote(name)}" for name in columns)
