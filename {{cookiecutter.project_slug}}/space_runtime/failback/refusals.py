"""Rows that stay behind: PostgreSQL keeps them, in the transaction that moves the others."""

from collections.abc import Mapping
from contextlib import suppress
from uuid import UUID

from sqlalchemy import Uuid

from space_runtime.failback.references import References
from space_runtime.failback.schema import TableSchema, Unmovable
from space_runtime.failback.sources import BYTES_AT_ONCE, ROWS_AT_ONCE, StoredRow
from space_runtime.failback.target import Target
from space_runtime.records import failbacks
from space_runtime.records.failbacks import RefusedRow
from space_runtime.records.stored import as_text

MOST_ROWS_NAMED = 100


class Refusals:
    """The refused rows of one file, which are recorded some at a time."""

    def __init__(
        self,
        target: Target,
        file_id: UUID,
        tables: Mapping[str, TableSchema],
        references: References,
    ) -> None:
        self._target, self._file_id = target, file_id
        self._tables, self._references = tables, references
        self._last, self._now = failbacks.last_number(target.connection)
        self._unsettled: list[tuple[StoredRow, str, str | None]] = []
        self._unwritten: list[RefusedRow] = []
        self._unwritten_bytes = 0
        self.count = 0
        self.notices: list[str] = []
        """For people."""

    def refuse(self, row: StoredRow, code: str, error: str | None = None) -> None:
        """Let the row stay behind, and all that refer to it."""
        self._references.refuse(row)
        # It may refer to rows of the same batch, of which nobody knows yet what becomes of them.
        self._unsettled.append((row, code, error))

    def settle(self) -> None:
        """Record the rows that were refused, now that it is known what they refer to."""
        for refused in self._unsettled:
            self.record(*refused)
        self._unsettled.clear()

    def record(self, row: StoredRow, code: str, error: str | None = None) -> None:
        """Record a row that stays behind.

        One that was refused before keeps its number, and the time at which it was refused first.
        """
        row = self._references.settled(row)
        key = self._shown_key(row)
        if self.count < MOST_ROWS_NAMED:
            # The other values may be private.
            because = failbacks.because(code, error)
            self.notices.append(f"a row stays behind: table {row.table}, key {key}: {because}")
        self.count += 1
        number, time = self._last + 1, self._now
        if row.before:
            number, time = row.before.number, row.before.refused_at
        self._last = max(self._last, number)
        content, settled = {**row.content}, {**row.settled}
        self._unwritten.append(
            RefusedRow(number, self._file_id, row.table, key, code, error, content, settled, time)
        )
        self._unwritten_bytes += row.length
        if len(self._unwritten) == ROWS_AT_ONCE or self._unwritten_bytes > BYTES_AT_ONCE:
            self.write()

    def write(self) -> None:
        """Write what was recorded since the last time."""
        failbacks.keep(self._target.connection, self._unwritten)
        self._target.keep()
        self._unwritten.clear()
        self._unwritten_bytes = 0

    def _shown_key(self, row: StoredRow) -> str:
        """Return the key as clients know it: SQLite stores UUIDs without hyphens."""
        schema = self._tables.get(row.table)
        if schema and any(isinstance(schema.columns[name].type, Uuid) for name in schema.key):
            with suppress(Unmovable):
                values = schema.read(row)
                return as_text(tuple(str(values.get(name)) for name in schema.key))
        return row.key
