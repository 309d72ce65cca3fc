"""Build the URL that SQLAlchemy receives.

User, password, hosts and database are moved from the query to their own fields. Of the other
parameters, those that libpq knows are kept, other tools' equivalents are translated, and the rest
are dropped, except those about security (see security.py). Anything that may be a secret is kept
out of the URL, because SQLAlchemy prints a URL's query in its repr.
"""

import re

from sqlalchemy import URL

from space_runtime.url.security import NAMES as SECURITY_NAMES
from space_runtime.url.security import read_security, refuse_security_inside
from space_runtime.url.vocabulary import (
    Parts,
    UnusableURLError,
    decode,
    is_ip_address,
    refuse_control_characters,
)

# All parameters of libpq 18, except those about security (see security.py) and:
# service, servicefile: they name a file that the container lacks, so every connect would fail;
# replication: a connection in replication mode cannot run the application's queries.
_TEXTS = """
application_name client_encoding fallback_application_name hostaddr max_protocol_version
min_protocol_version options
"""
_NUMBERS = """
connect_timeout keepalives keepalives_count keepalives_idle keepalives_interval tcp_user_timeout
"""
# These are validated, because libpq's error message would quote a bad value.
_FORMS = {
    **dict.fromkeys(_NUMBERS.split(), r"-?\d{1,9}"),
    "load_balance_hosts": "disable|random",
    "target_session_attrs": "any|read-write|read-only|primary|standby|prefer-standby",
}

# How other tools spell these parameters, in lower case.
_SPELLINGS = {
    "application_name": "applicationname",
    "connect_timeout": "connecttimeout logintimeout",
    "database": "db dbname",
    "host": "hostname socket unix_sock unix_socket",
    "password": "pass pwd",
    "search_path": "currentschema schema search_path searchpath",
    "user": "username",
}
ALIASES = {other: name for name, others in _SPELLINGS.items() for other in others.split()}
LIFTED = frozenset({"user", "password", "host", "port", "database"})

# Dropped parameters that a report may name, because tools are known to write them. Any other
# "name" may be the tail of a password that contained a '?' or '&'.
_FOREIGN = """
allowpublickeyretrieval async_fallback autocommit binary_parameters cache charset check_same_thread
command_timeout conn_health_checks conn_max_age connection_limit default_query_exec_mode
disable_server_side_cursors echo encoding env isolation_level max_overflow maxpoolsize minpoolsize
mode name pgbouncer plugin pool pool_max_conns pool_min_conns pool_pre_ping pool_recycle pool_size
pool_timeout pooling prepare_threshold prepared_statement_cache_size prepared_statement_name_func
prepared_statements preparethreshold readonly reaping_frequency replication rewritebatchedinserts
safemodelevel server_settings serverversion service servicefile single_use_connections
socket_timeout sockettimeout sslkeylogfile statement_cache_capacity statement_cache_size
statement_timeout statuscolor stringtype supa targetservertype tcpkeepalive timeout timezone uri
uselibpqcompat workaround
"""

_KEPT = {*_FORMS, *_TEXTS.split()}
KNOWN = _KEPT | LIFTED | SECURITY_NAMES | {*ALIASES, *_FOREIGN.split()}

_SCHEMA = re.compile(r"[A-Za-z_][\w$-]*(?:,\s*[A-Za-z_\"][\w$\"-]*)*", re.ASCII)

# What a parameter that may be a secret looks like if it is none. `options` may set a custom
# variable to a token; an `sslkey` that is not a path may be the key itself, or a PKCS#11 URI, which
# can contain a PIN.
_NO_SECRETS = {
    **dict.fromkeys(["password", "passfile", "sslpassword", "oauth_client_secret"], "(?!)"),
    **dict.fromkeys(["scram_client_key", "scram_server_key"], "(?!)"),
    "options": r"(?:\s*-c\s*(?:search_path|[a-z_]+_timeout|timezone|jit)=\S*)+\s*",
    "sslkey": r"[\w./~][\w./~ -]*",
}

# A Space needs an answer within seconds, and must notice a connection that was never closed but
# is dead. Without tcp_user_timeout (in milliseconds), a query can hang for many minutes when the
# network drops packets without an error.
_ADDED = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# The time is for each host: while one is silent, a check, which has 3 s, must still reach the next.
_ADDED_FOR_SEVERAL_HOSTS = {"connect_timeout": "2"}

_CREDENTIALS_IN_PATH = re.compile(r"[^/@:]*:[^/@]*@")
_MEMORY_PATHS = {"", "/:memory:"}


def lift_parameters(parts: Parts) -> None:
    """Move credentials, hosts and database out of the query, which takes precedence as in libpq."""
    held = {"user": parts.username, "password": parts.password, "database": parts.database}
    addresses: dict[str, list[str]] = {"host": [], "port": []}
    left: list[tuple[str, str]] = []
    for written, value in parts.parameters:
        name = ALIASES.get(written, written)
        if name not in LIFTED:
            left.append((written, value))
        elif not value:
            continue
        elif name in addresses:
            addresses[name].append(value)
        # libpq does not know `database`, `username` and the like: these only fill a gap.
        elif written in {"user", "password", "dbname"} or not held[name]:
            held[name] = value
    parts.username, parts.password, parts.database = held.values()
    parts.parameters = left
    parts.hosts_in_query, parts.ports_in_query = map(",".join, addresses.values())


def read_parameters(
    given: list[tuple[str, str]], hosts: int, repairs: list[str], *, pooled: bool
) -> dict[str, str]:
    """Return the parameters for psycopg, other than user, password, hosts and database."""
    kept, others = read_security(given, repairs)
    # Spellings of search_path go last, so that they are appended to any `options` in the URL.
    for written, value in sorted(others, key=lambda given: ALIASES.get(given[0]) == "search_path"):
        if written != "options":
            refuse_security_inside(value)
        name, value = _translate(ALIASES.get(written, written), value, hosts, pooled=pooled)
        if value:
            more = name == "options" and name in kept
            kept[name] = f"{kept[name]} {value}" if more else value
        if name not in kept:
            repairs.append(f"dropped_parameter:{_showable(written)}")
        elif name != written:
            repairs.append(f"translated_parameter:{_showable(written)}")
    return kept


def build_postgresql_url(
    parts: Parts, hosts: list[str], ports: list[int | None], query: dict[str, str]
) -> URL:
    """Return the URL; several hosts, or a socket, go into the query, as SQLAlchemy expects."""
    query = {**_ADDED, **(_ADDED_FOR_SEVERAL_HOSTS if len(hosts) > 1 else {}), **query}
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


def hide_secrets(url: URL) -> tuple[URL, dict[str, str | tuple[str, ...]]]:
    """Split a URL into one that is safe to print and the secrets to pass to the driver."""
    secrets = {
        name: value
        for name, value in url.query.items()
        if name in _NO_SECRETS and not re.fullmatch(_NO_SECRETS[name], str(value))
    }
    return url.difference_update_query(secrets), secrets


def build_sqlite_url(rest: str, repairs: list[str]) -> URL:
    """Return the URL with the path as written; the lifecycle makes it absolute."""
    if _CREDENTIALS_IN_PATH.match(rest):
        raise UnusableURLError("unparseable")
    path, _, query = rest.partition("?")
    names = [piece.partition("=")[0] for piece in query.split("&") if piece]
    repairs.extend(f"dropped_parameter:{_showable(name)}" for name in names)
    path = decode(path.removeprefix("file:"))
    refuse_control_characters(path)
    # `file:name?mode=memory` is an in-memory database with a name, no more durable than `:memory:`.
    in_memory = path in _MEMORY_PATHS or "mode=memory" in query.split("&")
    return URL.create("sqlite", database=":memory:" if in_memory else path)


def _translate(name: str, value: str, hosts: int, *, pooled: bool) -> tuple[str, str]:
    """Return the parameter in libpq's words, with no value if it cannot be used."""
    if name == "search_path":
        # `public` is the default schema, and transaction poolers reject `options`.
        is_useful = _SCHEMA.fullmatch(value) and value != "public" and not pooled
        return ("options", f"-c search_path={value}") if is_useful else (name, "")
    if name not in _KEPT:
        return name, ""
    refuse_control_characters(value)
    if name == "options":
        return name, value.replace("-c+", "-c ").replace("+-c ", " -c ")
    if name == "hostaddr":
        addresses = value.split(",")
        is_usable = len(addresses) == max(hosts, 1) and all(map(is_ip_address, addresses))
        return name, value if is_usable else ""
    if name in _FORMS:
        # Only these are lowercased, because case matters in names.
        value = value.partition("#")[0].lower()
        return name, value if re.fullmatch(_FORMS[name], value, re.ASCII) else ""
    return name, value


def _showable(name: str) -> str:
    return name if name in KNOWN else "unknown"
