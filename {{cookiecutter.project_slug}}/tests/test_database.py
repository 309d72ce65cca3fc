"""How your endpoints, scripts and migrations use the database, on both databases."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from src.config.settings import PROJECT_ROOT
from src.database.base import PortableJSON
from src.database.session import DatabaseDep, SessionDep, SessionLocal, build_engine
from src.main import open_database


class OwnBase(DeclarativeBase):
    """Separate from the application's Base, so that its tables need no migration."""


class Note(OwnBase):
    __tablename__ = "tests_of_types"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    title: Mapped[str]
    data: Mapped[dict[str, Any] | None] = mapped_column(PortableJSON)


@pytest.fixture
def notes_table(database_url: str) -> None:
    engine = build_engine(database_url)
    OwnBase.metadata.create_all(engine)
    engine.dispose()


@pytest.fixture
def client(notes_table: None, start: Callable[[], TestClient]) -> TestClient:
    """A client of an application whose routes use the database in every supported way."""
    client = start()
    app = client.app
    assert isinstance(app, FastAPI)

    def add(session: Session, title: str) -> None:
        session.add(Note(title=title))
        session.flush()
        if title == "stop":
            raise ValueError

    def list_titles(session: Session) -> list[str]:
        return list(session.scalars(select(Note.title)))

    @app.post("/write")
    async def write(title: str, database: DatabaseDep) -> None:
        await database.write(add, title)

    @app.post("/session")
    def by_session(title: str, session: SessionDep) -> None:
        add(session, title)

    @app.post("/read")
    async def read_that_writes(title: str, database: DatabaseDep) -> None:
        await database.read(add, title)

    @app.get("/titles")
    async def titles(database: DatabaseDep) -> list[str]:
        return await database.read(list_titles)

    return client


@pytest.mark.parametrize("path", ["/write", "/session"])
def test_what_is_written_is_committed_when_the_endpoint_returns_and_not_when_it_raises(
    client: TestClient, path: str
) -> None:
    assert client.post(path, params={"title": "go"}).status_code == 200
    assert client.get("/titles").json() == ["go"]
    assert client.post(path, params={"title": "stop"}).status_code == 500
    assert client.get("/titles").json() == ["go"]


def test_a_read_cannot_write(client: TestClient) -> None:
    assert client.post("/read", params={"title": "go"}).status_code in (500, 503)
    assert client.get("/titles").json() == []


def test_a_script_can_use_the_database(notes_table: None) -> None:
    with open_database():
        with SessionLocal.begin() as session:
            session.add(Note(title="from a script"))
        with SessionLocal() as session:
            assert session.scalars(select(Note.title)).all() == ["from a script"]


def test_session_local_says_when_it_is_too_early() -> None:
    with pytest.raises(RuntimeError, match="open_database"):
        SessionLocal()


def test_json_columns_are_native_on_postgresql(database_url: str, notes_table: None) -> None:
    engine = build_engine(database_url)
    value = {"a": [1, None, "ü"]}
    with Session(engine) as session:
        session.add(Note(title="with data", data=value))
        session.commit()
        assert session.scalar(select(Note.data)) == value
        if engine.dialect.name == "postgresql":
            assert session.scalar(text("SELECT jsonb_typeof(data) FROM tests_of_types")) == "object"
    engine.dispose()


def test_migrations_go_down_and_up_again_and_match_the_models(database_url: str) -> None:
    config = Config(PROJECT_ROOT / "alembic.ini")
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    command.check(config)
