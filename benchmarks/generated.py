"""What people would generate instead: s3rius' `fastapi_template`, from the package index, with our items in its idiom.

It gets the versions of the libraries that this project is pinned to, and is started by its own command.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from tests.support.processes import free_port
from tests.support.server import Server, serve

RELEASE = "fastapi-template==6.1.2"
OPTIONS = "--orm sqlalchemy --api-type rest --ci none --migrations --routers --dummy --quiet --force"
DRIVERS = ("aiosqlite", "asyncpg", "greenlet", "ujson", "yarl")
ROOT = Path(__file__).parents[1]

MODEL = '''
from datetime import UTC, datetime
from uuid import UUID, uuid4

from peer.db.base import Base
from sqlalchemy import DateTime, Index
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.sqltypes import String


class ItemModel(Base):
    """Model of an item."""

    __tablename__ = "items"
    __table_args__ = (Index("ix_items", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    title: Mapped[str] = mapped_column(String(length=200))
    description: Mapped[str | None] = mapped_column(String(length=2000))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC))
'''
DAO = '''
from typing import List, Optional
from uuid import UUID

from fastapi import Depends
from peer.db.dependencies import get_db_session
from peer.db.models.item_model import ItemModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession


class ItemDAO:
    """Class for accessing the items table."""

    def __init__(self, session: AsyncSession = Depends(get_db_session)) -> None:
        self.session = session

    async def create_item(self, title: str, description: Optional[str]) -> ItemModel:
        item = ItemModel(title=title, description=description)
        self.session.add(item)
        await self.session.flush()
        return item

    async def get_all_items(self, limit: int, offset: int) -> List[ItemModel]:
        newest_first = select(ItemModel).order_by(ItemModel.created_at.desc(), ItemModel.id.desc())
        raw_items = await self.session.execute(newest_first.limit(limit).offset(offset))
        return list(raw_items.scalars().fetchall())

    async def get_item(self, item_id: UUID) -> Optional[ItemModel]:
        return await self.session.get(ItemModel, item_id)
'''
VIEWS = """
from datetime import datetime
from typing import List, Optional
from uuid import UUID

from fastapi import APIRouter, HTTPException
from fastapi.param_functions import Depends
from peer.db.dao.item_dao import ItemDAO
from peer.db.models.item_model import ItemModel
from peer.web.api.router import api_router
from pydantic import BaseModel, ConfigDict

router = APIRouter()


class ItemDTO(BaseModel):
    id: UUID
    title: str
    description: Optional[str]
    created_at: datetime
    updated_at: datetime

    model_config = ConfigDict(from_attributes=True)


class ItemInputDTO(BaseModel):
    title: str
    description: Optional[str] = None


@router.get("", response_model=List[ItemDTO])
async def get_items(limit: int = 10, offset: int = 0, item_dao: ItemDAO = Depends()) -> List[ItemModel]:
    return await item_dao.get_all_items(limit=limit, offset=offset)


@router.get("/{item_id}", response_model=ItemDTO)
async def get_item(item_id: UUID, item_dao: ItemDAO = Depends()) -> ItemModel:
    item = await item_dao.get_item(item_id)
    if item is None:
        raise HTTPException(status_code=404)
    return item


@router.post("", response_model=ItemDTO, status_code=201)
async def create_item(new_item: ItemInputDTO, item_dao: ItemDAO = Depends()) -> ItemModel:
    return await item_dao.create_item(title=new_item.title, description=new_item.description)


api_router.include_router(router, prefix="/items", tags=["items"])
"""
TABLES = """
import asyncio

from peer.db.base import Base
from peer.db.models import item_model
from peer.settings import settings
from sqlalchemy.ext.asyncio import create_async_engine


async def create() -> None:
    engine = create_async_engine(str(settings.db_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


asyncio.run(create())
"""


def run(*command: str | Path, folder: Path, environ: dict[str, str] | None = None) -> None:
    """Run a command; show what it said if it fails."""
    everything = os.environ | {"PATH": f"{ROOT}/.tools/bin{os.pathsep}{os.environ['PATH']}"} | (environ or {})
    done = subprocess.run(command, cwd=folder, env=everything, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"  # noqa: S101


@contextmanager
def generated() -> Iterator[Path]:
    """Yield a folder with the generator and an environment in which what it generates can run."""
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        lock = ROOT / "{{cookiecutter.project_slug}}" / "requirements.lock"
        for environment, *packages in (
            ("generator", RELEASE),
            ("libraries", "-r", str(lock)),
            ("libraries", *DRIVERS),
        ):
            if not (folder / environment).exists():
                run("uv", "venv", "--python", sys.executable, environment, folder=folder)
            run("uv", "pip", "install", "--python", f"{environment}/bin/python", *packages, folder=folder)
        yield folder


def generate(peer: Path, database: str, folder: Path) -> None:
    """Generate a project for this database in the folder, and add our items to it."""
    # Its own `uv sync` would look for another Python; what it generates is whole without it.
    offline = {"UV_OFFLINE": "1", "UV_PYTHON_DOWNLOADS": "never", "HOME": str(folder)}
    options = ["--name", "peer", "--db", database, *OPTIONS.split()]
    run(peer / "generator/bin/fastapi_template", *options, folder=folder, environ=offline)
    package = folder / "peer" / "peer"
    (package / "db/models/item_model.py").write_text(MODEL)
    (package / "db/dao/item_dao.py").write_text(DAO)
    (package / "web/api/items.py").write_text(VIEWS)
    application = package / "web/application.py"
    application.write_text(
        application.read_text().replace(
            "from peer.web.api.router import api_router\n",
            "from peer.web.api.router import api_router\nfrom peer.web.api import items\n",
        )
    )


@contextmanager
def serve_generated(peer: Path, url: str) -> Iterator[Server]:
    """Serve it from this database as its own README says."""
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder, port, parts = Path(name), free_port(), make_url(url)
        environ = {"PEER_PORT": str(port), "PEER_DB_FILE": str(folder / "peer.db")}
        if parts.get_backend_name() != "sqlite":
            environ |= {
                "PEER_DB_HOST": str(parts.host),
                "PEER_DB_PORT": str(parts.port),
                "PEER_DB_USER": str(parts.username),
                "PEER_DB_PASS": str(parts.password),
                "PEER_DB_BASE": str(parts.database),
            }
        generate(peer, parts.get_backend_name(), folder)
        python = peer / "libraries/bin/python"
        run(python, "-c", TABLES, folder=folder / "peer", environ=environ)
        with serve(folder / "peer", environ, command=[str(python), "-m", "peer"], port=port) as server:
            yield server
