"""Items over HTTP."""

from uuid import UUID

from fastapi import APIRouter, Request, Response, status

from space_runtime.http.errors import CREATED, errors
from src.database.session import DatabaseDep
from src.items import service
from src.items.models import Item
from src.items.schemas import ItemCreate, ItemPage, ItemRead, ItemUpdate
from src.pagination import After, Limit, Page

router = APIRouter(prefix="/api/items", tags=["items"], responses=errors(503))


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=ItemRead,
    responses=errors(409) | CREATED,
)
async def create_item(
    data: ItemCreate, request: Request, response: Response, database: DatabaseDep
) -> Item:
    """Create an item."""
    item = await database.write(service.create_item, data)
    response.headers["Location"] = f"{request.scope['root_path']}{router.prefix}/{item.id}"
    return item


@router.get("", response_model=ItemPage)
async def list_items(database: DatabaseDep, after: After, limit: Limit = 20) -> Page[Item]:
    """List items, newest first."""
    return await database.read(service.list_items, limit, after)


@router.get("/{item_id}", response_model=ItemRead, responses=errors(404))
async def get_item(item_id: UUID, database: DatabaseDep) -> Item:
    """Return an item."""
    return await database.read(service.get_item, item_id)


@router.patch("/{item_id}", response_model=ItemRead, responses=errors(404, 409))
async def update_item(item_id: UUID, data: ItemUpdate, database: DatabaseDep) -> Item:
    """Change an item."""
    return await database.write(service.update_item, item_id, data)


@router.delete("/{item_id}", status_code=status.HTTP_204_NO_CONTENT, responses=errors(404, 409))
async def delete_item(item_id: UUID, database: DatabaseDep) -> None:
    """Delete an item."""
    await database.write(service.delete_item, item_id)
