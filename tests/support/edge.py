"""What stands before a Space: it takes TLS off, says who asked, and speaks plain HTTP to the app."""

import asyncio
import ssl
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from tests.support.machine import need

CLIENT = "203.0.113.7"


@contextmanager
def edge(host: str, port: int, app_port: int) -> Iterator[None]:
    """Answer for `https://host` on a port of loopback, with a certificate that nobody trusts, out of an app."""
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(host, Path(folder)))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            async with closed_in_the_end(writer):
                await forward(reader, writer, app_port)

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(connected, "127.0.0.1", port, ssl=context)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def certificate(host: str, folder: Path) -> tuple[Path, Path]:
    """The files of a certificate for this host, and of its key."""
    files = folder / "certificate.pem", folder / "key.pem"
    command = [need("openssl", "it makes the certificate of a Space"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
    subprocess.run(  # noqa: S603
        [*command, "-subj", f"/CN={host}", "-days", "2", "-out", files[0], "-keyout", files[1]],
        check=True,
        capture_output=True,
    )
    return files


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app_port: int) -> None:
    """Hand one request and its answer over; each has a connection of its own, unless it becomes a WebSocket."""
    head = await reader.readuntil(b"\r\n\r\n")
    request, *lines = head[:-4].split(b"\r\n")
    is_upgrade = any(line.lower().startswith(b"upgrade:") for line in lines)
    kept = [line for line in lines if is_upgrade or not line.lower().startswith(b"connection:")]
    said = [b"X-Forwarded-For: " + CLIENT.encode(), b"X-Forwarded-Proto: https"]
    said += [] if is_upgrade else [b"Connection: close"]
    app_reader, app_writer = await asyncio.open_connection("127.0.0.1", app_port)
    async with closed_in_the_end(app_writer):
        app_writer.write(b"\r\n".join([request, *kept, *said, b"", b""]))
        sending = asyncio.create_task(pipe(reader, app_writer))
        try:
            await pipe(app_reader, writer)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@asynccontextmanager
async def closed_in_the_end(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection, and wait until it is."""
    try:
        yield
        await writer.drain()
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Hand over what comes until nothing does."""
    while part := await source.read(65536):
        target.write(part)
        await target.drain()
