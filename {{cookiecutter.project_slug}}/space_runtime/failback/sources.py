"""Where the rows of a failback come from: an SQLite file, or those that were refused before."""

# ruff: noqa: S608  (names of tables and columns are quoted)

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection

from space_runtime.records import seeds
from space_runtime.records.failbacks import RefusedRow
from space_runtime.records.seeds import Seed
from space_runtime.records.stored import Raw, as_text
from space_runtime.records.tables import Shape, data_tables, quote, shape

Locator = tuple[Any, ...]

ROWS_AT_ONCE = 500
BYTES_AT_ONCE = 4 * 2**20


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as SQLite stored it."""

    locator: Locator
    """Identifies it within its table."""
    key: str
    """Its primary key, for people."""
    content: Mapping[str, Raw]
    settled: Mapping[str, Raw] = field(default_factory=dict)
    """What some of its references have become in PostgreSQL, if it was refused before."""

    @property
    def length(self) -> int:
        """Return how many characters and bytes it has."""
        return sum([len(one) for one in self.content.values() if isinstance(one, (str, bytes))])


class Source(Protocol):
    """Rows in tables."""

    before: dict[Locator, RefusedRow]
    """What is known of rows that were refused before."""

    def tables(self) -> list[str]:
        """Return the names of the tables."""
        ...

    def seeds(self, table: str) -> Iterable[Seed]:
        """Return the rows of the table that migrations inserted."""
        ...

    def deleted_seeds(self, table: str) -> Iterable[StoredRow]:
        """Return the rows of the table that migrations inserted and people deleted."""
        ...

    def rows(self, table: str) -> Iterator[StoredRow]:
        """Yield all rows of the table, in the order in which they were inserted."""
        ...

    def fetch(self, table: str, locators: Sequence[Locator]) -> Iterator[StoredRow]:
        """Yield these rows, in this order."""
        ...

    def highest(
        self, table: str, column: str, *, below: int, without: Collection[Locator]
    ) -> int | None:
        """Return the highest number in a column that is below a limit, without these rows."""


class FileSource:
    """The rows of an SQLite file, which is not written meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.before: dict[Locator, RefusedRow] = {}
        self._shapes: dict[str, Shape] = {}

    def tables(self) -> list[str]:
        """Return the names of the tables."""
        ...
        return data_tables(self._connection)

    def seeds(self, table: str) -> Iterable[Seed]:
        """Return the rows of the table that migrations inserted."""
        ...
        return seeds.read(self._connection, table)

    def deleted_seeds(self, table: str) -> Iterable[StoredRow]:
        """Return the rows of the table that migrations inserted and people deleted."""
        key = self._shape(table).key
        for row in seeds.deleted(self._connection, table):
            yield StoredRow((), as_text(row.get(name) for name in key), row)

    def rows(self, table: str) -> Iterator[StoredRow]:
        """Yield all rows of the table."""
        order = ", ".join(map(quote, self._shape(table).locator))
        return self._select(table, f"ORDER BY {order}", ())

    def fetch(self, table: str, locators: Sequence[Locator]) -> Iterator[StoredRow]:
        """Yield these rows, in this order."""
        ...
        condition = " AND ".join(f"{quote(name)} = ?" for name in self._shape(table).locator)
        for locator in locators:
            yield from self._select(table, f"WHERE {condition}", locator)

    def highest(
        self, table: str, column: str, *, below: int, without: Collection[Locator]
    ) -> int | None:
        """Return the highest number in a column that is below a limit, without these rows."""
        locator, name = ", ".join(map(quote, self._shape(table).locator)), quote(column)
        query = f"SELECT {name}, {locator} FROM {quote(table)} WHERE {name} < ? ORDER BY 1 DESC"
        rows = self._connection.exec_driver_sql(query, (below,))
        return next((value for value, *rest in rows if tuple(rest) not in without), None)

    def _select(self, table: str, clause: str, parameters: Locator) -> Iterator[StoredRow]:
        columns, key, locator = self._shape(table)
        selected = ", ".join(map(quote, (*locator, *key, *columns)))
        query = f"SELECT {selected} FROM {quote(table)} {clause}"
        own, named = len(locator), len(locator) + len(key)
        for row in self._connection.exec_driver_sql(query, parameters):
            yield StoredRow(
                tuple(row[:own]),
                as_text(row[own:named]),
                dict(zip(columns, row[named:], strict=True)),
            )

    def _shape(self, table: str) -> Shape:
        if table not in self._shapes:
            self._shapes[table] = shape(self._connection, table)
        return self._shapes[table]


class RefusedSource:
    """Rows of one file that PostgreSQL refused before."""

    def __init__(self, refused: Iterable[RefusedRow]) -> None:
        self._tables: dict[str, dict[Locator, RefusedRow]] = {}
        self.before: dict[Locator, RefusedRow] = {(row.number,): row for row in refused}
        self.changed_seeds: list[RefusedRow] = []
        """They do not move: PostgreSQL has rows in their place."""
        for locator, row in self.before.items():
            rows = self._tables.setdefault(row.table_name, {})
            if row.reason in ("seed_changed", "seed_deleted"):
                self.changed_seeds.append(row)
            else:
                rows[locator] = row

    def tables(self) -> list[str]:
        """Return the names of the tables."""
        ...
        return list(self._tables)

    def seeds(self, table: str) -> Iterable[Seed]:
        """Return the rows that PostgreSQL lacked, though migrations insert them.

        Somebody may have inserted them again; if not, they move like other rows.
        """
        return (
            Seed(row.content, row.content, locator, later=True)
            for locator, row in self._tables[table].items()
            if row.reason == "seed_missing"
        )

    def deleted_seeds(self, table: str) -> Iterable[StoredRow]:
        """Return nothing: they are among `changed_seeds`."""
        return ()

    def rows(self, table: str) -> Iterator[StoredRow]:
        """Yield all rows of the table."""
        return self.fetch(table, list(self._tables[table]))

    def fetch(self, table: str, locators: Sequence[Locator]) -> Iterator[StoredRow]:
        """Yield these rows, in this order."""
        ...
        for locator in locators:
            row = self._tables[table][locator]
            yield StoredRow(locator, row.key, row.content, row.settled)

    def highest(
        self, table: str, column: str, *, below: int, without: Collection[Locator]
    ) -> int | None:
        """Return the highest number in a column that is below a limit, without these rows."""
        values = (
            row.content.get(column)
            for locator, row in self._tables[table].items()
            if locator not in without
        )
        return max((one for one in values if isinstance(one, int) and one < below), default=None)


def batches(rows: Iterable[StoredRow]) -> Iterator[list[StoredRow]]:
    """Yield the rows in lists that are neither too long nor too large."""
    batch: list[StoredRow] = []
    size = 0
    for row in rows:
        length = row.length
        if batch and (len(batch) == ROWS_AT_ONCE or size + length > BYTES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch
