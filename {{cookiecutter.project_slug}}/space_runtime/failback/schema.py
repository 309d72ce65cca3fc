"""What a failback must know of the tables, read from PostgreSQL and from the models.

A table that the project adds needs no code here.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, MetaData, Table, Text, cast, func, inspect, select, text
from sqlalchemy import Sequence as NamedSequence
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.types import TypeEngine

from space_runtime.failback.keys import Keys
from space_runtime.failback.order import parents_first
from space_runtime.failback.sources import StoredRow
from space_runtime.failback.values import Conversion, Conversions, unchanged
from space_runtime.records import generated_keys
from space_runtime.records.failbacks import RefusalCode
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

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(code)
        self.code: RefusalCode = code


@dataclass(frozen=True)
class Reference:
    """A foreign key."""

    columns: tuple[str, ...]
    table: str
    to: tuple[str, ...]
    """The columns of `table` that `columns` have the values of."""
    can_wait: bool
    """May be wrong until the end of a transaction, as a deferrable constraint may."""


@dataclass(frozen=True)
class Column:
    """A column of a table in PostgreSQL."""

    name: str
    kind: TypeEngine[Any]
    """The type in PostgreSQL."""
    conversion: Conversion
    is_nullable: bool

    @property
    def is_comparable(self) -> bool:
        """Return whether PostgreSQL can tell if two values are equal: its json type cannot."""
        return not isinstance(self.kind, JSON) or isinstance(self.kind, JSONB)


@dataclass(frozen=True)
class TableSchema:
    """A table in PostgreSQL."""

    name: str
    columns: dict[str, Column]
    """Those that can be written."""
    readers: dict[str, Callable[[Any], Any]]
    """What reads SQLite's values of those columns for which they differ from PostgreSQL's."""
    computed: frozenset[str]
    key: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...]
    references: tuple[Reference, ...]
    sequence: str | None
    """What numbers the rows, if the key is a number that PostgreSQL generates."""
    own_numbers_from: int
    """The numbers that SQLite generates begin here, and PostgreSQL's end."""
    always_generated: bool
    """Whether PostgreSQL takes no value of ours for a column unless it is told to."""
    has_trigger: bool
    """Whether a trigger may change a row before it is inserted."""

    without_case: frozenset[str]
    """The columns for which `A` is taken to be the same as `a`."""

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
    inspector = inspect(target)
    names = [name for name in inspector.get_table_names() if name in present]
    conversions = Conversions(sqlite.dialect(), target.dialect)
    columns = inspector.get_multi_columns(filter_names=names)
    keys = inspector.get_multi_pk_constraint(filter_names=names)
    foreign_keys = inspector.get_multi_foreign_keys(filter_names=names)
    unique = inspector.get_multi_unique_constraints(filter_names=names)
    indexes = inspector.get_multi_indexes(filter_names=names)
    triggered = set(target.scalars(_TRIGGERED))
    without_case = {tuple(row) for row in target.execute(_WITHOUT_CASE)}
    tables = {}
    for name in names:
        at, model = (None, name), models.tables.get(name)
        key = tuple(keys[at]["constrained_columns"])
        types: dict[str, TypeEngine[Any]] = {}
        if model is not None:
            types = {column.name: column.type for column in model.columns}
        referring = [
            Reference(
                tuple(one["constrained_columns"]),
                one["referred_table"],
                tuple(one["referred_columns"]),
                bool(one.get("options", {}).get("deferrable")),
            )
            for one in foreign_keys[at]
            if one["referred_schema"] is None
        ]
        uniques = [tuple(one["column_names"]) for one in unique[at]]
        uniques += [
            tuple(str(column) for column in one["column_names"])
            for one in indexes[at]
            if one["unique"]
            and None not in one["column_names"]
            and "postgresql_where" not in one.get("dialect_options", {})
        ]
        written = {
            info["name"]: Column(
                info["name"],
                info["type"],
                conversions.find(types.get(info["name"]), info["type"]),
                info["nullable"],
            )
            for info in columns[at]
            if not info.get("computed")
        }
        readers = {one.name: one.conversion.read for one in written.values()}
        tables[name] = TableSchema(
            name,
            written,
            {name: read for name, read in readers.items() if read is not unchanged},
            frozenset(info["name"] for info in columns[at] if info.get("computed")),
            key,
            tuple(dict.fromkeys(uniques)),
            _without_doubles([*referring, *_references_of_model(model, present)]),
            _sequence(target, name, model, key, columns[at], referring),
            _own_numbers_from(model, key, written),
            any(_is_always_generated(info) for info in columns[at]),
            name in triggered,
            frozenset(column for column in written if (name, column) in without_case),
        )
    return tables


def read_references(
    tables: Mapping[str, TableSchema], models: MetaData, present: Collection[str]
) -> dict[str, tuple[Reference, ...]]:
    """Return the references of all tables that are present, though PostgreSQL may lack some."""
    return {
        name: tables[name].references
        if name in tables
        else tuple(_references_of_model(models.tables.get(name), present))
        for name in present
    }


def keys_of(tables: Mapping[str, TableSchema]) -> Keys:
    """Return a record for what becomes of the keys of these tables."""
    return Keys({name: one.without_case for name, one in tables.items()})


def in_order(tables: dict[str, TableSchema]) -> list[list[TableSchema]]:
    """Return groups of tables, each after those that it refers to.

    A group of several tables, or of one that refers to itself, has to be ordered row by row.
    """
    parents = {
        name: [one.table for one in table.references if one.table in tables]
        for name, table in tables.items()
    }
    return [[tables[name] for name in group] for group in parents_first(parents)]


def in_order_of_insertion(tables: Sequence[TableSchema]) -> list[TableSchema]:
    """Return the tables so that references which can neither be empty nor wait come second."""
    by_name = {schema.name: schema for schema in tables}
    firm = {
        name: [
            one.table
            for one in schema.references
            if one.table in by_name
            and not one.can_wait
            and not any(schema.columns[column].is_nullable for column in one.columns)
        ]
        for name, schema in by_name.items()
    }
    return [by_name[name] for group in parents_first(firm) for name in group]


def referred_columns(
    references: Mapping[str, Iterable[Reference]],
) -> dict[str, list[tuple[str, ...]]]:
    """Return, for each table, the sets of its columns that references have the values of."""
    found: dict[str, dict[tuple[str, ...], None]] = {}
    for of_table in references.values():
        for reference in of_table:
            found.setdefault(reference.table, {})[reference.to] = None
    return {name: list(columns) for name, columns in found.items()}


def _is_always_generated(info: ReflectedColumn) -> bool:
    identity = info.get("identity")
    return identity is not None and bool(identity["always"])


def _own_numbers_from(
    model: Table | None, key: Sequence[str], columns: Mapping[str, Column]
) -> int:
    # The column's type may be smaller than the model's, or larger.
    kinds = [columns[name].kind for name in key if name in columns]
    return min([generated_keys.beginning(model), *map(generated_keys.lowest, kinds)])


def _without_doubles(references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Return the references; of two that differ in `can_wait` only, the first."""
    found: dict[tuple[object, ...], Reference] = {}
    for one in references:
        found.setdefault((one.columns, one.table, one.to), one)
    return tuple(found.values())


def _references_of_model(model: Table | None, present: Collection[str]) -> list[Reference]:
    """Return references that the model has, which PostgreSQL need not enforce."""
    if model is None:
        return []
    return [
        Reference(
            tuple(column.name for column in constraint.columns),
            constraint.referred_table.name,
            tuple(element.column.name for element in constraint.elements),
            bool(constraint.deferrable),
        )
        for constraint in model.foreign_key_constraints
        if constraint.referred_table.name in present
    ]


def _sequence(
    target: Connection,
    name: str,
    model: Table | None,
    key: Sequence[str],
    columns: Sequence[ReflectedColumn],
    references: Sequence[Reference],
) -> str | None:
    """Return the sequence that numbers the rows, as `nextval` takes it."""
    info: Any = next((one for one in columns if [one["name"]] == [*key]), None)
    if info is None or any(info["name"] in one.columns for one in references):
        return None
    if info.get("identity"):
        return target.scalar(select(func.pg_get_serial_sequence(quote(name), info["name"])))
    if match := _NEXT_VALUE.fullmatch(str(info.get("default"))):
        return match["sequence"].replace("''", "'")
    in_model = [] if model is None else [one for one in model.columns if one.name == info["name"]]
    for column in in_model:
        if isinstance(column.default, NamedSequence):
            sequence = target.dialect.identifier_preparer.format_sequence(column.default)
            return target.scalar(select(cast(func.to_regclass(sequence), Text)))
    return None
