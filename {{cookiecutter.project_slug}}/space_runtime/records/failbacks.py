"""What PostgreSQL remembers of failbacks: moved files, refused rows, and keys that were replaced.

The tables are made after the migrations and by whoever applies those, but not as a migration:
`alembic downgrade` must not drop the record of what was moved.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    any_,
    func,
    literal,
    select,
)

from space_runtime.records.stored import Raw, RowAsJSON

REFUSALS: dict[str, str] = {
    "refused": "PostgreSQL refused it",
    "refers_to_refused": "it refers to a row that stayed behind",
    "unstorable": "it has a value that the column's type cannot read",
    "no_such_table": "PostgreSQL does not have the table",
    "no_such_column": "it has a value for a column that PostgreSQL does not have",
    "no_number": "PostgreSQL has its number, and the role may not take a new one",
    "already_there": "PostgreSQL has a row with this key that differs",
    "seed_changed": "a migration inserted it, and it was changed on SQLite",
    "seed_deleted": "a migration inserted it, and it was deleted on SQLite",
    "seed_missing": "a migration inserted it, and PostgreSQL has none like it any more",
    "seed_alike": "a migration inserted it, and PostgreSQL's own cannot be told from others",
}
"""Why a row stayed behind: the codes in the table, and a clause for people."""


def because(code: str, error: str | None) -> str:
    """Return why a row stayed behind, for people."""
    return REFUSALS.get(code, code) + (f" ({error})" if error else "")


_metadata = MetaData()
moved_files = Table(
    "space_runtime_failbacks",
    _metadata,
    Column("id", Uuid, primary_key=True),
    Column("moved_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("moved_rows", BigInteger, nullable=False),
)
refused_rows = Table(
    "space_runtime_refused_rows",
    _metadata,
    # Not a sequence, for which a role that may only write rows would need a right of its own.
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("file_id", Uuid, nullable=False),
    Column("table_name", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # The SQLSTATE and, if the server named one, the constraint.
    Column("error", Text),
    Column("content", RowAsJSON, nullable=False),
    # What the references to rows that were moved have become; `content` is as SQLite had it.
    Column("settled", RowAsJSON, nullable=False),
    Column("refused_at", DateTime(timezone=True), nullable=False),
)
new_keys = Table(
    "space_runtime_new_keys",
    _metadata,
    Column("file_id", Uuid, nullable=False),
    Column("table_name", Text, nullable=False),
    Column("old_key", Text, nullable=False),
    Column("new_key", Text, nullable=False),
)
OWN_TABLES = frozenset(_metadata.tables)


class RefusedRow(NamedTuple):
    """A row that stayed behind, whole."""

    number: int
    file_id: UUID
    table_name: str
    key: str
    reason: str
    """One of REFUSALS."""
    error: str | None
    content: dict[str, Raw]
    settled: dict[str, Raw]
    """What the references that are known already have become."""
    refused_at: datetime
    """The first time."""


def create_tables(connection: Connection) -> None:
    """Create what is missing of the tables."""
    _metadata.create_all(connection)


def problem(connection: Connection) -> str:
    """Return why a failback to this database could not be recorded, as a sentence, or ""."""
    names = {name: connection.scalar(select(func.to_regclass(name))) for name in OWN_TABLES}
    if None in names.values():
        if connection.scalar(select(func.has_schema_privilege(func.current_schema(), "CREATE"))):
            return ""  # The first failback creates them.
        return (
            "Rows of an outage could not be moved here, because the tables for that are missing and"
            " this role may not create them: run `alembic upgrade head` as a role that may."
        )
    allowed = (
        func.has_table_privilege(name, right)
        for name in OWN_TABLES
        for right in ("SELECT", "INSERT", "DELETE")
    )
    if not all(connection.execute(select(*allowed)).one()):
        return (
            "Rows of an outage could not be moved here: this role needs SELECT, INSERT and DELETE"
            f" on {' and '.join(sorted(OWN_TABLES))}."
        )
    return ""


def moved_ids(connection: Connection) -> set[UUID]:
    """Return the ids of the files whose rows are here."""
    if not _exists(connection, moved_files):
        return set()
    return set(connection.scalars(select(moved_files.c.id)))


def record_move(connection: Connection, file_id: UUID, moved_rows: int) -> None:
    """Record that the rows of this file were moved, in the transaction that moves them."""
    connection.execute(moved_files.insert().values(id=file_id, moved_rows=moved_rows))


def keep(connection: Connection, rows: Sequence[RefusedRow]) -> None:
    """Keep refused rows, in the transaction that moves the others."""
    if rows:
        connection.execute(refused_rows.insert(), [row._asdict() for row in rows])


def take_refused(connection: Connection, file_id: UUID) -> list[RefusedRow]:
    """Remove the refused rows of a file and return them, in the order of their numbers."""
    of_file = refused_rows.c.file_id == file_id
    taken = connection.execute(refused_rows.delete().where(of_file).returning(refused_rows))
    return sorted(map(RefusedRow._make, taken), key=lambda row: row.number)


def read_refused(connection: Connection, file_id: UUID) -> Iterator[RefusedRow]:
    """Yield the refused rows of a file, in the order of their numbers."""
    query = select(refused_rows).where(refused_rows.c.file_id == file_id)
    return map(RefusedRow._make, connection.execute(query.order_by(refused_rows.c.number)))


def files_with_refused(connection: Connection) -> list[UUID]:
    """Return the ids of the files of which refused rows are kept, the oldest first."""
    if not _exists(connection, refused_rows):
        return []
    file_id, first = refused_rows.c.file_id, func.min(refused_rows.c.number)
    return list(connection.scalars(select(file_id).group_by(file_id).order_by(first)))


def list_refused(connection: Connection) -> Iterator[Any]:
    """Yield all of each refused row but its values, which may be private."""
    if _exists(connection, refused_rows):
        shown = [one for one in refused_rows.c if one.name not in ("content", "settled")]
        yield from connection.execute(select(*shown).order_by(refused_rows.c.number))


def discard_refused(connection: Connection, numbers: Collection[int]) -> None:
    """Delete the refused rows with these numbers."""
    array = literal(list(numbers), ARRAY(Integer))
    connection.execute(refused_rows.delete().where(refused_rows.c.number == any_(array)))


def count_refused(connection: Connection) -> int:
    """Return how many refused rows are kept; 0 if there is no table for them, or no right to it."""
    table = func.to_regclass(refused_rows.name)
    if not connection.scalar(select(func.has_table_privilege(table, "SELECT"))):
        return 0
    return connection.scalar(select(func.count()).select_from(refused_rows)) or 0


def last_number(connection: Connection) -> tuple[int, datetime]:
    """Return the highest number of a refused row, and the time of this transaction."""
    highest, now = connection.execute(select(func.max(refused_rows.c.number), func.now())).one()
    return highest or 0, now


def record_new_keys(
    connection: Connection, file_id: UUID, keys: Sequence[tuple[str, str, str]]
) -> None:
    """Record the table, the old and the new key of moved rows."""
    if keys:
        # Arrays, because a thousand parameters take several times as long.
        names = ("table_name", "old_key", "new_key")
        arrays = (literal(list(values), ARRAY(Text)) for values in zip(*keys, strict=True))
        rows = func.unnest(*arrays).table_valued(*names).render_derived()
        query = select(literal(file_id, Uuid), *(rows.c[name] for name in names))
        connection.execute(new_keys.insert().from_select(["file_id", *names], query))


def read_new_keys(
    connection: Connection, file_ids: Collection[UUID] | None = None
) -> Iterator[Any]:
    """Yield the rows of these files, or of all, that got another key: table, old and new key."""
    if _exists(connection, new_keys):
        query = select(new_keys)
        if file_ids is not None:
            query = query.where(new_keys.c.file_id.in_(file_ids))
        yield from connection.execute(query)


def _exists(connection: Connection, table: Table) -> bool:
    return connection.scalar(select(func.to_regclass(table.name))) is not None
