"""Columns and rules that would not come through an outage are named, with what to write instead."""

from collections.abc import Iterator
from typing import Any

import pytest
from space_runtime.backends import POSTGRESQL, SQLITE
from space_runtime.columns import LongNumeric, PortableJSON, UTCDateTime, portable_metadata
from space_runtime.portability import find_differences, find_obstacles
from sqlalchemy import (
    ARRAY,
    DATETIME,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Engine,
    Enum,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    Sequence,
    String,
    Table,
    Text,
    Time,
    Uuid,
    func,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import SchemaItem

from tests.support.postgres import Postgres


def sentences(*parts: SchemaItem, metadata: MetaData | None = None, **options: Any) -> list[str]:
    """What is said of a table with these columns and constraints."""
    metadata = metadata or portable_metadata()
    keys = [part for part in parts if isinstance(part, Column) and part.primary_key]
    Table("things", metadata, *([] if keys else [Column("id", Uuid, primary_key=True)]), *parts, **options)
    return find_obstacles(metadata)


BAD: dict[str, tuple[tuple[SchemaItem, ...], str, str]] = {
    "an array": ((Column("x", ARRAY(Integer)),), "things.x: SQLite has no ARRAY", "PortableJSON"),
    "hstore": ((Column("x", postgresql.HSTORE),), "things.x: SQLite has no HSTORE", "PortableJSON"),
    "an address": ((Column("x", postgresql.INET),), "things.x: SQLite has no INET", "String(43)"),
    "a range": ((Column("x", postgresql.INT4RANGE),), "things.x: SQLite has no INT4RANGE", "with_variant"),
    "PostgreSQL's UUID": ((Column("x", postgresql.UUID),), "things.x: SQLite may take text", "Uuid"),
    "PostgreSQL's interval": ((Column("x", postgresql.INTERVAL),), "SQLite has no INTERVAL", "Write Interval."),
    "a time with a precision": (
        (Column("x", postgresql.TIMESTAMP(timezone=True, precision=3)),),
        "things.x: SQLite keeps no zone",
        "DateTime(timezone=True)",
    ),
    "a type of SQLite's": ((Column("x", DATETIME),), "PostgreSQL has no DATETIME", "DateTime(timezone=True)"),
    "a time of day with a zone": ((Column("x", Time(timezone=True)),), "the zone of a time of day", "Write Time, or"),
    "a short float": ((Column("x", Float(24)),), "PostgreSQL keeps 7 digits", "Double"),
    "a real": ((Column("x", REAL),), "PostgreSQL keeps 7 digits", "Double"),
    "a collation": ((Column("x", String(9, collation="C")),), "the collation 'C'", "with_variant(String()"),
    "a number in a key of two columns": (
        (Column("id", Integer, primary_key=True, autoincrement=True), Column("x", Integer, primary_key=True)),
        "things.id: SQLite cannot number a part of a key",
        "a key of one column",
    ),
    "a number that is no key": ((Column("x", Integer, Identity()),), "things.x: SQLite numbers nothing but", "default"),
    "a sequence": ((Column("x", Integer, Sequence("s")),), "things.x: SQLite numbers nothing but keys", "default"),
    "a default that only PostgreSQL knows": (
        (Column("x", Uuid, server_default=text("gen_random_uuid()")),),
        "things.x: SQLite cannot compute its server_default (no such function: gen_random_uuid)",
        "default=",
    ),
    "a default in PostgreSQL's syntax": (
        (Column("x", PortableJSON, server_default=text("'{}'::jsonb")),),
        "things.x: SQLite cannot compute",
        "default=",
    ),
    "local time": ((Column("x", DateTime, server_default=func.now()),), "the server's local time", "timezone=True"),
    "a check that only PostgreSQL knows": (
        (Column("x", String), CheckConstraint("x ~ '^a'", name="a")),
        "things: the CHECK constraint ck_things_a does not work on SQLite",
        "both databases",
    ),
    "a function that only PostgreSQL knows": (
        (Column("x", String), CheckConstraint("char_length(x) > 1", name="a")),
        "ck_things_a does not work on SQLite",
        "both databases",
    ),
    "more digits than a number of SQLite has": (
        (Column("x", Numeric(30, 10)),),
        "things.x: SQLite keeps 15 digits of it",
        "LongNumeric(30, 10)",
    ),
    "a check of a long number": (
        (Column("x", LongNumeric(30, 10)), CheckConstraint("x > 0", name="a")),
        "ck_things_a compares x, which is text on SQLite",
        "in Python",
    ),
    "a computed column that only PostgreSQL knows": (
        (Column("x", String), Column("y", String, Computed("md5(x)"))),
        "things: SQLite refuses the table",
        "both databases",
    ),
    "an index that only PostgreSQL knows": (
        (Column("x", String), Index("i", text("to_tsvector('english', x)"))),
        "things: SQLite refuses the table or an index",
        "both databases",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_not_survive_is_named_once_with_what_to_write(case: str) -> None:
    parts, problem, instead = BAD[case]
    parts = tuple(part._copy() if isinstance(part, Column | CheckConstraint) else part for part in parts)
    (said,) = sentences(*parts)
    assert said.startswith("things")
    assert problem in said
    assert instead in said.partition(problem)[2]


def test_a_table_without_rowid_in_a_schema_or_outside_of_base_is_named() -> None:
    (said,) = sentences(Column("id", Integer, primary_key=True), sqlite_with_rowid=False)
    assert "things.id: SQLite cannot number keys without a rowid" in said
    (said,) = sentences(schema="shop")
    assert "SQLite has no schemas" in said
    (said,) = sentences(Column("x", Numeric(10, 2)), metadata=MetaData())
    assert "things.x" in said
    assert "ExactNumeric" in said


SOUND: tuple[Column[Any] | CheckConstraint, ...] = (
    Column("id", Integer, primary_key=True),
    Column("a", Numeric(15, 2), CheckConstraint("a > 0", name="a")),
    Column("b", Numeric),
    Column("c", DateTime(timezone=True), server_default=func.now()),
    Column("d", DateTime),
    Column("e", Interval),
    Column("f", LargeBinary),
    Column("g", Float),
    Column("h", BigInteger, server_default="0"),
    Column("i", Enum("red", "green", name="colour")),
    Column("j", Enum("red", "green", name="text_colour", native_enum=False, create_constraint=True)),
    Column("k", ARRAY(Integer).with_variant(PortableJSON(), "sqlite")),
    Column("l", postgresql.JSONB),
    Column("m", Boolean, server_default=text("true")),
    Column("n", String(9), server_default="it's"),
    Column("o", Text, Computed("n || 'x'")),
    Column("p", UTCDateTime),
    Column("q", LongNumeric(30, 10)),
    Column("r", Integer, ForeignKey("things.id", ondelete="CASCADE"), unique=True),
    Column("select", Integer, CheckConstraint('"select" > 0', name="quoted")),
    Column("s", Boolean(create_constraint=True, name="s")),
    Column("t", PortableJSON, server_default='{"a": [1,  null]}'),
    Column("u", Numeric(15, 2), server_default="1.5"),
    Column("v", LongNumeric(30, 10), server_default="-1.5"),
    Column("w", Boolean, server_default="0"),
    Column("x", Enum("a(b)", "\\", name="signs"), server_default="\\"),
    Column("y", UTCDateTime, server_default="2026-01-02 03:04:05"),
    Column("z", Uuid, server_default="00000000000000000000000000000001"),
    CheckConstraint("n IN ('a', 'it''s') AND (h BETWEEN 1 AND 9 OR NOT m)", name="several"),
    CheckConstraint("length(n) > 1 AND coalesce(lower(n), '') <> '' AND c IS NOT NULL", name="functions"),
)


def sound_tables() -> MetaData:
    metadata = portable_metadata()
    Table("things", metadata, *(part._copy() for part in SOUND))
    numbered = BigInteger().with_variant(Integer, "sqlite")
    Table("others", metadata, Column("id", numbered, Identity(always=True), primary_key=True))
    return metadata


def test_nothing_is_said_of_what_survives() -> None:
    assert find_obstacles(sound_tables()) == []


@pytest.fixture
def engines(postgres: Postgres) -> Iterator[tuple[Engine, Engine]]:
    """The sound tables on both databases."""
    url = make_url(postgres.create_database()).set(drivername="postgresql+psycopg")
    both = SQLITE.create_engine(make_url("sqlite://"), {}, 1), POSTGRESQL.create_engine(url, {}, 1)
    for engine in both:
        sound_tables().create_all(engine)
    yield both
    for engine in both:
        engine.dispose()


def test_the_same_tables_have_the_same_rules(engines: tuple[Engine, Engine]) -> None:
    assert find_differences(sound_tables(), *engines) == []


DIFFERENCES = [
    (1, "ALTER TABLE things ALTER h DROP DEFAULT", "things: only SQLite has the default 0 of h"),
    (1, "ALTER TABLE things ALTER h SET DEFAULT 5", "things: only PostgreSQL has the default 5 of h"),
    (1, "ALTER TABLE things ALTER h SET DEFAULT random()", "things: only PostgreSQL has the default of h"),
    (
        1,
        "ALTER TABLE things DROP CONSTRAINT ck_things_a, ADD CONSTRAINT ck_things_a CHECK (a > 5)",
        "things: the CHECK constraint ck_things_a is a > 0::numeric on SQLite, and a > 5::numeric on PostgreSQL",
    ),
    (1, "ALTER TABLE things ALTER b SET NOT NULL", "things: only PostgreSQL has the NOT NULL of b"),
    (
        1,
        "ALTER TABLE things ADD CONSTRAINT small CHECK (h < 9)",
        "things: only PostgreSQL has the CHECK constraint small",
    ),
    (1, "ALTER TABLE things ADD UNIQUE (h, n)", "things: only PostgreSQL has the UNIQUE constraint on h, n"),
    (
        0,
        "CREATE UNIQUE INDEX one ON things (h) WHERE m",
        "things: only SQLite has the UNIQUE constraint on h with a condition",
    ),
    (
        1,
        "ALTER TABLE things DROP CONSTRAINT fk_things_r",
        "things: only SQLite has the FOREIGN KEY (r) to things, ON DELETE CASCADE",
    ),
    (
        0,
        "CREATE TRIGGER note AFTER INSERT ON things BEGIN SELECT 1; END",
        "things: only SQLite has the trigger note",
    ),
    (
        1,
        "CREATE TRIGGER note BEFORE UPDATE ON things FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "things: only PostgreSQL has the trigger note",
    ),
    (1, "ALTER TABLE things ADD EXCLUDE (h WITH =)", "things: only PostgreSQL has the constraint things_h_excl"),
    (0, "DROP TABLE others", "others: only PostgreSQL has the table"),
]


@pytest.mark.parametrize(("where", "statement", "sentence"), DIFFERENCES)
def test_a_rule_that_only_one_database_has_is_named(
    engines: tuple[Engine, Engine], where: int, statement: str, sentence: str
) -> None:
    with engines[where].begin() as connection:
        connection.exec_driver_sql(statement)
    assert sentence in find_differences(sound_tables(), *engines)
