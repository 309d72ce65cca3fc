"""What the steps share: why a URL cannot be used, the messages about it, and the parts of a URL.

These messages are constants, so that no part of the value can leak into them.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import unquote

# In the environment, a byte that is not UTF-8 becomes a lone surrogate, which psycopg cannot send.
_UNSENDABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_COPY = "copy the connection string from the provider's page and paste it whole"
_PROBLEMS = {
    "unset": "DATABASE_URL is not set: set it to a PostgreSQL URL to use PostgreSQL.",
    "empty": "DATABASE_URL is blank: set it to a PostgreSQL URL to use PostgreSQL.",
    "placeholder": "DATABASE_URL still holds a placeholder: replace it with the real value.",
    "unexpanded_variable": (
        "DATABASE_URL holds a variable that was not expanded: set the value itself."
    ),
    "unparseable": f"DATABASE_URL is not a database URL: {_COPY}.",
    "unsupported_scheme": (
        "DATABASE_URL names a database that is not supported: "
        "begin it with postgresql:// or sqlite:///."
    ),
    "missing_host": "DATABASE_URL names no server: add its name after the '@'.",
    "missing_database": "DATABASE_URL names a server but no database: add /name at the end.",
    "invalid_host": "DATABASE_URL names a server that cannot exist: correct what follows '@'.",
    "invalid_port": (
        "DATABASE_URL holds a port that is not a number from 1 to 65535: correct it, "
        "and percent-encode any ':' '/' or '@' in the credentials."
    ),
    "control_characters": f"DATABASE_URL holds characters that cannot be sent: {_COPY}.",
    "too_long": f"DATABASE_URL is too long to be a URL: {_COPY}.",
}
_SUPABASE_ON_SPACE = (
    "DATABASE_URL names a Supabase server that has only an IPv6 address, which a Space cannot "
    "reach: use the connection string of Supabase's session pooler."
)
_PORT_ON_SPACE = (
    "DATABASE_URL names a port that Spaces may block: if the connection times out, "
    "use a server on 5432, 6543, 443, 80 or 8080."
)
_SUPABASE_DIRECT = re.compile(r"db\.[a-z]+\.supabase\.co\.?", re.IGNORECASE)
_OPEN_PORTS = {None, 80, 443, 8080, 5432, 6543}


class UnusableURLError(Exception):
    """DATABASE_URL cannot be used; the message contains known names only, never values."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.message = message or _PROBLEMS[reason]


@dataclass(repr=False)
class Parts:
    """The parts of a URL. There is no repr, since any part may contain a secret."""

    username: str = ""
    password: str = ""
    hosts: str = ""
    database: str = ""
    parameters: list[tuple[str, str]] = field(default_factory=list)
    hosts_in_query: str = ""
    ports_in_query: str = ""

    def decode(self) -> None:
        """Decode everything but the hosts, which must be split before they are decoded."""
        self.username = decode(self.username)
        self.password = decode(self.password)
        self.database = decode(self.database)
        self.parameters = [(name, decode(value)) for name, value in self.parameters]


def decode(text: str) -> str:
    """Undo percent-encoding once; return text that does not decode to UTF-8 unchanged."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def refuse_control_characters(text: str) -> None:
    """Refuse control characters and what is not UTF-8."""
    if _UNSENDABLE.search(text):
        raise UnusableURLError("control_characters")


def is_ip_address(text: str) -> bool:
    """Return whether the text is an address of IPv4 or, without brackets, of IPv6."""
    try:
        ip_address(text)
    except ValueError:
        return False
    # A zone may be any text for ip_address(), but not for getaddrinfo().
    return len(text) <= 63 and text.isascii()


def advise_on_space(hosts: list[str], ports: list[int | None]) -> str:
    """Return why a Space may be unable to reach these hosts, and what to do; "" if it can."""
    if any(_SUPABASE_DIRECT.fullmatch(host) for host in hosts):
        return _SUPABASE_ON_SPACE
    return "" if _OPEN_PORTS.issuperset(ports) else _PORT_ON_SPACE
