"""How columns are written into a migration, so that it runs on both databases.

A model's type may be a decorator, from this project or from a package, that stores its values in
one way on PostgreSQL and in another on SQLite. The migration names these two, so that it neither
imports the model's code nor changes with it.
"""

import copy
import re
import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _render_column
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import DATETIME, Column, DateTime, DefaultClause, Dialect, Enum, Sequence, types
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateSequence, DropSequence, ExecutableDDLElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

Type = TypeEngine[Any]
_CAST_LITERAL = re.compile(r"('(?:[^']|'')*')::[^']+")


def _generic_dialect(dialect: Dialect) -> Dialect:
    """Let a dialect leave generic types as they are."""
    dialect.type_descriptor = types.to_instance  # type: ignore[method-assign]
    return dialect


_postgresql = _generic_dialect(postgresql.dialect())  # type: ignore[no-untyped-call]
_sqlite = _generic_dialect(sqlite.dialect())
_alembic = PostgresqlImpl(_postgresql, None, False, None, None, {})


def render_item(kind: str, value: object, autogen: AutogenContext) -> str | Literal[False]:
    """Render a type for both databases; return False for what Alembic renders as it should be."""
    if kind == "column" and isinstance(value, Column) and isinstance(value.default, Sequence):
        return False if value.default.optional else _with_sequence(value, value.default, autogen)
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


def _with_sequence(column: Column[Any], sequence: Sequence, autogen: AutogenContext) -> str:
    """Render the sequence, without which PostgreSQL would number the rows by one of its own."""
    plain: Column[Any] = column._copy()
    plain.default = None
    schema = f", schema={sequence.schema!r}" if sequence.schema else ""
    text = _render_column(plain, autogen).removesuffix(")")
    return f"{text}, default=sa.Sequence({sequence.name!r}{schema}))"


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
    if isinstance(kind, (DATETIME, sqlite.DATETIME)):
        # SQLite reports every time as this; PostgreSQL has no type of that name.
        return DateTime(timezone=True)
    if isinstance(kind, postgresql.ENUM):
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
            is_type = base.__module__.startswith("sqlalchemy.") and issubclass(base, TypeEngine)
            if is_type and not issubclass(UserDefinedType, base):
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


# ---- PostgreSQL's sequences and enums are objects of their own, which outlive tables ----


_DATABASE = "op.get_bind().dialect.name"
_IF_POSTGRESQL = f'if {_DATABASE} == "postgresql":'


class LinesOp(ops.MigrateOperation):
    """Lines of a migration about what only PostgreSQL has."""

    def __init__(self, what: str, name: str, *lines: str) -> None:
        self.what, self.name, self.lines = what, name, list(lines)

    def to_diff_tuple(self) -> tuple[str, str]:
        """Return what `alembic check` says."""
        return self.what, self.name


@renderers.dispatch_for(LinesOp)
def _lines(autogen: AutogenContext, operation: LinesOp) -> list[str]:
    return operation.lines


def _on_postgresql(statement: ExecutableDDLElement) -> LinesOp:
    line = f"op.execute({str(statement.compile(dialect=_postgresql))!r})"
    # An empty line ends the block.
    return LinesOp("sequence", str(statement), _IF_POSTGRESQL, line, "")


def add_sequence_operations(
    known: Set[str], migration_context: MigrationContext, script: ops.MigrationScript
) -> None:
    """Create the models' sequences before the tables, but for those that migrations name."""
    for sequence in migration_context.opts["target_metadata"]._sequences.values():
        if sequence.name not in known and not sequence.optional:
            create = CreateSequence(sequence, if_not_exists=True)
            drop = DropSequence(sequence, if_exists=True)
            script.upgrade_ops_list[0].ops.insert(0, _on_postgresql(create))
            script.downgrade_ops_list[0].ops.append(_on_postgresql(drop))


def _create(kind: Enum) -> LinesOp:
    line = f"sa.{Enum.__repr__(kind)}.create(op.get_bind(), checkfirst=True)"
    return LinesOp("enum", str(kind.name), line)


def _drop(kind: Enum) -> LinesOp:
    schema = f", schema={kind.schema!r}" if kind.schema else ""
    name = str(kind.name)
    line = f"sa.Enum(name={name!r}{schema}).drop(op.get_bind(), checkfirst=True)"
    return LinesOp("enum", name, line)


def _add_values(kind: Enum, values: list[str]) -> LinesOp:
    parts = filter(None, [kind.schema, kind.name])
    name = ".".join(map(_postgresql.identifier_preparer.quote, parts))
    quoted = (value.replace("'", "''") for value in values)
    statements = [f"ALTER TYPE {name} ADD VALUE IF NOT EXISTS '{value}'" for value in quoted]
    return LinesOp(
        "enum",
        str(kind.name),
        _IF_POSTGRESQL,
        # Such a value can be used only after a COMMIT.
        "with op.get_context().autocommit_block():",
        *(f"op.execute({statement!r})" for statement in statements),
        # An empty line ends each block.
        "",
        "",
    )


def add_enum_operations(
    known: Mapping[str, Set[str]],
    migration_context: MigrationContext,
    scripts: list[ops.MigrationScript],
) -> None:
    """Create each enum before the first column that has it, and drop it after the last one.

    Add values that are new, compared with those that earlier migrations have: `known`.
    """
    models = migration_context.opts["target_metadata"]
    enums = {
        (table.name, column.name): _native_enum(column.type)
        for table in models.tables.values()
        for column in table.columns
    }
    for script in scripts:
        for operations in (*script.upgrade_ops_list, *script.downgrade_ops_list):
            _create_and_drop(operations, enums)
        for kind in ChainMap(*enums.values()).values():
            before = known.get(str(kind.name), set())
            if before and (new := [value for value in kind.enums if value not in before]):
                script.upgrade_ops_list[0].ops.insert(0, _add_values(kind, new))


def _create_and_drop(
    operations: ops.OpContainer, enums: Mapping[tuple[str, str], Mapping[str, Enum]]
) -> None:
    created: dict[str, Enum] = {}
    dropped: dict[str, Enum] = {}
    gone: set[tuple[str, str]] = set()
    for operation in _flat(operations):
        added: list[Any] = []
        removed: list[Column[Any]] = []
        match operation:
            case ops.CreateTableOp(columns=items):
                added = [item.type for item in items if isinstance(item, Column)]
            case ops.AddColumnOp(column=column):
                added = [column.type]
            case ops.AlterColumnOp(modify_type=TypeEngine() as kind):
                added = [kind]
            case ops.DropTableOp():
                removed = list(operation.to_table().columns)
            case ops.DropColumnOp():
                removed = [operation.to_column()]
        for kind in added:
            created |= _native_enum(kind)
        for column in removed:
            gone.add((operation.table_name, column.name))
            dropped |= _native_enum(column.type)
    kept = {name for column, names in enums.items() if column not in gone for name in names}
    operations.ops[:0] = map(_create, created.values())
    operations.ops += [
        _drop(kind) for name, kind in dropped.items() if name not in kept | created.keys()
    ]


def _flat(container: ops.OpContainer) -> Iterator[Any]:
    for operation in container.ops:
        if isinstance(operation, ops.OpContainer):
            yield from _flat(operation)
        else:
            yield operation


def _native_enum(kind: Type) -> dict[str, Enum]:
    """Return the enum that such a column has on PostgreSQL, if any, by its full name."""
    stored = stored_as(kind, _postgresql)
    if isinstance(stored, types.ARRAY):
        return _native_enum(stored.item_type)
    if not isinstance(stored, Enum) or not _is_native(stored):
        return {}
    name = f"{stored.schema}.{stored.name}" if stored.schema else str(stored.name)
    return {name: stored}


def _is_native(kind: Enum) -> bool:
    return kind.native_enum and kind.name is not None
