"""What a failback does in PostgreSQL; all of it in the one transaction of a connection."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    TableClause,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    table,
    text,
    tuple_,
)
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import Insert
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import NullType

from space_runtime.failback.schema import TableSchema

# Errors that are not about a row, but about the connection, a deadlock, the rights, the server's
# resources, an operator, or the disk. All others are: types raise whatever they like.
_NOT_ABOUT_A_ROW = ("08", "25", "40", "42501", "53", "55P03", "57", "58")

# What triggers raise is about the row, whatever its code; so is what row level security refuses,
# though its code is that of a missing right. The server's functions tell them apart.
_RAISE_FOR_A_ROW = ("exec_stmt_raise", "ExecWithCheckOptions")

_SECONDS_FOR_A_STATEMENT = 600.0

Result = TypeVar("Result")
Values = Mapping[str, Any]


class Refused(Exception):
    """The database refuses a row; `error` names the SQLSTATE and the constraint, if there are."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__(error)
        self.error = error


class RefusedAtTheEnd(Refused):
    """A constraint trigger of `tables` that is fired when all rows are there refuses one."""

    def __init__(self, error: str | None, trigger: str, tables: Sequence[str]) -> None:
        super().__init__(error)
        self.trigger, self.tables = trigger, tables


# Such a trigger may need rows that are inserted later, so it is fired when all are there.
_DEFERRED_TRIGGERS = text(
    "SELECT quote_ident(nspname) || '.' || quote_ident(conname), relname FROM pg_constraint"
    " JOIN pg_namespace ON pg_namespace.oid = connamespace"
    " JOIN pg_class ON pg_class.oid = conrelid WHERE contype = 't' AND condeferred"
    " AND conparentid = 0 AND pg_table_is_visible(conrelid)"
)


class _OverridingInsert(Insert):
    """An INSERT also of numbers that PostgreSQL otherwise insists on generating itself."""

    inherit_cache = True


@compiles(_OverridingInsert)
def _compile(statement: Insert, compiler: SQLCompiler, **options: Any) -> str:
    inserted: str = compiler.visit_insert(statement, **options)  # type: ignore[no-untyped-call]
    return inserted.replace(") VALUES (", ") OVERRIDING SYSTEM VALUE VALUES (", 1)


class Target:
    """The tables of PostgreSQL."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._clauses: dict[str, TableClause] = {}
        self._deferred: dict[str, list[str]] = {}
        """The tables of the deferred triggers; those of one name are fired together."""
        self._has_fresh_savepoint = False

    def prepare(self) -> None:
        """Let PostgreSQL take times as SQLite has them, and check constraints at each statement.

        Deferred triggers are left to check_deferred(), which fires each for all rows at once. So a
        statement may take long, but not for ever.
        """
        milliseconds = int(1000 * _SECONDS_FOR_A_STATEMENT)
        self.connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
        # Else a connection that is lost on this side alone would keep the lock for ever.
        idle = "idle_in_transaction_session_timeout"
        self.connection.exec_driver_sql(f"SET LOCAL {idle} = {milliseconds}")
        self.connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
        self.connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        found = self.connection.execute(_DEFERRED_TRIGGERS).all()
        for name, table_name in found:
            self._deferred.setdefault(name.replace("%", "%%"), []).append(table_name)
        if found:
            self.connection.exec_driver_sql(f"SET CONSTRAINTS {', '.join(self._deferred)} DEFERRED")
        self.connection.exec_driver_sql("SAVEPOINT move; SAVEPOINT attempt")

    def check_deferred(self, *triggers: str) -> None:
        """Fire these deferred triggers, or all; raise RefusedAtTheEnd."""
        for trigger in triggers or self._deferred:
            fire = partial(self.connection.exec_driver_sql, f"SET CONSTRAINTS {trigger} IMMEDIATE")
            try:
                self.attempt(fire)
            except Refused as refused:
                tables = self._deferred[trigger]
                raise RefusedAtTheEnd(refused.error, trigger, tables) from None

    def undo(self) -> None:
        """Undo all since prepare()."""
        self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT move")

    def insert(
        self, schema: TableSchema, rows: Sequence[Values], columns: Sequence[str] = ()
    ) -> list[tuple[Any, ...]]:
        """Insert rows in one statement, so that they may refer to each other.

        Return what these columns have now, in any order; a trigger may have changed them.
        """
        clause = self.clause(schema)
        # SQLAlchemy sends a single INSERT only if it returns something.
        told = [clause.c[name] for name in columns] or [literal_column("1", Integer)]
        insert = _OverridingInsert(clause).returning(*told)
        inserted = self.connection.execute(insert, list(rows)).all()
        if len(inserted) != len(rows):  # A trigger dropped some.
            raise Refused
        return [tuple(row) for row in inserted]

    def insert_together(self, rows: Sequence[tuple[TableSchema, Values]]) -> None:
        """Insert rows of several tables in one statement, at whose end references are checked."""
        from psycopg import ClientCursor

        inserts = [
            _OverridingInsert(self.clause(schema))
            .values([values for one, values in rows if one is schema])
            .returning(literal_column("1").label("one"))
            .cte()
            for schema in {schema.name: schema for schema, _ in rows}.values()
        ]
        counts = [select(func.count()).select_from(one).scalar_subquery() for one in inserts]
        driver_connection: Any = self.connection.connection.driver_connection
        cursor_factory = driver_connection.cursor_factory
        # The server takes 65,535 parameters for a statement, but one of any length without them.
        driver_connection.cursor_factory = ClientCursor
        try:
            inserted = self.connection.execute(select(*counts)).one()
        finally:
            driver_connection.cursor_factory = cursor_factory
        if sum(inserted) != len(rows):  # A trigger dropped some.
            raise Refused

    def keep(self) -> None:
        """Let what was written outside of attempts outlive those that follow."""
        self._has_fresh_savepoint = False

    def attempt(self, work: Callable[[], Result]) -> Result:
        """Do this, or nothing of it; raise Refused if an error is about the rows.

        SQLAlchemy's own savepoints stay open when they are rolled back, each within the one before;
        a few thousand refused rows would use up the server's memory for locks.
        """
        if not self._has_fresh_savepoint:
            self.connection.exec_driver_sql("RELEASE SAVEPOINT attempt; SAVEPOINT attempt")
        self._has_fresh_savepoint = False
        try:
            return work()
        except Refused as error:
            refused = error
        except StatementError as error:
            if not _is_about_rows(error):
                raise
            refused = Refused(_named(error))
        except (ValueError, TypeError, LookupError, ArithmeticError):
            # A type may refuse to write what SQLite had stored.
            refused = Refused()
        self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT attempt")
        self._has_fresh_savepoint = True
        raise refused

    def find(self, schema: TableSchema, values: Values) -> list[dict[str, Any]]:
        """Return the first two rows with these values; none if they cannot be compared."""
        try:
            return self.attempt(partial(self.select, schema, values))
        except Refused:
            return []

    def select(self, schema: TableSchema, values: Values) -> list[dict[str, Any]]:
        """Return the first two rows with these values, also within an attempt."""
        clause = self.clause(schema)
        # Only what is compared with `=` is found by an index.
        same = (
            clause.c[name] == _typed(schema, name, value)
            if name in schema.key
            else clause.c[name].is_not_distinct_from(_typed(schema, name, value))
            for name, value in values.items()
        )
        query = select(clause).where(*same).order_by(*(clause.c[name] for name in schema.key))
        return [dict(row) for row in self.connection.execute(query.limit(2)).mappings()]

    def with_keys(
        self, schema: TableSchema, keys: Sequence[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        """Return the rows that have these keys, by key."""
        clause = self.clause(schema)
        query = select(clause).where(tuple_(*(clause.c[name] for name in schema.key)).in_(keys))
        try:
            rows = self.attempt(lambda: self.connection.execute(query).mappings().all())
        except Refused:
            # One of them cannot be a key: ask for each.
            if len(keys) == 1:
                return {}
            parts = (self.with_keys(schema, [key]) for key in keys)
            return {key: row for part in parts for key, row in part.items()}
        return {tuple(row[name] for name in schema.key): dict(row) for row in rows}

    def clause(self, schema: TableSchema) -> TableClause:
        """Return the table as a statement takes it, with the types that write its values."""
        if schema.name not in self._clauses:
            columns = (column(name, one.type) for name, one in schema.conversions.items())
            self._clauses[schema.name] = table(schema.name, *columns)
        return self._clauses[schema.name]


def _typed(schema: TableSchema, name: str, value: Any) -> ColumnElement[Any]:
    """Return a value to compare a column with; text that stands for something else is converted."""
    kind = schema.conversions[name].type
    if isinstance(kind, NullType):
        return cast(literal(value), schema.columns[name].type)
    return literal(value, kind)


def _is_about_rows(error: StatementError) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    sqlstate = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated:
        return False
    if sqlstate is None:
        # The driver could not send a value, such as text with a NUL character.
        return type(error).__name__ in ("DataError", "ProgrammingError")
    raised_by = getattr(getattr(error.orig, "diag", None), "source_function", None)
    return raised_by in _RAISE_FOR_A_ROW or not str(sqlstate).startswith(_NOT_ABOUT_A_ROW)


def _named(error: StatementError) -> str | None:
    """Return the SQLSTATE and the constraint, as far as the server named them."""
    constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    return " ".join(filter(None, [getattr(error.orig, "sqlstate", None), constraint])) or None
