"""Rows of a file that is a copy of one that was moved: two machines went on with one snapshot."""

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
        originals = _originals(file_id, failbacks.moved_ids(target.connection))
        self.are_there = bool(originals)
        """Whether the file is a copy."""
        self._new_keys = {
            (row.table_name, row.old_key): row.new_key
            for row in failbacks.read_new_keys(target.connection, originals)
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


def _originals(file_id: UUID, moved: Collection[UUID]) -> list[UUID]:
    """Return the moved files that this one is a copy of, also by way of another copy."""
    found = [one for one in moved if names.copy_of(one) == file_id]
    return found + [older for one in found for older in _originals(one, moved)]
