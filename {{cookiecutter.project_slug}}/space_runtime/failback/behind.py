"""Rows that stay behind: PostgreSQL keeps them, in the transaction that moves the others."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from uuid import UUID

from sqlalchemy import Connection, Uuid

from space_runtime.failback.schema import TableSchema, Unmovable
from space_runtime.failback.sources import BYTES_AT_ONCE, ROWS_AT_ONCE, StoredRow
from space_runtime.records import failbacks
from space_runtime.records.failbacks import RefusalCode, RefusedRow
from space_runtime.records.stored import as_text

logger = logging.getLogger(__name__)

MOST_ROWS_NAMED = 100


class RowsBehind:
    """Records rows of one file, some at a time, and names the first of them in the log."""

    def __init__(
        self, connection: Connection, file_id: UUID, tables: Mapping[str, TableSchema]
    ) -> None:
        self._connection, self._file_id, self._tables = connection, file_id, tables
        self._unrecorded: list[RefusedRow] = []
        self._unrecorded_bytes = 0
        self.count = 0

    def record(
        self, table: str, row: StoredRow, code: RefusalCode, sqlstate: str | None = None
    ) -> None:
        """Take a row; it is written with others."""
        key = self._shown_key(table, row)
        if self.count < MOST_ROWS_NAMED:
            # The other values may be private.
            because = failbacks.REFUSALS[code] + (f" ({sqlstate})" if sqlstate else "")
            logger.warning("a row stays behind: table %s, key %s: %s", table, key, because)
        number, self.count = self.count, self.count + 1
        self._unrecorded.append(
            RefusedRow(
                number,
                table,
                key,
                code,
                sqlstate,
                {**row.content},
                {**row.settled},
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
