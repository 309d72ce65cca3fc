"""What the references of rows have become: kept, replaced, or left behind."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from space_runtime.failback.schema import Reference, TableSchema
from space_runtime.failback.sources import Columns, Node, StoredRow, Values, pick
from space_runtime.failback.values import as_raw
from space_runtime.records.stored import Raw

Referred = tuple[str, Columns, Values]
"""What a reference points to: a table, some of its columns, and what SQLite stored in them."""


@dataclass(slots=True)
class Row:
    """A row on its way."""

    stored: StoredRow
    values: dict[str, Any]
    """What is written to PostgreSQL."""
    has_new_key: bool = False


class References:
    """The replaced and the refused values of the columns that references point to.

    Values that are in neither are the same in PostgreSQL, and NULL refers to nothing. So this grows
    with the number of rows that got another key or stayed behind, by some 100 bytes for each.
    """

    def __init__(
        self, tables: Mapping[str, TableSchema], references: Mapping[str, Collection[Reference]]
    ) -> None:
        """`references` are those of all tables, `tables` the tables that PostgreSQL has."""
        self._tables, self._references = tables, references
        self._referred: dict[str, dict[Columns, None]] = {}
        for reference in (one for of_table in references.values() for one in of_table):
            self._referred.setdefault(reference.table, {})[reference.to] = None
        self._without_case = {one.name: one.without_case for one in tables.values()}
        self._replaced: dict[Referred, Values] = {}
        self._refused: set[Referred] = set()

    def columns(self, table: str) -> Collection[Columns]:
        """Return the sets of columns of a table that references point to."""
        return self._referred.get(table, ())

    def names(self, row: StoredRow) -> list[Referred]:
        """Return all that references to this row may point to."""
        return [
            self._target(row.table, columns, pick(columns, row.content))
            for columns in self.columns(row.table)
        ]

    def of(self, row: StoredRow) -> list[tuple[Reference, Referred]]:
        """Return the references of a row, and what they point to."""
        found = []
        for one in self._references[row.table]:
            values = pick(one.columns, row.content)
            if None not in values:
                found.append((one, self._target(one.table, one.to, values)))
        return found

    def parents(self, rows: Iterable[StoredRow]) -> dict[Node, list[Node]]:
        """Return for each of these rows those of them that it refers to."""
        named: dict[Referred, Node] = {}
        referring: dict[Node, list[Referred]] = {}
        for row in rows:
            named |= dict.fromkeys(self.names(row), row.node)
            referring[row.node] = [target for _, target in self.of(row)]
        return {node: [named[one] for one in of if one in named] for node, of in referring.items()}

    def refuse(self, row: StoredRow) -> None:
        """Let the rows that refer to this one stay behind."""
        self._refused.update(self.names(row))

    def refused_by(self, row: StoredRow) -> list[Referred]:
        """Return what the row refers to that stays behind."""
        if not self._refused:
            return []
        return [target for _, target in self.of(row) if target in self._refused]

    def replace(
        self, row: StoredRow, values: Mapping[str, Any], changed: Collection[str] | None = None
    ) -> None:
        """Let references to this row become references to these values.

        Only those that point to a column that `changed`, if it is told which did.
        """
        for target in self.names(row):
            if changed is None or any(name in changed for name in target[1]):
                self._replaced[target] = pick(target[1], values)

    def follow(self, row: Row) -> None:
        """Let the row refer to what the rows that it refers to have become."""
        changed = set(row.stored.settled)
        # One that refers to itself may have got another key by the first time.
        for _ in range(2):
            for one, target in self.of(row.stored) if self._replaced else ():
                if (new := self._replaced.get(target)) is not None:
                    row.values.update(zip(one.columns, new, strict=True))
                    changed.update(one.columns)
            if not changed:
                return
            self.replace(row.stored, row.values, changed)
        table, content = row.stored.table, row.stored.content
        row.has_new_key = row.has_new_key or any(
            self._as_stored(table, name, row.values[name]) != content[name]
            for name in changed.intersection(self._tables[table].key)
        )

    def settled(self, row: StoredRow) -> StoredRow:
        """Return a row that stays behind, with what it refers to in PostgreSQL.

        What it refers to may have got a number, and been refused all the same: the next attempt
        gives that row another one.
        """
        settled = {**row.settled}
        for one, target in self.of(row):
            if target in self._replaced and target not in self._refused:
                for name, value in zip(one.columns, self._replaced[target], strict=True):
                    settled[name] = self._as_stored(row.table, name, value)
        return row._replace(settled=settled)

    def with_those_that_refer(self, row: StoredRow, others: Iterable[StoredRow]) -> list[StoredRow]:
        """Return the row, and those of the others that refer to it, directly or not."""
        referring: dict[Referred, list[StoredRow]] = {}
        for other in others:
            for one, target in self.of(other):
                if not other.settled.keys() >= {*one.columns}:
                    referring.setdefault(target, []).append(other)
        found, waiting = {row.node: row}, [row]
        while waiting:
            for target in self.names(waiting.pop()):
                children = referring.pop(target, [])
                found |= {child.node: child for child in children}
                waiting += children
        return list(found.values())

    def _target(self, table: str, columns: Columns, stored: Values) -> Referred:
        """Return a target that is equal to another if references take it for the same."""
        if folded := self._without_case.get(table):
            stored = tuple(
                value.lower() if name in folded and isinstance(value, str) else value
                for name, value in zip(columns, stored, strict=True)
            )
        return table, columns, stored

    def _as_stored(self, table: str, name: str, value: Any) -> Raw:
        try:
            stored: Raw = self._tables[table].conversions[name].store(value)
        except Exception:
            # PostgreSQL may lack the column. Or the model gives it another type than it gives to
            # the one that it refers to, and a type may be the owner's code, which raises anything.
            return as_raw(value)
        return stored
