"""Column types that mean the same on both databases: what is written is exact, or refused.

`portable_metadata()` makes the tables of a project use them: a plain `Numeric` or
`DateTime(timezone=True)` in a model becomes `ExactNumeric` or `UTCDateTime`. What SQLite's engine
refuses besides, because PostgreSQL would, is in `backends/sqlite_types.py`.
"""

import enum
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from operator import add, floordiv, mod, mul, neg, sub, truediv
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeDecorator, TypeEngine

# A double gives back any decimal number of so many digits.
DIGITS_OF_A_NUMBER = 15
# PostgreSQL allows as many after the point, and more before it.
_MOST_DIGITS = 16_383
_EXPONENT_BIAS = 500_000
_COMPLEMENTS = str.maketrans("0123456789", "9876543210")
_ARITHMETIC: set[Any] = {add, sub, mul, truediv, floordiv, mod, neg}
_NO_ARITHMETIC = "SQLite cannot compute with a LongNumeric: do it in Python"


class RefusedValue(ValueError):
    """A value that one of the databases cannot hold; the message never quotes it."""


class PortableJSON(TypeDecorator[Any]):
    """A JSON column: jsonb on PostgreSQL, text on SQLite. None is stored as NULL."""

    impl = sa.JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """Return the JSON type of this database."""
        if dialect.name != "postgresql":
            return dialect.type_descriptor(sa.JSON(none_as_null=True))
        # At the top of the module, it would slow down every start on SQLite by some 40 ms.
        from sqlalchemy.dialects.postgresql import JSONB

        return dialect.type_descriptor(JSONB(none_as_null=True))


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC time: timestamptz on PostgreSQL, text without an offset on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return the value in UTC; raise RefusedValue for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise RefusedValue("a UTCDateTime column takes only datetimes with a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return the stored time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ExactNumeric(TypeDecorator[Decimal]):
    """A Numeric whose value on SQLite is the one that PostgreSQL would store.

    SQLite stores a number, rounded to the scale as PostgreSQL rounds, so SQL can sort, compare and
    add such values there. A value that needs more than 15 digits is refused on SQLite; a column
    that must hold it is a `LongNumeric`. What SQL computes on SQLite has floating-point precision.
    """

    impl = sa.Numeric
    cache_ok = True

    def __init__(
        self, precision: int | None = None, scale: int | None = None, *, asdecimal: bool = True
    ) -> None:
        super().__init__(precision, scale, asdecimal=asdecimal)
        # as attributes, they belong to the key of SQLAlchemy's cache
        self.precision, self.scale, self.asdecimal = precision, scale, asdecimal

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """Return a type whose values SQLAlchemy does not turn into floats for SQLite."""
        if dialect.name != "sqlite":
            return super().load_dialect_impl(dialect)
        return _Plain(self.precision, self.scale)

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return what the driver gets; raise RefusedValue for what SQLite cannot hold."""
        return value if value is None or dialect.name != "sqlite" else self._to_sqlite(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return the number, with the digits of the scale."""
        return value if value is None or dialect.name != "sqlite" else self._from_sqlite(value)

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> TypeEngine[Any]:
        """Return a type without a scale: what is only compared with must not be rounded."""
        return sa.Float() if isinstance(value, float) else _Compared()

    def _to_sqlite(self, value: Any) -> Any:
        decimal = self._stored(value)
        number = _nearest_number(decimal)
        if isinstance(number, float) and _without_noise(number) != decimal:
            raise RefusedValue(
                f"SQLite keeps {DIGITS_OF_A_NUMBER} digits of a Numeric, and a value has more:"
                " make the column a LongNumeric"
            )
        return number

    def _from_sqlite(self, value: Any) -> Decimal | float:
        decimal = self._rounded(_without_noise(value))
        return decimal if self.asdecimal else float(decimal)

    def _stored(self, value: Any) -> Decimal:
        """Return what PostgreSQL stores for a value; raise RefusedValue for what it refuses."""
        # PostgreSQL, too, takes the first 15 digits of a float.
        decimal = _without_noise(value)
        if not decimal.is_finite():
            raise RefusedValue("a Numeric column takes only finite numbers")
        most = _MOST_DIGITS if self.precision is None else self.precision - (self.scale or 0)
        # Rounding can add a digit, and would take for ever with a huge exponent.
        if not _fits(decimal, most) or not _fits(decimal := self._rounded(decimal), most):
            raise RefusedValue("a number has more digits than its column")
        return decimal

    def _rounded(self, decimal: Decimal) -> Decimal:
        """Return the number rounded to the scale, half away from zero as PostgreSQL does."""
        if self.precision is None:
            return decimal
        scale = self.scale or 0
        with localcontext() as context:
            context.prec = max(decimal.adjusted() + scale + 2, 1)
            return decimal.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)


class _Compared(ExactNumeric):
    """A number that a Numeric is compared with; it need not be exact."""

    cache_ok = True

    def _to_sqlite(self, value: Any) -> int | float:
        return _nearest_number(Decimal(value))


class _Plain(sa.Numeric[Any]):
    """A Numeric whose values SQLite gets and gives as they are."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        return None

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        return None


class LongNumeric(ExactNumeric):
    """A Numeric of any number of digits, exact on both databases: `LongNumeric(30, 10)`.

    On SQLite it is text that sorts and compares as the numbers do, also in min() and max(). SQLite
    cannot add or multiply such text, so arithmetic in SQL is refused: compute in Python. Nor can
    raw SQL (a CHECK constraint, say) compare it with numbers there.
    """

    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """Return text for SQLite."""
        return sa.Text() if dialect.name == "sqlite" else super().load_dialect_impl(dialect)

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> TypeEngine[Any]:
        """Return a type without a scale: what is only compared with must not be rounded."""
        return LongNumeric()

    def _to_sqlite(self, value: Any) -> str:
        return _sortable(self._stored(value))

    def _from_sqlite(self, value: Any) -> Decimal:
        # Raw SQL may have written a plain number, and what SQL computes is none.
        if not isinstance(value, str):
            raise TypeError(_NO_ARITHMETIC)
        return self._rounded(_from_sortable(value))

    class Comparator(TypeDecorator.Comparator[Decimal]):
        """Comparisons, but no arithmetic, which would be wrong on SQLite."""

        def operate(self, op: OperatorType, *other: Any, **kwargs: Any) -> Any:
            """Raise TypeError for arithmetic."""
            if op in _ARITHMETIC:
                raise TypeError(_NO_ARITHMETIC)
            return super().operate(op, *other, **kwargs)

        def reverse_operate(self, op: OperatorType, other: Any, **kwargs: Any) -> Any:
            """Raise TypeError for arithmetic."""
            if op in _ARITHMETIC:
                raise TypeError(_NO_ARITHMETIC)
            return super().reverse_operate(op, other, **kwargs)

    comparator_factory: Any = Comparator


# Text on both databases, checked in Python: a new member needs no migration.
_CHECKED_TEXT = sa.Enum(enum.Enum, native_enum=False, length=64, validate_strings=True)

TYPES: dict[Any, Any] = {
    datetime: UTCDateTime,
    enum.Enum: _CHECKED_TEXT,
    Literal: _CHECKED_TEXT,
    dict: PortableJSON,
    list: PortableJSON,
    dict[str, Any]: PortableJSON,
    list[Any]: PortableJSON,
    list[str]: PortableJSON,
}
"""A `type_annotation_map`: what `Mapped[...]` means without a type of its own."""


def portable_metadata() -> sa.MetaData:
    """Return metadata whose columns get portable types and whose constraints get names."""
    return sa.MetaData(
        info={"portable": True},
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        },
    )


def portable(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the portable type for a plain Numeric or an aware DateTime, else the type itself."""
    if kind._variant_mapping:
        return kind
    if isinstance(kind, sa.Numeric):
        return ExactNumeric(kind.precision, kind.scale, asdecimal=kind.asdecimal)
    # A subclass, such as PostgreSQL's TIMESTAMP with a precision, may say more than the zone.
    if isinstance(kind, sa.DateTime) and kind.timezone and not hasattr(kind, "precision"):
        return UTCDateTime()
    return kind


@event.listens_for(sa.Column, "before_parent_attach")
def _use_portable_type(column: sa.Column[Any], table: sa.Table) -> None:
    if table.metadata.info.get("portable"):
        column.type = portable(column.type)


def _without_noise(value: Any) -> Decimal:
    """Return the value as a decimal number, a float with the digits that it can keep."""
    return Decimal(f"{value:.{DIGITS_OF_A_NUMBER}g}" if isinstance(value, float) else str(value))


def _fits(decimal: Decimal, digits: int) -> bool:
    return not decimal or -_MOST_DIGITS <= decimal.adjusted() < digits


def _nearest_number(decimal: Decimal) -> int | float:
    if decimal == decimal.to_integral_value() and -(2**63) <= decimal < 2**63:
        return int(decimal)
    return float(decimal)


def _sortable(decimal: Decimal) -> str:
    """Return text in the order of the numbers: sign, exponent, digits."""
    if not decimal:
        return "o"
    digits = "".join(map(str, decimal.as_tuple().digits)).strip("0")
    text = f"{decimal.adjusted() + _EXPONENT_BIAS:06d}:{digits}"
    # The tilde, after all digits, puts -1.5 before -1.
    return f"p{text}" if decimal > 0 else f"n{text.translate(_COMPLEMENTS)}~"


def _from_sortable(text: str) -> Decimal:
    sign, rest = text[:1], text[1:]
    if sign == "o":
        return Decimal(0)
    if sign not in ("n", "p"):
        return Decimal(text)
    if sign == "n":
        rest = rest.removesuffix("~").translate(_COMPLEMENTS)
    exponent, digits = rest.split(":")
    power = int(exponent) - _EXPONENT_BIAS - len(digits) + 1
    return Decimal((int(sign == "n"), tuple(map(int, digits)), power))
