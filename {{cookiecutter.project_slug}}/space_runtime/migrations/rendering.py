"""How columns are written into a migration, so that it runs on both databases.

A model's type may be a decorator, from this project or from a package, that stores its values in
one way on PostgreSQL and in another on SQLite. The migration names these two, so that it neither
imports the model's code nor changes with it.
"""

import copy
import re
import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.operations.ops import (
    AddColumnOp,
    AlterColumnOp,
    CreateTableOp,
    DropColumnOp,
    DropTableOp,
    MigrateOperation,
    MigrationScript,
    OpContainer,
)
from alembic.runtime.migration import MigrationContext
from sqlalchemy import DATETIME, Column, DateTime, DefaultClause, Dialect, Enum, MetaData, types
from sqlalchemy.dialects.postgresql import ENUM as POSTGRESQL_ENUM
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import DATETIME as SQLITE_DATETIME
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.exc import CompileError
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

Type = TypeEngine[Any]
_CAST_LITERAL = re.compile(r"('(?:[^']|'')*')::[^']+")


class _PostgreSQL(PGDialect):
    """Leaves generic types as they are."""

    supports_statement_cache = True

    def type_descriptor(self, typeobj: Type) -> Type:
        return types.to_instance(typeobj)


class _SQLite(SQLiteDialect):
    """Leaves generic types as they are."""

    supports_statement_cache = True

    def type_descriptor(self, typeobj: Type) -> Type:
        return types.to_instance(typeobj)


_postgresql, _sqlite = _PostgreSQL(), _SQLite()  # type: ignore[no-untyped-call]
_alembic = PostgresqlImpl(_postgresql, None, False, None, None, {})


def render_item(kind: str, value: object, autogen: AutogenContext) -> str | Literal[False]:
    """Render a type for both databases; return False for what Alembic renders as it should be."""
    if kind == "server_default" and isinstance(value, DefaultClause):
        # PostgreSQL reports its own casts, as in 'draft'::status.
        cast = _CAST_LITERAL.fullmatch(str(getattr(value.arg, "text", "")))
        return f"sa.text({cast[1]!r})" if cast else False
    if kind != "type" or not isinstance(value, TypeEngine):
        return False
    on_postgresql, on_sqlite = stored_as(value, _postgresql), stored_as(value, _sqlite)
    everywhere = _portable(on_sqlite)
    text = _text(everywhere, autogen)
    if _declared(everywhere, _postgresql) == _declared(on_postgresql, _postgresql):
        return text
    return f'{text}.with_variant({_text(on_postgresql, autogen)}, "postgresql")'


def stored_as(kind: Type, database: Dialect) -> Type:
    """Return the type with which the values are stored in this kind of database."""
    kind = kind._variant_mapping.get(database.name, kind)
    if isinstance(kind, TypeDecorator) and not _is_of_sqlalchemy(kind):
        return stored_as(kind.load_dialect_impl(database), database)
    if kind._variant_mapping:
        kind = copy.copy(kind)
        kind._variant_mapping = type(kind)._variant_mapping
    return _generic(kind)


def _generic(kind: Type) -> Type:
    """Return the generic type for one that only a database reports."""
    if isinstance(kind, (DATETIME, SQLITE_DATETIME)):
        # SQLite reports every time as this; PostgreSQL has no type of that name.
        return DateTime(timezone=True)
    if isinstance(kind, POSTGRESQL_ENUM):
        schema = {"schema": kind.schema} if kind.schema else {}
        return Enum(*kind.enums, name=kind.name, **schema)
    return kind


def _portable(kind: Type) -> Type:
    """Return a type that SQLite has, too, if there is one."""
    if _declared(kind, _sqlite) is None:
        try:
            generic = kind.as_generic()
        except NotImplementedError:
            return kind
        if _declared(generic, _sqlite) is not None:
            return generic
    return kind


def _declared(kind: Type, dialect: Dialect) -> str | None:
    """Return how a column of this type is declared, or None if this database has no such type."""
    try:
        return dialect.type_compiler_instance.process(kind)
    except (CompileError, NotImplementedError):
        return None


def _text(kind: Type, autogen: AutogenContext) -> str:
    """Return an expression for the type, and import what it needs."""
    if not _is_of_sqlalchemy(kind):
        for base in type(kind).__mro__:
            # such as a subclass of String with a method of its own
            if base.__module__.startswith("sqlalchemy.") and not issubclass(UserDefinedType, base):
                plain: Type = kind.adapt(base)
                if _declared(plain, _sqlite) == _declared(kind, _sqlite):
                    return _text(plain, autogen)
                break
        name, module = type(kind).__qualname__, _public_module(type(kind))
        autogen.imports.add(f"import {module}")
        return f"{module}.{name}{repr(kind).removeprefix(type(kind).__name__)}"
    if isinstance(kind, Enum) and _is_native(kind):
        return f"sa.{Enum.__repr__(kind)[:-1]}, create_type=False)"
    module = type(kind).__module__
    if module.startswith("sqlalchemy.dialects."):
        dialect = module.split(".")[2]
        autogen.imports.add(f"from sqlalchemy.dialects import {dialect}")
        return _alembic.render_type(kind, autogen) or f"{dialect}.{kind!r}"
    if isinstance(kind, types.ARRAY):
        item = render_item("type", kind.item_type, autogen)
        dimensions = f", dimensions={kind.dimensions}" if kind.dimensions else ""
        return f"sa.ARRAY({item}{dimensions})"
    return f"sa.{kind!r}"


def _public_module(kind: type[Type]) -> str:
    """Return the shortest name of a module from which the class can be imported."""
    parts = kind.__module__.split(".")
    modules = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    exporting = (
        module
        for module in modules
        if getattr(sys.modules.get(module), kind.__name__, None) is kind
    )
    return next(exporting, kind.__module__)


def _is_of_sqlalchemy(kind: Type) -> bool:
    return type(kind).__module__.startswith("sqlalchemy.")


# ---- PostgreSQL's enums are types of their own, which outlive columns and tables ----


class CreateEnum(MigrateOperation):
    """Creates an enum's type where the database has such types, unless it is there."""

    def __init__(self, kind: Enum) -> None:
        self.kind = kind

    def to_diff_tuple(self) -> tuple[str, str]:
        """Return what `alembic check` says."""
        return type(self).__name__, str(self.kind.name)


class DropEnum(CreateEnum):
    """Drops an enum's type that no column has any more."""


class AddEnumValues(CreateEnum):
    """Adds values to an enum's type where the database has such types."""

    def __init__(self, kind: Enum, values: list[str]) -> None:
        super().__init__(kind)
        self.values = values


@renderers.dispatch_for(AddEnumValues)
def _render_add(autogen: AutogenContext, operation: AddEnumValues) -> list[str]:
    parts = filter(None, [operation.kind.schema, operation.kind.name])
    name = ".".join(map(_postgresql.identifier_preparer.quote, parts))
    quoted = (value.replace("'", "''") for value in operation.values)
    statements = [f"ALTER TYPE {name} ADD VALUE IF NOT EXISTS '{value}'" for value in quoted]
    database = "op.get_bind().dialect.name"
    return [
        f'if {database} == "postgresql":',
        # Such a value can be used only after a COMMIT.
        "with op.get_context().autocommit_block():",
        *(f"op.execute({statement!r})" for statement in statements),
        # An empty line ends each block.
        "",
        "",
    ]


@renderers.dispatch_for(CreateEnum)
def _render_create(autogen: AutogenContext, operation: CreateEnum) -> str:
    return f"sa.{Enum.__repr__(operation.kind)}.create(op.get_bind(), checkfirst=True)"


@renderers.dispatch_for(DropEnum)
def _render_drop(autogen: AutogenContext, operation: CreateEnum) -> str:
    schema = f", schema={operation.kind.schema!r}" if operation.kind.schema else ""
    name = str(operation.kind.name)
    return f"sa.Enum(name={name!r}{schema}).drop(op.get_bind(), checkfirst=True)"


def add_enum_operations(
    known: Mapping[str, Set[str]],
    migration_context: MigrationContext,
    scripts: list[MigrationScript],
) -> None:
    """Create each enum before the first column that has it, and drop it after the last one.

    Add values that are new, compared with those that earlier migrations have: `known`.
    """
    models = migration_context.opts["target_metadata"]
    for script in scripts:
        for operations in (*script.upgrade_ops_list, *script.downgrade_ops_list):
            _surround(operations, models)
        for operations in script.upgrade_ops_list:
            operations.ops[:0] = _added_values(known, models)


def _added_values(known: Mapping[str, Set[str]], models: MetaData) -> list[AddEnumValues]:
    kinds: dict[str, Enum] = {}
    for table in models.tables.values():
        for column in table.columns:
            kinds |= _native_enum(column.type)
    added = []
    for kind in kinds.values():
        before = known.get(str(kind.name), set())
        if before and (new := [value for value in kind.enums if value not in before]):
            added.append(AddEnumValues(kind, new))
    return added


def _surround(operations: OpContainer, models: MetaData) -> None:
    flat = list(_flat(operations))
    created: dict[str, Enum] = {}
    for operation in flat:
        for kind in _types_added(operation):
            created.update(_native_enum(kind))
    dropped: dict[str, Enum] = {}
    gone: set[tuple[str, str]] = set()
    for operation in flat:
        for table, column in _columns_dropped(operation):
            gone.add((table, column.name))
            dropped.update(_native_enum(column.type))
    kept = {
        name
        for table in models.tables.values()
        for column in table.columns
        if (table.name, column.name) not in gone
        for name in _native_enum(column.type)
    }
    operations.ops[:0] = [CreateEnum(kind) for kind in created.values()]
    operations.ops += [
        DropEnum(kind) for name, kind in dropped.items() if name not in kept | created.keys()
    ]


def _flat(container: OpContainer) -> Iterator[MigrateOperation]:
    for operation in container.ops:
        if isinstance(operation, OpContainer):
            yield from _flat(operation)
        else:
            yield operation


def _types_added(operation: MigrateOperation) -> list[Type]:
    match operation:
        case CreateTableOp(columns=items):
            return [item.type for item in items if isinstance(item, Column)]
        case AddColumnOp(column=column):
            return [column.type]
        case AlterColumnOp(modify_type=TypeEngine() as kind):
            return [kind]
    return []


def _columns_dropped(operation: MigrateOperation) -> list[tuple[str, Column[Any]]]:
    match operation:
        case DropTableOp(table_name=name):
            return [(name, column) for column in operation.to_table().columns]
        case DropColumnOp(table_name=name):
            return [(name, operation.to_column())]
    return []


def _native_enum(kind: Type) -> dict[str, Enum]:
    stored = stored_as(kind, _postgresql)
    if not isinstance(stored, Enum) or not _is_native(stored):
        return {}
    name = f"{stored.schema}.{stored.name}" if stored.schema else str(stored.name)
    return {name: stored}


def _is_native(kind: Enum) -> bool:
    return kind.native_enum and kind.name is not None
