"""Where the rows of a failback come from: an SQLite file, or those that were refused before."""

# ruff: noqa: S608  (names of tables and columns are quoted)

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection

from space_runtime.records import seeds
from space_runtime.records.failbacks import RefusedRow
from space_runtime.records.stored import Raw, as_text
from space_runtime.records.tables import Shape, data_tables, quote, shape

Locator = tuple[Any, ...]
Columns = tuple[str, ...]
Values = tuple[Any, ...]
Node = tuple[str, Locator]
"""A row of a table."""
Refusal = tuple[str, str | None]
"""Why a row stays behind: one of REFUSALS, and the server's SQLSTATE and constraint."""

ROWS_AT_ONCE = 500
BYTES_AT_ONCE = 4 * 2**20


class StoredRow(NamedTuple):
    """A row as SQLite stored it."""

    table: str
    locator: Locator
    """Identifies it within its table."""
    key: str
    """Its primary key, for people."""
    content: Mapping[str, Raw]
    settled: Mapping[str, Raw] = MappingProxyType({})
    """What some of its references have become in PostgreSQL, if it was refused before."""
    before: RefusedRow | None = None
    """What PostgreSQL keeps of it, if it was refused before."""

    @property
    def node(self) -> Node:
        """Return what identifies it among all rows."""
        return self.table, self.locator

    @property
    def length(self) -> int:
        """Return how many characters and bytes it has."""
        return sum([len(one) for one in self.content.values() if isinstance(one, (str, bytes))])


class SeedRow(NamedTuple):
    """A row that a migration inserted."""

    stored: StoredRow
    """As it was inserted."""
    now: Mapping[str, Raw]
    later: bool
    """It may be somebody's, if PostgreSQL does not have it."""


class FileSource:
    """The rows of an SQLite file, which is not written meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._shapes: dict[str, Shape] = {}

    def tables(self) -> list[str]:
        """Return the names of the tables."""
        return data_tables(self._connection)

    def rows(self, table: str) -> Iterator[StoredRow]:
        """Yield all rows, in the order in which they were inserted, as far as SQLite tells."""
        order = ", ".join(map(quote, self._shape(table).locator))
        return self._select(table, f"ORDER BY {order}", ())

    def fetch(self, table: str, locators: Iterable[Locator]) -> Iterator[StoredRow]:
        """Yield these rows, in this order."""
        condition = " AND ".join(f"{quote(name)} = ?" for name in self._shape(table).locator)
        for locator in locators:
            yield from self._select(table, f"WHERE {condition}", locator)

    def seeds(self, table: str) -> Iterator[SeedRow]:
        """Yield the rows that migrations inserted, also if somebody changed them."""
        key = self._shape(table).key
        for seed in seeds.read(self._connection, table):
            text = as_text(pick(key, seed.now))
            stored = StoredRow(table, seed.locator, text, seed.inserted)
            yield SeedRow(stored, seed.now, seed.later)

    def changed_seeds(self, table: str) -> Iterator[tuple[StoredRow, str]]:
        """Yield the seeds that were deleted on SQLite, each with its reason code."""
        key = self._shape(table).key
        for row in seeds.deleted(self._connection, table):
            text = as_text(row.get(name) for name in key)
            yield StoredRow(table, (), text, row), "seed_deleted"

    def highest(
        self, table: str, column: str, *, below: int, without: Collection[Locator]
    ) -> int | None:
        """Return the highest number in a column that is below a limit, without these rows."""
        name, locator = quote(column), ", ".join(map(quote, self._shape(table).locator))
        query = f"SELECT {name}, {locator} FROM {quote(table)} WHERE {name} < ? ORDER BY 1 DESC"
        rows = self._connection.exec_driver_sql(query, (below,))
        return next((number for number, *rest in rows if tuple(rest) not in without), None)

    def _select(self, table: str, clause: str, parameters: Locator) -> Iterator[StoredRow]:
        columns, key, locator = self._shape(table)
        selected = ", ".join(map(quote, (*locator, *key, *columns)))
        query = f"SELECT {selected} FROM {quote(table)} {clause}"
        own, named = len(locator), len(locator) + len(key)
        for row in self._connection.exec_driver_sql(query, parameters):
            content = dict(zip(columns, row[named:], strict=True))
            yield StoredRow(table, tuple(row[:own]), as_text(row[own:named]), content)

    def _shape(self, table: str) -> Shape:
        if table not in self._shapes:
            self._shapes[table] = shape(self._connection, table)
        return self._shapes[table]


class RefusedSource:
    """The rows of one file that PostgreSQL refused before; otherwise like FileSource."""

    def __init__(self, refused: Iterable[RefusedRow]) -> None:
        self._rows: dict[str, dict[Locator, StoredRow]] = {}
        self._changed_seeds: dict[str, list[tuple[StoredRow, str]]] = {}
        self._seeds: dict[str, list[SeedRow]] = {}
        for one in refused:
            row = as_stored_row(one)
            rows = self._rows.setdefault(row.table, {})
            if one.reason in ("seed_changed", "seed_deleted"):
                self._changed_seeds.setdefault(row.table, []).append((row, one.reason))
            else:
                rows[row.locator] = row
            if one.reason in ("seed_missing", "seed_alike"):
                self._seeds.setdefault(row.table, []).append(SeedRow(row, row.content, later=True))

    def tables(self) -> list[str]:
        """Return the names of the tables."""
        return list(self._rows)

    def rows(self, table: str) -> Iterable[StoredRow]:
        """Return all rows but changed seeds, in whose place PostgreSQL has rows."""
        return self._rows[table].values()

    def fetch(self, table: str, locators: Iterable[Locator]) -> Iterator[StoredRow]:
        """Yield those of these rows that are there, in this order."""
        rows = self._rows[table]
        return (rows[locator] for locator in locators if locator in rows)

    def seeds(self, table: str) -> Iterable[SeedRow]:
        """Return the rows that PostgreSQL lacked, though migrations insert them.

        Somebody may have inserted them again; if not, they move like other rows.
        """
        return self._seeds.get(table, ())

    def changed_seeds(self, table: str) -> Iterable[tuple[StoredRow, str]]:
        """Return the seeds that were changed or deleted on SQLite, as recorded."""
        return self._changed_seeds.get(table, ())

    def highest(
        self, table: str, column: str, *, below: int, without: Collection[Locator]
    ) -> int | None:
        """Return the highest number in a column that is below a limit, without these rows."""
        rows = (row for row in self.rows(table) if row.locator not in without)
        values = (row.content.get(column) for row in rows)
        return max((one for one in values if isinstance(one, int) and one < below), default=None)


Source = FileSource | RefusedSource


def as_stored_row(refused: RefusedRow) -> StoredRow:
    """Return a row that was refused before, to be tried again."""
    table, locator = refused.table_name, (refused.number,)
    return StoredRow(table, locator, refused.key, refused.content, refused.settled, refused)


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


def pick(columns: Iterable[str], values: Mapping[str, Any]) -> Values:
    """Return the values of these columns, None for those that are missing."""
    return tuple([values.get(name) for name in columns])
