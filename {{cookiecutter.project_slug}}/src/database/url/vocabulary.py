"""What the steps share: why a value cannot be used, a URL taken apart, questions about characters.

A reason is a code and nothing else, since any more could be a secret.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import unquote

Reason: TypeAlias = Literal[
    "unset",
    "empty",
    "placeholder",
    "unexpanded_variable",
    "unparseable",
    "unsupported_scheme",
    "missing_host",
    "missing_database",
    "invalid_host",
    "invalid_port",
    "control_characters",
    "too_long",
]

# A lone surrogate is a byte that was no UTF-8 in the environment; psycopg cannot encode it.
_UNSENDABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class UnusableURLError(Exception):
    """Raised by a step that cannot go on; carries the reason's code."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(repr=False)
class Parts:
    """The pieces of a URL. Without a repr, since every piece may be a secret."""

    username: str = ""
    password: str = ""
    hosts: str = ""
    database: str = ""
    parameters: list[tuple[str, str]] = field(default_factory=list)
    hosts_in_query: str = ""
    ports_in_query: str = ""

    def decode(self, decode: Callable[[str], str]) -> None:
        """Decode what has no inner structure; hosts are decoded one by one."""
        self.username = decode(self.username)
        self.password = decode(self.password)
        self.database = decode(self.database)
        self.parameters = [(name, decode(value)) for name, value in self.parameters]


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
