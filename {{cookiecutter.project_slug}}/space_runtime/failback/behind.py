"""Rows that stay behind: PostgreSQL keeps them, in the transaction that moves the others."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from sqlalchemy import Connection, Uuid

from space_runtime.failback.schema import (
    Reference,
    TableSchema,
    Unmovable,
    keys_of,
    referred_columns,
)
from space_runtime.failback.sources import BYTES_AT_ONCE, ROWS_AT_ONCE, Locator, StoredRow
from space_runtime.records import failbacks
from space_runtime.records.failbacks import RefusalCode, RefusedRow
from space_runtime.records.stored import as_text

logger = logging.getLogger(__name__)

MOST_ROWS_NAMED = 100


class RowsBehind:
    """Records rows of one file, some at a time, and names the first of them in the log."""

    def __init__(
        self,
        connection: Connection,
        file_id: UUID,
        tables: Mapping[str, TableSchema],
        before: Mapping[Locator, RefusedRow],
    ) -> None:
        """Rows that were refused `before` keep their number and the time of the first refusal."""
        self._connection, self._file_id, self._tables = connection, file_id, tables
        self._before = before
        self._last, self._now = failbacks.last_number(connection)
        self._last = max([self._last, *(row.number for row in before.values())])
        self._unrecorded: list[RefusedRow] = []
        self._unrecorded_bytes = 0
        self.count = 0

    def record(
        self, table: str, row: StoredRow, code: RefusalCode, error: str | None = None
    ) -> None:
        """Take a row; it is written with others."""
        key = self._shown_key(table, row)
        if self.count < MOST_ROWS_NAMED:
            # The other values may be private.
            because = failbacks.because(code, error)
            logger.warning("a row stays behind: table %s, key %s: %s", table, key, because)
        self.count += 1
        before = self._before.get(row.locator)
        if before is None:
            self._last += 1
        self._unrecorded.append(
            RefusedRow(
                before.number if before else self._last,
                table,
                key,
                code,
                error,
                {**row.content},
                {**row.settled},
                before.refused_at if before else self._now,
            )
        )
        self._unrecorded_bytes += row.length
        if len(self._unrecorded) == ROWS_AT_ONCE or self._unrecorded_bytes > BYTES_AT_ONCE:
            self.write()

    def _shown_key(self, table: str, row: StoredRow) -> str:
        """Return the key as clients know it: SQLite stores UUIDs without hyphens."""
        schema = self._tables.get(table)
        key = schema.key if schema else ()
        if schema and any(isinstance(schema.columns[name].kind, Uuid) for name in key):
            with suppress(Unmovable):
                values = schema.read(row)
                return as_text(tuple(str(values.get(name)) for name in key))
        return row.key

    def write(self) -> None:
        """Write the rows that were taken since the last time."""
        failbacks.keep(self._connection, self._file_id, self._unrecorded)
        self._unrecorded.clear()
        self._unrecorded_bytes = 0


def with_those_that_refer(
    row: RefusedRow,
    others: Iterable[RefusedRow],
    references: Mapping[str, Sequence[Reference]],
    tables: Mapping[str, TableSchema],
) -> list[RefusedRow]:
    """Return the row, and those of the others that refer to it, directly or not."""
    keys = keys_of(tables)
    referring: dict[tuple[object, ...], list[RefusedRow]] = {}
    for other in others:
        for one in references[other.table_name]:
            values = tuple(other.content.get(name) for name in one.columns)
            if None not in values and not other.settled.keys() >= {*one.columns}:
                same = keys.same(one.table, one.to, values)
                referring.setdefault((one.table, one.to, same), []).append(other)
    referred = referred_columns(references)
    found, waiting = {row.number: row}, [row]
    while waiting:
        parent = waiting.pop()
        for columns in referred.get(parent.table_name, ()):
            values = tuple(parent.content.get(name) for name in columns)
            same = keys.same(parent.table_name, columns, values)
            children = referring.pop((parent.table_name, columns, same), [])
            found |= {child.number: child for child in children}
            waiting += children
    return list(found.values())
