"""The tables of an SQLite database, and what identifies their rows."""

from typing import NamedTuple

from sqlalchemy import Connection, inspect, text

OWN_PREFIX = "space_runtime_"
ROW_ID = "_rowid_"
"""SQLite's own name for the number that each row has, unless a table is WITHOUT ROWID."""


class Shape(NamedTuple):
    """The columns of a table that store something, and those that identify a row."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    """The primary key, or ROW_ID if there is none."""
    locator: tuple[str, ...]
    """ROW_ID, or the primary key of a table that is WITHOUT ROWID."""


def data_tables(connection: Connection) -> list[str]:
    """Return the tables with rows of the application, without virtual and shadow tables.

    Virtual tables, such as a full-text index, are taken to be derived from other rows. SQLite
    before 3.37 cannot tell them apart, so they are included there.
    """
    tables = connection.execute(text("PRAGMA table_list"))
    derived = {row.name for row in tables if row.type in ("virtual", "shadow")}
    return [
        name
        for name in inspect(connection).get_table_names()
        if name not in derived | {"alembic_version"} and not name.startswith(OWN_PREFIX)
    ]


def shape(connection: Connection, table: str) -> Shape:
    """Return the shape of a table, without generated columns, which cannot be written."""
    infos = connection.exec_driver_sql(f"PRAGMA table_xinfo({quote(table)})").all()
    columns = tuple(info.name for info in infos if info.hidden == 0)
    key = tuple(name for _, name in sorted((info.pk, info.name) for info in infos if info.pk))
    has_row_id = not key or _has_row_id(connection, table)
    return Shape(columns, key or (ROW_ID,), (ROW_ID,) if has_row_id else key)


def quote(name: str) -> str:
    """Return a name in the form that SQL takes."""
    return '"' + name.replace('"', '""') + '"'


def _has_row_id(connection: Connection, table: str) -> bool:
    # A WITHOUT ROWID table is the only one whose primary key's index is the table itself.
    indexes = connection.exec_driver_sql(f"PRAGMA index_list({quote(table)})").all()
    names = {row.name for row in indexes if row.origin == "pk"}
    known = text("SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name = :name")
    return all(connection.scalar(known, {"name": name}) for name in names)
