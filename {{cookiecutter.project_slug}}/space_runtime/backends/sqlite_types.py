"""SQLite's versions of plain column types: they refuse what PostgreSQL would refuse.

Otherwise a row that SQLite took could never come to PostgreSQL, or not as it was written.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, time
from typing import Any

from sqlalchemy import (
    CHAR,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    SmallInteger,
    String,
    Text,
    Time,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

from space_runtime.columns import RefusedValue

# \u0000 in JSON, but not after a backslash that is itself escaped.
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class _Text(String):
    """Text without NUL characters, which PostgreSQL cannot store."""

    def bind_processor(self, dialect: Dialect) -> Any:
        def process(value: Any) -> Any:
            if isinstance(value, str) and "\0" in value:
                raise RefusedValue("text may not contain NUL characters")
            return value

        return process


class _LongText(_Text):
    # What a type is called in a migration goes by this.
    __visit_name__ = "text"


class _Char(_Text):
    __visit_name__ = "CHAR"


class _Enum(Enum):
    """An enum that takes no text but its own: such a row could never be read again."""

    def __init__(self, *members: Any, **options: Any) -> None:
        super().__init__(*members, **{**options, "validate_strings": True})


class _Whole(Integer):
    """An integer of so many bits as PostgreSQL has for it."""

    bits = 32

    def bind_processor(self, dialect: Dialect) -> Any:
        most = 2 ** (self.bits - 1)

        def process(value: Any) -> Any:
            if isinstance(value, int) and not -most <= value < most:
                raise RefusedValue(f"a number is too large for {self.bits} bits")
            return value

        return process


class _SmallWhole(_Whole):
    __visit_name__ = "small_integer"
    bits = 16


class _BigWhole(_Whole):
    bits = 64


class _Float(Float[Any]):
    """A float, but not NaN, which SQLite would store as NULL."""

    def bind_processor(self, dialect: Dialect) -> Any:
        def process(value: Any) -> Any:
            if value is None:
                return None
            number = float(value)
            if math.isnan(number):
                raise RefusedValue("SQLite cannot store NaN")
            return number

        return process


class _LocalDateTime(sqlite.DATETIME):
    """A time without a zone, unless the type has one: SQLite would drop the value's own."""

    def bind_processor(self, dialect: Dialect) -> Any:
        inner: Any = super().bind_processor(dialect)

        def process(value: Any) -> Any:
            if isinstance(value, datetime) and value.tzinfo is not None and not self.timezone:
                raise RefusedValue("a DateTime column without timezone=True takes no time zone")
            return inner(value) if inner else value

        return process


class _LocalTime(sqlite.TIME):
    """A time of day without a zone, because SQLite would drop it."""

    def bind_processor(self, dialect: Dialect) -> Any:
        inner: Any = super().bind_processor(dialect)  # type: ignore[no-untyped-call]

        def process(value: Any) -> Any:
            if self.timezone or (isinstance(value, time) and value.tzinfo is not None):
                raise RefusedValue("SQLite cannot store the time zone of a time of day")
            return inner(value) if inner else value

        return process


STRICT_TYPES: Mapping[type[TypeEngine[Any]], type[TypeEngine[Any]]] = {
    String: _Text,
    Text: _LongText,
    CHAR: _Char,
    Enum: _Enum,
    SmallInteger: _SmallWhole,
    Integer: _Whole,
    BigInteger: _BigWhole,
    Float: _Float,
    DateTime: _LocalDateTime,
    Time: _LocalTime,
}
"""SQLite's `colspecs`: types that refuse, when a value is written, what PostgreSQL refuses."""


def dump_json(value: Any) -> str:
    """Return JSON that jsonb takes; raise RefusedValue for NaN, NUL and half a character."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        # SQLite would store JSON that is nothing but a number as a number.
        raise RefusedValue("a number is too large for JSON")
    try:
        text = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefusedValue("JSON may not contain lone surrogates") from None
    except ValueError:
        raise RefusedValue("JSON may contain neither NaN nor infinite numbers") from None
    if _NUL_IN_JSON.search(text):
        raise RefusedValue("JSON may not contain NUL characters")
    return text
