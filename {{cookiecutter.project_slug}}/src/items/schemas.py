"""What clients send and what they get."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from src.pagination import PageRead
from src.schemas import PartialUpdate, Text

Title = Annotated[Text, Field(min_length=1, max_length=200, examples=["Buy milk"])]
Description = Annotated[Text, Field(max_length=2000, examples=["Two bottles"])]


class ItemCreate(BaseModel):
    """A new item."""

    model_config = ConfigDict(extra="forbid")

    title: Title
    description: Description | None = None


class ItemUpdate(PartialUpdate):
    """The fields to change; those left out stay as they are."""

    title: Title = ""
    description: Description | None = None


class ItemRead(BaseModel):
    """A stored item."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    title: Annotated[str, Field(examples=["Buy milk"])]
    description: Annotated[str | None, Field(examples=["Two bottles"])]
    created_at: datetime
    updated_at: datetime


class ItemPage(PageRead[ItemRead]):
    """Some items, newest first, and the cursor of the next page."""
