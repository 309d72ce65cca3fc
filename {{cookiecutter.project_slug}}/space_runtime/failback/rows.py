"""Moves the rows of an SQLite file to PostgreSQL, in one transaction, parents before children.

Tables and columns are read from the two databases, so a table that the project adds needs no code
here. A row that PostgreSQL refuses stays behind, and so do the rows that refer to it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnClause,
    Connection,
    DateTime,
    Engine,
    Integer,
    MetaData,
    Table,
    TableClause,
    Text,
    Uuid,
    column,
    func,
    inspect,
    literal,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from space_runtime.backends import backend_of
from space_runtime.backends.errors import OutcomeUnknown
from space_runtime.files.contents import data_tables
from space_runtime.migrations import current_revision

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 500
BYTES_AT_ONCE = 4 * 2**20
SECONDS_BETWEEN_REPORTS = 2.0
MOST_ROWS_NAMED = 100

_row_id: ColumnClause[int] = literal_column("_rowid_", Integer)
# SQLSTATEs: data errors, integrity errors, WITH CHECK OPTION, RAISE in a trigger, GENERATED ALWAYS.
_REFUSALS = ("22", "23", "44", "P0", "428C9")

# Created without a migration, because `alembic downgrade` must not drop the record of moves.
_metadata = MetaData()
failbacks = Table(
    "space_runtime_failbacks",
    _metadata,
    Column("id", Uuid, primary_key=True),
    Column("moved_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("moved_rows", BigInteger, nullable=False),
)
refused_rows = Table(
    "space_runtime_refused_rows",
    _metadata,
    Column("file_id", Uuid, primary_key=True),
    Column("table_name", Text, primary_key=True),
    Column("row_id", BigInteger, primary_key=True, autoincrement=False),
)
OWN_TABLES = frozenset(_metadata.tables)


class SchemasDiffer(Exception):
    """The SQLite file and PostgreSQL have different revisions, so rows cannot be moved."""


class AlreadyMoved(Exception):
    """PostgreSQL has a record of this file's id."""


class Outcome(NamedTuple):
    """How many rows were moved, and how many PostgreSQL refused."""

    moved: int = 0
    refused: int = 0


class _Row(NamedTuple):
    """A row and its _rowid_, which stays the same because the file is not written again."""

    table_name: str
    row_id: int


def is_moved(target: Engine, file_id: UUID) -> bool:
    """Return whether the rows of the file with this id are in PostgreSQL."""
    with target.connect() as connection:
        known = inspect(connection).has_table(failbacks.name)
        return known and _is_recorded(connection, file_id)


def count_refused(target: Engine, file_ids: Sequence[UUID]) -> int:
    """Return how many rows of these files PostgreSQL has refused."""
    with target.connect() as connection:
        if not file_ids or not inspect(connection).has_table(refused_rows.name):
            return 0
        of_these = refused_rows.c.file_id.in_(file_ids)
        return connection.scalar(select(func.count()).where(of_these)) or 0


def move_rows(
    source: Engine, target: Engine, file_id: UUID, models: MetaData, on_progress: Callable[[], None]
) -> Outcome:
    """Move every row and record the id, in one transaction of `target`; return what became of them.

    `models` has more exact column types than can be read from the databases. `on_progress` is
    called before each batch. Raise AlreadyMoved, SchemasDiffer, or OutcomeUnknown if the connection
    is lost during COMMIT; after any error but that, nothing was moved by this call.
    """
    with _transaction(source, target) as (rows, connection):
        _metadata.create_all(connection)
        if _is_recorded(connection, file_id):
            raise AlreadyMoved
        move = _Move(rows, connection, models, on_progress)
        refused = copy_tables(move)
        record(connection, file_id, move.moved, refused)
    return Outcome(move.moved, len(refused))


def record_empty(target: Engine, file_id: UUID) -> None:
    """Record that a file without rows was moved, so that no snapshot of it is restored."""
    with backend_of(target).lock_migrations(target) as connection, connection.begin():
        _metadata.create_all(connection)
        if not _is_recorded(connection, file_id):
            record(connection, file_id, 0, [])


def retry_refused(source: Engine, target: Engine, file_id: UUID, models: MetaData) -> Outcome:
    """Try once more to move the rows of this file that were refused; return what became of them.

    Raise SchemasDiffer, or OutcomeUnknown if the connection is lost during COMMIT.
    """
    with _transaction(source, target) as (rows, connection):
        _metadata.create_all(connection)
        of_file = refused_rows.c.file_id == file_id
        known = select(refused_rows.c.table_name, refused_rows.c.row_id).where(of_file)
        move = _Move(rows, connection, models, lambda: None)
        refused = move.retry([_Row(*row) for row in connection.execute(known)])
        connection.execute(refused_rows.delete().where(of_file))
        _record_refused(connection, file_id, refused)
    return Outcome(move.moved, len(refused))


def copy_tables(move: "_Move") -> list[_Row]:
    """Copy all tables, then retry rows whose parents may have come later; return the rest."""
    refused = move.retry([row for name in move.tables for row in move.copy(name)])
    logger.info("moved %d rows to PostgreSQL, which refused %d", move.moved, len(refused))
    return refused


def record(target: Connection, file_id: UUID, moved: int, refused: list[_Row]) -> None:
    """Record that the rows of this file were moved, in the transaction that moves them."""
    target.execute(failbacks.insert().values(id=file_id, moved_rows=moved))
    _record_refused(target, file_id, refused)


class _Move:
    """Copies rows; both connections are in a transaction."""

    def __init__(
        self,
        source: Connection,
        target: Connection,
        models: MetaData,
        on_progress: Callable[[], None],
    ) -> None:
        """Raise SchemasDiffer unless both are at the same revision."""
        if current_revision(source) != current_revision(target):
            raise SchemasDiffer
        self.moved = 0
        self._source, self._target = source, target
        self._models, self._on_progress = models, on_progress
        self._reported = time.monotonic()
        present = data_tables(source)
        ordered = (name for name, _ in inspect(target).get_sorted_table_and_fkc_names())
        self._shapes = {name: self._shape(name) for name in ordered if name in present}
        # Rows of a table that PostgreSQL does not have are refused.
        self.tables = [*self._shapes, *sorted(set(present) - set(self._shapes))]

    def copy(self, name: str) -> list[_Row]:
        """Copy one table in the order of its row ids; return the refused rows."""
        refused: list[_Row] = []
        page = select(_row_id).select_from(table(name)).order_by(_row_id).limit(ROWS_AT_ONCE)
        ids = self._source.scalars(page).all()
        while ids:
            refused += self._copy_rows(name, ids)
            if time.monotonic() > self._reported + SECONDS_BETWEEN_REPORTS:
                self._reported = time.monotonic()
                logger.info("moving rows to PostgreSQL: %d so far", self.moved)
            ids = self._source.scalars(page.where(_row_id > ids[-1])).all()
        return refused

    def retry(self, refused: list[_Row]) -> list[_Row]:
        """Retry refused rows until no more of them can be moved; log and return the rest."""
        before = 0
        while len(refused) != before:
            before = len(refused)
            refused = [row for name, row_id in refused for row in self._copy_rows(name, [row_id])]
        self._advance_sequences()
        self._log(refused)
        return refused

    def _advance_sequences(self) -> None:
        """Make PostgreSQL's sequences continue after the highest numbers that were moved."""
        for name, shape in self._shapes.items():
            quoted = self._target.dialect.identifier_preparer.quote(name)
            for info in inspect(self._target).get_columns(name):
                if not info.get("autoincrement") or info["name"] not in shape.c:
                    continue
                find = select(func.pg_get_serial_sequence(quoted, info["name"]))
                if sequence := self._target.scalar(find):
                    highest = select(func.max(shape.c[info["name"]])).scalar_subquery()
                    advanced = func.greatest(highest, literal_column("last_value"))
                    query = select(func.setval(sequence, advanced)).select_from(text(sequence))
                    self._target.execute(query)

    def _log(self, refused: list[_Row]) -> None:
        """Log the table and key of refused rows; their other values may be private."""
        for row in refused[:MOST_ROWS_NAMED]:
            keys = inspect(self._source).get_pk_constraint(row.table_name)["constrained_columns"]
            columns: list[ColumnClause[Any]] = [column(key) for key in keys or ["_rowid_"]]
            query = select(*columns).select_from(table(row.table_name))
            values = self._source.execute(query.where(_row_id == row.row_id)).one()
            key = ", ".join(map(str, values))
            logger.warning("PostgreSQL refused a row: table %s, key %s", row.table_name, key)
        if len(refused) > MOST_ROWS_NAMED:
            logger.warning("PostgreSQL refused %d more rows", len(refused) - MOST_ROWS_NAMED)

    def _shape(self, name: str) -> TableClause:
        """Return the columns that both databases have, typed as in the model if there is one."""
        here = {info["name"] for info in inspect(self._source).get_columns(name)}
        model = self._models.tables.get(name)
        types = {} if model is None else {one.name: one.type for one in model.columns}
        columns: list[ColumnClause[Any]] = [
            column(info["name"], _as_stored(types.get(info["name"], info["type"])))
            for info in inspect(self._target).get_columns(name)
            if info["name"] in here and not info.get("computed")
        ]
        return table(name, *columns)

    def _copy_rows(self, name: str, ids: Sequence[int]) -> list[_Row]:
        """Copy consecutive rows, in halves if too large or refused; return the refused rows."""
        shape, first, last = self._shapes.get(name), ids[0], ids[-1]
        if shape is not None:
            fits = len(ids) == 1 or self._size(shape, first, last) <= BYTES_AT_ONCE
            if fits and self._is_copied(shape, first, last):
                self.moved += len(ids)
                return []
        if len(ids) == 1:
            return [_Row(name, first)]
        middle = len(ids) // 2
        return self._copy_rows(name, ids[:middle]) + self._copy_rows(name, ids[middle:])

    def _size(self, shape: TableClause, first: int, last: int) -> int:
        """Return the total length of the values in these rows, in characters or bytes."""
        lengths = (func.coalesce(func.length(value), 0) for value in shape.c)
        total = select(func.sum(sum(lengths, start=literal(0)))).select_from(shape)
        return self._source.scalar(total.where(_row_id.between(first, last))) or 0

    def _is_copied(self, shape: TableClause, first: int, last: int) -> bool:
        self._on_progress()
        try:
            rows = self._source.execute(select(shape).where(_row_id.between(first, last)))
            values = [dict(row) for row in rows.mappings()]
            with self._target.begin_nested():
                # With RETURNING, SQLAlchemy sends one INSERT, whose rows may refer to each other.
                self._target.execute(shape.insert().returning(literal_column("1")), values)
        except (ValueError, TypeError, LookupError, ArithmeticError):
            # SQLite stores any value in any column, even if the column's type cannot read it.
            return False
        except StatementError as error:
            if _is_about_the_rows(error):
                return False
            raise
        return True


@contextmanager
def _transaction(source: Engine, target: Engine) -> Iterator[tuple[Connection, Connection]]:
    """Yield both connections and hold the migrations' lock; commit the target's at the end."""
    is_committing = False
    try:
        with (
            source.connect() as rows,
            backend_of(target).lock_migrations(target) as connection,
            connection.begin(),
        ):
            # SQLite stores times without an offset; they are in UTC.
            connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))
            connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
            yield rows, connection
            is_committing = True
    except BaseException as error:
        # The server may carry out a COMMIT that was sent, even after Ctrl-C.
        was_refused = isinstance(error, DBAPIError) and not error.connection_invalidated
        if is_committing and not was_refused:
            raise OutcomeUnknown("It is unknown whether the rows were moved.") from error
        raise


def _is_recorded(target: Connection, file_id: UUID) -> bool:
    query = select(failbacks.c.id).where(failbacks.c.id == file_id)
    return target.scalar(query) is not None


def _record_refused(target: Connection, file_id: UUID, refused: list[_Row]) -> None:
    if refused:
        values = [{"file_id": file_id, **row._asdict()} for row in refused]
        target.execute(refused_rows.insert(), values)


def _as_stored(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type, or NullType for JSON: only the raw text tells NULL from a JSON null."""
    inner = kind.impl_instance if isinstance(kind, TypeDecorator) else kind
    return NullType() if isinstance(inner, JSON) else kind


def _is_about_the_rows(error: StatementError) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is None:
        # The driver could not send a value, such as text with a NUL character.
        return type(error).__name__ in ("DataError", "ProgrammingError")
    return str(sqlstate).startswith(_REFUSALS)
