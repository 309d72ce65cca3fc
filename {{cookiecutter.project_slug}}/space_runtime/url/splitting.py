"""Split a URL, or libpq's keyword string, into its parts.

What follows the scheme, `user:password@hosts/database?query`, is split so that an unescaped
`@ : / # ? %` in the password survives. `host=... dbname=...`, which psycopg users paste, is treated
as a URL with everything in its query. Hosts and ports are validated here, so that a bad one does
not fail later, inside the driver.
"""

import re
from typing import Literal, TypeAlias

from space_runtime.url.building import KNOWN
from space_runtime.url.vocabulary import (
    Parts,
    UnusableURLError,
    decode,
    is_ip_address,
    refuse_control_characters,
)

Backend: TypeAlias = Literal["postgresql", "sqlite"]

# psycopg could split it, but not tell that a parameter is there twice, or is another tool's.
_KEYWORD_PAIR = re.compile(
    r"\s*(?P<name>[a-z_]+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>(?:[^\s'\\]|\\.)*))"
)
_TELLING_NAMES = {"host", "dbname", "user", "port"}

# Names that tools use for the two databases, with an optional driver.
SCHEME = r"(?P<base>postgres(?:ql)?|psql|pgsql|postgis|sqlite3?)(?:[+_](?P<driver>\w[\w.-]*))?"
_OWN_SCHEME = re.compile(SCHEME)
_URL = re.compile(
    r"(?P<java>(?:(?:jdbc|r2dbc):)?)(?P<scheme>[A-Z][\w+.-]*)\s?:(?P<slashes>[/\\]*)(?P<rest>.*)",
    re.IGNORECASE,
)
_WEB_ADDRESS = (
    "DATABASE_URL holds the address of a web page or an API: "
    "copy the PostgreSQL connection string, which begins with postgresql://, instead."
)
# Drivers for tunnels, encrypted files and other servers, which psycopg and sqlite3 cannot open.
_OTHER_SYSTEMS = {"ssh", "pysqlcipher", "libsql"}

_HOST = r"(?:\[[^\[\]/@]*\]|[\w.%-]*)(?::\d*)?"
_ADDRESS = re.compile(rf"{_HOST}(?:,{_HOST})*(?P<path>/.*)?")
# A host and a path, in forms that are very unlikely inside a password.
_CERTAIN_ADDRESS = re.compile(
    r"@[\w-]+:\d{2,5}/|(?:@|^)(?:localhost|[\w-]+(?:\.[\w-]+)+|\[[\da-fA-F:.]+\])(?::\d+)?/"
)
_QUERY = re.compile(r"\?(?P<name>[A-Za-z_]{2,40})=")
_SEPARATOR = re.compile(r"&(?:amp;)?|[?;](?=[A-Za-z_]{2,40}=)")
_OTHER_QUESTION_MARK = re.compile(r"[&;](?P<name>[A-Za-z_]{2,40})=")
# Socket directories, which are more likely than a database with such a name.
_SOCKET_FOLDER = re.compile(r"/(?:cloudsql|var|run|tmp)/")
_WEB_SCHEME = re.compile(r"(?:https?|tcp)://", re.IGNORECASE)

# Each unreachable host may take a full connect timeout.
_MOST_HOSTS = 32
_BRACKETED = re.compile(r"\[(?P<host>[^\[\]]*)\](?::(?P<port>.*))?")
_NAME = re.compile(r"(?!-)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")

_TRANSACTION_PORT = 6543
_YES = {"", "1", "true", "yes", "on"}


def read_keyword_string(text: str) -> Parts | None:
    """Return a keyword string as parameters of a URL, or None if the text is not one."""
    parameters: list[tuple[str, str]] = []
    end = 0
    while end < len(text):
        pair = _KEYWORD_PAIR.match(text, end)
        if pair is None:
            return None
        value = re.sub(r"\\(.)", r"\1", pair["quoted"] or pair["plain"] or "")
        # Keyword strings are not percent-encoded, but later steps decode every value.
        parameters.append((pair["name"], value.replace("%", "%25")))
        end = pair.end()
    names = {name for name, _ in parameters}
    return Parts(parameters=parameters) if len(names & _TELLING_NAMES) >= 2 else None


def split_scheme(text: str, repairs: list[str]) -> tuple[Backend, str]:
    """Return the backend and what follows `scheme://`."""
    url = _URL.fullmatch(text)
    if url is None:
        raise UnusableURLError("unparseable")
    slashes, rest = len(url["slashes"]), url["rest"].strip()
    name = url["scheme"].lower()
    scheme = _OWN_SCHEME.fullmatch(name)
    if slashes < 2 and not (scheme and rest):
        raise UnusableURLError("unparseable")
    if scheme is None or scheme["driver"] in _OTHER_SYSTEMS:
        message = _WEB_ADDRESS if name in {"http", "https"} else ""
        raise UnusableURLError("unsupported_scheme", message)
    if url["java"] or scheme["base"] not in {"postgresql", "sqlite"}:
        repairs.append("scheme")
    if scheme["driver"] not in {None, "psycopg"}:
        repairs.append("driver")
    if not scheme["base"].startswith("sqlite"):
        return "postgresql", _after_two_slashes(rest, slashes, repairs)
    # As in SQLAlchemy, `sqlite:///` begins a relative path and `sqlite:////` an absolute one.
    return "sqlite", "/" + rest if slashes == 1 or slashes > 3 else rest


def split_url(text: str, repairs: list[str]) -> Parts:
    """Split what follows `postgresql://`; only the names of parameters are decoded yet."""
    before, query = _split_query(text, repairs)
    at = _end_of_credentials(before)
    username, _, password = before[: max(at, 0)].partition(":")
    hosts, database = _split_address(before[at + 1 :], repairs)
    parameters = [_split_parameter(piece) for piece in _SEPARATOR.split(query) if piece]
    return Parts(username, password, hosts, database, parameters)


def read_hosts(parts: Parts) -> tuple[list[str], list[int | None]]:
    """Return the hosts and a port for each; no hosts if the URL names none."""
    hosts, ports = zip(*map(_split_port, split_list(parts.hosts)), strict=True)
    if parts.hosts_in_query:
        hosts, beside = zip(*map(_split_port, split_list(parts.hosts_in_query)), strict=True)
        ports = beside if any(beside) else ports
    if parts.ports_in_query:
        ports = tuple(map(decode, split_list(parts.ports_in_query)))
    names = [] if hosts == ("",) else list(hosts)
    for name in names:
        _check_host(name)
    numbers = [_read_port(port) for port in ports]
    if len(numbers) == 1:
        numbers *= len(hosts)
    if len(numbers) != len(hosts):
        raise UnusableURLError("invalid_port")
    return names, numbers


def refuse_incomplete(parts: Parts, hosts: list[str]) -> None:
    """Refuse a URL that leaves the driver to guess the server or the database."""
    refuse_control_characters(parts.username)
    refuse_control_characters(parts.database)
    # A password may contain an encoded line break on purpose, but libpq's strings end at NUL.
    if "\x00" in parts.password:
        raise UnusableURLError("control_characters")
    if not hosts and not dict(parts.parameters).get("hostaddr"):
        raise UnusableURLError("missing_host")
    # If no database is named, libpq uses the user's name, which is often right.
    if not parts.database and not parts.username:
        raise UnusableURLError("missing_database")


def is_transaction_pooler(parts: Parts, hosts: list[str], ports: list[int | None]) -> bool:
    """Return whether the URL names a transaction pooler, as far as the URL alone can tell."""
    if dict(parts.parameters).get("pgbouncer", "no").lower() in _YES:
        return True
    return _TRANSACTION_PORT in ports or any("-pooler" in host.split(".")[0] for host in hosts)


def split_list(text: str) -> list[str]:
    """Split a list of hosts or ports at its commas."""
    elements = text.split(",")
    if len(elements) > _MOST_HOSTS:
        raise UnusableURLError("invalid_host")
    return [element.strip() for element in elements]


def _after_two_slashes(rest: str, slashes: int, repairs: list[str]) -> str:
    if slashes == 2:
        return rest
    if "@" in rest.partition("?")[0]:
        repairs.append("slashes")
        return rest
    if slashes < 2:
        raise UnusableURLError("unparseable")
    return "/" * (slashes - 2) + rest


def _split_query(text: str, repairs: list[str]) -> tuple[str, str]:
    """Split at the first '?' that cannot be part of the password."""
    last_at = text.rfind("@")
    for mark in _QUERY.finditer(text, 0, last_at + 1):
        before = text[: mark.start()]
        address = _ADDRESS.fullmatch(before, before.rfind("@") + 1)
        if address and (mark["name"].lower() in KNOWN or ("@" in before and address["path"])):
            return before, text[mark.start() + 1 :]
    start = text.find("?", last_at + 1)
    if start >= 0:
        return text[:start], text[start + 1 :]
    mistyped = _OTHER_QUESTION_MARK.search(text, text.rfind("/") + 1)
    if mistyped and mistyped["name"].lower() in KNOWN and mistyped.start() > last_at:
        repairs.append("query")
        return text[: mistyped.start()], text[mistyped.start() + 1 :]
    return text, ""


def _end_of_credentials(text: str) -> int:
    """Return the index of the '@' before the hosts, or -1.

    That is the last one, unless what follows it can only be the end of a database name. In doubt,
    more text goes to the password: too much only makes the login fail, but too little would print
    the rest of the password as a host.
    """
    last = text.rfind("@")
    if re.search("[/.,]", text[last + 1 :]):
        return last
    certain = [match.start() for match in _CERTAIN_ADDRESS.finditer(text)] or [last]
    return certain[-1] if text.startswith("@", certain[-1]) else -1


def _split_address(text: str, repairs: list[str]) -> tuple[str, str]:
    """Split hosts from database; a socket directory extends to the last slash."""
    plain = _WEB_SCHEME.sub("", text).replace("\\", "/")
    if plain != text:
        repairs.append("host")
    text = plain
    if text.startswith("//") or _SOCKET_FOLDER.match(text):
        folder, _, database = text.rpartition("/")
        return "/" + folder.lstrip("/"), database
    hosts, _, database = text.partition("/")
    return hosts.strip(), database.strip("/")


def _split_parameter(piece: str) -> tuple[str, str]:
    name, _, value = piece.partition("=")
    return decode(name).strip().lower(), value.removesuffix("\\")


def _split_port(element: str) -> tuple[str, str]:
    if element.startswith("["):
        literal = _BRACKETED.fullmatch(element)
        if literal is None or not is_ip_address(decode(literal["host"])):
            raise UnusableURLError("invalid_host")
        return decode(literal["host"]), literal["port"] or ""
    element = decode(element)
    if element.startswith("/"):
        # The names of Cloud SQL's socket directories contain a ':', too.
        folder, _, port = element.replace("/.s.PGSQL.", ":").rpartition(":")
        return (folder, port) if not port.strip("0123456789") else (element, "")
    if is_ip_address(element):
        return element, ""
    host, _, port = element.partition(":")
    return host.strip(), port.strip()


def _check_host(host: str) -> None:
    refuse_control_characters(host)
    # libpq splits at every comma, even at one that was percent-encoded.
    if "," in host:
        raise UnusableURLError("invalid_host")
    if host.startswith("/") or is_ip_address(host):
        return
    is_number = host.replace(".", "").isdecimal()
    if is_number or not _NAME.fullmatch(host):
        raise UnusableURLError("invalid_host")


def _read_port(text: str) -> int | None:
    if not text:
        return None
    # isdecimal() and int() also accept digits of other scripts, which some keyboards write.
    if not text.isdecimal() or len(text) > 10 or not 0 < int(text) < 65_536:
        raise UnusableURLError("invalid_port")
    return int(text)
