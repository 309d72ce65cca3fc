"""Transactions, migrations and the gate, on both databases."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Column, Integer, MetaData, Table, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from space_runtime.migrations import Migrations
from src.config.settings import PROJECT_ROOT
from src.database.base import PortableJSON
from src.database.session import DatabaseDep, SessionDep, SessionLocal, build_engine
from src.items.models import Item
from src.main import open_database


def titles(client: TestClient) -> list[str]:
    return [item["title"] for item in client.get("/api/items").json()["items"]]


def add_routes(client: TestClient) -> None:
    """Add routes that use the database in the ways that the sample does not."""
    app = client.app
    assert isinstance(app, FastAPI)

    @app.post("/by-session")
    def by_session(title: str, session: SessionDep) -> str:
        session.add(Item(title=title))
        if title == "stop":
            raise ValueError
        return title

    @app.post("/read-that-writes")
    async def read_that_writes(database: DatabaseDep) -> None:
        def work(session: Session) -> None:
            session.execute(text("DELETE FROM items"))

        await database.read(work)

    @app.post("/swallow")
    async def swallow(database: DatabaseDep) -> str:
        def work(session: Session) -> None:
            session.add(Item(title="before the error"))
            session.flush()
            with contextlib.suppress(DBAPIError):
                session.execute(text("SELECT * FROM no_such_table"))

        await database.write(work)
        return "stored"

    @app.post("/append")
    async def append(database: DatabaseDep) -> None:
        def work(session: Session) -> None:
            item = session.scalars(select(Item).with_for_update()).one()
            item.description = (item.description or "") + "x"

        await database.write(work)


def test_a_session_is_committed_when_the_endpoint_returns_and_not_when_it_raises(
    client: TestClient,
) -> None:
    add_routes(client)
    assert client.post("/by-session?title=go").status_code == 200
    assert client.post("/by-session?title=stop").status_code == 500
    assert titles(client) == ["go"]


def test_a_read_cannot_write(client: TestClient) -> None:
    add_routes(client)
    client.post("/api/items", json={"title": "stays"})
    assert client.post("/read-that-writes").status_code in (500, 503)
    assert titles(client) == ["stays"]


def test_work_that_hides_an_error_is_stored_if_and_only_if_it_says_so(client: TestClient) -> None:
    """PostgreSQL answers the COMMIT of a failed transaction with a silent ROLLBACK."""
    add_routes(client)
    answer = client.post("/swallow")
    assert titles(client) == (["before the error"] if answer.status_code == 200 else [])


def test_work_that_ends_in_a_mistake_is_answered_and_keeps_nobody_out(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)

    @app.post("/no-next-row")
    async def no_next_row(database: DatabaseDep) -> None:
        await database.write(lambda session: next(session.scalars(select(Item))))

    for _ in range(10):
        assert client.post("/no-next-row").status_code == 500
    assert client.post("/api/items", json={"title": "stored"}).status_code == 201


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_work_that_was_never_run_is_no_success(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)

    @app.post("/coroutine")
    async def coroutine(database: DatabaseDep) -> None:
        async def work(session: Session) -> None:
            session.add(Item(title="never stored"))

        await database.write(work)  # type: ignore[unused-coroutine]

    assert client.post("/coroutine").status_code == 500
    assert titles(client) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_work_that_committed_by_itself_is_not_run_again(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)

    @app.post("/commits")
    async def commits(database: DatabaseDep) -> None:
        def work(session: Session) -> None:
            session.add(Item(title="once"))
            session.commit()
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        await database.write(work)

    answer = client.post("/commits")
    assert answer.status_code == 503
    assert "may or may not" in answer.json()["detail"]
    deadline = time.monotonic() + 10
    while client.get("/health/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert titles(client) == ["once"]


def test_a_session_that_takes_too_long_is_rolled_back_and_keeps_nobody_out(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("space_runtime.serving.database.MAX_SESSION_SECONDS", 0.1)
    app = client.app
    assert isinstance(app, FastAPI)

    @app.post("/slow")
    def slow(session: SessionDep) -> str:
        time.sleep(0.4)
        session.add(Item(title="too late"))
        session.flush()
        return "stored"

    assert client.post("/slow").status_code in (500, 503)
    assert client.post("/api/items", json={"title": "next"}).status_code == 201
    assert titles(client) == ["next"]


def test_concurrent_changes_of_one_row_are_all_kept(client: TestClient) -> None:
    add_routes(client)
    client.post("/api/items", json={"title": "counter"})
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda _: client.post("/append").status_code, range(100)))
    assert answers == [200] * 100
    assert client.get("/api/items").json()["items"][0]["description"] == "x" * 100


def test_session_local_says_when_it_is_too_early() -> None:
    with pytest.raises(RuntimeError, match="open_database"):
        SessionLocal()


def test_a_script_can_use_the_database(database_url: str) -> None:
    with open_database():
        with SessionLocal.begin() as session:
            session.add(Item(title="from a script"))
        with SessionLocal() as session:
            assert session.scalars(select(Item.title)).all() == ["from a script"]


def test_json_columns_are_native_on_postgresql(database_url: str) -> None:
    engine = build_engine(database_url)
    table = Table("notes", MetaData(), Column("id", Integer), Column("data", PortableJSON))
    value = {"a": [1, None, "ü"]}
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table), {"id": 1, "data": value})
        assert connection.scalar(select(table.c.data)) == value
        if engine.dialect.name == "postgresql":
            assert connection.scalar(text("SELECT jsonb_typeof(data) FROM notes")) == "object"
    engine.dispose()


def test_migrations_go_down_and_up_again_and_match_the_models(
    database_url: str,
) -> None:
    config = Config(PROJECT_ROOT / "alembic.ini")
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    command.check(config)


# FastAPI silences this itself, for the whole process: threads that do so end each other's silence
@pytest.mark.filterwarnings("ignore:The 'alias' attribute")
def test_processes_that_start_together_migrate_once(
    database_url: str, start: Callable[[], TestClient]
) -> None:
    clients: list[TestClient] = []
    threads = [threading.Thread(target=lambda: clients.append(start())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [client.get("/health").json()["status"] for client in clients] == ["ok"] * 3


def test_a_newer_schema_is_served_with_a_word_about_it(
    database_url: str, start: Callable[[], TestClient]
) -> None:
    command.upgrade(Config(PROJECT_ROOT / "alembic.ini"), "head")
    engine = build_engine(make_url(database_url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from-the-future'"))
    engine.dispose()

    report = start().get("/health").json()

    assert (report["status"], report["database"]["reason"]) == ("ok", "schema_newer")


def test_the_newest_revision_is_found_however_migrations_are_written(
    tmp_path: Path,
) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    for name, text_of_it in {
        "a.py": 'revision: str = "a"\ndown_revision: str | None = None\n',
        "b.py": "revision = 'b'\ndown_revision = 'a'\n",
        "c.py": 'revision = "c"\ndown_revision = "a"\n',
        "merged.py": 'revision = "d"\ndown_revision = (\n    "b",  # "x"\n    "c",\n)\n',
    }.items():
        (versions / name).write_text(text_of_it)
    assert Migrations(tmp_path).revisions() == ({"a", "b", "c", "d"}, {"d"})
