"""A body, and what comes before it, is bounded in bytes and in time; large files go to the disk, not to memory."""

import re
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, UploadFile
from fastapi.testclient import TestClient
from space_runtime.http import server as around
from space_runtime.http.errors import add_error_handlers
from space_runtime.http.protocol import Protocol
from space_runtime.http.request_body import BYTES_PER_SECOND, PATIENCE_SECONDS, patience
from uvicorn import Config

from tests.support import raw
from tests.support.bakery import BakedProject, Bakery
from tests.support.server import Server

MEBIBYTE = 1024**2
# There is one place at the entrance, and a test may say how many seconds it has to wait for what.
APP = """
from collections.abc import Iterator
from fastapi import FastAPI, Request, UploadFile
from space_runtime.http import middleware, request_body, server

middleware.PLACES = 1
server.MAX_WITHOUT_REQUEST = 20
from src.main import app


@app.post("/patience")
async def patience(
    head: float = server.HEAD_SECONDS,
    body: float = request_body.PATIENCE_SECONDS,
    linger: float = request_body.LINGER_SECONDS,
    silent: float = request_body.LINGER_SILENT_SECONDS,
) -> None:
    server.HEAD_SECONDS, request_body.PATIENCE_SECONDS = head, body
    request_body.LINGER_SECONDS, request_body.LINGER_SILENT_SECONDS = linger, silent


@app.post("/files", max_body_size=600 * 1024**2)
async def store(file: UploadFile) -> int | None:
    return file.size


@app.post("/small", max_body_size=2000)
async def take(request: Request) -> int:
    return len(await request.body())


mounted = FastAPI(max_body_size=3 * 1024**2)
mounted.post("/take")(take)
app.mount("/mounted", mounted)


@app.get("/body")
async def get(request: Request) -> int:
    return len(await request.body())
"""


@pytest.fixture(scope="module")
def server(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app with routes that take files."""
    project: BakedProject = bake().copy_to(tmp_path_factory.mktemp("uploads"))
    (project.path / "uploads.py").write_text(APP)
    with project.boot(in_place=True, app="uploads:app") as server:
        assert server.settled()["status"] == "ok"
        yield server


@contextmanager
def patience_of(server: Server, **seconds: float) -> Iterator[None]:
    """Change how long the app waits for this and that, until the block ends: on a busy machine, any test is slow."""
    server.post("/patience", params=seconds)
    yield
    server.post("/patience")


class Sender:
    """A connection on which something is sent little by little."""

    def __init__(self, port: int, beginning: bytes) -> None:
        """Send what there is to begin with."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.sendall(beginning)

    def trickle(self, part: bytes, every: float = 0.1) -> bytes:
        """Send the same part again and again until the server closes the connection; return what it said."""
        received = b""
        deadline = time.monotonic() + 20
        self.socket.settimeout(every)
        with self.socket:
            while time.monotonic() < deadline:
                try:
                    if not (some := self.socket.recv(65_536)):
                        return received
                    received += some
                except TimeoutError:
                    self.socket.sendall(part)
                except ConnectionError:
                    return received
        raise AssertionError(f"The connection stays open after {received!r}")


def head(line: str, *fields: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beginning", "part", "status"),
    [
        pytest.param(b"", b"", None, id="nothing"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n", None, id="head"),
        pytest.param(head("GET /health") + b"GET", b"x", 200, id="second-head"),
        pytest.param(head("POST /small", "Content-Length: 1000"), b"x", 408, id="body"),
        pytest.param(head("POST /small", "Transfer-Encoding: chunked"), b"1\r\nx\r\n", 408, id="chunks"),
        pytest.param(head("POST /small", "Transfer-Encoding: chunked") + b"0\r\n", b"X: y\r\n", 408, id="trailers"),
        pytest.param(head("POST /small", "Content-Length: 1000"), b"", 408, id="silent-body"),
        pytest.param(head("POST /small", "Content-Length: 999999999"), b"x", 413, id="refused-body"),
        pytest.param(head("POST /nowhere", "Content-Length: 1000"), b"", 404, id="unwanted-body"),
    ],
)
def test_who_is_slow_without_end_is_cut_off(server: Server, beginning: bytes, part: bytes, status: int | None) -> None:
    with patience_of(server, head=0.5, body=0.5, linger=2, silent=0.5):
        answer = Sender(server.port, beginning).trickle(part)
    assert (re.findall(rb"^HTTP/1.1 (\d+)", answer) or [None])[0] == (str(status).encode() if status else None)
    if status is not None and status != 200:
        assert b"connection: close" in answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beginning", "status"),
    [
        pytest.param(b"GET /health HTTP/1.1\r\nX: ", b"431", id="field"),
        pytest.param(b"GET /", b"414", id="target"),
        pytest.param(head("POST /small", "Transfer-Encoding: chunked") + b"0\r\nX: ", None, id="trailer"),
    ],
)
def test_a_head_without_end_is_not_kept(server: Server, beginning: bytes, status: bytes | None) -> None:
    before = memory(server)
    with patience_of(server, silent=0.5):
        answer = raw.send(server.port, beginning, *[b"x" * MEBIBYTE] * 64).everything
    assert re.findall(rb"^HTTP/1.1 (\d+)", answer) == ([status] if status else [])
    assert memory(server) - before < 10 * MEBIBYTE


@pytest.mark.slow
def test_a_slow_sender_keeps_nobody_waiting(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sender:
        sender.sendall(head("POST /small", "Content-Length: 1000", "Connection: close"))
        # its place is passed on long before it is given up
        assert server.get("/api/items").status_code == 200
        sender.sendall(b"x" * 1000)
        sender.settimeout(20)
        assert sender.recv(65_536).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_the_413_names_the_setting_and_what_may_have_a_limit_of_its_own(server: Server) -> None:
    body = b"x" * (2 * MEBIBYTE)
    for answer in (server.post("/api/items", content=body), server.post("/api/items", content=iter([body]))):
        assert answer.status_code == 413
        assert "MAX_BODY_BYTES" in answer.json()["detail"]
        assert "max_body_size" in answer.json()["detail"]
    for content in (body, iter([body])):
        answer = server.post("/small", content=content)
        detail = "The body is larger than 2000 bytes, which this route allows."
        assert (answer.status_code, answer.json()["detail"]) == (413, detail)
        assert answer.headers["X-Request-ID"]
    assert server.post("/small", content=b"x" * 2000).json() == 2000
    assert server.post("/mounted/take", content=body).json() == len(body)
    assert server.post("/mounted/take", content=body * 2).status_code == 413


@pytest.mark.slow
def test_who_sends_a_body_nobody_reads_gets_the_whole_answer(server: Server) -> None:
    # more than sockets hold: without a reader, the client would be stuck or cut off before it reads
    body = b"x" * (30 * MEBIBYTE)
    answer = raw.request(server.port, b"POST /nowhere", b"Content-Length: %d" % len(body), body=body)
    assert answer.status == 404
    assert answer.rest == b'{"detail":"Not Found"}'
    refused = raw.send(server.port, head("POST /nowhere", "Content-Length: 10", "Expect: 100-continue"))
    assert refused.status == 404


@pytest.mark.slow
def test_bodies_where_there_are_usually_none_stay_right(server: Server) -> None:
    assert server.client.request("GET", "/body", content=b"xyz").json() == 3
    assert server.client.request("GET", "/body", content=iter([b"x", b"yz"])).json() == 3
    assert server.client.request("HEAD", "/body", content=b"xyz").status_code == 200
    assert server.client.request("GET", "/health", content=b"xyz").status_code == 200
    # the connection stays for the next request when all was read
    answer = raw.send(
        server.port,
        head("POST /small", "Content-Length: 3") + b"xyz",
        head("POST /small", "Content-Length: 2", "Connection: close") + b"xy",
    )
    assert answer.everything.count(b"HTTP/1.1 200") == 2


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_an_offer_of_http2_costs_no_body(server: Server, parts: int) -> None:
    body = b'{"title": "From Java"}'
    fields = ["Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB"]
    begin = head("POST /api/items", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields)
    answer = raw.send(server.port, begin + body) if parts == 1 else raw.send(server.port, begin, body)
    assert answer.status == 201
    assert b"Bad Request" not in answer.everything


@pytest.mark.slow
def test_idle_connections_are_kept_but_not_without_number(server: Server) -> None:
    with ExitStack() as stack:

        def ask(connection: socket.socket) -> None:
            connection.sendall(head("GET /health/live"))
            received = b""
            while not received.endswith(b"}"):
                part = connection.recv(65_536)
                assert part, f"it was closed after {received!r}"
                received += part

        connections = []
        for _ in range(40):
            connections.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)))
            ask(connections[-1])
        # The oldest are closed, which a read tells. On a slow machine, so are some whose head counts as late.
        opened = set(connections)
        while len(opened) > 20:
            ended, _, _ = select.select(list(opened), [], [], 20)
            assert ended, f"{len(opened)} idle connections are kept"
            assert {connection.recv(65_536) for connection in ended} == {b""}
            opened.difference_update(ended)
        assert connections[0] not in opened
        for connection in opened:
            ask(connection)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_connection_that_was_idle_for_longer_than_uvicorn_would_keep_it_still_answers(
    bake: Bakery, tmp_path: Path
) -> None:
    with bake().boot({"SQLITE_DIR": str(tmp_path)}) as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        with closing(connection):
            connection.connect()
            first = connection.sock
            for seconds in (0, 6):
                # how long it is idle is what is tested
                time.sleep(seconds)
                connection.request("GET", "/health/live")
                with connection.getresponse() as answer:
                    assert (answer.status, len(answer.read()) > 0) == (200, True)
            assert connection.sock is first


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [5, pytest.param(500, marks=pytest.mark.thorough)])
def test_a_file_goes_to_the_disk_not_to_memory(server: Server, megabytes: int) -> None:
    assert server.post("/files", files={"file": b"x" * 2 * MEBIBYTE}).json() == 2 * MEBIBYTE
    before = memory(server)
    with tempfile.TemporaryFile() as file:
        file.truncate(megabytes * MEBIBYTE)
        answer = server.post("/files", files={"file": file}, timeout=120)
    assert answer.json() == megabytes * MEBIBYTE
    assert memory(server) - before < 20 * MEBIBYTE


def memory(server: Server) -> int:
    """The most memory that the server has had since the last call, in bytes; then begin anew."""
    process = Path("/proc", str(server.process.pid))
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", (process / "status").read_text(), re.MULTILINE)
    (process / "clear_refs").write_text("5")
    return int(peak) * 1024


def test_an_upload_that_finds_no_room_is_not_called_the_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/files")
    async def store(file: UploadFile) -> None:
        """Never get that far."""

    def no_room(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", no_room)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/files", files={"file": b"x"}).status_code == 500
        assert client.post("/files", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400


def test_an_honest_sender_may_be_slow_but_not_silent() -> None:
    left = PATIENCE_SECONDS
    # a phone that sends ten times the least, with a pause of ten seconds now and then
    for second in range(600):
        left = patience(left, waited=10 if second % 60 == 0 else 1, received=10 * BYTES_PER_SECOND)
        assert left > 10
    # whoever was fast has no more patience to spend than whoever begins
    assert patience(left, waited=0, received=500 * MEBIBYTE) == PATIENCE_SECONDS
    seconds = 0
    while left > 0:
        left, seconds = patience(left, waited=1, received=1), seconds + 1
    assert seconds < PATIENCE_SECONDS + 2


def test_what_uvicorn_was_told_stays_and_the_rest_is_completed() -> None:
    config = Config("src.main:app", log_config=None)
    config.http_protocol_class = object  # type: ignore[assignment]
    around.complete(config)
    assert config.http_protocol_class is Protocol
    # longer than the minute for which proxies keep a connection
    assert config.timeout_keep_alive > 65
    assert config.timeout_graceful_shutdown == 15
    told: dict[str, Any] = {"timeout_keep_alive": 7, "timeout_graceful_shutdown": 3, "http": "httptools"}
    config = Config("src.main:app", log_config=None, **told)
    config.http_protocol_class = object  # type: ignore[assignment]
    around.complete(config)
    assert config.http_protocol_class is object
    assert (config.timeout_keep_alive, config.timeout_graceful_shutdown) == (7, 3)


def test_a_head_is_late_when_it_has_not_come_since_the_last_answer() -> None:
    late, busy = (Connection(cycle=None, timeout_keep_alive_task=None) for _ in range(2))
    connections = {late, busy}
    silence = around.Silence()
    assert silence.overdue(connections, 0.0) == []
    busy.cycle = Connection(response_complete=True)
    assert silence.overdue(connections, around.HEAD_SECONDS + 1) == [late]
    busy.cycle.response_complete = False
    assert silence.overdue({busy}, 10 * around.HEAD_SECONDS) == []


class Connection(SimpleNamespace):
    """Attributes, and itself alone."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
