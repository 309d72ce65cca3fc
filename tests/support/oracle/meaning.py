"""What PostgreSQL must hold: as if the requests that SQLite answered had been sent to it when it came back.

Rows are known by their markers, and so are the rows that they refer to. What a column of a reference holds follows from
the row that it refers to: numbers may change, and references follow them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.oracle.kinds import held
from tests.support.oracle.schemas import Schema, Table
from tests.support.oracle.stories import Change, NewRow


class NoSuchRowError(Exception):
    """A row, or one that it refers to, is not there."""


@dataclass
class Row:
    """A row; `given` are the values of its columns that are not references."""

    table: Table
    marker: str
    given: dict[str, Any]
    refs: dict[str, str | None]

    def copy(self) -> "Row":
        """A row that changes on its own."""
        return replace(self, given=dict(self.given), refs=dict(self.refs))


@dataclass
class Rows:
    """The rows of one database."""

    schema: Schema
    rows: dict[str, Row] = field(default_factory=dict)

    def value(self, marker: str, column: str) -> Any:
        """What a column of a row holds."""
        if marker not in self.rows:
            raise NoSuchRowError(marker)
        row = self.rows[marker]
        for one in row.table.references:
            # The owner's columns, which another reference may share, come first.
            if column in one.columns:
                target = row.refs.get(one.name)
                return None if target is None else self.value(target, one.target_columns[one.columns.index(column)])
        return held(row.given.get(column))[1]

    def create(self, new: NewRow, key: dict[str, Any]) -> None:
        """A request wrote this row, whose key the database told."""
        table = self.schema.tables[new.table]
        given = new.values | ({"id": key["id"]} if "id" in key else {})
        given |= {name: key[name] for name in table.own_key_columns}
        row = self.rows[new.marker] = Row(table, new.marker, given, dict(new.refs))
        row.refs = self._as_written(table, row.refs)

    def change(self, change: Change) -> None:
        """A request changed a row."""
        row = self.rows[change.marker]
        row.refs |= self._as_written(row.table, change.refs)
        row.given |= change.values

    def _as_written(self, table: Table, refs: dict[str, str | None]) -> dict[str, str | None]:
        """References to columns that are empty are empty, and stay so when the columns are filled in."""
        return {
            name: None
            if target in self.rows
            and None in [self.value(target, column) for column in table.reference(name).target_columns]
            else target
            for name, target in refs.items()
        }

    def delete(self, marker: str) -> None:
        """A request deleted a row, and what the database deletes or changes with it."""
        del self.rows[marker]
        for other, row in list(self.rows.items()):
            for one in row.table.references:
                if row.refs.get(one.name) != marker or one.known_to == "models" or other not in self.rows:
                    continue
                if one.on_delete == "CASCADE":
                    self.delete(other)
                elif one.on_delete == "SET NULL":
                    row.refs[one.name] = None

    def has(self, table: Table, columns: tuple[str, ...], values: tuple[Any, ...]) -> str | None:
        """The row that has these values."""
        if None in values:
            return None
        for marker, row in self.rows.items():
            if row.table is table and tuple(self.value(marker, column) for column in columns) == values:
                return marker
        return None


@dataclass
class Move:
    """What became of the rows of one file, or of those that were tried again."""

    moved: dict[str, int | None]
    """The moved rows, with the number that PostgreSQL had free and they must keep."""
    refused: dict[str, str]
    """Why each row stays behind."""


class Meaning:
    """What PostgreSQL must hold, and which rows must be kept beside."""

    def __init__(self, schema: Schema) -> None:
        """Nothing is there yet."""
        self.schema = schema
        self.postgresql = Rows(schema)
        self.refused: dict[str, Row] = {}
        self.changed_seeds: Counter[str] = Counter()
        self.missing_seeds: Counter[str] = Counter()
        """Seeds that PostgreSQL has no more and rows that stay behind refer to: they may be kept with these."""
        self.lifted: set[str] = set()
        """Tables whose `odd` PostgreSQL does not look at any more."""

    def come_back(self, sqlite: Rows, seeds: dict[str, Row]) -> Move:
        """PostgreSQL is back, and the rows of a file move, whose seeds were these when it was made."""
        changed = [marker for marker, seed in seeds.items() if _differs(sqlite.rows[marker], seed)]
        self.changed_seeds.update(changed)
        new = {marker: row.copy() for marker, row in sqlite.rows.items() if marker not in seeds}
        referred = {target for row in new.values() for target in row.refs.values() if target in seeds}
        stand_ins = {seed: self._stand_in(seeds[seed]) for seed in referred - self.postgresql.rows.keys()}
        self.missing_seeds.update(seed for seed, other in stand_ins.items() if other is None)
        for row in new.values():
            row.refs = {name: stand_ins.get(target or "") or target for name, target in row.refs.items()}
        return self._move(new)

    def _stand_in(self, seed: Row) -> str | None:
        """The row with the same unique key, which a request would mean, where PostgreSQL has a seed no more."""
        with_seed = Rows(self.schema, {seed.marker: seed} | self.postgresql.rows)
        for columns in (*seed.table.uniques[1:], seed.table.key_columns):
            if seed.table.is_numbered and columns == seed.table.key_columns:
                continue
            try:
                values = tuple(with_seed.value(seed.marker, column) for column in columns)
            except NoSuchRowError:
                continue
            if found := self.postgresql.has(seed.table, columns, values):
                return found
        return None

    def try_again(self) -> Move:
        """The rows that were refused are tried again."""
        again, self.refused = self.refused, {}
        return self._move(again)

    def conflicts_among_refused(self) -> bool:
        """Whether two of the refused rows want the same, so that it matters which one comes first."""
        everything = Rows(self.schema, self.postgresql.rows | self.refused)
        wanted: Counter[tuple[Any, ...]] = Counter()
        for marker, row in self.refused.items():
            for columns in row.table.uniques:
                try:
                    values = tuple(everything.value(marker, column) for column in columns)
                except NoSuchRowError:
                    continue
                if None not in values and not (row.table.is_numbered and columns == row.table.key_columns):
                    wanted[(row.table.name, columns, repr(values))] += 1
        return any(count > 1 for count in wanted.values())

    def _move(self, new: dict[str, Row]) -> Move:
        before = Rows(self.schema, dict(self.postgresql.rows))
        after = Rows(self.schema, before.rows | new)
        refused = {marker: why for marker, row in new.items() if (why := self._refusal(row, before, after))}
        while True:
            behind = {
                marker: f"it refers to {target}"
                for marker, row in new.items()
                for target in row.refs.values()
                if marker not in refused and target in refused
            }
            if not behind:
                break
            refused |= behind
        self.refused |= {marker: new[marker] for marker in refused}
        moved: dict[str, int | None] = {}
        for marker, row in new.items():
            if marker not in refused:
                self.postgresql.rows[marker] = row
                moved[marker] = None
                # SQLite's numbers in a table that was written by hand may be too large for PostgreSQL's.
                if row.table.is_numbered and row.given["id"] < 2 ** (row.table.width - 1):
                    is_free = not before.has(row.table, ("id",), (row.given["id"],))
                    moved[marker] = row.given["id"] if is_free else None
        return Move(moved, refused)

    def _refusal(self, row: Row, before: Rows, after: Rows) -> str | None:
        """Why PostgreSQL refuses a row as such."""
        if row.table.name not in self.lifted and is_odd(row):
            return f"`odd`: {row.table.odd}"
        for one in row.table.references:
            target = row.refs.get(one.name)
            if target is not None and target not in after.rows:
                return f"{target} is gone"
        try:
            for columns in row.table.uniques:
                if row.table.is_numbered and columns == row.table.key_columns:
                    continue
                values = tuple(after.value(row.marker, column) for column in columns)
                refers_to_new = any(
                    one.columns and set(one.columns) & set(columns) and row.refs.get(one.name) not in before.rows
                    for one in row.table.references
                )
                # A new row is nobody that a row in PostgreSQL could refer to, whatever its key is now.
                if not refers_to_new and (other := before.has(row.table, columns, values)):
                    return f"{other} has the same {', '.join(columns)}"
        except NoSuchRowError as missing:
            return f"{missing} is gone"
        return None


def is_odd(row: Row) -> bool:
    """Whether PostgreSQL refuses it because of `odd` as long as it looks at that."""
    value = row.given.get("odd")
    if row.table.odd is None or value is None:
        return False
    if row.table.odd == "number":
        return bool(value >= 2**31)
    if row.table.odd == "nul":
        return "\0" in value
    limits = {"width": 20, "index": 5000}
    if row.table.odd in limits:
        return len(value) > limits[row.table.odd]
    return bool(value == "bad")


def _differs(row: Row, seed: Row) -> bool:
    names: Iterable[str] = seed.given
    return row.refs != seed.refs or any(repr(row.given.get(name)) != repr(seed.given.get(name)) for name in names)
