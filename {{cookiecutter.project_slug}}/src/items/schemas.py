"""What clients send and what they get."""

import base64
import binascii
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL characters")
    return value


Title = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_nul)]
Description = Annotated[str, Field(max_length=2000), AfterValidator(_without_nul)]


class ItemCreate(BaseModel):
    """A new item."""

    model_config = ConfigDict(extra="forbid")

    title: Title
    description: Description | None = None


class ItemUpdate(BaseModel):
    """The fields to change; those left out stay as they are."""

    model_config = ConfigDict(extra="forbid")

    title: Title = ""
    description: Description | None = None

    @model_validator(mode="after")
    def changes_something(self) -> "ItemUpdate":
        """Refuse a body without a field."""
        if not self.model_fields_set:
            raise ValueError("there is nothing to change: give title, description or both")
        return self


class ItemRead(BaseModel):
    """A stored item."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    title: str
    description: str | None
    created_at: datetime
    updated_at: datetime


class ItemPage(BaseModel):
    """Some items, newest first, and the cursor of the next page."""

    model_config = ConfigDict(from_attributes=True)

    items: list[ItemRead]
    next_cursor: str | None


class Position(NamedTuple):
    """The place of an item in the order (created_at, id)."""

    created_at: datetime
    id: UUID


def encode_cursor(position: Position) -> str:
    """Return the position as text that needs no escaping in a URL."""
    text = f"{position.created_at.isoformat()} {position.id.hex}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Position:
    """Return the position; raise ValueError for anything that encode_cursor() did not return."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        created_at, _, key = text.decode("ascii").partition(" ")
        position = Position(datetime.fromisoformat(created_at), UUID(hex=key))
    except (ValueError, binascii.Error):
        raise ValueError("Input should be the next_cursor of an earlier answer") from None
    if encode_cursor(position) != cursor or position.created_at.utcoffset() != timedelta(0):
        raise ValueError("Input should be the next_cursor of an earlier answer")
    return position
