"""The numbers that PostgreSQL gives to the rows of one table."""

from collections.abc import Sequence
from math import inf
from typing import Any

from sqlalchemy import ARRAY, BigInteger, any_, literal, select, text

from space_runtime.failback.references import Row
from space_runtime.failback.schema import TableSchema
from space_runtime.failback.target import Refused, Target
from space_runtime.records.generated_keys import highest

LONGEST_GAP_COUNTED = 100_000
MOST_ROWS_NAMED = 100

# Asking a sequence for its last number takes a right of its own.
_SEQUENCE = text(
    "SELECT may_number, may_set, abs(seqincrement) AS step, seqmax, seqstart,"
    " CASE WHEN may_number THEN pg_sequence_last_value(seqrelid) END AS last"
    " FROM (SELECT *, has_sequence_privilege(seqrelid, 'USAGE, UPDATE') AS may_number,"
    " has_sequence_privilege(seqrelid, 'UPDATE') AS may_set FROM pg_sequence) AS sequence"
    " WHERE seqrelid = CAST(:sequence AS regclass)"
)
_SET = text("SELECT setval(CAST(:sequence AS regclass), :number)")
_NEXT = text("SELECT nextval(CAST(:sequence AS regclass)) FROM generate_series(1, :count)")


class Numbering:
    """Which numbers of a table are taken, and which come next."""

    def __init__(self, target: Target, schema: TableSchema) -> None:
        """Ask the sequence of this table, which has one."""
        self._target, self._schema = target, schema
        (self._key,) = schema.key
        found = target.connection.execute(_SEQUENCE, {"sequence": schema.sequence}).one()
        self._may_number, self._may_set, self._step, last_possible, first, self._last = found
        self.limit = min(schema.own_numbers_from, last_possible + 1)
        """PostgreSQL's own numbers are below."""
        self._replaced_above = self._replaced_below = -inf
        """Which numbers PostgreSQL's numbering might meet, if it does not continue after them."""
        last = first - 1 if self._last is None else self._last
        if last >= schema.own_numbers_from - 1:
            self._replaced_above, self._replaced_below = last, last_possible + 1
        self.replaced = 0
        self.notices: list[str] = []
        """For people."""

    def advance(self, last_used: int) -> None:
        """Let PostgreSQL's numbering continue after all numbers that it would meet otherwise.

        It does not meet those in the upper half of what a key can hold: see generated_keys.py.
        """
        if not self._may_number:
            # It is taken to be where it usually is.
            self._replaced_below = self.limit
        elif not last_used <= self._advanced(last_used) < self.limit:
            self._replaced_below = inf

    def _advanced(self, last_used: int) -> float:
        """Take numbers until `last_used`; return the last one, or infinity if there are no more."""
        try:
            last = self._last
            if last is None or last < last_used:
                (last,) = self._following(1)
            if last_used - last > LONGEST_GAP_COUNTED and self._may_set:
                # This could also go back, but nobody can have taken so many numbers meanwhile.
                values = {"sequence": self._schema.sequence, "number": last_used}
                last = self._target.connection.scalar(_SET, values)
            elif last_used > last:
                count = min(-(-(last_used - last) // self._step), LONGEST_GAP_COUNTED)
                last = self._following(count)[-1]
        except Refused:
            return inf
        return float(last)

    def renumber(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
        """Give new numbers to rows whose numbers PostgreSQL has, or might give to others.

        Return the rows that can move, those of them that have a new number, and those that need
        one and cannot have it.
        """
        key = self._key
        numbers = [row.values.get(key) for row in rows]
        # In a column of any type but INTEGER, SQLite has NULL for a key that nobody gave.
        taken: set[Any] = {None}
        integers = [number for number in numbers if isinstance(number, int)]
        most = highest(self._schema.columns[key].type)
        taken.update(self._taken(integers))
        taken.update(
            one
            for one in integers
            if one > most or self._replaced_above < one < self._replaced_below
        )
        if taken.isdisjoint(numbers):
            return list(rows), [], []
        new = iter(self._next(sum(number in taken for number in numbers)))
        movable, renumbered, without = [], [], []
        for row, old in zip(rows, numbers, strict=True):
            if old in taken:
                if (number := next(new, None)) is None:
                    without.append(row)
                    continue
                if self.replaced < MOST_ROWS_NAMED:
                    self.notices.append(f"table {self._schema.name}: number {old} is now {number}")
                self.replaced += 1
                row.values[key] = number
                row.has_new_key = True
                renumbered.append(row)
            movable.append(row)
        return movable, renumbered, without

    def _next(self, count: int) -> list[int]:
        """Return the next free numbers of the sequence; fewer if it ends, or this role may not.

        The sequence may be behind, because rows were inserted with numbers of their own.
        """
        numbers: list[int] = []
        seen: set[int] = set()
        while self._may_number and len(numbers) < count:
            try:
                following = self._following(count - len(numbers))
            except Refused:
                break
            # One that cycles never ends.
            new = [number for number in dict.fromkeys(following) if number not in seen]
            if not new:
                break
            seen.update(new)
            taken = self._taken(new)
            numbers += [number for number in new if number not in taken]
        return numbers

    def _taken(self, numbers: Sequence[int]) -> set[int]:
        """Return which of these numbers are keys of rows."""
        key = self._target.clause(self._schema).c[self._key]
        # An array, because reading hundreds of parameters takes longer than finding the rows.
        array = literal(list(numbers), ARRAY(BigInteger))
        return set(self._target.connection.scalars(select(key).where(key == any_(array))))

    def _following(self, count: int) -> list[int]:
        """Take numbers from the sequence; raise Refused if there are not so many."""
        values = {"sequence": self._schema.sequence, "count": count}
        return self._target.attempt(lambda: list(self._target.connection.scalars(_NEXT, values)))
