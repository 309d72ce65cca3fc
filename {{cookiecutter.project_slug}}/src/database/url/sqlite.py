"""Read the path out of what follows `sqlite://`."""

import re

from sqlalchemy import URL

from src.database.url.parameters import drop_parameters
from src.database.url.problem import UnusableURLError
from src.database.url.text import decode, refuse_control_characters

_CREDENTIALS = re.compile(r"[^/@:]*:[^/@]*@")
_MEMORY = {"", ":memory:", "/:memory:"}


def build_sqlite_url(rest: str, repairs: list[str]) -> URL:
    """Return the URL with the path as it was written; the lifecycle makes it absolute."""
    if _CREDENTIALS.match(rest):
        raise UnusableURLError("unparseable")
    path, _, query = rest.partition("?")
    drop_parameters(query, repairs)
    path = decode(path.removeprefix("file:"))
    refuse_control_characters(path)
    # `file:name?mode=memory` names a shared memory database, which lives no longer than any other.
    in_memory = path in _MEMORY or "mode=memory" in query.split("&")
    return URL.create("sqlite", database=":memory:" if in_memory else path)
