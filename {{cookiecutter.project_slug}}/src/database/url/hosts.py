"""Read the hosts and ports, and check what would otherwise fail inside the driver.

Once everything stands in its place, check also that there is enough to connect with, and recognise
a transaction pooler, behind which prepared statements fail.
"""

import re
from ipaddress import AddressValueError, IPv6Address

from src.database.url.vocabulary import Parts, UnusableURLError, decode, refuse_control_characters

# Each may cost a connect timeout.
_MOST_HOSTS = 32
_BRACKETED = re.compile(r"\[(?P<host>[^\[\]]*)\](?::(?P<port>.*))?", re.DOTALL)
_SOCKET = re.compile(r"(?P<host>.*?)(?:/\.s\.PGSQL\.(?P<file>\d+))?(?::(?P<port>\d*))?", re.DOTALL)
_NAME = re.compile(r"(?!-)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")
_FOUR_NUMBERS = re.compile(r"\d{1,10}(?:\.\d{1,10}){3}", re.ASCII)

_TRANSACTION_PORT = 6543
_YES = {"", "1", "true", "yes", "on"}


def read_hosts(parts: Parts) -> tuple[list[str], list[int | None]]:
    """Return hosts and ports, one port a host; no host where the URL names none."""
    hosts, ports = _split(parts.hosts)
    if parts.hosts_in_query:
        hosts, ports_beside = _split(parts.hosts_in_query)
        ports = ports_beside if any(ports_beside) else ports
    if parts.ports_in_query:
        ports = [decode(port) for port in split_list(parts.ports_in_query)]
    for host in hosts:
        _check_host(host, alone=len(hosts) == 1)
    numbers = [_read_port(port) for port in ports]
    if len(numbers) == 1:
        numbers *= len(hosts)
    if not any(numbers):
        numbers = [None] * len(hosts)
    if len(numbers) != len(hosts):
        raise UnusableURLError("invalid_port")
    return ([], numbers) if hosts == [""] else (hosts, numbers)


def refuse_incomplete(parts: Parts, hosts: list[str]) -> None:
    """Stop at a URL that leaves the driver to guess where to go."""
    refuse_control_characters(parts.username)
    refuse_control_characters(parts.database)
    # A password may hold an encoded line break on purpose, but libpq ends every text at NUL.
    if "\x00" in parts.password:
        raise UnusableURLError("control_characters")
    if not hosts and not dict(parts.parameters).get("hostaddr"):
        raise UnusableURLError("missing_host")
    # libpq takes the user's name for a database that is not named, which is right often enough.
    if not parts.database and not parts.username:
        raise UnusableURLError("missing_database")


def is_transaction_pooler(parts: Parts, hosts: list[str], ports: list[int | None]) -> bool:
    """Tell whether connections are shared between transactions, as far as the URL shows it."""
    if dict(parts.parameters).get("pgbouncer", "no").lower() in _YES:
        return True
    return _TRANSACTION_PORT in ports or any("-pooler" in host.split(".")[0] for host in hosts)


def split_list(text: str) -> list[str]:
    """Split at commas what may name several hosts."""
    elements = text.split(",")
    if len(elements) > _MOST_HOSTS:
        raise UnusableURLError("invalid_host")
    return [element.strip() for element in elements]


def _split(text: str) -> tuple[list[str], list[str]]:
    pairs = [_split_port(element) for element in split_list(text)]
    return [host.strip() for host, _ in pairs], [port.strip() for _, port in pairs]


def _split_port(element: str) -> tuple[str, str]:
    if element.startswith("["):
        literal = _BRACKETED.fullmatch(element)
        if literal is None or not _is_ipv6(decode(literal["host"])):
            raise UnusableURLError("invalid_host")
        return decode(literal["host"]), literal["port"] or ""
    element = decode(element)
    if element.startswith("/"):
        socket = _SOCKET.fullmatch(element)
        return (socket["host"], socket["port"] or socket["file"] or "") if socket else (element, "")
    if _is_ipv6(element):
        return element, ""
    host, _, port = element.rpartition(":") if element.count(":") > 7 else element.partition(":")
    return host, port


def _check_host(host: str, *, alone: bool) -> None:
    refuse_control_characters(host)
    # libpq splits at every comma, also at one that was percent-encoded.
    if "," in host:
        raise UnusableURLError("invalid_host")
    if host.startswith("/") or _is_ipv6(host) or (alone and not host):
        return
    if not _NAME.fullmatch(host) or len(host) > 253 or host.isdecimal():
        raise UnusableURLError("invalid_host")
    if _FOUR_NUMBERS.fullmatch(host) and any(int(number) > 255 for number in host.split(".")):
        raise UnusableURLError("invalid_host")
    try:
        host.encode("ascii" if host.isascii() else "idna")
    except UnicodeError:
        raise UnusableURLError("invalid_host") from None


def _is_ipv6(text: str) -> bool:
    # A zone may be anything to IPv6Address, but not to the resolver of names.
    if ":" not in text or len(text) > 63 or not text.isascii():
        return False
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def _read_port(text: str) -> int | None:
    if not text:
        return None
    # isdecimal also takes other scripts' digits, as a keyboard may write them.
    if not text.isdecimal() or len(text) > 10 or not 0 < int(text) < 65_536:
        raise UnusableURLError("invalid_port")
    return int(text)
