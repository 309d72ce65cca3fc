"""What a failback must know of the tables, read from PostgreSQL and from the models.

A table that the project adds needs no code here.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    cast,
    func,
    select,
    text,
)
from sqlalchemy import Sequence as NamedSequence
from sqlalchemy.dialects.postgresql import JSON

from space_runtime.failback.order import parents_first
from space_runtime.failback.sources import Columns, StoredRow
from space_runtime.failback.values import Conversion, find_conversion, unchanged
from space_runtime.records import generated_keys
from space_runtime.records.tables import quote

# Of tables with a trigger that may change a row before it is inserted.
_TRIGGERED = text(
    "SELECT relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
    " WHERE NOT tgisinternal AND tgtype & 7 = 7 AND pg_table_is_visible(tgrelid)"
)
_WITHOUT_CASE = text(
    "SELECT relname, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
    " JOIN pg_type ON pg_type.oid = atttypid LEFT JOIN pg_collation c ON c.oid = attcollation"
    " WHERE pg_table_is_visible(attrelid) AND (typname = 'citext' OR NOT collisdeterministic)"
)
_NEXT_VALUE = re.compile(r"nextval\('(?P<sequence>.+)'::regclass\)")


class Unmovable(Exception):
    """A row cannot be written."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Reference(NamedTuple):
    """A foreign key."""

    columns: Columns
    table: str
    to: Columns
    """The columns of `table` that `columns` have the values of."""


@dataclass(frozen=True)
class TableSchema:
    """A table in PostgreSQL."""

    name: str
    columns: dict[str, Column[Any]]
    """Those that can be written."""
    conversions: dict[str, Conversion]
    """How the values of those columns are read and written."""
    readers: dict[str, Callable[[Any], Any]]
    """What reads SQLite's values where they differ from PostgreSQL's."""
    computed: frozenset[str]
    key: Columns
    unique: tuple[Columns, ...]
    references: tuple[Reference, ...]
    sequence: str | None
    """What numbers the rows, if the key is a number that PostgreSQL generates."""
    own_numbers_from: int
    """The numbers that SQLite generates begin here, and PostgreSQL's end."""
    has_trigger: bool
    """Whether a trigger may change a row before it is inserted."""
    without_case: frozenset[str]
    """The columns for which `A` is taken to be the same as `a`."""
    has_generated_key: bool
    """Whether a row that is inserted again has another key, or there is none."""

    @cached_property
    def telling(self) -> tuple[Columns, ...]:
        """The columns that tell rows apart without their keys: all, and those that are no times.

        None if a key is a name that somebody chose: another row is another one, however alike.
        The type json cannot be compared. When a row was inserted differs, though it is the same.
        """
        if not self.has_generated_key:
            return ()
        kinds = {name: one.type for name, one in self.columns.items() if name not in self.key}
        comparable = tuple(name for name, kind in kinds.items() if type(kind) is not JSON)
        timeless = tuple(name for name in comparable if not isinstance(kinds[name], DateTime))
        return tuple(dict.fromkeys((comparable, timeless)))

    def read(self, stored: StoredRow) -> dict[str, Any]:
        """Return the values that PostgreSQL gets for a row; raise Unmovable."""
        values: dict[str, Any] = {**stored.content, **stored.settled}
        for name in values.keys() - self.columns.keys():
            if values.pop(name) is not None and name not in self.computed:
                raise Unmovable("no_such_column")
        try:
            for name, read in self.readers.items():
                if name in values:
                    values[name] = read(values[name])
        except Exception:
            # SQLite stores any value in any column, even if the column's type cannot read it. The
            # type may be the owner's code, which raises anything.
            raise Unmovable("unstorable") from None
        return values


def read_schema(
    target: Connection, models: MetaData, present: Collection[str]
) -> dict[str, TableSchema]:
    """Return those of the tables that PostgreSQL has, by name."""
    reflected = MetaData()
    reflected.reflect(target, only=lambda name, _: name in present)
    triggered = set(target.scalars(_TRIGGERED))
    without_case = {tuple(row) for row in target.execute(_WITHOUT_CASE)}
    tables = {}
    for name in present:
        table, model = reflected.tables.get(name), models.tables.get(name)
        if table is None:
            continue
        types = {} if model is None else {one.name: one.type for one in model.columns}
        columns = {one.name: one for one in table.columns if one.computed is None}
        conversions = {
            name: find_conversion(types.get(name), column.type, target.dialect)
            for name, column in columns.items()
        }
        key = tuple(table.primary_key.columns.keys())
        # The column's type may be smaller than the model's, or larger.
        smallest = [generated_keys.lowest(columns[one].type) for one in key if one in columns]
        tables[name] = TableSchema(
            name,
            columns,
            conversions,
            {name: one.read for name, one in conversions.items() if one.read is not unchanged},
            frozenset(one.name for one in table.columns if one.computed is not None),
            key,
            _unique(table),
            tuple(sorted(_references(table) | _references(model))),
            _sequence(target, table, model),
            min([generated_keys.beginning(model), *smallest]),
            name in triggered,
            frozenset(column for column in columns if (name, column) in without_case),
            _has_generated_key(table, model),
        )
    return tables


def read_references(
    tables: Mapping[str, TableSchema], models: MetaData, present: Collection[str]
) -> dict[str, Collection[Reference]]:
    """Return the references of all tables that are present, though PostgreSQL may lack some."""
    return {
        name: tables[name].references if name in tables else _references(models.tables.get(name))
        for name in present
    }


def in_order(tables: Mapping[str, TableSchema]) -> list[list[TableSchema]]:
    """Return groups of tables, each after those that it refers to.

    A group of several tables, or of one that refers to itself, has to be ordered row by row.
    """
    parents = {
        name: [one.table for one in table.references if one.table in tables]
        for name, table in tables.items()
    }
    return [[tables[name] for name in group] for group in parents_first(parents)]


def _unique(table: Table) -> tuple[Columns, ...]:
    """Return the sets of columns of which no two rows may have the same values."""
    found = [one.columns for one in table.constraints if isinstance(one, UniqueConstraint)]
    found += [
        index.columns
        for index in table.indexes
        if index.unique
        and len(index.columns) == len(index.expressions)
        and index.dialect_options["postgresql"]["where"] is None
    ]
    return tuple(sorted({tuple(columns.keys()) for columns in found}))


def _references(table: Table | None) -> set[Reference]:
    """Return the references of a table: a model may have some that PostgreSQL does not enforce."""
    constraints = () if table is None else table.foreign_key_constraints
    return {
        Reference(
            tuple(column.name for column in constraint.columns),
            constraint.referred_table.name,
            tuple(element.column.name for element in constraint.elements),
        )
        for constraint in constraints
        if constraint.referred_table.schema is None
    }


def _has_generated_key(table: Table, model: Table | None) -> bool:
    modelled = {} if model is None else dict(model.columns)
    return not table.primary_key.columns or any(
        isinstance(one.type, Uuid)
        or one.server_default is not None
        or one.identity is not None
        or (one.name in modelled and modelled[one.name].default is not None)
        for one in table.primary_key.columns
    )


def _sequence(target: Connection, table: Table, model: Table | None) -> str | None:
    """Return the sequence that numbers the rows, as `nextval` takes it."""
    if len(table.primary_key.columns) != 1:
        return None
    (key,) = table.primary_key.columns
    if key.foreign_keys:
        return None
    if key.identity:
        return target.scalar(select(func.pg_get_serial_sequence(quote(table.name), key.name)))
    if match := _NEXT_VALUE.fullmatch(str(getattr(key.server_default, "arg", ""))):
        return match["sequence"].replace("''", "'")
    for column in () if model is None else model.columns:
        if column.name == key.name and isinstance(column.default, NamedSequence):
            sequence = target.dialect.identifier_preparer.format_sequence(column.default)
            return target.scalar(select(cast(func.to_regclass(sequence), Text)))
    return None
