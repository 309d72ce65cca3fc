"""The table of items."""

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from src.database.base import Base, Resource


class Item(Resource, Base):
    """One item."""

    __tablename__ = "items"
    __table_args__ = (Index(None, "created_at", "id"),)

    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(String(2000))
