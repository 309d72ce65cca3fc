"""Operations on items: functions that take a session and know nothing of requests and answers."""

from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from space_runtime.http.errors import NotFound
from src.items.models import Item
from src.items.schemas import ItemCreate, ItemUpdate
from src.pagination import NewestFirst, Page, Position

# Built once, since building a query takes longer than running it.
ONE_ITEM = select(Item).where(Item.id == bindparam("id"))
NEWEST_FIRST = NewestFirst(Item)


def list_items(session: Session, limit: int, after: Position | None) -> Page[Item]:
    """Return at most `limit` items that follow `after`, newest first."""
    return NEWEST_FIRST.page(session, limit, after)


def get_item(session: Session, item_id: UUID) -> Item:
    """Return the item; raise NotFound if there is none."""
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
    """Return the changed item; raise NotFound if there is none."""
    item = get_item(session, item_id)
    for name in data.model_fields_set:
        setattr(item, name, getattr(data, name))
    return item


def delete_item(session: Session, item_id: UUID) -> None:
    """Delete the item; raise NotFound if there is none."""
    session.delete(get_item(session, item_id))
