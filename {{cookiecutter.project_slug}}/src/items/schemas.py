"""What clients send and what they get."""

import base64
import binascii
from datetime import datetime, timedelta
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

# PostgreSQL stores no NUL characters
_WITHOUT_NUL = r"^[^\x00]*$"
Title = Annotated[
    str, Field(min_length=1, max_length=200, pattern=_WITHOUT_NUL, examples=["Buy milk"])
]
Description = Annotated[str, Field(max_length=2000, pattern=_WITHOUT_NUL, examples=["Two bottles"])]


class ItemCreate(BaseModel):
    """A new item."""

    model_config = ConfigDict(extra="forbid")

    title: Title
    description: Description | None = None


def _say_that_something_is_needed(schema: dict[str, Any]) -> None:
    schema["minProperties"] = 1
    # generated clients would send the defaults, which are no values of the item
    for field in schema["properties"].values():
        field.pop("default")


class ItemUpdate(BaseModel):
    """The fields to change; those left out stay as they are."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_say_that_something_is_needed)

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
    title: Annotated[str, Field(examples=["Buy milk"])]
    description: Annotated[str | None, Field(examples=["Two bottles"])]
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
