"""Notes, of which everybody sees their own."""

from fastapi import APIRouter
from space_runtime.http.sign_in import CurrentUser
from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, mapped_column
from src.database.base import Base, Resource
from src.database.session import SessionDep


class Note(Resource, Base):
    """A note of one user."""

    __tablename__ = "notes"
    owner: Mapped[str] = mapped_column(String(50), index=True)
    text: Mapped[str] = mapped_column(String(2000))


router = APIRouter(prefix="/api/notes", tags=["notes"])


@router.post("", status_code=201)
def add_note(text: str, user: CurrentUser, session: SessionDep) -> None:
    """Add a note."""
    session.add(Note(owner=user.id, text=text))


@router.get("")
def list_notes(user: CurrentUser, session: SessionDep) -> list[str]:
    """List my notes."""
    return list(session.scalars(select(Note.text).where(Note.owner == user.id)))
