"""Lift what stands in the query but has a place of its own: user, password, hosts, database."""

import re

from src.database.url.keywords import ALIASES, LIFTED
from src.database.url.parts import Parts

_SOCKET_FILE = re.compile(r"(?P<folder>.+)(?:/|%2F)\.s\.PGSQL\.(?P<port>\d+)", re.IGNORECASE)


def lift_parameters(parts: Parts) -> None:
    """Move credentials, hosts and database out of the query; the query wins, as in libpq."""
    hosts: list[str] = []
    ports: list[str] = []
    left: list[tuple[str, str]] = []
    for written, value in parts.parameters:
        name = ALIASES.get(written, written)
        if name not in LIFTED:
            left.append((written, value))
        elif not value:
            continue
        elif name == "host":
            hosts.append(value)
        elif name == "port":
            ports.append(value)
        elif name == "unix_sock":
            _lift_socket(value, hosts, ports)
        # `database` and its like are other tools' words: they fill a gap and replace nothing.
        elif written in {"user", "password", "dbname"} or not _held(parts, name):
            _hold(parts, name, value)
    parts.parameters = left
    parts.hosts_in_query, parts.ports_in_query = ",".join(hosts), ",".join(ports)


def _lift_socket(value: str, hosts: list[str], ports: list[str]) -> None:
    socket = _SOCKET_FILE.fullmatch(value)
    hosts.append(socket["folder"] if socket else value)
    if socket:
        ports.append(socket["port"])


def _held(parts: Parts, name: str) -> str:
    return {"user": parts.username, "password": parts.password, "database": parts.database}[name]


def _hold(parts: Parts, name: str, value: str) -> None:
    if name == "user":
        parts.username = value
    elif name == "password":
        parts.password = value
    else:
        parts.database = value
