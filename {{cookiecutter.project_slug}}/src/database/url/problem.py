"""Why a value cannot be used: a code and nothing else, since any more could be a secret."""

from typing import Literal, TypeAlias

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


class UnusableURLError(Exception):
    """Raised by a step that cannot go on; carries the reason's code."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
