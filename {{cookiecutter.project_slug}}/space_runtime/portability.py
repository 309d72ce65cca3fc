"""What in a project's tables would not come through an outage, in sentences for its owner.

`find_obstacles` judges models alone; `find_differences` compares what migrations made of them on
both databases. Only tests use this module.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError, DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from space_runtime.backends import SQLITE
from space_runtime.columns import DIGITS_OF_A_NUMBER, ExactNumeric, LongNumeric, portable

_INSTEAD = {
    "ARRAY": 'PortableJSON, or ARRAY.with_variant(PortableJSON(), "sqlite")',
    "HSTORE": "PortableJSON",
    "INET": "String(43)",
    "CIDR": "String(43)",
    "MACADDR": "String(17)",
    "MONEY": "Numeric(15, 2)",
    "TIMESTAMP": "DateTime(timezone=True)",
    "DATETIME": "DateTime(timezone=True)",
}
# SQLAlchemy compiles these for PostgreSQL, too.
_NOT_POSTGRESQL = {
    "DATETIME",
    "DOUBLE",
    "BLOB",
    "BINARY",
    "VARBINARY",
    "CLOB",
    "NVARCHAR",
    "TINYINT",
}
_NOT_REFLECTED = {
    "sqlite": "SELECT tbl_name, 'trigger ' || name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": (
        "SELECT relname, 'trigger ' || tgname FROM pg_trigger"
        " JOIN pg_class ON pg_class.oid = tgrelid WHERE NOT tgisinternal"
        " UNION SELECT relname, 'constraint ' || conname FROM pg_constraint"
        " JOIN pg_class ON pg_class.oid = conrelid WHERE contype = 'x'"
    ),
}
_COLLATIONS = (None, "BINARY", "NOCASE", "RTRIM")
_COMPUTED = re.compile(r"\w\(|CURRENT_(DATE|TIME)", re.IGNORECASE)
_CURRENT_TIME = re.compile(r"CURRENT_(DATE|TIME)|\bnow\(", re.IGNORECASE)


def find_obstacles(metadata: sa.MetaData) -> list[str]:
    """Return a sentence for each column, default or constraint that only one database can have.

    Each names it and says what to write instead. No file or server is opened.
    """
    engine = SQLITE.create_engine(sa.make_url("sqlite://"), {}, 1)
    with engine.connect() as connection:
        found = [
            sentence
            for table in metadata.sorted_tables
            for sentence in _obstacles_in_table(table, connection)
        ]
    engine.dispose()
    return found


def find_differences(metadata: sa.MetaData, sqlite: sa.Engine, postgresql: sa.Engine) -> list[str]:
    """Return a sentence for each rule about the models' tables that only one database has.

    Rules are defaults, NOT NULL, constraints and triggers; both databases must be migrated. What
    a default computes is not compared, nor what a trigger does, ON UPDATE, NULLS NOT DISTINCT, the
    condition of an index, and whether a constraint is deferrable.
    """
    with sqlite.connect() as ours, postgresql.connect() as theirs:
        here, there = _rules(metadata, ours), _rules(metadata, theirs)
        conditions = list(_differing_checks(metadata, ours, theirs))
    # PostgreSQL's own types, such as enums, check what a CHECK constraint checks on SQLite.
    implied = {
        (table.name, f"CHECK constraint {check.name}")
        for table in metadata.tables.values()
        for check in _checks(table)
        if check._type_bound
    }
    return [
        f"{table}: only {name} has the {rule}"
        for name, rules, others in (("SQLite", here, there), ("PostgreSQL", there, here))
        for table, rule in sorted(rules - others - implied)
    ] + conditions


def _obstacles_in_table(table: sa.Table, connection: sa.Connection) -> Iterator[str]:
    if table.schema is not None:
        yield f"{table}: SQLite has no schemas. Leave schema={table.schema!r} out."
        return
    found = [
        f"{table.name}.{column.name}: {problem}. Write {instead}."
        for column in table.columns
        for problem, instead in _obstacles_in_column(column, connection)
    ]
    found += [sentence for check in _checks(table) for sentence in _in_check(check, connection)]
    if not found:
        found += _on_creation(table, connection)
    yield from found


def _obstacles_in_column(
    column: sa.Column[object], connection: sa.Connection
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a column, and what to write instead."""
    yield from _in_type(column, connection.dialect)
    is_key = column is column.table.autoincrement_column
    if not is_key and (column.identity is not None or isinstance(column.default, sa.Sequence)):
        yield "SQLite numbers nothing but keys", "a default of your own, such as default=uuid4"
    if is_key and len(column.table.primary_key) > 1:
        yield (
            "SQLite cannot number a part of a key",
            "a key of one column, and a UniqueConstraint for the others",
        )
    if is_key and not column.table.dialect_options["sqlite"]["with_rowid"]:
        yield "SQLite cannot number keys without a rowid", "no sqlite_with_rowid=False"
    yield from _in_default(column, connection)


def _in_type(column: sa.Column[object], sqlite: sa.Dialect) -> Iterator[tuple[str, str]]:
    kind, name = column.type, type(column.type).__name__
    here = _compiled(column, sqlite)
    there = _compiled(column, postgresql.dialect())  # type: ignore[no-untyped-call]
    if here is None:
        yield f"SQLite has no {name}", _instead(kind)
        return
    if there is None or there.split("(")[0] in _NOT_POSTGRESQL:
        yield f"PostgreSQL has no {name}", _instead(kind)
        return
    if portable(kind) is not kind:
        yield "it is not of Base.metadata, so its values may be rounded", f"{portable(kind)!r}"
    elif getattr(kind, "timezone", False) and not isinstance(kind, TypeDecorator | sa.Time):
        # has a precision, which SQLite does not know
        yield f"SQLite keeps no zone for this {name}", "DateTime(timezone=True)"
    if type(kind) is ExactNumeric and (kind.precision or 0) > DIGITS_OF_A_NUMBER:
        yield (
            f"SQLite keeps {DIGITS_OF_A_NUMBER} digits of it, and refuses to store more",
            f"LongNumeric({kind.precision}, {kind.scale or 0}) if more are needed,"
            f" else a precision of at most {DIGITS_OF_A_NUMBER}",
        )
    if isinstance(kind, sa.Time) and kind.timezone:
        yield "SQLite cannot store the zone of a time of day", "Time, or DateTime(timezone=True)"
    if isinstance(kind, sa.Float) and (there == "REAL" or 0 < (kind.precision or 0) < 25):
        yield "PostgreSQL keeps 7 digits of it, and SQLite 15", "Double"
    # SQLite stores text that looks like a number as one, unless a column is declared as text.
    is_text = any(word in here.upper() for word in ("CHAR", "CLOB", "TEXT", "BLOB"))
    if _python_type(kind) in (str, UUID) and not is_text:
        yield f"SQLite may take text in a column of type {here} for a number", _instead(kind)
    if (collation := getattr(kind, "collation", None)) not in _COLLATIONS:
        variant = f'{name}(collation={collation!r}).with_variant({name}(), "sqlite")'
        yield f"SQLite does not know the collation {collation!r}", variant


def _instead(kind: TypeEngine[Any]) -> str:
    name = type(kind).__name__
    if name in _INSTEAD:
        return _INSTEAD[name]
    with suppress(NotImplementedError, TypeError):
        if not isinstance(kind, TypeDecorator):
            return repr(kind.as_generic()).removesuffix("()")
    return f'{name}.with_variant(..., "sqlite")'


def _in_default(column: sa.Column[object], connection: sa.Connection) -> Iterator[tuple[str, str]]:
    default = _ddl_compiler(connection.dialect).get_column_default_string(column)
    if default is None:
        return
    try:
        connection.exec_driver_sql(f"SELECT ({default})")
    except DBAPIError as error:
        connection.rollback()
        yield (
            f"SQLite cannot compute its server_default ({error.orig})",
            "default=, which Python computes",
        )
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    if _CURRENT_TIME.search(default) and not getattr(kind, "timezone", False):
        yield (
            "its server_default is the server's local time on PostgreSQL, and UTC on SQLite",
            "DateTime(timezone=True), or default=, which Python computes",
        )


def _checks(table: sa.Table) -> list[sa.CheckConstraint]:
    checks = [one for one in table.constraints if isinstance(one, sa.CheckConstraint)]
    return sorted(checks, key=lambda check: str(check.name))


def _in_check(check: sa.CheckConstraint, connection: sa.Connection) -> Iterator[str]:
    """Try a constraint on a table of its own, since an error does not name it."""
    table: sa.Table = check.table
    compiler = _ddl_compiler(connection.dialect).sql_compiler
    quote = connection.dialect.identifier_preparer.quote
    columns = ", ".join(quote(column.name) for column in table.columns)
    where = f"{table.name}: the CHECK constraint {check.name}"
    try:
        condition = compiler.process(check.sqltext, include_table=False, literal_binds=True)
        connection.exec_driver_sql(f"CREATE TEMP TABLE probe ({columns}, CHECK ({condition}))")
        connection.exec_driver_sql("DROP TABLE probe")
    except (CompileError, DBAPIError) as error:
        connection.rollback()
        reason = getattr(error, "orig", error)
        yield f"{where} does not work on SQLite ({reason}). Write what both databases know."
        return
    for column in table.columns:
        if isinstance(column.type, LongNumeric) and re.search(rf"\b{column.name}\b", condition):
            yield f"{where} compares {column.name}, which is text on SQLite. Check it in Python."


def _on_creation(table: sa.Table, connection: sa.Connection) -> Iterator[str]:
    try:
        connection.execute(CreateTable(table))
        for index in table.indexes:
            connection.execute(CreateIndex(index))
    except (CompileError, DBAPIError) as error:
        connection.rollback()
        reason = getattr(error, "orig", error)
        yield (
            f"{table.name}: SQLite refuses the table or an index of it ({reason})."
            " Write what both databases know."
        )


def _compiled(column: sa.Column[object], dialect: sa.Dialect) -> str | None:
    """Return the SQL of a column's type, or None if this database has no such type."""
    try:
        return str(dialect.type_compiler_instance.process(column.type, type_expression=column))
    except CompileError:
        return None


def _ddl_compiler(dialect: sa.Dialect) -> DDLCompiler:
    return dialect.ddl_compiler(dialect, None)  # type: ignore[arg-type]  # no statement yet


def _python_type(kind: TypeEngine[Any]) -> type[object] | None:
    try:
        return kind.python_type
    except NotImplementedError:
        return None


def _rules(metadata: sa.MetaData, connection: sa.Connection) -> set[tuple[str, str]]:
    """Return table and rule for all rules of the models' tables, in the same words for both."""
    inspector = sa.inspect(connection)
    others = connection.exec_driver_sql(_NOT_REFLECTED[connection.dialect.name])
    rules = {(table, rule) for table, rule in others if table in metadata.tables}
    for name in set(inspector.get_table_names()) & set(metadata.tables):
        found = (
            *_rules_of_columns(inspector, metadata.tables[name], connection),
            *_rules_of_constraints(inspector, name),
        )
        rules |= {(name, rule) for rule in ("table", *found)}
    return rules


def _rules_of_columns(
    inspector: sa.Inspector, table: sa.Table, connection: sa.Connection
) -> Iterator[str]:
    for column in inspector.get_columns(table.name):
        name, default = column["name"], column["default"]
        yield f"column {name}"
        if not column["nullable"]:
            yield f"NOT NULL of {name}"
        if column.get("computed"):
            yield f"GENERATED of {name}"
        elif default is not None and not default.startswith("nextval("):
            is_computed = name not in table.columns or _COMPUTED.search(default)
            value = "" if is_computed else f" {_stored(default, table.columns[name], connection)!r}"
            yield f"default{value} of {name}"


def _stored(default: str, column: sa.Column[Any], connection: sa.Connection) -> object:
    """Return what the application reads from a row that got the default."""
    nothing = sa.select(sa.table(column.table.name, sa.column(column.name))).where(sa.text("1 = 0"))
    connection.exec_driver_sql(f"CREATE TEMP TABLE probe AS {nothing.compile(connection)}")
    probe = sa.table("probe", sa.column(column.name, column.type))
    connection.execute(probe.insert().values({column.name: sa.literal_column(default)}))
    value = connection.scalar(sa.select(probe.c[column.name]))
    connection.exec_driver_sql("DROP TABLE probe")
    return value


def _differing_checks(
    metadata: sa.MetaData, ours: sa.Connection, theirs: sa.Connection
) -> Iterator[str]:
    """Compare conditions as PostgreSQL understands them; leave out those that only SQLite knows."""
    here, there = sa.inspect(ours), sa.inspect(theirs)
    for table in sorted(set(here.get_table_names()) & metadata.tables.keys()):
        if not there.has_table(table):
            continue
        conditions = {one["name"]: one["sqltext"] for one in there.get_check_constraints(table)}
        for check in here.get_check_constraints(table):
            name, condition = check["name"], conditions.get(check["name"])
            understood = condition and _understood(check["sqltext"], table, theirs)
            if understood and understood != condition:
                where = f"{table}: the CHECK constraint {name} is"
                yield f"{where} {understood} on SQLite, and {condition} on PostgreSQL"


def _understood(condition: str, table: str, postgresql: sa.Connection) -> str | None:
    """Return how PostgreSQL writes a condition, or None if it does not understand it."""
    like = f"LIKE {postgresql.dialect.identifier_preparer.quote(table)}"
    statement = f"CREATE TEMP TABLE probe ({like}, CHECK ({condition}))".replace("%", "%%")
    with suppress(DBAPIError), postgresql.begin_nested():
        postgresql.exec_driver_sql(statement)
        (check,) = sa.inspect(postgresql).get_check_constraints("probe")
        postgresql.exec_driver_sql("DROP TABLE probe")
        return check["sqltext"]
    return None


def _rules_of_constraints(inspector: sa.Inspector, table: str) -> Iterator[str]:
    for unique in inspector.get_unique_constraints(table):
        yield f"UNIQUE constraint on {', '.join(unique['column_names'])}"
    for index in inspector.get_indexes(table):
        if index["unique"]:
            columns = ", ".join(name or "an expression" for name in index["column_names"])
            partial = any(option.endswith("_where") for option in index.get("dialect_options", {}))
            yield f"UNIQUE constraint on {columns}" + (" with a condition" if partial else "")
    for key in inspector.get_foreign_keys(table):
        columns, options = ", ".join(key["constrained_columns"]), key.get("options", {})
        deletes = options.get("ondelete") or "NO ACTION"
        yield f"FOREIGN KEY ({columns}) to {key['referred_table']}, ON DELETE {deletes}"
    for check in inspector.get_check_constraints(table):
        yield f"CHECK constraint {check['name']}"
