"""The numbers that SQLite generates as keys of rows which will go to PostgreSQL.

They begin at a random place in the upper half of what the key can hold, which PostgreSQL's own
numbering hardly ever reaches. So a number that a client was told stays valid when the row moves,
mostly also if several machines, each with a file of its own, number rows at the same time: two of
them may begin at places so close to each other that their numbers meet, of a smallint easily.
"""

import random
from typing import Any

from sqlalchemy import BigInteger, Connection, MetaData, SmallInteger, Table, text
from sqlalchemy.types import TypeEngine

_source = random.SystemRandom()


def lowest(column: TypeEngine[Any] | None) -> int:
    """Return the lowest number that a fallback file generates for a key of this type.

    For 64 bits it is half of what a number in JavaScript can hold exactly.
    """
    if isinstance(column, BigInteger):
        return 2**52
    if isinstance(column, SmallInteger):
        return 2**14
    return 2**30


def beginning(model: Table | None) -> int:
    """Return the lowest number that a fallback file generates for rows of this table."""
    key = None if model is None else model.autoincrement_column
    return lowest(None if key is None else key.type)


def highest(column: TypeEngine[Any]) -> int:
    """Return the highest number that a key of this type can be in PostgreSQL."""
    if isinstance(column, BigInteger):
        return 2**63 - 1
    return 2 * lowest(column) - 1


def choose_range(connection: Connection, models: MetaData, *, anew: bool) -> None:
    """Let numbers begin in a range of their own, in each table that does not do so yet.

    With `anew`, all tables begin a new range: another machine may go on with the same file.
    """
    found = connection.execute(
        text("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%'")
    )
    for name in found.scalars().all():
        first = beginning(models.tables.get(name))
        last = connection.scalar(
            text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": name}
        )
        if last is None or last < first or anew:
            least = max(first, last or 0)
            # Leave most of the range for this file's own rows, and for the next choice.
            start = least + _source.randrange(max((2 * first - least) // 2, 1))
            values = {"name": name, "start": start}
            connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
            connection.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :start)"), values)
