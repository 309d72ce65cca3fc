"""How a value in an SQLite file becomes the value that the same model writes on PostgreSQL."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, JSON, Boolean, Dialect, Integer, LargeBinary, String
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from space_runtime.records.stored import Raw

# SQLAlchemy stores an interval on SQLite as a point in time, counted from here.
_EPOCH = datetime(1970, 1, 1)
_SQLITE = sqlite.dialect()
# What a type can be asked to read, to find out whether it changes anything.
_STORED = {String: "a text", LargeBinary: b"bytes", Integer: 12345}


class Conversion(NamedTuple):
    """How the values of one column are read from SQLite, and written on PostgreSQL."""

    read: Callable[[Any], Any]
    store: Callable[[Any], Any]
    """The inverse of `read`: returns what SQLite stores for a value."""
    type: TypeEngine[Any]
    """The type that writes what `read` returns."""


def find_conversion(
    model: TypeEngine[Any] | None, column: TypeEngine[Any], target: Dialect
) -> Conversion:
    """Return the conversion for a column of this type in the model, if any, and in PostgreSQL.

    JSON is passed on as text, because only the text tells NULL from a JSON null.
    """
    if model is None:
        # PostgreSQL understands SQLite's form of all but these.
        reads = (read for kind, read in _READERS.items() if isinstance(column, kind))
        return Conversion(next(reads, unchanged), as_raw, NullType())
    here, there = model.dialect_impl(_SQLITE), model.dialect_impl(target)
    if isinstance(_inner(here), JSON) and isinstance(_inner(there), JSON):
        return Conversion(_read_json, unchanged, NullType())
    if _reads_as_stored(here, there):
        return Conversion(unchanged, as_raw, NullType())
    return Conversion(
        here.result_processor(_SQLITE, None) or unchanged,
        here.bind_processor(_SQLITE) or as_raw,
        model,
    )


def _reads_as_stored(here: TypeEngine[Any], there: TypeEngine[Any]) -> bool:
    """Return whether an owner's type reads what is stored as it is, on both databases.

    Then it may hash what it writes, or change it otherwise, which must not happen twice.
    """
    if not isinstance(here, TypeDecorator) or type(here) is not type(there):
        return False
    kinds = _inner(here), _inner(there)
    read = here.result_processor(_SQLITE, None) or unchanged
    for kind, stored in _STORED.items():
        if all(isinstance(one, kind) for one in kinds):
            try:
                return bool(read(stored) == stored)
            except Exception:  # It is the owner's code, which raises anything.
                return False
    return False


def _inner(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    return kind.impl_instance if isinstance(kind, TypeDecorator) else kind


def _read_boolean(value: Raw) -> bool | Raw:
    return bool(value) if value in (0, 1) else value


def _read_array(value: Raw) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


def _read_interval(value: Raw) -> timedelta | Raw:
    try:
        return datetime.fromisoformat(str(value)) - _EPOCH
    except ValueError:
        return value


def _read_json(value: Raw) -> str | Raw:
    # SQLite stores JSON that is nothing but a number as a number.
    return json.dumps(value) if isinstance(value, (int, float)) else value


_READERS: dict[type[TypeEngine[Any]], Callable[[Raw], Any]] = {
    JSON: _read_json,
    Boolean: _read_boolean,
    ARRAY: _read_array,
    INTERVAL: _read_interval,
}


def unchanged(value: Any) -> Any:
    """Return the value: it is the same on both databases."""
    return value


def as_raw(value: Any) -> Raw:
    """Return the value in a form that SQLite can store."""
    return value if value is None or isinstance(value, (int, float, str, bytes)) else str(value)


def is_same(values: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Return whether PostgreSQL has these values; JSON is compared by what it means."""
    return all(
        value == there[name] or (isinstance(value, str) and _parsed(value) == there[name])
        for name, value in values.items()
    )


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
