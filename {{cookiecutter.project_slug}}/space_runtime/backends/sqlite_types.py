"""SQLite's versions of plain column types: they refuse what PostgreSQL would refuse.

Otherwise a row that SQLite took could never come to PostgreSQL, or not as it was written.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

from space_runtime.columns import RefusedValue

# \u0000 in JSON, but not after a backslash that is itself escaped.
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class _Checked(TypeEngine[Any]):
    """A type that looks at each value before it is stored."""

    def check(self, value: Any) -> None:
        """Raise RefusedValue for what PostgreSQL would refuse, or SQLite would change."""

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        convert = super().bind_processor(dialect)

        def process(value: Any) -> Any:
            if value is not None:
                self.check(value)
            return convert(value) if convert else value

        return process


class _Text(_Checked, sa.String):
    def check(self, value: Any) -> None:
        if isinstance(value, str) and "\0" in value:
            raise RefusedValue("text may not contain NUL characters")


class _LongText(_Text):
    # What a type is called in a migration goes by this.
    __visit_name__ = "text"


class _Char(_Text):
    __visit_name__ = "CHAR"


class _Enum(sa.Enum):
    """An enum that takes no text but its own: such a row could never be read again."""

    def __init__(self, *members: Any, **options: Any) -> None:
        super().__init__(*members, **{**options, "validate_strings": True})


class _Whole(_Checked, sa.Integer):
    bits = 32

    def check(self, value: Any) -> None:
        most = 2 ** (self.bits - 1)
        if isinstance(value, int) and not -most <= value < most:
            raise RefusedValue(f"a number is too large for {self.bits} bits")


class _SmallWhole(_Whole):
    __visit_name__ = "small_integer"
    bits = 16


class _BigWhole(_Whole):
    bits = 64


class _Float(_Checked, sa.Float[Any]):
    def check(self, value: Any) -> None:
        if math.isnan(float(value)):
            raise RefusedValue("SQLite cannot store NaN")  # but NULL instead of it


class _LocalDateTime(_Checked, sqlite.DATETIME):
    def check(self, value: Any) -> None:
        if isinstance(value, datetime) and value.tzinfo is not None and not self.timezone:
            raise RefusedValue("a DateTime column without timezone=True takes no time zone")


class _LocalTime(_Checked, sqlite.TIME):
    def check(self, value: Any) -> None:
        if self.timezone or (isinstance(value, time) and value.tzinfo is not None):
            raise RefusedValue("SQLite cannot store the time zone of a time of day")


STRICT_TYPES: Mapping[type[TypeEngine[Any]], type[TypeEngine[Any]]] = {
    sa.String: _Text,
    sa.Text: _LongText,
    sa.CHAR: _Char,
    sa.Enum: _Enum,
    sa.SmallInteger: _SmallWhole,
    sa.Integer: _Whole,
    sa.BigInteger: _BigWhole,
    sa.Float: _Float,
    sa.DateTime: _LocalDateTime,
    sa.Time: _LocalTime,
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
