"""The stack that most tutorials end with: a `def` endpoint, a session from `yield`, a response model.

It has two things that tutorials lack, without which there would be little to compare: `max_concurrency`, since it
deadlocks at 64 clients, and SQLite's write-ahead log, since otherwise the disk would be measured.
"""

import os
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import Session
from src.database.base import Base
from src.items.models import Item
from src.items.schemas import ItemCreate, ItemRead

engine = create_engine(os.environ["DATABASE_URL"])
POOL_SIZE_AND_OVERFLOW = 15

if engine.dialect.name == "sqlite":

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        """Write as our own connections do."""
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")


def get_session() -> Iterator[Session]:
    """Yield a session and close it afterwards."""
    with Session(engine) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session, max_concurrency=POOL_SIZE_AND_OVERFLOW)]

Base.metadata.create_all(engine)
app = FastAPI()


@app.get("/api/items", response_model=list[ItemRead])
def list_items(session: SessionDep, limit: int = 20) -> Any:
    """List items, newest first."""
    return session.scalars(select(Item).order_by(Item.created_at.desc(), Item.id.desc()).limit(limit)).all()


@app.get("/api/items/{item_id}", response_model=ItemRead)
def get_item(item_id: UUID, session: SessionDep) -> Any:
    """Return an item."""
    item = session.get(Item, item_id)
    if item is None:
        raise HTTPException(404)
    return item


@app.post("/api/items", response_model=ItemRead, status_code=201)
def create_item(data: ItemCreate, session: SessionDep) -> Any:
    """Create an item."""
    item = Item(**data.model_dump())
    session.add(item)
    session.commit()
    session.refresh(item)
    return item
