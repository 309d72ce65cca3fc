"""What stops the start, what /health says, who may write, and what answers carry."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from src.config.settings import load_settings

Start = Callable[[], TestClient]


def add_note_route(client: TestClient) -> None:
    """Add a route that writes, as one of your own would."""
    app = client.app
    assert isinstance(app, FastAPI)

    @app.post("/notes", status_code=201)
    async def create_note() -> None: ...


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DATABASE_FALLBACK", "sometimes", "DATABASE_FALLBACK must be auto or strict."),
        ("POOL_SIZE", "many", "POOL_SIZE must be a whole number from 1 to 100."),
        ("API_TOKEN", "short", "API_TOKEN must be at least 8 characters."),
    ],
)
def test_a_bad_value_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        load_settings()
    assert stop.value.code == line


def test_the_database_that_was_asked_for_is_ok(client: TestClient, database_url: str) -> None:
    report = client.get("/health").json()

    assert report["status"] == "ok"
    assert report["database"]["backend"] == database_url.partition(":")[0]
    assert report["database"]["source"] == "environment"
    assert report["database"]["reason"] is None
    assert client.get("/health/ready").status_code == 200
    assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("value", "status", "reason"),
    [(None, "ok", "unset"), ("not a url", "degraded", "unparseable")],
)
def test_sqlite_serves_when_the_url_is_of_no_use(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    value: str | None,
    status: str,
    reason: str,
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    if value is not None:
        monkeypatch.setenv("DATABASE_URL", value)
    client = start()

    report = client.get("/health").json()

    assert (report["status"], report["database"]["backend"]) == (status, "sqlite")
    assert report["database"]["reason"] == reason
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_stranger_can_write_nothing_on_a_space(
    start: Start, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("SPACE_ID", "example/my-space")
    client = start()
    add_note_route(client)

    answer = client.post("/notes", content=b"not even JSON")

    assert answer.status_code == 403
    assert "API_TOKEN" in answer.json()["detail"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_write_needs_the_token(
    start: Start, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("API_TOKEN", "secret-token")
    client = start()
    add_note_route(client)

    for headers, status in (
        ({}, 401),
        ({"X-API-Token": "wrong"}, 401),
        ({"X-API-Token": "secret-token"}, 201),
        ({"Authorization": "Bearer secret-token"}, 201),
    ):
        assert client.post("/notes", headers=headers).status_code == status, headers


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_answer_carries_the_security_headers_and_an_id(client: TestClient) -> None:
    for path in ("/", "/health", "/docs", "/openapi.json", "/nothing/here"):
        headers = client.get(path).headers
        assert "frame-ancestors 'self' https://huggingface.co" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Request-ID"]
