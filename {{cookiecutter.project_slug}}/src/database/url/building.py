"""Build the URL from which SQLAlchemy gives the driver exactly what was meant."""

from sqlalchemy import URL

from src.database.url.parts import Parts

# What a Space needs: an answer within seconds, and to notice a connection that died silently.
_ADDED = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


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
