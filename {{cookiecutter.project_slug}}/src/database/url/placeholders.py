"""Recognise what is no URL at all, and a URL whose pieces were never filled in.

The word None, a placeholder or a variable that nobody expanded may stand for the whole URL or for a
piece of it; a real password must never be refused as one.
"""

import re

from src.database.url.hosts import split_list
from src.database.url.vocabulary import Parts, Reason, UnusableURLError, decode

_VARIABLE_FOR_URL = re.compile(
    r"""
    \$\w+(?:/.*)? | \$env:\w+ | \$[({].* | %\w+% | \{\{.* | \{\w+\} | \(\(.*\)\) | \#\{.* | __\w+__
    | <%.* | !\w+\s.* | @Microsoft\.KeyVault.* | (?:secrets?|vars|env)\.\w+
    | (?:\w+\.)*(?:env|environ|getenv|ENV)\b[.(\[].*
    """,
    re.VERBOSE | re.DOTALL,
)
# Wherever these stand, somebody meant them to be replaced.
_VARIABLE_INSIDE = re.compile(r"\$\{\{|\$\{[A-Za-z_][^{}]*\}|\{\{[^{}]*\}\}|<%=|%\([A-Za-z_]\w*\)s")
_PLACEHOLDER_FOR_URL = re.compile(
    r"""
    none | null | nil | undefined | nan | n/?a | (?:not[ _-]?|un)set | empty | missing
    | todo | tbd | tba | fixme | placeholder | example | dummy | x{3,} | [-_*.?~\u2022\u2026]+
    | change[ _-]?(?:me|this|it) | (?:my[ _-]?)?(?:database|db|postgres)[ _-]?ur[il]
    | (?:your|replace|insert|add|paste|put|enter)(?:[ _-].*)? | <[^<>]*> | \[[^\[\]]*\]
    """,
    re.VERBOSE | re.IGNORECASE,
)

_VARIABLE_FOR_PIECE = re.compile(
    r"\$[A-Z_][A-Z0-9_]+|\$\([^()]*\)|%[A-Za-z_]\w*%|\{(?:[A-Za-z_][\w.-]*)?\}|%s|#\{[^{}]*\}#?"
    r"|__[A-Z][A-Z0-9_]*__|(?:process\.env|os\.environ|ENV)\b.*"
)
_VARIABLE_IN_NAME = re.compile(r"\$[A-Za-z_]\w*")
_NOTHING = re.compile(r"None|NULL|null|nil|undefined|NaN")
_BRACKETS = re.compile(r"<[A-Za-z][^<>]*>|&lt;[^<>]*&gt;|\[[A-Za-z][A-Za-z _.'-]*\]")
_YOUR = re.compile(
    r"your[-_ ]?(?:[a-z]{2,12}[-_ ])?"
    r"(?:db|database|user|host|pass|pwd|project|server|name|ref|tenant|instance|secret|here)"
    r"[a-z_. -]*|(?:replace|insert|enter)[-_ ](?:me|this|with|your|pass|here)[a-z_. -]*",
    re.IGNORECASE,
)
_YOUR_HOST = re.compile(r"your[-_].*", re.IGNORECASE)
_MASK = re.compile(r"\*{4,}|[\u2022\u25cf]{2,}")
_FILLING = re.compile(r"x{3,}|\.{3,}|\u2026|\*+|#{3,}|_{3,}|\?{3,}", re.IGNORECASE)
_HOST_BRACKETS = re.compile(r"(?<=.)\[[A-Za-z][A-Za-z _-]*\]|\[[A-Z][A-Z _-]*\]|<[A-Za-z][^<>]*>")
_PORT = re.compile(r"(?<=[^:]):[^:\]]*$")
_WORDS_FOR_PASSWORD = {"password", "pass", "passwd", "pwd", "db_password", "dbpassword"}
_WORDS_FOR_HOST = {
    *("host", "hostname", "db_host", "dbhost", "servername", "ip_address"),
    *("example.com", "example.org", "example.net"),
}
_SHOUTED_HOSTS = {"HOST", "HOSTNAME", "DBHOST", "DB_HOST", "PGHOST", "POSTGRES_HOST", "SERVER"}


def refuse_what_is_no_url(text: str) -> None:
    """Stop at a value that stands for another one."""
    if _VARIABLE_FOR_URL.fullmatch(text):
        raise UnusableURLError("unexpanded_variable")
    if _PLACEHOLDER_FOR_URL.fullmatch(text) and "://" not in text:
        raise UnusableURLError("placeholder")


def refuse_variables_inside(text: str) -> None:
    """Stop at a URL in which a variable was not expanded."""
    if _VARIABLE_INSIDE.search(text):
        raise UnusableURLError("unexpanded_variable")


def refuse_placeholders(parts: Parts) -> None:
    """Stop at a piece that stands for another one."""
    hosts = split_list(parts.hosts_in_query or parts.hosts)
    names = [_PORT.sub("", host) for host in hosts]
    ports = [host.rpartition(":")[2] for host in hosts if ":" in host]
    for piece in [parts.username, parts.password, parts.database, *names, *ports]:
        # Once as written, since %DB_PASSWORD% decodes to something else, and once as meant.
        _refuse(_is_variable(piece) or _is_variable(decode(piece)), "unexpanded_variable")
        _refuse(_stands_for_something(decode(piece)), "placeholder")
    for name in [parts.username, parts.database, *names]:
        _refuse(_VARIABLE_IN_NAME.fullmatch(name) is not None, "unexpanded_variable")
    for name in [decode(parts.username), decode(parts.database)]:
        _refuse(_BRACKETS.search(name) is not None, "placeholder")
    password = decode(parts.password)
    _refuse(_MASK.search(password) is not None, "placeholder")
    for name in names:
        _refuse(_is_placeholder_host(name, password), "placeholder")


def refuse_placeholders_in_path(path: str) -> None:
    """Stop at a SQLite path in which a folder or the file stands for another one."""
    for name in path.partition("?")[0].split("/"):
        _refuse(
            _is_variable(name) or _VARIABLE_IN_NAME.fullmatch(name) is not None,
            "unexpanded_variable",
        )
        _refuse(_BRACKETS.fullmatch(decode(name)) is not None, "placeholder")


def _refuse(found: bool, reason: Reason) -> None:
    if found:
        raise UnusableURLError(reason)


def _is_variable(piece: str) -> bool:
    return _VARIABLE_FOR_PIECE.fullmatch(piece) is not None


def _stands_for_something(piece: str) -> bool:
    return any(form.fullmatch(piece) for form in (_NOTHING, _BRACKETS, _YOUR, _FILLING))


def _is_placeholder_host(host: str, password: str) -> bool:
    if host in _SHOUTED_HOSTS or _HOST_BRACKETS.search(host):
        return True
    if any(_YOUR_HOST.match(label) or _FILLING.fullmatch(label) for label in host.split(".")):
        return True
    # `host` alone may be a real name on somebody's network; with `password` it is an example.
    return host.lower() in _WORDS_FOR_HOST and password.lower() in _WORDS_FOR_PASSWORD
