"""Read libpq's other notation, `host=... dbname=...`, which psycopg users paste."""

import re

from src.database.url.parts import Parts

_PAIR = re.compile(
    r"\s*(?P<name>[a-z_]+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>(?:[^\s'\\]|\\.)*))(?=\s|$)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NAMES = {"host", "hostaddr", "dbname", "user", "port"}


def read_keyword_string(text: str) -> Parts | None:
    """Return a keyword string as a URL that has everything in its query, or None."""
    parameters: list[tuple[str, str]] = []
    end = 0
    while end < len(text):
        pair = _PAIR.match(text, end)
        if pair is None:
            return None
        value = _ESCAPE.sub(r"\1", pair["quoted"] if pair["quoted"] is not None else pair["plain"])
        # Nothing is percent-encoded in this notation, but the steps that follow decode.
        parameters.append((pair["name"], value.replace("%", "%25")))
        end = pair.end()
    names = {name for name, _ in parameters}
    return Parts(parameters=parameters) if len(names & _NAMES) >= 2 else None
