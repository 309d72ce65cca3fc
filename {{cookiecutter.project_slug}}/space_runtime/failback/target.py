"""What a failback does in PostgreSQL; all of it in the one transaction of a connection."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Integer,
    TableClause,
    any_,
    cast,
    column,
    literal,
    literal_column,
    select,
    table,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import Insert
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import NullType

from space_runtime.failback.schema import TableSchema

LONGEST_GAP_COUNTED = 100_000

# Errors that are not about a row, but about the connection, a deadlock, the rights, the server's
# resources, an operator, or the disk. All others are: types raise whatever they like.
_NOT_ABOUT_A_ROW = ("08", "25", "40", "42501", "53", "55P03", "57", "58")

# What triggers raise is about the row, whatever its code; so is what row level security refuses,
# though its code is that of a missing right. The server's functions tell them apart.
_RAISE_FOR_A_ROW = ("exec_stmt_raise", "ExecWithCheckOptions")

Result = TypeVar("Result")
Values = Mapping[str, Any]


class Refused(Exception):
    """The database refuses a row; `error` names the SQLSTATE and the constraint, if there are."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__(error)
        self.error = error


class _OverridingInsert(Insert):
    """An INSERT of numbers that PostgreSQL would otherwise generate itself."""

    inherit_cache = True


@compiles(_OverridingInsert)
def _compile(statement: Insert, compiler: SQLCompiler, **options: Any) -> str:
    inserted: str = compiler.visit_insert(statement, **options)  # type: ignore[no-untyped-call]
    return inserted.replace(") VALUES (", ") OVERRIDING SYSTEM VALUE VALUES (", 1)


class Target:
    """The tables of PostgreSQL."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._clauses: dict[str, TableClause] = {}
        self._to_begin: str | None = None
        """The statement with which an attempt begins; None outside of a block of attempts."""

    def prepare(self) -> None:
        """Let PostgreSQL take times as SQLite has them, and check constraints at each statement."""
        self._connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))
        self._connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))

    def insert(
        self, schema: TableSchema, rows: Sequence[Values], columns: Sequence[str] = ()
    ) -> list[tuple[Any, ...]]:
        """Insert rows in one statement, so that they may refer to each other.

        Return what these columns have now, in any order; a trigger may have changed them.
        """
        clause = self._clause(schema)
        insert = _OverridingInsert(clause) if schema.always_generated else clause.insert()
        # SQLAlchemy sends a single INSERT only if it returns something.
        told = [clause.c[name] for name in columns] or [literal_column("1", Integer)]
        inserted = self._connection.execute(insert.returning(*told), list(rows)).all()
        if len(inserted) != len(rows):  # A trigger dropped some.
            raise Refused
        return [tuple(row) for row in inserted]

    def update(self, schema: TableSchema, row: Values, names: Sequence[str]) -> None:
        """Set these columns of the row that has this key."""
        clause = self._clause(schema)
        same_key = (clause.c[name] == row[name] for name in schema.key)
        values = {name: row[name] for name in names}
        self._connection.execute(update(clause).where(*same_key).values(values))

    @contextmanager
    def attempts(self) -> Iterator[None]:
        """Save a round trip or two for each attempt() in this block; it may do nothing else."""
        self._connection.exec_driver_sql("SAVEPOINT attempt")
        self._to_begin = ""
        try:
            yield
        finally:
            self._to_begin = None
        self._connection.exec_driver_sql("RELEASE SAVEPOINT attempt")

    def attempt(self, work: Callable[[], Result]) -> Result:
        """Do this, or nothing of it; raise Refused if an error is about the rows."""
        if self._to_begin is not None:
            outcome = self._attempted(work)
        else:
            with self.attempts():
                outcome = self._attempted(work)
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    def _attempted(self, work: Callable[[], Result]) -> Result | Refused:
        if self._to_begin:
            self._connection.exec_driver_sql(self._to_begin)
        try:
            result = work()
        except Refused as error:
            refused = error
        except StatementError as error:
            if not _is_about_rows(error):
                raise
            refused = Refused(_named(error))
        except (ValueError, TypeError, LookupError, ArithmeticError):
            # A type may refuse to write what SQLite had stored.
            refused = Refused()
        else:
            self._to_begin = "RELEASE SAVEPOINT attempt; SAVEPOINT attempt"
            return result
        # SQLAlchemy's own savepoints stay open when they are rolled back, each within the one
        # before; a few thousand refused rows would use up the server's memory for locks.
        self._connection.exec_driver_sql("ROLLBACK TO SAVEPOINT attempt")
        self._to_begin = ""
        return refused

    def attempt_deferred(self, work: Callable[[], None]) -> None:
        """Like attempt(), with deferrable constraints checked at the end of the work."""

        def deferred() -> None:
            self._connection.execute(text("SET CONSTRAINTS ALL DEFERRED"))
            work()
            self._connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))

        self.attempt(deferred)

    def find(self, schema: TableSchema, values: Values) -> Mapping[str, Any] | None:
        """Return a row with these values; None if there is none, or they cannot be compared."""
        clause = self._clause(schema)
        same = (
            clause.c[name].is_not_distinct_from(_typed(schema, name, value))
            for name, value in values.items()
        )
        query = select(clause).where(*same).order_by(*(clause.c[name] for name in schema.key))
        try:
            row = self.attempt(lambda: self._connection.execute(query.limit(1)).mappings().first())
        except Refused:
            return None
        return None if row is None else dict(row)

    def counterpart(
        self, schema: TableSchema, values: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return PostgreSQL's row with the same unique key, or else with the same values."""
        for columns in (*schema.unique, *([] if schema.sequence else [schema.key])):
            key = {name: values.get(name) for name in columns}
            if key and None not in key.values() and (there := self.find(schema, key)):
                return there
        comparable = {
            name: value
            for name, value in values.items()
            if name not in schema.key and schema.columns[name].is_comparable
        }
        # When a row was inserted differs, even if all else is the same.
        timeless = {
            name: value
            for name, value in comparable.items()
            if not isinstance(schema.columns[name].kind, DateTime)
        }
        for alike in (comparable, timeless):
            if alike and (there := self.find(schema, alike)):
                return there
        return None

    def with_keys(
        self, schema: TableSchema, keys: Sequence[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        """Return the rows that have these keys, by key."""
        clause = self._clause(schema)
        query = select(clause).where(tuple_(*(clause.c[name] for name in schema.key)).in_(keys))
        try:
            rows = self.attempt(lambda: self._connection.execute(query).mappings().all())
        except Refused:
            # One of them cannot be a key: ask for each.
            if len(keys) == 1:
                return {}
            parts = (self.with_keys(schema, [key]) for key in keys)
            return {key: row for part in parts for key, row in part.items()}
        return {tuple(row[name] for name in schema.key): dict(row) for row in rows}

    def taken(self, schema: TableSchema, numbers: Sequence[int]) -> set[int]:
        """Return which of these numbers are keys of rows."""
        key = self._clause(schema).c[schema.key[0]]
        # An array, because reading hundreds of parameters takes longer than finding the rows.
        array = literal(list(numbers), ARRAY(BigInteger))
        return set(self._connection.scalars(select(key).where(key == any_(array))))

    def next_numbers(self, schema: TableSchema, count: int) -> list[int]:
        """Return the next free numbers of the sequence; fewer if it ends, or this role may not.

        The sequence may be behind, because rows were inserted with numbers of their own.
        """
        if not self.may_number(schema):
            return []
        numbers: list[int] = []
        seen: set[int] = set()
        while len(numbers) < count:
            try:
                following = self.attempt(partial(self._following, schema, count - len(numbers)))
            except Refused:
                break
            # One that cycles never ends.
            new = [number for number in dict.fromkeys(following) if number not in seen]
            if not new:
                break
            seen.update(new)
            taken = self.taken(schema, new)
            numbers += [number for number in new if number not in taken]
        return numbers

    def last_number(self, schema: TableSchema) -> int:
        """Return the highest number that the sequence can give."""
        return self._of_sequence(schema, "seqmax")

    def advance(self, schema: TableSchema, highest: int, limit: int) -> bool:
        """Let the sequence continue after `highest`; return False if that cannot be done.

        It cannot be done if this role has no right to it, or the sequence has reached `limit`.
        """
        if not self.may_number(schema):
            return False
        query = text("SELECT pg_sequence_last_value(CAST(:sequence AS regclass))")
        last = self._connection.scalar(query, {"sequence": schema.sequence})
        if last is None or last < highest:
            (last,) = self._following(schema, 1)
        if highest - last > LONGEST_GAP_COUNTED and self._may(schema, "UPDATE"):
            # setval could also go back, but nobody can have taken so many numbers meanwhile.
            query = text("SELECT setval(CAST(:sequence AS regclass), :number)")
            last = self._connection.scalar(query, {"sequence": schema.sequence, "number": highest})
        elif highest > last:
            step = abs(self._of_sequence(schema, "seqincrement"))
            count = min(-(-(highest - last) // step), LONGEST_GAP_COUNTED)
            try:
                last = self.attempt(partial(self._following, schema, count))[-1]
            except Refused:
                return False
        return bool(highest <= last < limit)

    def may_number(self, schema: TableSchema) -> bool:
        """Return whether this role may take numbers from the sequence."""
        return self._may(schema, "USAGE, UPDATE")

    def _may(self, schema: TableSchema, rights: str) -> bool:
        """Return whether this role has one of these rights to the sequence."""
        query = text("SELECT has_sequence_privilege(CAST(:sequence AS regclass), :rights)")
        parameters = {"sequence": schema.sequence, "rights": rights}
        return bool(self._connection.scalar(query, parameters))

    def _of_sequence(self, schema: TableSchema, what: str) -> int:
        same = text("seqrelid = CAST(:sequence AS regclass)").bindparams(sequence=schema.sequence)
        query = select(column(what, Integer)).select_from(table("pg_sequence")).where(same)
        return int(self._connection.execute(query).scalar_one())

    def _following(self, schema: TableSchema, count: int) -> list[int]:
        query = text("SELECT nextval(CAST(:sequence AS regclass)) FROM generate_series(1, :count)")
        parameters = {"sequence": schema.sequence, "count": count}
        return list(self._connection.scalars(query, parameters))

    def _clause(self, schema: TableSchema) -> TableClause:
        if schema.name not in self._clauses:
            columns = (column(one.name, one.conversion.type) for one in schema.columns.values())
            self._clauses[schema.name] = table(schema.name, *columns)
        return self._clauses[schema.name]


def _typed(schema: TableSchema, name: str, value: Any) -> ColumnElement[Any]:
    """Return a value to compare a column with; text that stands for something else is converted."""
    column = schema.columns[name]
    if isinstance(column.conversion.type, NullType):
        return cast(literal(value), column.kind)
    return literal(value, column.conversion.type)


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
