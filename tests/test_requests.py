"""What every request meets, whatever the routes are: rules, headers, pages, and who may call from elsewhere."""

from collections.abc import Iterator

import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.server import Server

pytestmark = pytest.mark.slow

UNKNOWN = "/api/items/00000000-0000-0000-0000-000000000000"
ORDERS = """
from src.main import app


@app.post("/orders", responses={403: {"description": "Not on Sundays"}})
async def order() -> None: ...
"""


@pytest.fixture(scope="module")
def server(bake: Bakery) -> Iterator[Server]:
    """The app on SQLite, as it was rendered."""
    with bake().boot() as server:
        assert server.settled()["status"] == "ok"
        yield server


def test_head_works_wherever_get_does(server: Server) -> None:
    for path in ("/", "/health", "/health/live", "/health/ready", "/api/items"):
        assert server.head(path).status_code == 200, path


def test_a_wrong_method_is_told_the_right_ones(server: Server) -> None:
    answer = server.client.put("/api/items")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")


def test_a_long_url_and_long_headers_are_refused(server: Server) -> None:
    assert server.get("/health", params={"x": "x" * 9_000}).status_code == 414
    assert server.get("/health", headers={"X": "x" * 40_000}).status_code == 431


def test_a_large_body_is_refused_whether_or_not_it_says_how_large(server: Server) -> None:
    body = b"x" * (1024 * 1024 + 1)
    assert server.post("/api/items", content=body).status_code == 413
    assert server.post("/api/items", content=iter([body[:600_000]] * 2)).status_code == 413


def test_the_status_page_tells_the_state_and_allows_its_own_script_only(server: Server) -> None:
    page = server.get("/?__theme=dark&logs=container")
    assert page.status_code == 200
    assert 'data-status="ok"' in page.text
    assert "script-src 'self' 'sha256-" in page.headers["Content-Security-Policy"]


def test_the_docs_need_no_other_host(server: Server) -> None:
    page = server.get("/docs").text
    assert "://" not in page
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert f"docs/{name}" in page
        assert server.get(f"/docs/{name}").status_code == 200
    assert server.get("/openapi.json").json()["info"]["title"]


def test_the_schema_keeps_what_a_route_says_of_its_answers(project: BakedProject) -> None:
    (project.path / "orders.py").write_text(ORDERS)
    with project.boot(in_place=True, app="orders:app") as server:
        responses = server.get("/openapi.json").json()["paths"]["/orders"]["post"]["responses"]
    assert responses["403"]["description"] == "Not on Sundays"
    assert responses["403"]["content"] == responses["401"]["content"]


def test_metrics_count_requests_by_route(server: Server) -> None:
    server.get(UNKNOWN)
    counted = 'http_requests_total{method="GET",route="/api/items/{item_id}",status="404"}'
    assert counted in server.get("/metrics").text


def test_every_answer_carries_the_security_headers_and_an_id(server: Server) -> None:
    for path in ("/", "/health", "/docs", "/api/items", "/nothing/here"):
        headers = server.get(path).headers
        assert "frame-ancestors 'self' https://huggingface.co" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Request-ID"]
        assert "X-Frame-Options" not in headers
        is_data = headers["Content-Type"] == "application/json"
        assert ("default-src 'none'" in headers["Content-Security-Policy"]) is is_data


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("https://Example.com , http://localhost:5173", {"https://example.com": True, "http://localhost:5173": True}),
        ("http://[::1]:5173", {"http://[::1]:5173": True}),
        ("https://example.com", {"http://example.com": False, "https://example.com.example.org": False}),
        ("*", {"https://example.org": True}),
        (" ", {"https://example.org": False}),
    ],
)
def test_pages_of_the_named_origins_may_call_the_api(bake: Bakery, value: str, origins: dict[str, bool]) -> None:
    with bake().boot({"CORS_ORIGINS": value}) as server:
        for origin, is_allowed in origins.items():
            answer = server.get("/health", headers={"Origin": origin})
            assert answer.status_code == 200
            assert (answer.headers.get("Access-Control-Allow-Origin") in (origin, "*")) is is_allowed, origin
