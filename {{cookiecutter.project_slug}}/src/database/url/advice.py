"""Say in one sentence what a person should do. Fixed texts, so that no value can get into one."""

import re

from src.database.url.problem import Reason

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


def explain_problem(reason: Reason, value: str = "") -> str:
    """Return what to do about a value that cannot be used."""
    if reason == "unsupported_scheme" and re.search(r"https?://", value[:64], re.IGNORECASE):
        return _WEB_ADDRESS
    return _PROBLEMS[reason]


def explain_postgresql(hosts: list[str], ports: list[int | None], *, on_space: bool) -> str:
    """Return what to know about a PostgreSQL URL before it is used."""
    if on_space and any(_SUPABASE_DIRECT.fullmatch(host) for host in hosts):
        return _SUPABASE_ON_SPACE
    if on_space and not _OPEN_PORTS.issuperset(ports):
        return _PORT_ON_SPACE
    return "DATABASE_URL names a PostgreSQL database."
