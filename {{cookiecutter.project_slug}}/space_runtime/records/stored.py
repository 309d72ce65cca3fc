"""Values as SQLite stores them, and how JSON holds them."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

from sqlalchemy import JSON, Dialect, TypeDecorator

Raw = int | float | str | bytes | None
"""A value as SQLite stores it."""


def as_text(key: Iterable[Raw]) -> str:
    """Return a key for people, as text that PostgreSQL can store: without NUL, and valid UTF-8."""
    text = ", ".join(map(str, key)).replace("\0", "\\x00")
    return text.encode(errors="backslashreplace").decode()


def to_json(row: dict[str, Raw]) -> dict[str, Any]:
    """Return a row that JSON can hold: bytes become {"hex": ...}, infinity {"float": "inf"}."""
    return {name: _tagged(value) for name, value in row.items()}


class RowAsJSON(TypeDecorator[dict[str, Raw]]):
    """Holds a row whole; not as jsonb, which takes no NUL characters."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: dict[str, Raw] | None, dialect: Dialect) -> Any:
        """Return what to_json() makes of the row."""
        return None if value is None else to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Raw]:
        """Return the row that to_json() was given."""
        return {name: _untagged(one) for name, one in value.items()}


def _tagged(value: Raw) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not isfinite(value):
        return {"float": str(value)}
    return value


def _untagged(value: Any) -> Raw:
    match value:
        case {"hex": digits}:
            return bytes.fromhex(digits)
        case {"float": name}:
            return float(name)
    raw: Raw = value
    return raw
