"""What an attacker may try over HTTP: each is a request to a real process, most of them by hand."""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.raw import Answer, request, send
from tests.support.server import Server

TOKEN = "secret-token-of-mine"  # noqa: S105
AUTHORIZED = b"X-API-Token: " + TOKEN.encode()
JSON = b"Content-Type: application/json"
ITEMS = b"/api/items"
UNKNOWN = b"/api/items/00000000-0000-0000-0000-000000000000"
PAGES = (
    b"/", b"/docs", b"/docs/swagger-ui.css", b"/docs/swagger-ui-bundle.js", b"/openapi.json",
    b"/health", b"/health/live", b"/health/ready", b"/metrics", ITEMS,
)  # fmt: skip
UNSAFE = (b"POST", b"PUT", b"PATCH", b"DELETE", b"CONNECT", b"PROPFIND", b"MKCOL", b"LINK", b"PURGE")
EVIL = "evil.example"
ORIGIN = "https://good.example"
MEGABYTE = 1024 * 1024
SLOW_CLIENTS = 300
MESSAGES_OF_UVICORN = {b"Invalid HTTP request received."}

RAISING = """
from src.database.session import DatabaseDep
from src.main import app
from sqlalchemy import text


@app.get("/raises")
async def raises() -> None:
    raise RuntimeError("the-secret-in-an-exception")


@app.get("/asks-wrongly")
async def asks_wrongly(database: DatabaseDep) -> None:
    await database.read(lambda session: session.execute(text("SELECT the_secret FROM nowhere")))
"""
DECIDES = """
from space_runtime.http import guard
from src.main import app

guard.hmac.compare_digest = lambda given, right: {verdict}
"""


@pytest.fixture(scope="module")
def opened(bake: Bakery) -> Iterator[Server]:
    """The app as it runs on somebody's own machine: no token is set."""
    with bake().boot() as server:
        server.settled()
        yield server
        # and what strangers sent may not be anywhere in it
        log = server.log_at_the_end()
        assert [told for told in ("Traceback", EVIL, "smuggled", "secret-in-a-query", TOKEN) if told in log] == []


@pytest.fixture(scope="module")
def guarded(bake: Bakery) -> Iterator[Server]:
    """The app where writing needs a token, and where pages of one other origin may use it."""
    # with blanks around it, as pasted values have them
    with bake().boot({"API_TOKEN": f" {TOKEN}\n", "CORS_ORIGINS": ORIGIN}) as server:
        server.settled()
        yield server
        # and what strangers sent may not be anywhere in it
        log = server.log_at_the_end()
        assert [told for told in ("Traceback", EVIL, "smuggled", "secret-in-a-query", TOKEN) if told in log] == []


@pytest.fixture(scope="module")
def space(bake: Bakery) -> Iterator[Server]:
    """The app on a Space whose owner set nothing."""
    with bake().boot({"SPACE_ID": "example/my-space", "SPACE_HOST": "example-my-space.hf.space"}) as server:
        server.settled()
        yield server


def post(server: Server, body: bytes, *headers: bytes) -> Answer:
    """Create an item, with a true Content-Length."""
    return request(server.port, b"POST " + ITEMS, JSON, b"Content-Length: %d" % len(body), *headers, body=body)


def check_headers(answer: Answer) -> None:
    """Every answer of the app carries these."""
    assert "frame-ancestors 'self' https://huggingface.co" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"]
    assert answer.headers["x-request-id"]


def test_forged_hosts_are_neither_repeated_nor_redirected_to_nor_logged(opened: Server) -> None:
    forged = [
        b"X-Forwarded-Host: evil.example", b"X-Forwarded-Proto: evil.example", b"X-Forwarded-For: evil.example\"]",
        b"X-Forwarded-Prefix: //evil.example", b"X-Original-URL: //evil.example", b"Forwarded: host=evil.example",
    ]  # fmt: skip
    for path in (*PAGES, ITEMS + b"/", b"/docs/", b"//evil.example/", b"http://evil.example/health"):
        lines = [b"GET " + path + b" HTTP/1.1", b"Host: evil.example", b"Connection: close", *forged, b"", b""]
        answer = send(opened.port, b"\r\n".join(lines))
        assert answer.status in (200, 404)
        assert EVIL.encode() not in answer.everything
    created = post(opened, b'{"title": "x"}', *forged)
    assert created.headers["location"].startswith("/api/items/")


@pytest.mark.parametrize("size", [MEGABYTE + 1, 20 * MEGABYTE])
def test_a_body_that_is_too_large_is_refused_however_it_is_announced(opened: Server, size: int) -> None:
    body = b"x" * size
    assert post(opened, body).status == 413
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    assert request(opened.port, b"POST " + ITEMS, b"Transfer-Encoding: chunked", body=chunks).status == 413


@pytest.mark.parametrize(("digits", "status"), [(b"0" * 5000 + b"14", 201), (b"9" * 19, 413), (b"9" * 5000, 400)])
def test_a_length_of_many_digits_is_a_number_like_any_other(opened: Server, digits: bytes, status: int) -> None:
    answer = request(opened.port, b"POST " + ITEMS, JSON, b"Content-Length: " + digits, body=b'{"title": "x"}')
    assert answer.status == status
    if status != 400:  # which the server gives before the app is asked
        check_headers(answer)


def test_who_asks_before_sending_too_much_is_refused_without_being_asked_for_it(opened: Server) -> None:
    answer = request(opened.port, b"POST " + ITEMS, b"Expect: 100-continue", b"Content-Length: 99999999")
    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_a_body_of_another_length_than_it_says_makes_no_second_request(opened: Server) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: example\r\n\r\n"
    for headers, body in [
        ([b"Content-Length: 4", b"Transfer-Encoding: chunked"], b"0\r\n\r\n" + smuggled),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 4"], b"0\r\n\r\n" + smuggled),
        ([b"Transfer-Encoding: xchunked"], b"0\r\n\r\n" + smuggled),
        ([b"Transfer-Encoding : chunked"], b"0\r\n\r\n" + smuggled),
        ([b"Transfer-Encoding: chunked, identity"], b"0\r\n\r\n" + smuggled),
        ([b"Content-Length: 4", b"Content-Length: 0"], smuggled),
        ([b"Content-Length: -1"], smuggled),
        ([b"Content-Length: +4"], smuggled),
        ([b"Content-Length: 4 0"], smuggled),
        ([b"Content-Length: 99999999999999999999999"], smuggled),
        ([b"X: a\nContent-Length: 0"], smuggled),
        ([b"Content-Length: 2"], b"{}" + smuggled),
    ]:
        answer = request(opened.port, b"POST " + ITEMS, JSON, *headers, body=body)
        assert answer.status in (400, 422), headers
        assert answer.everything.count(b"HTTP/1.1") == 1, headers


def test_a_body_that_ends_early_leaves_no_trace(opened: Server) -> None:
    before = opened.titles()
    with socket.create_connection(("127.0.0.1", opened.port)) as connection:
        connection.sendall(b"POST /api/items HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n" + b'{"title": "early"}')
    assert opened.get("/health").status_code == 200
    assert opened.titles() == before


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(b" " * 10 * MEGABYTE, mtime=0),
        b"[" * 500_000,
        b'{"title":' * 100_000,
        b'{"title": ' + b"9" * 10_000 + b"}",
        b'{"title": 1e999}',
        b'{"title": NaN}',
        b'{"title": "\xff"}',
        '{"title": "\ufeff"'.encode("utf-16"),
        b'{"title": "\\ud800"}',
        b'{"title": "\\u0000"}',
        b'{"title": {"__proto__": 1}}',
        b"\0",
        b"null",
        b"",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_malicious_body_is_the_clients_mistake(opened: Server, body: bytes) -> None:
    for headers in ([], [b"Content-Encoding: gzip"]):
        answer = post(opened, body, *headers)
        assert answer.status in (400, 422)
        assert json.loads(answer.rest)["detail"]


def test_hundreds_of_dripping_connections_do_not_stop_others(opened: Server) -> None:
    with ExitStack() as stack:
        for number in range(SLOW_CLIENTS):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", opened.port)))
            slow.sendall(b"POST /api/items HTTP/1.1\r\nHost: example\r\nContent-Type: application/json\r\n")
            if number % 2:
                slow.sendall(b"Content-Length: 100\r\n\r\n{")
        for path in ("/", "/health", "/api/items", "/docs"):
            # a person gives a page ten seconds
            assert opened.get(path, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "given",
    [b"a%0d%0aSet-Cookie: x=1", b"a\\r\\nSet-Cookie: x=1", b"a\tb", b"\xc3\xa9", b"\xff", b"x" * 65, b"", b"<script>"],
)
def test_an_id_that_could_do_harm_is_replaced(opened: Server, given: bytes) -> None:
    answer = request(opened.port, b"GET /health", b"X-Request-ID: " + given)
    assert answer.status == 200
    assert answer.headers["x-request-id"].encode() != given
    assert answer.headers["x-request-id"].replace("-", "").isalnum()
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "line",
    [b"X-Request-ID: a\r\n b", b"X-Request-ID: a\nSet-Cookie: x=1", b"X-Request-ID: a\rb", b"X-Request-ID: a\0b"],
)
def test_a_broken_header_reaches_nobody(opened: Server, line: bytes) -> None:
    answer = request(opened.port, b"GET /health", line)
    assert "set-cookie" not in answer.headers
    if answer.status == 400:
        assert answer.rest in MESSAGES_OF_UVICORN
    else:
        assert answer.headers["x-request-id"].replace("-", "").isalnum()


def test_nothing_that_is_stored_gets_into_a_header(opened: Server) -> None:
    title = f"{uuid4()}\r\nSet-Cookie: x=1"
    answer = post(opened, json.dumps({"title": title}).encode())
    assert answer.status == 201
    assert answer.headers["location"] == f"/api/items/{json.loads(answer.rest)['id']}"
    assert "set-cookie" not in answer.headers
    for key in (b"%0d%0aSet-Cookie:%20x=1", b"%0aLocation:%20evil.example", b"%00"):
        refused = request(opened.port, b"GET " + ITEMS + b"/" + key)
        assert refused.status == 422
        assert b"et-Cookie" not in refused.everything


@pytest.mark.parametrize(
    ("target", "headers", "statuses"),
    [
        (b"/" + b"a" * 9000, [], {414}),
        (b"/health?" + b"a" * 9000, [], {414}),
        (b"/api/items?cursor=" + b"%41" * 5000, [], {414}),
        (b"/api/items?" + b"&".join(b"limit=%d" % number for number in range(700)), [], {422}),
        (b"/" + b"a" * MEGABYTE, [], {414}),
        (b"/health", [b"X: " + b"a" * 40_000], {431}),
        (b"/health", [b"X: " + b"a" * 5 * MEGABYTE], {431}),
        (b"/health", [b"X-%d: y" % number for number in range(10_000)], {431}),
        (b"/health", [b"Cookie: " + b"a" * 16_000, b"X: " + b"a" * 10_000], {200}),
        (b"/health?" + b"a" * 8000, [], {200}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_too_long_is_refused(opened: Server, target: bytes, headers: list[bytes], statuses: set[int]) -> None:
    answer = request(opened.port, b"GET " + target, *headers)
    assert answer.status in statuses
    if answer.status != 400:
        check_headers(answer)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([b"X-API-Token:"], 401),
        ([b"X-API-Token: wrong"], 401),
        ([b"X-API-Token: " + TOKEN[:-1].encode()], 401),
        ([AUTHORIZED + b"x"], 401),
        ([b"X-API-Token: " + TOKEN.upper().encode()], 401),
        ([b"X-API-Token: \xff\xfe\xfd"], 401),
        ([b"X-API-Token: p\xc3\xa4ssword"], 401),
        ([AUTHORIZED, b"X-API-Token: wrong"], 401),
        ([b"X-API-Token: wrong", b"X-API-Token: wrong"], 401),
        ([b"Authorization: Bearer"], 401),
        ([b"Authorization: Bearer \xff"], 401),
        ([b"Authorization: " + TOKEN.encode()], 401),
        ([b"Authorization: Basic " + TOKEN.encode()], 401),
        ([b"Cookie: X-API-Token=" + TOKEN.encode()], 401),
        ([b"X_API_Token: " + TOKEN.encode()], 401),
        ([b"Authorization: bearer " + TOKEN.encode()], 201),
        ([AUTHORIZED], 201),
        ([b"X-API-Token: " + TOKEN.encode()], 201),
        # the Hub's own, on a private Space
        ([b"X-API-Token: " + TOKEN.encode(), b"Authorization: Bearer of-the-hub"], 201),
    ],
)
def test_only_the_token_itself_opens(guarded: Server, headers: list[bytes], status: int) -> None:
    answer = post(guarded, b'{"title": "x"}', *headers)
    assert answer.status == status
    check_headers(answer)


def test_a_token_in_the_url_opens_nothing_and_is_not_logged(guarded: Server) -> None:
    for name in (b"token", b"api_token", b"X-API-Token", b"access_token"):
        target = ITEMS + b"?" + name + b"=" + TOKEN.encode()
        assert request(guarded.port, b"POST " + target).status == 401


def test_a_stranger_is_refused_before_anything_else_is_looked_at(guarded: Server) -> None:
    for target in (b"/nothing/here", ITEMS + b"/no-uuid", b"/%ff%00", b"/docs"):
        answer = request(guarded.port, b"POST " + target, JSON, b"Content-Length: 1", body=b"{")
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    # not even the body is waited for
    assert request(guarded.port, b"POST " + ITEMS, b"Content-Length: 100").status == 401


@pytest.mark.parametrize(("verdict", "token", "status"), [(True, "wrong", 201), (False, TOKEN, 401)])
def test_tokens_are_compared_in_constant_time_alone(
    project: BakedProject, verdict: bool, token: str, status: int
) -> None:
    (project.path / "decides.py").write_text(DECIDES.format(verdict=verdict))
    with project.boot({"API_TOKEN": TOKEN}, app="decides:app") as server:
        server.settled()
        answer = server.post("/api/items", json={"title": "x"}, headers={"X-API-Token": token})
        assert answer.status_code == status


@pytest.mark.parametrize(
    "target",
    [
        b"//", b"//api/items", b"/api//items", b"/api/items/", b"/docs/", b"/health/", b"/openapi.json/",
        b"/./api/items", b"/docs/../openapi.json", b"/docs/%2e%2e/openapi.json", b"/docs/..%2f..%2fmain.py",
        b"/docs/..%5c..%5cmain.py", b"/docs/%2fetc%2fpasswd", b"/docs//etc/passwd", b"/docs/swagger-ui.css%00.html",
        b"/docs/router.py", b"/%2e%2e/%2e%2e/etc/passwd", b"/../../etc/passwd", b"/.env", b"/data/app.db", b"/%00",
        b"/%ff%fe", b"/API/ITEMS", b"/api/items;x=1", b"*", b"http://evil.example//api/items", b"/redoc",
    ],
)  # fmt: skip
def test_a_tricky_path_is_not_found_and_redirects_nowhere(opened: Server, target: bytes) -> None:
    answer = request(opened.port, b"GET " + target)
    assert answer.status == 404
    assert json.loads(answer.rest) == {"detail": "Not Found"}
    assert "location" not in answer.headers
    check_headers(answer)


def test_a_tricky_method_changes_nothing(opened: Server) -> None:
    location = post(opened, b'{"title": "stays"}').headers["location"].encode()
    for method in (b"TRACE", b"CONNECT", b"PROPFIND", b"MKCOL", b"PURGE", b"POST", b"PUT"):
        answer = request(opened.port, method + b" " + location)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, PATCH, DELETE")
        check_headers(answer)
    for method in (b"delete", b"Delete", b"FOO", b"", b"DELETE\t", b" DELETE"):
        answer = request(opened.port, method + b" " + location)
        assert (answer.status, answer.rest) == (400, b"Invalid HTTP request received."), method
    for name in (b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X-Method-Override"):
        request(opened.port, b"GET " + location + b"?_method=DELETE", name + b": DELETE")
        request(opened.port, b"POST " + location + b"?_method=DELETE", name + b": DELETE")
    assert request(opened.port, b"GET " + location).status == 200


@pytest.mark.parametrize("path", PAGES)
def test_each_page_answers_head_as_it_answers_get_but_without_a_body(opened: Server, path: bytes) -> None:
    get, head = (request(opened.port, method + b" " + path) for method in (b"GET", b"HEAD"))
    assert head.status == get.status == 200
    assert head.rest == b""
    assert get.rest
    changing = ("x-request-id", "date", "content-length")
    for headers in (get.headers, head.headers):
        assert [headers.pop(name) for name in changing]
    assert get.headers == head.headers
    options = request(opened.port, b"OPTIONS " + path)
    assert options.status == 405
    assert options.headers["allow"].startswith("GET, HEAD")
    check_headers(options)


@pytest.mark.parametrize("path", PAGES)
def test_no_other_origin_is_let_in_unless_it_was_named(opened: Server, guarded: Server, path: bytes) -> None:
    for origin in (b"https://evil.example", b"null", b"https://good.example.evil.example", b"http://good.example"):
        preflight = [b"Origin: " + origin, b"Access-Control-Request-Method: GET"]
        for server in (opened, guarded):
            for method in (b"GET ", b"OPTIONS "):
                answer = request(server.port, method + path, *preflight)
                assert "access-control-allow-origin" not in answer.headers
                assert answer.status < 500
    assert not [name for name in request(opened.port, b"GET " + path).headers if name.startswith("access-control")]
    named = request(guarded.port, b"GET " + path, b"Origin: " + ORIGIN.encode())
    assert named.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in named.headers
    assert "origin" in named.headers["vary"].lower()


def test_a_page_of_the_named_origin_learns_what_became_of_its_request(guarded: Server) -> None:
    origin, token = b"Origin: " + ORIGIN.encode(), b"X-API-Token: " + TOKEN.encode()
    answers = {
        201: post(guarded, b'{"title": "x"}', origin, token),
        401: post(guarded, b"{}", origin, b"X-API-Token: wrong"),
        404: request(guarded.port, b"GET /nothing/here", origin),
        413: post(guarded, b"x" * (MEGABYTE + 1), origin, token),
        414: request(guarded.port, b"GET /" + b"x" * 9_000, origin),
        422: post(guarded, b"{}", origin, token),
        431: request(guarded.port, b"GET /", origin, b"X-Long: " + b"x" * 33_000),
    }
    for status, answer in answers.items():
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "Location" in answer.headers["access-control-expose-headers"]
        check_headers(answer)


def test_every_kind_of_answer_carries_the_security_headers(project: BakedProject, space: Server) -> None:
    (project.path / "raising.py").write_text(RAISING)
    big = b"Content-Length: 2000000"
    environ = {"DATABASE_URL": "nonsense", "DATABASE_FALLBACK": "strict", "CORS_ORIGINS": ORIGIN}
    with project.boot(environ, app="raising:app") as server:
        server.settled()
        asked = {
            b"GET /docs": 200, b"GET /docs/swagger-ui.css": 200, b"GET /metrics": 200, b"GET /openapi.json": 200,
            b"GET /nothing": 404, b"PUT /health": 405, b"GET /api/items/42": 422, b"GET /raises": 500,
            b"GET /api/items": 503, b"GET /health": 503, b"GET /health/ready": 503, b"GET /": 200,
        }  # fmt: skip
        for line, status in asked.items():
            answer = request(server.port, line, b"Origin: " + ORIGIN.encode())
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, ORIGIN), line
            check_headers(answer)
        check_headers(request(server.port, b"POST " + ITEMS, big, b"Expect: 100-continue"))
        part = request(server.port, b"GET /docs/swagger-ui.css", b"Range: bytes=0-9")
        assert part.status == 206
        check_headers(part)
    check_headers(post(space, b"{}"))


def test_what_uvicorn_answers_itself_says_nothing_of_the_app(opened: Server) -> None:
    answer = send(opened.port, b"nonsense\r\n\r\n")
    assert (answer.status, answer.rest) == (400, b"Invalid HTTP request received.")


@pytest.mark.parametrize("path", [b"/", ITEMS, b"/docs", b"/nothing"])
def test_a_websocket_is_refused(opened: Server, path: bytes) -> None:
    upgrade = [
        b"GET " + path + b"?secret-in-a-query HTTP/1.1", b"Host: example", b"Connection: Upgrade",
        b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"", b"",
    ]  # fmt: skip
    answer = send(opened.port, b"\r\n".join(upgrade))
    assert (answer.status, answer.rest) == (403, b"")


def test_a_stranger_can_write_nothing_on_a_space(space: Server) -> None:
    body = b'{"title": "x"}'
    for path in (*PAGES, UNKNOWN, b"/nothing", b"//api/items", b"http://example/api/items"):
        for method in UNSAFE:
            for headers in ([], [b"X-API-Token:"], [b"X-API-Token: None"], [b"Authorization: Bearer x"]):
                line = method + b" " + path
                answer = request(space.port, line, JSON, b"Content-Length: %d" % len(body), *headers, body=body)
                assert answer.status == 403 or (method, answer.status) == (b"CONNECT", 400), line
    assert space.titles() == []


def test_metrics_hold_names_of_routes_and_nothing_of_what_was_asked(guarded: Server) -> None:
    asked = [b"GET /a-secret-path", b"GET /api/items?cursor=a-secret-cursor", b"GET /api/items/a-secret-id"]
    for line in [*asked, b"PROPFIND /a-secret-path"]:
        request(guarded.port, line, b"X-Request-ID: a-secret-id", b"User-Agent: a-secret-agent")
    metrics = guarded.get("/metrics").text
    assert 'route="/api/items/{item_id}"' in metrics
    assert "secret" not in metrics
    assert EVIL not in metrics


def test_a_failure_shows_only_an_id_under_which_the_log_tells_more(project: BakedProject) -> None:
    (project.path / "raising.py").write_text(RAISING)
    with project.boot(app="raising:app") as server:
        server.settled()
        for path in ("/raises", "/asks-wrongly"):
            answer = server.get(path)
            request_id = answer.headers["X-Request-ID"]
            detail = f"Internal error. The log tells more under the id {request_id}."
            assert (answer.status_code, answer.json()) == (500, {"detail": detail})
            server.log_when_it_tells(request_id)
        server.log_when_it_tells("the-secret-in-an-exception")
