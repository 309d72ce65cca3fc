"""What became of the values that references have: kept, replaced, or left behind."""

from collections.abc import Collection, Mapping
from typing import Any

Columns = tuple[str, ...]
Values = tuple[Any, ...]


class Keys:
    """The replaced and the refused values of the columns that references point to.

    Values that are in neither are the same in PostgreSQL, and NULL refers to nothing. So this grows
    with the number of rows that got another key or stayed behind, by some 100 bytes for each.
    """

    def __init__(self, without_case: Mapping[str, Collection[str]]) -> None:
        """`without_case` are the columns of each table for which `A` is the same as `a`."""
        self._without_case = without_case
        self._replaced: dict[tuple[str, Columns], dict[Values, Values]] = {}
        self._refused: dict[tuple[str, Columns], set[Values]] = {}

    def same(self, table: str, columns: Columns, stored: Values) -> Values:
        """Return values that are equal if what SQLite stored is the same to a reference."""
        folded = self._without_case.get(table)
        if not folded:
            return stored
        return tuple(
            value.lower() if name in folded and isinstance(value, str) else value
            for name, value in zip(columns, stored, strict=True)
        )

    def replace(self, table: str, columns: Columns, stored: Values, new: Values) -> None:
        """Let references to what SQLite stored become references to the new values."""
        if None not in stored:
            same = self.same(table, columns, stored)
            self._replaced.setdefault((table, columns), {})[same] = new

    def refuse(self, table: str, columns: Columns, stored: Values) -> None:
        """Let rows that refer to these values stay behind."""
        if None not in stored:
            same = self.same(table, columns, stored)
            self._refused.setdefault((table, columns), set()).add(same)

    @property
    def has_refused(self) -> bool:
        """Whether any row stayed behind that others may refer to."""
        return bool(self._refused)

    def replacement(self, table: str, columns: Columns, stored: Values) -> Values | None:
        """Return the new values, or None if they stay the same."""
        replaced = self._replaced.get((table, columns))
        return replaced.get(self.same(table, columns, stored)) if replaced else None

    def is_refused(self, table: str, columns: Columns, stored: Values) -> bool:
        """Return whether the row with these values stayed behind."""
        refused = self._refused.get((table, columns), ())
        return bool(refused) and self.same(table, columns, stored) in refused
