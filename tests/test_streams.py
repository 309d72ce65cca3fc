"""Open streams and WebSockets are in nobody's way, hear of a stop, and end in time without a trace of trouble."""

import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.bakery import BakedProject
from tests.support.processes import free_port
from tests.support.server import Server, one_client_for_each_process

pytestmark = pytest.mark.slow

# One place, which nobody else would get for a minute.
APP = """
import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from fastapi import Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from space_runtime.http import middleware

middleware.PLACES, middleware.HOLD_SECONDS = 1, 60
from src.main import app


async def seen_by_the_owner(request: Request, call_next):
    return await call_next(request)


if "WITH_MIDDLEWARE" in os.environ:
    app.middleware("http")(seen_by_the_owner)


async def ticks() -> AsyncIterator[str]:
    try:
        while True:
            yield "data: tick\\n\\n"
            await asyncio.sleep(0.05)
    finally:
        print("the generator was told", flush=True)


def slow_ticks() -> Iterator[str]:
    while True:
        yield "data: tick\\n\\n"
        time.sleep(0.05)


@app.get("/events")
async def events() -> StreamingResponse:
    return StreamingResponse(ticks(), media_type="text/event-stream")


@app.get("/events-of-a-thread")
def events_of_a_thread() -> StreamingResponse:
    return StreamingResponse(slow_ticks(), media_type="text/event-stream")


@app.get("/camera")
async def camera() -> StreamingResponse:
    return StreamingResponse(ticks(), media_type="multipart/x-mixed-replace; boundary=frame")


@app.get("/fastapi-events", response_class=EventSourceResponse)
async def fastapi_events() -> AsyncIterator[dict[str, int]]:
    while True:
        yield {"tick": 1}
        await asyncio.sleep(3600)


@app.get("/endless-download")
async def endless_download() -> StreamingResponse:
    return StreamingResponse(ticks(), media_type="application/octet-stream")


@app.get("/never")
async def never() -> None:
    print("never begins", flush=True)
    await asyncio.sleep(3600)


@app.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())


@app.websocket("/tells")
async def tells(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text("tick")
        await asyncio.sleep(0.05)


@app.websocket("/deaf")
async def deaf(socket: WebSocket) -> None:
    await socket.accept()
    await asyncio.sleep(3600)
"""
STREAMS = ("/events", "/events-of-a-thread", "/fastapi-events", "/camera")
SOCKETS = ("/echo", "/tells", "/deaf")


@pytest.fixture
def project(project: BakedProject) -> BakedProject:
    """The copy with streams."""
    (project.path / "streaming.py").write_text(APP)
    return project


class Stream:
    """An answer that has begun, on a connection of its own."""

    def __init__(self, port: int, path: str) -> None:
        """Ask, and wait until something of the body is there."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        self._received = b""
        while not re.search(rb"\r\n\r\n.+\r\n", self._received, re.DOTALL):
            part = self._socket.recv(65_536)
            assert part, f"{path} ended with {self._received!r}"
            self._received += part

    def rest(self) -> bytes:
        """What came until the server closed the connection."""
        with self._socket:
            while part := self._socket.recv(65_536):
                self._received += part
        return self._received

    def close(self) -> None:
        """Leave."""
        self._socket.close()


@contextmanager
def conversation(server: Server, path: str) -> Iterator[ClientConnection]:
    """A WebSocket."""
    with connect(f"ws://127.0.0.1:{server.port}{path}", proxy=None, close_timeout=1) as connection:
        yield connection


def close_code(connection: ClientConnection) -> int | None:
    """Why the server closed it, after whatever came before."""
    try:
        while True:
            connection.recv(timeout=10)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


@pytest.mark.parametrize("environ", [{}, pytest.param({"WITH_MIDDLEWARE": "1"}, marks=pytest.mark.thorough)])
def test_open_streams_hold_no_place_and_all_are_told_of_the_stop(
    project: BakedProject, environ: dict[str, str]
) -> None:
    with project.boot(environ, in_place=True, app="streaming:app") as server, ExitStack() as stack:
        server.settled()
        streams = [Stream(server.port, path) for path in STREAMS]
        sockets = [stack.enter_context(conversation(server, path)) for path in SOCKETS]
        assert server.get("/api/items").status_code == 200
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for path, stream in zip(STREAMS, streams, strict=True):
            # as an answer ends that is complete: clients come again, and take nothing for an error
            assert stream.rest().endswith(b"0\r\n\r\n"), path
        for path, connection in zip(SOCKETS, sockets, strict=True):
            assert close_code(connection) == 1012, path
        assert server.process.wait(10) == -signal.SIGTERM
        assert time.monotonic() - begun < 10
        log = server.log()
    assert "the generator was told" in log
    assert not [trouble for trouble in ("[warning", "[error", "Traceback") if trouble in log], log


def test_clients_that_leave_a_socket_or_a_stream_leave_no_trace_of_trouble(project: BakedProject) -> None:
    with project.boot(in_place=True, app="streaming:app") as server:
        server.settled()
        Stream(server.port, "/events").close()
        for path in ("/echo", "/tells"):
            with conversation(server, path) as connection:
                connection.send("tick")
                assert connection.recv(timeout=10) == "tick"
        server.stop()
        log = server.log()
    assert "the generator was told" in log
    assert not [trouble for trouble in ("[warning", "[error", "Traceback") if trouble in log], log


def test_what_does_not_end_in_time_is_cut_off_without_a_traceback(project: BakedProject) -> None:
    patience = {"UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": "1"}
    with project.boot(patience, in_place=True, app="streaming:app") as server:
        server.settled()
        download = Stream(server.port, "/endless-download")
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as request:
            request.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            server.log_when_it_tells("never begins")
            assert server.stop() == -signal.SIGTERM
            answer = request.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"The server is stopping." in answer
        # whoever loads something down must see that it is not complete
        assert not download.rest().endswith(b"0\r\n\r\n")
        assert "Traceback" not in server.log()


@pytest.mark.thorough
def test_each_worker_tells_its_streams_of_the_stop(project: BakedProject) -> None:
    with project.boot({"WEB_CONCURRENCY": "2"}, in_place=True, app="streaming:app") as server:
        list(one_client_for_each_process(server, 2))
        streams = [Stream(server.port, "/events") for _ in range(8)]
        assert server.stop() == 0
        assert all(stream.rest().endswith(b"0\r\n\r\n") for stream in streams)
        assert "Traceback" not in server.log()


def test_make_dev_reloads_although_streams_are_open(project: BakedProject) -> None:
    makefile = project.read("Makefile")
    options = re.findall(r"uvicorn src\.main:app --port \$\(PORT\) (.*?) \$\(if", makefile)[0].split()
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "streaming:app", "--port", str(port), *options]
    with project.boot(in_place=True, command=command, port=port) as server:
        server.settled()
        before = server.get("/health").headers["X-Request-ID"].partition("-")[0]
        streams = [Stream(port, path) for path in ("/events", "/endless-download")]
        with conversation(server, "/deaf"):
            (project.path / "src" / "changed.py").write_text("CHANGED = True\n")
            for stream in streams:
                stream.rest()
        # what comes meanwhile waits for the new process
        assert server.get("/health").headers["X-Request-ID"].partition("-")[0] != before
