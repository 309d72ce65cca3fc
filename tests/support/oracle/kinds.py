"""Types of columns, each with values that are easily spoilt on the way from SQLite to PostgreSQL."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine
from src.database.base import LongNumeric, PortableJSON, UTCDateTime


class Colour(enum.Enum):
    """An enum whose names, which are what is stored, are not its values."""

    RED = "r"
    DARK_GREEN = "dark green"


class GUID(TypeDecorator[UUID]):
    """A UUID as SQLAlchemy's documentation recommends it for every database."""

    impl = sa.CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """uuid on PostgreSQL, text elsewhere."""
        native = postgresql.UUID() if dialect.name == "postgresql" else sa.CHAR(32)
        return dialect.type_descriptor(native)

    def process_bind_param(self, value: UUID | None, dialect: sa.Dialect) -> object:
        """Text has no hyphens."""
        return value if value is None or dialect.name == "postgresql" else value.hex

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> UUID | None:
        """A UUID in any case."""
        return value if value is None or isinstance(value, UUID) else UUID(value)


class Sealed(TypeDecorator[str]):
    """Text that each database stores in a form of its own, and that cannot be read in the other's."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Seal it for this database."""
        return None if value is None else f"{dialect.name}<{value[::-1]}>"

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Break the seal of this database."""
        if value is None:
            return None
        return value.removeprefix(f"{dialect.name}<").removesuffix(">")[::-1]


class Hashed(TypeDecorator[str]):
    """Text that cannot be read again once it is stored."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Hash it."""
        return None if value is None else f"hash({value})"


class Kind:
    """A type, and values of it; None is NULL, and JSON_NULL is the null of JSON."""

    def __init__(self, make: Callable[[str], TypeEngine[Any]], values: Sequence[Any], *, needs_model: bool = True):
        """`make` gets the name of an enum; `needs_model`: the database does not tell what the values mean."""
        self.make, self.values, self.needs_model = make, values, needs_model


@dataclass(frozen=True)
class Stored:
    """A value as PostgreSQL must hold it, where that is not the value that was given."""

    given: Any
    held: Any
    is_null: bool = False

    def __repr__(self) -> str:
        """Both."""
        return f"{self.given!r} (held as {'NULL' if self.is_null else self.held!r})"


JSON_NULL = Stored(sa.JSON.NULL, None)
AS_NULL = Stored(sa.null(), None, is_null=True)
"""Both are told apart by `is null`, since either is read as None."""
DOCUMENTS = [{"a": [1, None, "ü"]}, [], JSON_NULL, AS_NULL, "text", 0, False, {"\\u": '"'}]
TOKYO = timezone(timedelta(hours=9))

KINDS: dict[str, Kind] = {
    "text": Kind(lambda _: sa.Text(), ["plain", "", "ü 🐘\n", "\\x41 %s :x ' \" \\"], needs_model=False),
    "integer": Kind(lambda _: sa.Integer(), [0, -1, 2**31 - 1], needs_model=False),
    "bigint": Kind(lambda _: sa.BigInteger(), [0, 2**53 + 1, -(2**63)], needs_model=False),
    "boolean": Kind(lambda _: sa.Boolean(), [False, True], needs_model=False),
    "bytes": Kind(lambda _: sa.LargeBinary(), [b"", b"\x00\xff\\x41"], needs_model=False),
    "date": Kind(lambda _: sa.Date(), [date(2024, 2, 29), date(1, 1, 1)], needs_model=False),
    "uuid": Kind(lambda _: sa.Uuid(), [UUID(int=1), UUID(int=2**128 - 1)], needs_model=False),
    "numeric": Kind(lambda _: sa.Numeric(10, 2), [Decimal("0.10"), Decimal("-99999.99")], needs_model=False),
    "datetime": Kind(
        lambda _: sa.DateTime(timezone=True),
        [datetime(2024, 6, 1, tzinfo=UTC), datetime(1999, 12, 31, 23, 59, 59, 999999, UTC)],
        needs_model=False,
    ),
    "naive": Kind(lambda _: sa.DateTime(), [datetime(2024, 6, 1), datetime(1, 1, 1, 0, 0, 0, 1)], needs_model=False),
    "jsonb": Kind(lambda _: sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), DOCUMENTS, needs_model=False),
    "json": Kind(lambda _: sa.JSON(), DOCUMENTS, needs_model=False),
    "utc": Kind(lambda _: UTCDateTime(), [datetime(2024, 6, 1, 9, tzinfo=TOKYO), datetime(2024, 6, 1, tzinfo=UTC)]),
    "time": Kind(lambda _: sa.Time(), [time(0, 0), time(23, 59, 59, 999999)]),
    "float": Kind(lambda _: sa.Float(53), [0.1, -1e300, 5e-324]),
    "interval": Kind(
        lambda _: sa.Interval(), [timedelta(0), timedelta(days=400, microseconds=1), timedelta(seconds=-1)]
    ),
    "portable json": Kind(lambda _: PortableJSON(), [{"a": None}, [], None, 0]),
    "integers": Kind(
        lambda _: sa.JSON().with_variant(postgresql.ARRAY(sa.Integer()), "postgresql"),
        [[1, 2], [], Stored(None, None, is_null=True), AS_NULL],
    ),
    "texts": Kind(
        lambda _: sa.JSON().with_variant(postgresql.ARRAY(sa.Text()), "postgresql"),
        [["a", "{b,\"c'}", ""], [], ["null", "ü"]],
    ),
    "long numeric": Kind(
        lambda _: LongNumeric(30, 10), [Decimal("12345678901234567890.0123456789"), Decimal("-0.5000000000")]
    ),
    "checked text": Kind(lambda _: sa.Enum(Colour, native_enum=False, length=64, validate_strings=True), list(Colour)),
    "enum": Kind(lambda name: sa.Enum("red", "dark green", name=name), ["red", "dark green"]),
    "python enum": Kind(lambda name: sa.Enum(Colour, name=name), list(Colour)),
    "guid": Kind(lambda _: GUID(), [UUID(int=10**30), UUID(int=7)]),
    "sealed": Kind(lambda _: Sealed(), ["secret", ""]),
    "hashed": Kind(lambda _: Hashed(), [Stored("password", "hash(password)"), Stored("hash()", "hash(hash())")]),
}


def given(value: Any) -> Any:
    """What a client gives for this value."""
    return value.given if isinstance(value, Stored) else value


def held(value: Any) -> tuple[bool, Any]:
    """Whether PostgreSQL holds NULL for it, and what is read from there."""
    return (value.is_null, value.held) if isinstance(value, Stored) else (value is None, value)
