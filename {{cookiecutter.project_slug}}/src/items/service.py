"""What can be done with items: functions of a session, which know nothing of HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Uuid, bindparam, select, tuple_
from sqlalchemy.orm import Session

from space_runtime.http.errors import NotFound
from src.database.base import UTCDateTime
from src.items.models import Item
from src.items.schemas import ItemCreate, ItemUpdate, Position, encode_cursor


@dataclass(frozen=True)
class Page:
    """Some items, newest first, and the cursor of the next page."""

    items: Sequence[Item]
    next_cursor: str | None


# built once, since putting a query together takes longer than running it
ONE_ITEM = select(Item).where(Item.id == bindparam("id"))
FIRST_PAGE = select(Item).order_by(Item.created_at.desc(), Item.id.desc()).limit(bindparam("limit"))
NEXT_PAGE = FIRST_PAGE.where(
    tuple_(Item.created_at, Item.id)
    < tuple_(bindparam("created_at", type_=UTCDateTime), bindparam("id", type_=Uuid))
)


def list_items(session: Session, limit: int, after: Position | None) -> Page:
    """Return at most `limit` items that follow `after`, newest first."""
    # one more than asked for tells whether there is a next page
    asked = {"limit": limit + 1}
    if after is None:
        items = session.scalars(FIRST_PAGE, asked).all()
    else:
        items = session.scalars(NEXT_PAGE, asked | after._asdict()).all()
    if len(items) <= limit:
        return Page(items, None)
    last = items[limit - 1]
    return Page(items[:limit], encode_cursor(Position(last.created_at, last.id)))


def get_item(session: Session, item_id: UUID) -> Item:
    """Return the item; raise NotFound."""
    item = session.scalar(ONE_ITEM, {"id": item_id})
    if item is None:
        raise NotFound(f"There is no item {item_id}.")
    return item


def create_item(session: Session, data: ItemCreate) -> Item:
    """Return the new item."""
    item = Item(**data.model_dump())
    session.add(item)
    return item


def update_item(session: Session, item_id: UUID, data: ItemUpdate) -> Item:
    """Return the changed item; raise NotFound."""
    item = get_item(session, item_id)
    for name, value in data.model_dump(exclude_unset=True).items():
        setattr(item, name, value)
    return item


def delete_item(session: Session, item_id: UUID) -> None:
    """Delete the item; raise NotFound."""
    session.delete(get_item(session, item_id))
