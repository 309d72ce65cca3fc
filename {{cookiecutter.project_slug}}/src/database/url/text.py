"""Questions about characters that several steps ask."""

import re
from urllib.parse import unquote

from src.database.url.problem import UnusableURLError

# A lone surrogate is a byte that was no UTF-8 in the environment; psycopg cannot encode it.
_UNSENDABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def decode(text: str) -> str:
    """Undo percent-encoding once; what does not decode to text was meant as it stands."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def refuse_control_characters(text: str) -> None:
    """Stop at a character that neither a driver nor a file name can carry."""
    if _UNSENDABLE.search(text):
        raise UnusableURLError("control_characters")
