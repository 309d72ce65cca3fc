"""Rows that another file may have brought: two machines went on with one snapshot."""

from collections.abc import Collection, Sequence
from uuid import UUID

from space_runtime.failback.references import References, Row
from space_runtime.failback.schema import TableSchema
from space_runtime.failback.sources import pick
from space_runtime.failback.target import Target
from space_runtime.failback.values import is_same
from space_runtime.files import names
from space_runtime.records import failbacks


class Copies:
    """Knows which rows came to PostgreSQL with another file."""

    def __init__(self, target: Target, file_id: UUID, references: References) -> None:
        self._target, self._references = target, references
        relatives = _relatives(file_id, failbacks.moved_ids(target.connection))
        self.are_there = bool(relatives)
        """Whether the file is a copy of one that was moved, or a copy of it was moved."""
        self._new_keys = {
            (row.table_name, row.old_key): row.new_key
            for row in failbacks.read_new_keys(target.connection, relatives)
        }

    def sort_out(self, schema: TableSchema, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Return the rows that PostgreSQL does not have, and those that it has but differently."""
        if not schema.key or not rows:
            return [*rows], []
        for row in rows:
            new_key = self._new_keys.get((schema.name, row.stored.key))
            old = pick(schema.key, row.values)[0]
            # A key of several columns follows what it refers to.
            if new_key is not None and len(schema.key) == 1 and isinstance(old, (int, str, UUID)):
                (name,) = schema.key
                row.values[name] = type(old)(new_key)
                self._references.replace(row.stored, row.values, {name})
            self._references.follow(row)
        keys = [pick(schema.key, row.values) for row in rows]
        there = self._target.with_keys(schema, keys)
        new = [row for key, row in zip(keys, rows, strict=True) if key not in there]
        found = [(row, there[key]) for key, row in zip(keys, rows, strict=True) if key in there]
        return new, [row for row, values in found if not is_same(row.values, values)]


def _relatives(file_id: UUID, moved: Collection[UUID]) -> list[UUID]:
    """Return the moved files that this one is a copy of, and those that are copies of it."""
    original_of = {names.copy_of(one): one for one in moved}
    copy_of = {original: copy for copy, original in original_of.items() if copy in moved}
    found = []
    for relative in (original_of, copy_of):
        one = file_id
        while one in relative:
            one = relative[one]
            found.append(one)
    return found
