"""Pages of a table, newest first, and the cursors that lead from one to the next.

A cursor names the last row of a page, so that pages neither skip nor repeat a row when others are
written in the meantime (keyset pagination). See src/items/ for an example.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Generic, NamedTuple, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Integer, Uuid, bindparam, select, tuple_
from sqlalchemy.orm import Session

from src.database.base import Resource, UTCDateTime

Model = TypeVar("Model", bound=Resource)
Read = TypeVar("Read", bound=BaseModel)


class Position(NamedTuple):
    """The place of a row in the order (created_at, id)."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True)
class Page(Generic[Model]):
    """Some rows, newest first, and the cursor of the next page."""

    items: Sequence[Model]
    next_cursor: str | None


class PageRead(BaseModel, Generic[Read]):
    """A page as clients get it."""

    model_config = ConfigDict(from_attributes=True)

    items: list[Read]
    next_cursor: str | None


class NewestFirst(Generic[Model]):
    """The query for the pages of a table.

    Build it once, at the top of a module: building a query takes longer than running it.
    """

    def __init__(self, model: type[Model]) -> None:
        created_at, key = model.created_at, model.id
        after = tuple_(bindparam("created_at", type_=UTCDateTime), bindparam("id", type_=Uuid))
        newest_first = select(model).order_by(created_at.desc(), key.desc())
        self._first = newest_first.limit(bindparam("limit", type_=Integer))
        self._next = self._first.where(tuple_(created_at, key) < after)

    def page(self, session: Session, limit: int, after: Position | None) -> Page[Model]:
        """Return at most `limit` rows that follow `after`."""
        # One more row than asked for shows whether there is a next page.
        values = {"limit": limit + 1}
        if after is None:
            rows = session.scalars(self._first, values).all()
        else:
            rows = session.scalars(self._next, values | after._asdict()).all()
        if len(rows) <= limit:
            return Page(rows, None)
        last = rows[limit - 1]
        return Page(rows[:limit], encode_cursor(Position(last.created_at, last.id)))


def encode_cursor(position: Position) -> str:
    """Return the position as text that needs no escaping in a URL."""
    text = f"{position.created_at.isoformat()} {position.id.hex}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Position:
    """Return the position; raise ValueError for anything that encode_cursor() did not return."""
    problem = ValueError("Input should be the next_cursor of an earlier answer")
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        created_at, _, key = text.decode("ascii").partition(" ")
        position = Position(datetime.fromisoformat(created_at), UUID(hex=key))
    except ValueError:
        raise problem from None
    if encode_cursor(position) != cursor or position.created_at.utcoffset() != timedelta(0):
        raise problem
    return position


async def position_after(
    cursor: Annotated[str | None, Query(description="next_cursor of an earlier answer")] = None,
) -> Position | None:
    """Return where the page begins, or None for the first one; a bad cursor is a 422."""
    if not cursor:
        return None
    try:
        return decode_cursor(cursor)
    except ValueError as error:
        problem = {"type": "cursor", "loc": ("query", "cursor"), "msg": str(error)}
        raise RequestValidationError([problem]) from None


After = Annotated[Position | None, Depends(position_after)]
"""Where a page begins: the parameter `cursor` of an endpoint."""

Limit = Annotated[int, Query(ge=1, le=100)]
"""How many rows a page holds."""
