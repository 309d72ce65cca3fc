"""What stops the start, what the application says of itself, who may write, what answers carry."""

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

from space_runtime.serving.limiter import ConcurrencyLimiter
from src.config.settings import load_settings
from src.main import create_app

Start = Callable[[], TestClient]

NO_ORIGINS = (
    "example.com",
    "https://example.com/",
    "https://example.com/app",
    "https://*.example.com",
    "https://user@example.com",
    "ftp://example.com",
    "https://example.com,",
    "https://example.com https://example.org",
    "*,https://example.com",
)
ORIGINS_LINE = (
    "CORS_ORIGINS must be comma-separated origins such as https://example.com, "
    "without a path, or *."
)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DATABASE_FALLBACK", "sometimes", "DATABASE_FALLBACK must be auto or strict."),
        ("POOL_SIZE", "many", "POOL_SIZE must be a whole number from 1 to 100."),
        ("API_TOKEN", "short", "API_TOKEN must be at least 8 characters."),
        *(("CORS_ORIGINS", value, ORIGINS_LINE) for value in NO_ORIGINS),
    ],
)
def test_a_bad_value_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        load_settings()
    assert stop.value.code == line


def test_a_blank_value_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_SIZE", "")
    assert load_settings().pool_size is None


def test_the_database_that_was_asked_for_is_ok(client: TestClient, database_url: str) -> None:
    report = client.get("/health").json()

    assert report["status"] == "ok"
    assert report["database"]["backend"] == database_url.partition(":")[0]
    assert report["database"]["source"] == "environment"
    assert report["database"]["reason"] is None
    assert client.get("/health/ready").status_code == 200
    assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    ("value", "status", "reason"),
    [(None, "ok", "unset"), ("  ", "ok", "empty"), ("not a url", "degraded", "unparseable")],
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
    answer = client.post("/api/items", json={"title": "x"})
    assert answer.status_code == 201
    assert answer.headers.get("X-Database") == (None if status == "ok" else "fallback")


def test_strict_answers_503_instead_of_using_sqlite(
    start: Start, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret-word@127.0.0.1:nonsense/db")
    monkeypatch.setenv("DATABASE_FALLBACK", "strict")
    client = start()

    health = client.get("/health")
    answer = client.post("/api/items", json={"title": "x"})

    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    assert health.json()["database"]["reason"] == "invalid_port"
    assert client.get("/health/ready").status_code == 503
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert "secret-word" not in health.text + answer.text + client.get("/").text


def test_head_works_wherever_get_does(client: TestClient) -> None:
    for path in ("/", "/health", "/health/live", "/health/ready", "/api/items"):
        assert client.head(path).status_code == 200, path


def test_a_wrong_method_is_told_the_right_ones(client: TestClient) -> None:
    answer = client.put("/api/items")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")


def test_a_long_url_and_long_headers_are_refused(client: TestClient) -> None:
    assert client.get("/health", params={"x": "x" * 9_000}).status_code == 414
    assert client.get("/health", headers={"X": "x" * 40_000}).status_code == 431


def test_the_status_page_tells_the_state_and_allows_its_own_script_only(
    client: TestClient,
) -> None:
    page = client.get("/?__theme=dark&logs=container")
    assert page.status_code == 200
    assert 'data-status="ok"' in page.text
    assert "script-src 'self' 'sha256-" in page.headers["Content-Security-Policy"]


def test_the_docs_need_no_other_host(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "://" not in page
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js"):
        assert f"docs/{name}" in page
        assert client.get(f"/docs/{name}").status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"]


def test_the_schema_keeps_what_a_route_says_of_its_answers() -> None:
    app = create_app()

    @app.post("/orders", responses={403: {"description": "Not on Sundays"}})
    async def order() -> None: ...

    responses = app.openapi()["paths"]["/orders"]["post"]["responses"]
    assert responses["403"]["description"] == "Not on Sundays"
    assert responses["403"]["content"] == responses["401"]["content"]


def test_metrics_count_requests_by_route(client: TestClient) -> None:
    client.get("/api/items/00000000-0000-0000-0000-000000000000")
    assert (
        'http_requests_total{method="GET",route="/api/items/{item_id}",status="404"}'
        in client.get("/metrics").text
    )


def test_a_stranger_can_write_nothing_on_a_space(
    start: Start, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("SPACE_ID", "example/my-space")
    client = start()

    answer = client.post("/api/items", content=b"not even JSON")

    assert answer.status_code == 403
    assert "API_TOKEN" in answer.json()["detail"]
    assert client.get("/api/items").status_code == 200


def test_a_write_needs_the_token(
    start: Start, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("API_TOKEN", "secret-token")
    client = start()

    for headers, status in (
        ({}, 401),
        ({"X-API-Token": "wrong"}, 401),
        ({"Authorization": "Basic secret-token"}, 401),
        ({"X-API-Token": "wrong", "Authorization": "Bearer secret-token"}, 401),
        ({"X-API-Token": "secret-token"}, 201),
        ({"Authorization": "Bearer secret-token"}, 201),
        ({"X-API-Token": "secret-token", "Authorization": "Bearer of-the-hub"}, 201),
    ):
        answer = client.post("/api/items", json={"title": "x"}, headers=headers)
        assert answer.status_code == status, headers


def test_every_answer_carries_the_security_headers_and_an_id(client: TestClient) -> None:
    for path in ("/", "/health", "/docs", "/api/items", "/nothing/here"):
        headers = client.get(path).headers
        assert "frame-ancestors 'self' https://huggingface.co" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Request-ID"]
        assert "X-Frame-Options" not in headers
        is_data = headers["Content-Type"] == "application/json"
        assert ("default-src 'none'" in headers["Content-Security-Policy"]) is is_data


@pytest.mark.parametrize(
    ("value", "origin", "allowed"),
    [
        ("https://Example.com , http://localhost:5173", "https://example.com", True),
        ("https://Example.com , http://localhost:5173", "http://localhost:5173", True),
        ("http://[::1]:5173", "http://[::1]:5173", True),
        ("https://example.com", "http://example.com", False),
        ("https://example.com", "https://example.com.example.org", False),
        ("*", "https://example.org", True),
        (" ", "https://example.org", False),
    ],
)
def test_pages_of_the_named_origins_may_call_the_api(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    value: str,
    origin: str,
    allowed: bool,
) -> None:
    monkeypatch.setenv("CORS_ORIGINS", value)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/test.db")
    answer = start().get("/health", headers={"Origin": origin})
    assert answer.status_code == 200
    assert (answer.headers.get("Access-Control-Allow-Origin") in (origin, "*")) is allowed


def test_who_leaves_just_when_its_turn_comes_keeps_no_place() -> None:
    async def crowd() -> None:
        limiter = ConcurrencyLimiter(3)
        while limiter.try_to_enter():
            pass
        waiting = asyncio.create_task(limiter.enter())
        await asyncio.sleep(0)
        limiter.leave()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert limiter.try_to_enter()

    asyncio.run(crowd())


def test_a_large_body_is_refused_whether_or_not_it_says_how_large(client: TestClient) -> None:
    body = b"x" * (1024 * 1024 + 1)
    assert client.post("/api/items", content=body).status_code == 413
    assert client.post("/api/items", content=iter([body[:600_000]] * 2)).status_code == 413


# items, as a client meets them

# well-formed, but of a time zone that no answer ever had
FOREIGN_CURSOR = base64.urlsafe_b64encode(
    b"0001-01-01T00:00:00+23:59 00000000000000000000000000000000"
).decode()


def create(client: TestClient, title: str = "A title") -> dict[str, str]:
    answer = client.post("/api/items", json={"title": title, "description": "Some text"})
    assert answer.status_code == 201
    item: dict[str, str] = answer.json()
    return item


def test_a_created_item_can_be_read_where_location_says(client: TestClient) -> None:
    answer = client.post("/api/items", json={"title": 'It\'s "quoted": 100 % ünïcödé 🚀'})
    item = answer.json()

    assert client.get(answer.headers["Location"]).json() == item
    assert UUID(item["id"])
    assert item["title"] == 'It\'s "quoted": 100 % ünïcödé 🚀'
    assert item["description"] is None
    assert item["created_at"] == item["updated_at"]
    assert item["created_at"].endswith("Z")


def test_a_change_touches_only_what_was_sent(client: TestClient) -> None:
    item = create(client)

    changed = client.patch(f"/api/items/{item['id']}", json={"title": "Another"}).json()

    assert changed["title"] == "Another"
    assert changed["description"] == "Some text"
    assert datetime.fromisoformat(changed["updated_at"]) > datetime.fromisoformat(
        item["updated_at"]
    )
    cleared = client.patch(f"/api/items/{item['id']}", json={"description": None}).json()
    assert cleared["description"] is None
    assert cleared["title"] == "Another"


def test_a_deleted_item_is_gone(client: TestClient) -> None:
    item = create(client)

    assert client.delete(f"/api/items/{item['id']}").status_code == 204
    assert client.get(f"/api/items/{item['id']}").status_code == 404
    assert client.delete(f"/api/items/{item['id']}").status_code == 404


def test_pages_show_each_item_once_newest_first(client: TestClient) -> None:
    created = [create(client, str(number))["id"] for number in range(5)]

    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = client.get("/api/items", params={"limit": 2, "cursor": cursor}).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if len(seen) == 2:
            create(client, "created while somebody is turning pages")

    assert seen == created[::-1]


def test_a_bad_item_is_refused(client: TestClient) -> None:
    for body in (
        {},
        {"title": ""},
        {"title": "x" * 201},
        {"title": "a\0b"},
        {"title": "\ud800"},
        {"title": None},
        {"title": "x", "description": "x" * 2001},
        {"title": "x", "colour": "red"},
    ):
        answer = client.post("/api/items", content=json.dumps(body))
        assert answer.status_code == 422, body
        assert answer.json()["detail"][0]["loc"][0] == "body"
    assert client.get("/api/items").json()["items"] == []


def test_a_change_of_nothing_is_refused(client: TestClient) -> None:
    assert client.patch(f"/api/items/{create(client)['id']}", json={}).status_code == 422


def test_a_bad_page_is_refused(client: TestClient) -> None:
    foreign = f"cursor={FOREIGN_CURSOR}"
    for query in ("limit=0", "limit=101", "limit=x", "cursor=nonsense", foreign):
        assert client.get(f"/api/items?{query}").status_code == 422, query


def test_an_id_that_is_none_is_refused_and_an_unknown_one_is_not_found(client: TestClient) -> None:
    assert client.get("/api/items/42").status_code == 422
    assert client.get(f"/api/items/{uuid4()}").status_code == 404
    assert client.patch(f"/api/items/{uuid4()}", json={"title": "x"}).status_code == 404
