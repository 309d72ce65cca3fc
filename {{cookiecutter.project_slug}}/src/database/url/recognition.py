"""Recognise what is no URL at all: the word None, a placeholder, a variable nobody expanded."""

import re

from src.database.url.problem import UnusableURLError

_VARIABLE = re.compile(
    r"""
    \$\w+(?:/.*)? | \$env:\w+ | \$[({].* | %\w+% | \{\{.* | \{\w+\} | \(\(.*\)\) | \#\{.* | __\w+__
    | <%.* | !\w+\s.* | @Microsoft\.KeyVault.* | (?:secrets?|vars|env)\.\w+
    | (?:\w+\.)*(?:env|environ|getenv|ENV)\b[.(\[].*
    """,
    re.VERBOSE | re.DOTALL,
)
# Wherever these stand, somebody meant them to be replaced.
_VARIABLE_INSIDE = re.compile(r"\$\{\{|\$\{[A-Za-z_][^{}]*\}|\{\{[^{}]*\}\}|<%=|%\([A-Za-z_]\w*\)s")
_PLACEHOLDER = re.compile(
    r"""
    none | null | nil | undefined | nan | n/?a | (?:not[ _-]?|un)set | empty | missing
    | todo | tbd | tba | fixme | placeholder | example | dummy | x{3,} | [-_*.?~\u2022\u2026]+
    | change[ _-]?(?:me|this|it) | (?:my[ _-]?)?(?:database|db|postgres)[ _-]?ur[il]
    | (?:your|replace|insert|add|paste|put|enter)(?:[ _-].*)? | <[^<>]*> | \[[^\[\]]*\]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def refuse_what_is_no_url(text: str) -> None:
    """Stop at a value that stands for another one."""
    if _VARIABLE.fullmatch(text):
        raise UnusableURLError("unexpanded_variable")
    if _PLACEHOLDER.fullmatch(text) and "://" not in text:
        raise UnusableURLError("placeholder")


def refuse_variables_inside(text: str) -> None:
    """Stop at a URL in which a variable was not expanded."""
    if _VARIABLE_INSIDE.search(text):
        raise UnusableURLError("unexpanded_variable")
