"""What stands before a Space: it takes TLS off, says who asked, and speaks plain HTTP to the app."""

import asyncio
import datetime
import ipaddress
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CLIENT = "203.0.113.7"
HERE = "127.0.0.1"


@contextmanager
def edge(app_port: int, host: str = HERE, port: int = 0, authority: Path | None = None) -> Iterator[int]:
    """Answer for `https://host` out of the app at a port; yield the port of loopback where it does.

    Nobody trusts its certificate but who reads the file `authority`, which is written if it is given.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory(prefix="edge-") as folder:
        context.load_cert_chain(certificate(host, Path(folder), authority))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    # The event loop itself lets go of a task that waits for a connection which is gone.
    handlers: set[asyncio.Task[None] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            async with closed_in_the_end(writer):
                # Here and not in start_server(), where nobody could wait for the end of one that fails.
                await writer.start_tls(context)
                await forward(reader, writer, app_port)

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(connected, HERE, port)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        # More than once: a connection that was just accepted becomes a task meanwhile.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def certificate(host: str, folder: Path, authority: Path | None) -> Path:
    """The file of a key and a certificate for this host; the authority that vouches for it goes to a file, too."""
    key, company = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    vouched = signed(key.public_key(), host, company)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "certificate.pem"
    file.write_bytes(private + vouched.public_bytes(pem))
    if authority:
        authority.write_bytes(signed(company.public_key(), None, company).public_bytes(pem))
    return file


def signed(key: ec.EllipticCurvePublicKey, host: str | None, by: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate of this key: for a host, or for the authority itself."""
    company = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A company's authority")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)]) if host else company
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(company, subject, key, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if host:
        name = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
    else:
        signs_certificates = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(signs_certificates, critical=True)
    return builder.sign(by, hashes.SHA256())


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app_port: int) -> None:
    """Hand one request and its answer over; each has a connection of its own, unless it becomes a WebSocket."""
    request = await reader.readuntil(b"\r\n\r\n")
    is_upgrade = b"\r\nupgrade:" in request.lower()
    last = [] if is_upgrade else [b"Connection: close"]
    app_reader, app_writer = await asyncio.open_connection(HERE, app_port)
    async with closed_in_the_end(app_writer):
        said = [b"X-Forwarded-For: " + CLIENT.encode(), b"X-Forwarded-Proto: https"]
        app_writer.write(with_lines(request, *said, *last))
        sending = asyncio.create_task(pipe(reader, app_writer))
        try:
            # Not every server says that it closes, and then a client would use the connection again.
            writer.write(with_lines(await app_reader.readuntil(b"\r\n\r\n"), *last))
            await pipe(app_reader, writer)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def with_lines(head: bytes, *lines: bytes) -> bytes:
    """The head of a message with these lines, which take the place of what it says of its connection."""
    first, *kept = head[:-4].split(b"\r\n")
    if b"Connection: close" in lines:
        kept = [line for line in kept if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([first, *kept, *lines, b"", b""])


@asynccontextmanager
async def closed_in_the_end(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection, and wait until it is."""
    try:
        yield
        await writer.drain()
    finally:
        writer.close()
        try:
            # A client need not answer when TLS ends.
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1)
        finally:
            writer.transport.abort()


async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Hand over what comes until nothing does."""
    while part := await source.read(65536):
        target.write(part)
        await target.drain()
