"""Fold the many spellings of a scheme into the two databases that we serve."""

import re
from typing import Literal, TypeAlias

from src.database.url.problem import UnusableURLError

Backend: TypeAlias = Literal["postgresql", "sqlite"]

_URL = re.compile(
    r"(?P<java>(?:(?:jdbc|r2dbc):)?)(?P<scheme>[A-Z][\w+.-]*)\s?:\s?(?P<slashes>[/\\]*)(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_POSTGRESQL = re.compile(
    r"(?P<base>postgres|postgresql|psql|pgsql|postgis)(?:[+_.-](?P<driver>[\w+.-]*))?"
)
_SQLITE = re.compile(r"(?P<base>sqlite3?)(?:\+(?P<driver>[\w+.-]*))?")
# These reach PostgreSQL through something else, which psycopg cannot do.
_NOT_A_DRIVER = {"ssh", "http", "https", "srv", "unix"}
# These are other file formats and servers.
_NOT_SQLITE = {"pysqlcipher", "sqlcipher", "libsql", "http", "https"}


def split_scheme(text: str, repairs: list[str]) -> tuple[Backend, str]:
    """Return the backend and what follows `scheme://`."""
    url = _URL.fullmatch(text)
    if url is None:
        raise UnusableURLError("unparseable")
    scheme, slashes, rest = url["scheme"].lower(), len(url["slashes"]), url["rest"].strip()
    if slashes < 2 and not rest:
        raise UnusableURLError("unparseable")
    postgresql, sqlite = _POSTGRESQL.fullmatch(scheme), _SQLITE.fullmatch(scheme)
    if postgresql and postgresql["driver"] not in _NOT_A_DRIVER:
        _note_repairs(url["java"], postgresql, repairs)
        return "postgresql", _after_two_slashes(rest, slashes, repairs)
    if sqlite and sqlite["driver"] not in _NOT_SQLITE:
        _note_repairs(url["java"], sqlite, repairs)
        # After `sqlite://` a third slash ends an empty host, a fourth begins an absolute path.
        return "sqlite", "/" + rest if slashes == 1 or slashes > 3 else rest
    raise UnusableURLError("unsupported_scheme" if slashes >= 2 else "unparseable")


def _note_repairs(java: str, scheme: re.Match[str], repairs: list[str]) -> None:
    if java or scheme["base"] not in {"postgresql", "sqlite"}:
        repairs.append("scheme")
    if scheme["driver"] not in {None, "psycopg"}:
        repairs.append("driver")


def _after_two_slashes(rest: str, slashes: int, repairs: list[str]) -> str:
    if slashes == 2:
        return rest
    if "@" in rest.partition("?")[0]:
        repairs.append("slashes")
        return rest
    if slashes < 2:
        raise UnusableURLError("unparseable")
    return "/" * (slashes - 2) + rest
