"""Build the URL that SQLAlchemy receives, and say in one sentence what a person should do.

From the URL the driver gets exactly what was meant. The sentences are fixed texts, so that no value
can get into one.
"""

import re

from sqlalchemy import URL

from src.database.url.parameters import drop_parameters
from src.database.url.vocabulary import (
    Parts,
    Reason,
    UnusableURLError,
    decode,
    refuse_control_characters,
)

# What a Space needs: an answer within seconds, and to notice a connection that died silently. The
# last is in milliseconds: without it, a silent network can hold a query for many minutes.
_ADDED = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

_CREDENTIALS_IN_PATH = re.compile(r"[^/@:]*:[^/@]*@")
_MEMORY_PATHS = {"", ":memory:", "/:memory:"}

_COPY = "copy the connection string from the provider's page and paste it whole"
_PROBLEMS: dict[Reason, str] = {
    "unset": "DATABASE_URL is not set: set it to a PostgreSQL URL to use PostgreSQL.",
    "empty": "DATABASE_URL is blank: set it to a PostgreSQL URL to use PostgreSQL.",
    "placeholder": "DATABASE_URL still holds a placeholder: replace it with the real value.",
    "unexpanded_variable": (
        "DATABASE_URL holds the name of a variable that nothing expanded: set the value itself."
    ),
    "unparseable": f"DATABASE_URL is no database URL: {_COPY}.",
    "unsupported_scheme": (
        "DATABASE_URL names a database that is not supported: "
        "begin it with postgresql:// or sqlite:///."
    ),
    "missing_host": "DATABASE_URL names no server: add its name after the '@'.",
    "missing_database": "DATABASE_URL names a server but no database: add /name at the end.",
    "invalid_host": "DATABASE_URL names a server that cannot exist: correct what follows '@'.",
    "invalid_port": (
        "DATABASE_URL holds a port that is no number from 1 to 65535: correct it, "
        "and percent-encode any ':' '/' or '@' in the credentials."
    ),
    "control_characters": f"DATABASE_URL holds characters that cannot be sent: {_COPY}.",
    "too_long": f"DATABASE_URL is too long to be a URL: {_COPY}.",
}
_WEB_ADDRESS = (
    "DATABASE_URL holds the address of a web page or an API: "
    "copy the PostgreSQL connection string, which begins with postgresql://, instead."
)
_SUPABASE_ON_SPACE = (
    "DATABASE_URL names a Supabase server that has only an IPv6 address, which a Space cannot "
    "reach: use the connection string of Supabase's session pooler."
)
_PORT_ON_SPACE = (
    "DATABASE_URL names a port that Spaces may block: if the connection times out, "
    "use a server on 5432, 6543, 443, 80 or 8080."
)
_SUPABASE_DIRECT = re.compile(r"db\.[a-z0-9]+\.supabase\.(?:co|com|net)\.?", re.IGNORECASE)
_OPEN_PORTS = {None, 80, 443, 8080, 5432, 6543}


def build_postgresql_url(
    parts: Parts, hosts: list[str], ports: list[int | None], query: dict[str, str]
) -> URL:
    """Return the URL; several hosts and sockets go to the query, where SQLAlchemy expects them."""
    query = {**_ADDED, **query}
    host, port = (hosts[0], ports[0]) if hosts else (None, ports[0])
    if len(hosts) > 1 or (host and host.startswith("/")):
        query["host"] = ",".join(hosts)
        if any(ports):
            query["port"] = ",".join("" if number is None else str(number) for number in ports)
        host = port = None
    return URL.create(
        "postgresql+psycopg",
        username=parts.username or None,
        password=parts.password or None,
        host=host,
        port=port,
        database=parts.database or None,
        query=query,
    )


def build_sqlite_url(rest: str, repairs: list[str]) -> URL:
    """Return the URL with the path as it was written; the lifecycle makes it absolute."""
    if _CREDENTIALS_IN_PATH.match(rest):
        raise UnusableURLError("unparseable")
    path, _, query = rest.partition("?")
    drop_parameters(query, repairs)
    path = decode(path.removeprefix("file:"))
    refuse_control_characters(path)
    # `file:name?mode=memory` names a shared memory database, which lives no longer than any other.
    in_memory = path in _MEMORY_PATHS or "mode=memory" in query.split("&")
    return URL.create("sqlite", database=":memory:" if in_memory else path)


def explain_postgresql(hosts: list[str], ports: list[int | None], *, on_space: bool) -> str:
    """Return what to know about a PostgreSQL URL before it is used."""
    if on_space and any(_SUPABASE_DIRECT.fullmatch(host) for host in hosts):
        return _SUPABASE_ON_SPACE
    if on_space and not _OPEN_PORTS.issuperset(ports):
        return _PORT_ON_SPACE
    return "DATABASE_URL names a PostgreSQL database."


def explain_problem(reason: Reason, value: str = "") -> str:
    """Return what to do about a value that cannot be used."""
    if reason == "unsupported_scheme" and re.search(r"https?://", value[:64], re.IGNORECASE):
        return _WEB_ADDRESS
    return _PROBLEMS[reason]
