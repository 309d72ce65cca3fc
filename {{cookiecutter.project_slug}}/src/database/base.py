"""The declarative base, and column types that mean the same on PostgreSQL and on SQLite."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from space_runtime.columns import (
    TYPES,
    LongNumeric,
    PortableJSON,
    UTCDateTime,
    portable_metadata,
)

__all__ = ["Base", "LongNumeric", "PortableJSON", "Resource", "UTCDateTime"]


def _now() -> datetime:
    return datetime.now(UTC)


def _created_at(context: Any) -> datetime:
    created_at: datetime = context.get_current_parameters()["created_at"]
    return created_at


class Resource:
    """The columns of every resource: a key, and when a row was created and last changed.

    The key is a UUID, so that rows from two databases can be merged. For pagination, add
    `Index(None, "created_at", "id")` to the table.
    """

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(default=_now, sort_order=98)
    # The default copies created_at, so that a new row has exactly the same time in both.
    updated_at: Mapped[datetime] = mapped_column(default=_created_at, onupdate=_now, sort_order=99)


class Base(DeclarativeBase):
    """The base of every model; constraints get names, so that migrations can change them.

    Values are exact on both databases, or refused: `Mapped[datetime]` takes aware times only, and
    a `Numeric` holds 15 digits on SQLite (`LongNumeric` any number, but SQL cannot compute with
    it). Enums are stored as the names of their members, in text; `dict` and `list` as JSON.
    """

    metadata = portable_metadata()
    type_annotation_map = TYPES
