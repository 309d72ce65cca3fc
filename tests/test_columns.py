"""What the column types store is the same on both databases, or refused."""

import enum
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from space_runtime.backends import POSTGRESQL, SQLITE
from space_runtime.columns import (
    TYPES,
    ExactNumeric,
    LongNumeric,
    PortableJSON,
    RefusedValue,
    UTCDateTime,
    portable_metadata,
)
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Engine,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Time,
    Uuid,
    create_engine,
    func,
    make_url,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.support.bakery import BakedProject
from tests.support.examples import examples
from tests.support.postgres import Login, Postgres
from tests.support.server import IMPATIENT

pytestmark = pytest.mark.slow

Engines = tuple[Engine, Engine]
TOKYO = timezone(timedelta(hours=9))
REFUSED = "refused"

metadata = portable_metadata()
numbers = Table(
    "numbers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("price", Numeric(10, 2)),
    Column("whole", Numeric(5)),
    Column("exact", Numeric(30, 10)),
    Column("any", Numeric()),
    Column("long", LongNumeric(30, 10)),
    Column("longest", LongNumeric()),
    Column("at", DateTime(timezone=True)),
)
decimals = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False),
    st.decimals(-(10**9), 10**9, places=3),
    # so near to each other that one begins with the digits of another
    st.decimals(-2, 2, places=2),
    st.decimals(-(10**21), 10**21, places=11),
    # halves, which are rounded away from zero
    st.integers(-(10**7), 10**7).map(lambda number: Decimal(number * 5).scaleb(-3)),
)
short_decimals = st.builds(
    lambda digits, power: Decimal(digits).scaleb(power), st.integers(-(10**14), 10**14), st.integers(-12, 3)
)
times = st.datetimes(
    datetime(2, 1, 1),
    datetime(9998, 1, 1),
    timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


@pytest.fixture(scope="module")
def engines(running_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """SQLite and PostgreSQL as the application opens them, with empty tables."""
    running_postgres.start()
    url = make_url(running_postgres.create_database()).set(drivername="postgresql+psycopg")
    file = tmp_path_factory.mktemp("columns") / "test.db"
    both = SQLITE.create_engine(make_url(f"sqlite:///{file}"), {}, 1), POSTGRESQL.create_engine(url, {}, 1)
    for engine in both:
        metadata.create_all(engine)
    yield both
    for engine in both:
        engine.dispose()


def outcome(engine: Engine, column: "Column[Any]", value: object) -> object:
    """What a column gives back for a value that was written to it."""
    with engine.connect() as connection:
        try:
            connection.execute(column.table.insert().values(id=1, **{column.name: value}))
        except StatementError as error:
            if isinstance(error, DBAPIError) or isinstance(error.orig, RefusedValue):
                return REFUSED
            raise
        return connection.scalar(select(column))


def digits_of(value: Decimal) -> int:
    return len("".join(map(str, value.as_tuple().digits)).strip("0"))


@examples(few=50, many=200)
@pytest.mark.parametrize("name", ["price", "whole", "exact", "any", "long", "longest"])
def test_a_decimal_is_what_postgresql_stores_or_refused(engines: Engines, name: str, examples: int) -> None:
    column = numbers.c[name]

    @settings(derandomize=True, max_examples=examples)
    @given(decimals)
    def holds(value: Decimal) -> None:
        here, there = (outcome(engine, column, value) for engine in engines)
        if here == REFUSED and isinstance(there, Decimal) and type(column.type) is ExactNumeric:
            # SQLite's numbers could not hold it
            assert digits_of(there) > 15
            return
        assert here == there
        if getattr(column.type, "precision", None) is not None:
            assert str(here) == str(there)

    holds()


@examples(few=25, many=100)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("exact", short_decimals),
        ("any", short_decimals),
        ("longest", decimals),
        ("at", times),
    ],
)
def test_values_are_sorted_and_compared_as_on_postgresql(
    engines: Engines, name: str, values: "st.SearchStrategy[Any]", examples: int
) -> None:
    column = numbers.c[name]

    @settings(derandomize=True, max_examples=examples)
    @given(st.lists(values, min_size=1, max_size=12), values)
    def holds(stored: list[Any], other: Any) -> None:
        answers = []
        for engine in engines:
            with engine.connect() as connection:
                for number, value in enumerate(stored):
                    try:
                        with connection.begin_nested():
                            connection.execute(numbers.insert().values(id=number, **{name: value}))
                    except StatementError:
                        continue
                found = [
                    connection.scalars(select(numbers.c.id).where(where).order_by(column, numbers.c.id)).all()
                    for where in (
                        column.is_not(None),
                        column < other,
                        column >= other,
                        column == other,
                        column.in_([other, stored[0]]),
                    )
                ]
                answers.append([*found, *connection.execute(select(func.min(column), func.max(column))).one()])
        assert answers[0] == answers[1]

    holds()


def test_a_whole_number_that_a_double_cannot_hold_is_found_by_itself(engines: Engines) -> None:
    number = Decimal("72057594037929000")
    for engine in engines:
        with engine.connect() as connection:
            connection.execute(numbers.insert().values(id=1, exact=number))
            for where in (numbers.c.exact == number, numbers.c.exact.in_([number, 0]), numbers.c.exact == int(number)):
                assert connection.scalar(select(numbers.c.id).where(where)) == 1


@examples(few=100, many=500)
def test_text_of_long_numbers_sorts_as_they_do(examples: int) -> None:
    to_text = LongNumeric().dialect_impl(sqlite.dialect()).bind_processor(sqlite.dialect())
    assert to_text is not None

    @settings(derandomize=True, max_examples=examples)
    @given(st.lists(st.one_of(decimals, st.decimals(-2, 2, places=2)), max_size=20))
    def holds(values: list[Decimal]) -> None:
        assert sorted(values, key=to_text) == sorted(values)

    holds()


def test_twenty_digits_are_exact_where_they_are_asked_for_and_else_refused(engines: Engines) -> None:
    amount = Decimal("12345678901234567.89")
    for engine in engines:
        assert outcome(engine, numbers.c.long, amount) == amount
    assert outcome(engines[0], numbers.c.exact, amount) == REFUSED
    assert str(outcome(engines[0], numbers.c.exact, Decimal("1234.5"))) == "1234.5000000000"


def test_a_comparison_does_not_round_what_a_column_is_compared_with(engines: Engines) -> None:
    for engine in engines:
        with engine.connect() as connection:
            connection.execute(numbers.insert().values(id=1, price=Decimal("1.00"), long=Decimal(1)))
            for column in (numbers.c.price, numbers.c.long):
                for value in (Decimal("1.00000000004"), 10**12, 1.004):
                    assert connection.scalars(select(column).where(column >= value)).all() == []
                assert connection.scalar(select(column).where(column == 1)) == 1


def test_sql_computes_with_numbers_and_never_with_long_ones(engines: Engines) -> None:
    for engine in engines:
        with engine.connect() as connection:
            for number, price in enumerate(["0.10", "0.20", "100.30"]):
                connection.execute(numbers.insert().values(id=number, price=Decimal(price), long=Decimal(price)))
            assert str(connection.scalar(select(func.sum(numbers.c.price)))) == "100.60"
            connection.execute(update(numbers).values(price=numbers.c.price - Decimal("0.10")))
            assert list(map(str, connection.scalars(select(numbers.c.price).order_by("id")))) == [
                "0.00",
                "0.10",
                "100.20",
            ]
            assert connection.scalar(select(func.max(numbers.c.long))) == Decimal("100.3")
    with pytest.raises(TypeError, match="in Python"):
        numbers.c.long + 1
    with pytest.raises(TypeError, match="in Python"):
        1 - numbers.c.long
    with engines[0].connect() as connection:
        connection.execute(numbers.insert().values(id=1, long=1))
        with pytest.raises(TypeError, match="in Python"):
            connection.scalar(select(func.sum(numbers.c.long)))


def test_plain_numbers_that_raw_sql_writes_are_read(engines: Engines) -> None:
    for engine in engines:
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO numbers (id, price, long) VALUES (1, 9.99, 9.99)")
            row = connection.execute(select(numbers.c.price, numbers.c.long)).one()
            assert list(map(str, row)) == ["9.99", "9.9900000000"]


def test_a_time_is_the_same_instant_afterwards_and_a_naive_one_is_refused(engines: Engines) -> None:
    for engine in engines:
        read = outcome(engine, numbers.c.at, datetime(2024, 6, 1, 9, tzinfo=TOKYO))
        assert read == datetime(2024, 6, 1, tzinfo=UTC)
        assert isinstance(read, datetime)
        assert read.utcoffset() == timedelta()
        assert outcome(engine, numbers.c.at, datetime(2024, 6, 1)) == REFUSED


REFUSALS: dict[str, tuple[Callable[[], Any], object]] = {
    "a NUL character": (String, "a\0b"),
    "33 bits": (Integer, 2**31),
    "17 bits": (SmallInteger, -(2**15) - 1),
    "65 bits": (BigInteger, 2**63),
    "NaN in JSON": (PortableJSON, {"a": math.nan}),
    "NUL in JSON": (PortableJSON, ["\0"]),
    "half a character in JSON": (PortableJSON, ["\ud800"]),
    "text that is not of the enum": (lambda: Enum("red", "green", name="colours"), "blue"),
    "text that is not of an enum in text": (
        lambda: Enum("red", "green", native_enum=False, validate_strings=True),
        "blue",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_both_databases_refuse(engines: Engines, case: str) -> None:
    kind, value = REFUSALS[case]
    for engine in engines:
        with engine.connect() as connection:
            table = Table("trip", MetaData(), Column("id", Integer, primary_key=True), Column("value", kind()))
            table.create(connection)
            with pytest.raises(StatementError):
                connection.execute(table.insert().values(id=1, value=value))


def test_text_that_is_a_number_is_stored_as_one(engines: Engines) -> None:
    for engine in engines:
        with engine.connect() as connection:
            table = Table("trip", MetaData(), Column("id", Integer, primary_key=True), Column("value", Float))
            table.create(connection)
            connection.execute(table.insert().values(id=1, value="1.5"))
            assert connection.scalar(select(table.c.value)) == 1.5


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Float, math.nan),
        (DateTime, datetime(2024, 6, 1, tzinfo=TOKYO)),
        (lambda: Time(timezone=True), datetime(2024, 6, 1).time()),
        (PortableJSON, 2**64),
    ],
)
def test_sqlite_refuses_what_it_cannot_hold(engines: Engines, kind: Callable[[], Any], value: object) -> None:
    with pytest.raises(StatementError) as caught:
        round_trip(engines[0], kind(), value)
    assert isinstance(caught.value.orig, RefusedValue)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (String, "half: \u00bd"),
        (Integer, -(2**31)),
        (BigInteger, 2**63 - 1),
        (Float, 0.1),
        (Float, math.inf),
        (DateTime, datetime(2024, 6, 1, 9, 0, 0, 1)),
        (Time, datetime(2024, 6, 1, 9, 0, 0, 1).time()),
        (Interval, timedelta(days=-5, microseconds=3)),
        (LargeBinary, b"\0\xff"),
        (Uuid, UUID(int=5)),
        (PortableJSON, {"a": [1, None, "\\u0000", "ü"]}),
        (lambda: Enum("red", "green", name="colours"), "green"),
    ],
)
def test_both_databases_give_back(engines: Engines, kind: Callable[[], Any], value: object) -> None:
    for engine in engines:
        assert round_trip(engine, kind(), value) == value


def round_trip(engine: Engine, kind: Any, value: object) -> object:
    """Write a value to a column of its own, and read it."""
    table = Table("trip", MetaData(), Column("id", Integer, primary_key=True), Column("value", kind))
    with engine.connect() as connection:
        table.create(connection)
        connection.execute(table.insert().values(id=1, value=value))
        return connection.scalar(select(table.c.value))


class Colour(enum.Enum):
    """An enum whose values are no text."""

    RED = 1
    DARK_GREEN = 2


class Base(DeclarativeBase):
    """As in src/database/base.py."""

    metadata = portable_metadata()
    type_annotation_map = TYPES


class Thing(Base):
    """What an owner may write without naming a type."""

    __tablename__ = "things"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    amount: Mapped[Decimal]
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    seen: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    colour: Mapped[Colour]
    size: Mapped[Literal["small", "large"]]
    data: Mapped[dict[str, Any]]
    words: Mapped[list[str]]


def test_what_models_say_means_portable_types(engines: Engines) -> None:
    kinds = {column.name: type(column.type) for column in Thing.__table__.columns}
    assert kinds["at"] is kinds["seen"] is UTCDateTime
    assert kinds["amount"] is kinds["price"] is ExactNumeric
    assert kinds["data"] is kinds["words"] is PortableJSON
    values: dict[str, Any] = {
        "at": datetime(2024, 6, 1, tzinfo=UTC),
        "amount": Decimal("1.25"),
        "price": Decimal("9.99"),
        "seen": None,
        "colour": Colour.DARK_GREEN,
        "size": "small",
        "data": {"a": 1},
        "words": ["a"],
    }
    for engine in engines:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Thing(**values))
            session.commit()
            thing = session.scalars(select(Thing)).one()
            assert {name: getattr(thing, name) for name in values} == values
            # an enum is text, so that a new member needs no migration
            assert session.connection().exec_driver_sql("SELECT colour FROM things").scalar() == "DARK_GREEN"


def test_the_types_are_exact_on_an_engine_of_somebody_elses_too() -> None:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    assert str(outcome(engine, numbers.c.price, Decimal("1.005"))) == "1.01"
    assert outcome(engine, numbers.c.at, datetime(2024, 6, 1, 9, tzinfo=TOKYO)) == datetime(2024, 6, 1, tzinfo=UTC)
    engine.dispose()


def test_the_parameters_of_a_type_belong_to_its_cache_key() -> None:
    assert ExactNumeric(10, 2)._static_cache_key != ExactNumeric(10, 4)._static_cache_key


ENTRIES = """
import enum
from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import DateTime, Numeric
from sqlalchemy.orm import Mapped, mapped_column

from src.database.base import Base, LongNumeric, Resource


class State(enum.Enum):
    OPEN = "open"
    PAID = "paid"


class Entry(Resource, Base):
    __tablename__ = "entries"
    price: Mapped[Decimal] = mapped_column(Numeric(30, 10))
    amount: Mapped[Decimal] = mapped_column(LongNumeric(30, 10))
    due: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    state: Mapped[State]


class NewEntry(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    price: Decimal
    amount: Decimal
    due: datetime
    state: State
"""
ENTRIES_APP = """
from sqlalchemy import select

from src.database.session import DatabaseDep
from src.entries import Entry, NewEntry
from src.main import app


@app.post("/entries", status_code=201, response_model=NewEntry)
async def create(data: NewEntry, database: DatabaseDep) -> Entry:
    def work(session):
        entry = Entry(**data.model_dump())
        session.add(entry)
        return entry
    return await database.write(work)


@app.get("/entries", response_model=list[NewEntry])
async def entries(database: DatabaseDep) -> list[Entry]:
    return await database.read(lambda session: list(session.scalars(select(Entry).order_by(Entry.amount))))
"""


def test_numbers_and_times_that_sqlite_took_in_an_outage_are_the_same_on_postgresql(
    project: BakedProject, login: Login
) -> None:
    (project.path / "src" / "entries.py").write_text(ENTRIES)
    (project.path / "extra.py").write_text(ENTRIES_APP)
    environment = project.path / "migrations" / "env.py"
    imports = "from src.database.base import Base"
    environment.write_text(
        environment.read_text().replace(imports, f"from src import entries  # noqa: F401\n{imports}")
    )
    # as `make migration` does, on SQLite
    project.run("python", "-m", "alembic", "upgrade", "head")
    project.run("python", "-m", "alembic", "revision", "--autogenerate", "-m", "add entries")
    (migration,) = (project.path / "migrations" / "versions").glob("*_add_entries.py")
    assert "space_runtime" not in migration.read_text()
    entry = {
        "price": "1.25",
        "amount": "12345678901234567.89",
        "due": "2024-06-01T09:00:00+09:00",
        "state": "paid",
    }
    smaller = entry | {"amount": "-12345678901234567.899", "price": "0.00000000005"}
    stored = [
        {"price": "1E-10", "amount": "-12345678901234567.8990000000", "due": "2024-06-01T00:00:00Z", "state": "paid"},
        {
            "price": "1.2500000000",
            "amount": "12345678901234567.8900000000",
            "due": "2024-06-01T00:00:00Z",
            "state": "paid",
        },
    ]
    refused = [entry | {"price": entry["amount"]}, entry | {"amount": "1e20"}, entry | {"due": "2024-06-01T09:00:00"}]
    with project.boot(IMPATIENT | {"DATABASE_URL": login.url}, in_place=True, app="extra:app") as server:
        assert server.settled()["status"] == "degraded", server.log()
        for sound in (entry, smaller):
            assert server.post("/entries", json=sound).status_code == 201
        for unsound in refused:
            answer = server.post("/entries", json=unsound)
            assert answer.status_code == 422, answer.text
            assert "digits" in answer.text or "time zone" in answer.text
        assert server.get("/entries").json() == stored
        login.allow()
        report = server.health_when(lambda report: report["status"] == "ok", within=30)
        assert report["database"]["pending_rows"] == 0
        assert server.get("/entries").json() == stored
        # what both databases refuse gets the same answer from both
        assert [server.post("/entries", json=unsound).status_code for unsound in refused[1:]] == [422, 422]
    project.run("python", "-m", "alembic", "check", environ={"DATABASE_URL": login.url})
