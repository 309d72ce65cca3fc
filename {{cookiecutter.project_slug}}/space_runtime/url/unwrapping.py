"""Find the URL in what was pasted, and refuse placeholders and unexpanded variables.

First, whatever encloses the whole value is removed: blanks, quotes, `DATABASE_URL=`, invisible
characters. Then whatever was pasted along with the URL: a command, a code block, a comment, other
lines. The word None, a placeholder or an unexpanded variable is refused, be it the whole value or
a part of the URL. The patterns are narrow, because a real password must not be refused.
"""

import re
from collections.abc import Callable
from html import unescape
from itertools import takewhile
from unicodedata import category
from urllib.parse import unquote

from space_runtime.url.splitting import SCHEME, split_list
from space_runtime.url.vocabulary import Parts, UnusableURLError, decode

# No token used as a password is longer, and the steps below would be slow on longer text.
_LONGEST = 8_192
# Nobody nests more quotes and assignments than this.
_ROUNDS = 8

_PRINTED_QUOTES = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\u2039\u203a"
_QUOTES = "\"'`\\" + _PRINTED_QUOTES
_CLOSING = {
    **{"<": ">", "(": ")", "[": "]", '"': '"', "'": "'", "`": "`"},
    **dict.fromkeys(_PRINTED_QUOTES, _PRINTED_QUOTES),
}
# Uppercase names only: `host=...` begins a libpq connection string.
_ASSIGNMENT = re.compile(r"^(?:[\w-]+ +)?[A-Z][A-Z0-9_]*\s*(?:=|:(?=\s|$))")

_OWN_URL = re.compile(
    rf"(?:^|(?<=[\s=:,{re.escape(''.join(_CLOSING))}]))(?:(?:jdbc|r2dbc):)?{SCHEME}:(?=[/\\])",
    re.IGNORECASE,
)
_ENCODED_URL = re.compile(rf"{SCHEME}%3A%2F%2F", re.IGNORECASE)
_COMMENT = re.compile(r"\s(?:#|//\s)")
_COMMENT_WITH_BLANKS = re.compile(r"\s#\s")
_COMMAND_LINE = re.compile(r"\s(?:--?[A-Za-z]|[|<>&])")
_LINE_BREAK = re.compile(r"\r\n|[\r\n\u2028\u2029]")
_ANOTHER_LINE = re.compile(r"$|[#`\]})]|[A-Z_][A-Z0-9_]*=|.*(?:://|\s)")

# Variables of shells, PowerShell, templates, Windows, GitHub Actions, JavaScript and Python.
_VARIABLE_FOR_URL = re.compile(
    r"""
    \$(?:env:)?\w+(?:/.*)? | (?:\$[({]|\{\{).* | %\w+% | \{\w+\} | __\w+__
    | <%.* | (?:secrets?|vars)\.\w+ | (?:\w+\.)*(?:env|environ|getenv|ENV)\b[.(\[].*
    """,
    re.VERBOSE,
)
# These are not expected in any password, so they are refused anywhere in the URL.
_VARIABLE_INSIDE = re.compile(r"[$#]\{[A-Za-z_][^{}]*\}|\{\{[^{}]*\}\}|<%=|%\([A-Za-z_]\w*\)s")
_PLACEHOLDER_FOR_URL = re.compile(
    r"""
    none | null | nil | undefined | nan | n/?a | (?:not[ _-]?|un)set | empty | todo | tbd | fixme
    | placeholder | example | x{3,} | [-_*.?\u2022\u2026]+ | change[ _-]?(?:me|this)
    | (?:database|db|postgres)[ _-]?ur[il] | <[^<>]*> | \[[^\[\]]*\]
    | (?:your|replace|insert|add|paste|put|enter)(?:[ _-].*)?
    """,
    re.VERBOSE | re.IGNORECASE,
)

_VARIABLE_FOR_PIECE = re.compile(
    r"\$[A-Z_][A-Z0-9_]+|\$\([^()]*\)|%[A-Za-z_]\w*%|\{(?:[A-Za-z_][\w.-]*)?\}|%s"
    r"|__[A-Z][A-Z0-9_]*__"
)
# A lowercase `$word` may be a password, so this is not used on the password.
_VARIABLE_FOR_NAME = re.compile(r"\$[A-Za-z_]\w*")
_NOTHING = re.compile(r"None|NULL|null|undefined")
_BRACKETS = re.compile(r"<[A-Za-z][^<>]*>|\[[A-Za-z][A-Za-z _.'-]*\]")
_YOUR = re.compile(
    r"your[-_ ]?(?:[a-z]{2,12}[-_ ])?"
    r"(?:db|database|user|host|pass|pwd|project|name|secret|here)[a-z_. -]*"
    r"|(?:replace|insert|enter)[-_ ](?:me|this|with|your|pass|here)[a-z_. -]*",
    re.IGNORECASE,
)
_FILLING = re.compile(r"x{3,}|[.?_#]{3,}|\*+|\u2026", re.IGNORECASE)
_MASK = re.compile(r"\*{4,}|[\u2022\u25cf]{2,}")
_YOUR_HOST = re.compile(r"your[-_]", re.IGNORECASE)
_SHOUTED_HOST = re.compile(r"(?:DB_?|PG|POSTGRES_)?HOST(?:NAME)?|SERVER")
# `host` alone may be a real host name; together with `password` it is an example.
_WORD_FOR_HOST = re.compile(r"(?:db_)?host(?:name)?|example\.(?:com|org|net)", re.IGNORECASE)
_WORD_FOR_PASSWORD = re.compile(r"(?:db_)?pass(?:word|wd)?|pwd", re.IGNORECASE)


def unwrap(value: str, repairs: list[str]) -> str:
    """Return the value without what people paste around it."""
    if len(value.strip()) > _LONGEST:
        raise UnusableURLError("too_long")
    steps: list[tuple[str, Callable[[str], str]]] = [
        ("invisible_characters", _without_invisible_characters),
        ("blanks", str.strip),
        *[("quotes", _without_quotes), ("prefix", _without_assignment)] * _ROUNDS,
        ("escapes", _without_escapes),
    ]
    text = value
    for repair, step in steps:
        before, text = text, step(text)
        if text != before:
            repairs.append(repair)
    if not text.strip(_QUOTES):
        raise UnusableURLError("empty")
    return text


def cut_out_url(text: str, repairs: list[str]) -> str:
    """Return the first PostgreSQL or SQLite URL in the text, or the text if it has none."""
    url = _OWN_URL.search(text)
    if url is None:
        return text
    before = text[: url.start()]
    # It is only part of another URL, as in `https://...?to=postgres://...`.
    if "://" in before.rpartition("\n")[2]:
        return text
    quoted = before[-1:] in _CLOSING
    if quoted:
        repairs.append("quotes")
    if len(before) > quoted:
        repairs.append("prefix")
    return _without_what_follows(text[url.start() :], before, repairs)


def refuse_what_is_no_url(text: str) -> None:
    """Refuse a value that is a placeholder or an unexpanded variable as a whole."""
    _refuse(_VARIABLE_FOR_URL.fullmatch(text), "unexpanded_variable")
    if "://" not in text:
        _refuse(_PLACEHOLDER_FOR_URL.fullmatch(text), "placeholder")


def refuse_variables_inside(text: str) -> None:
    """Refuse a URL that contains an unexpanded variable."""
    _refuse(_VARIABLE_INSIDE.search(text), "unexpanded_variable")


def refuse_placeholders(parts: Parts) -> None:
    """Refuse a URL if one of its parts is a placeholder or an unexpanded variable."""
    addresses = split_list(parts.hosts_in_query or parts.hosts)
    places = [place for address in addresses for place in address.split(":")]
    for piece in map(decode, [parts.username, parts.password, parts.database, *places]):
        _refuse(_VARIABLE_FOR_PIECE.fullmatch(piece), "unexpanded_variable")
        for form in [_NOTHING, _BRACKETS, _YOUR, _FILLING]:
            _refuse(form.fullmatch(piece), "placeholder")
    for name in [parts.username, parts.database, *places]:
        _refuse(_VARIABLE_FOR_NAME.fullmatch(name), "unexpanded_variable")
        _refuse(_BRACKETS.search(decode(name)), "placeholder")
    password = decode(parts.password)
    _refuse(_MASK.search(password), "placeholder")
    for place in places:
        _refuse(_SHOUTED_HOST.fullmatch(place), "placeholder")
        for label in place.split("."):
            _refuse(_YOUR_HOST.match(label) or _FILLING.fullmatch(label), "placeholder")
        if _WORD_FOR_PASSWORD.fullmatch(password):
            _refuse(_WORD_FOR_HOST.fullmatch(place), "placeholder")


def refuse_placeholders_in_path(path: str) -> None:
    """Refuse a SQLite path if a directory or the file is a placeholder or a variable."""
    for name in path.partition("?")[0].split("/"):
        for form in [_VARIABLE_FOR_PIECE, _VARIABLE_FOR_NAME]:
            _refuse(form.fullmatch(name), "unexpanded_variable")
        _refuse(_BRACKETS.fullmatch(decode(name)), "placeholder")


def _without_invisible_characters(text: str) -> str:
    # Text copied from web pages may contain soft hyphens, zero-width spaces and direction marks.
    return "".join(character for character in text if category(character) != "Cf")


def _without_quotes(text: str) -> str:
    if text.startswith("&"):
        text = unescape(text)
    is_quoted = len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES
    return text[1:-1].strip() if is_quoted else text


def _without_assignment(text: str) -> str:
    return _ASSIGNMENT.sub("", text).strip()


def _without_escapes(text: str) -> str:
    """Undo what JSON encoders and form fields do to a whole URL."""
    text = text.replace("\\u0026", "&")
    if ":\\/\\/" in text:
        text = text.replace("\\/", "/")
    return unquote(text) if _ENCODED_URL.match(text) else text


def _without_what_follows(text: str, before: str, repairs: list[str]) -> str:
    closing = None
    if before[-1:] in _CLOSING:
        closing = re.search(rf"[{re.escape(_CLOSING[before[-1]])}](?=$|[\s,;()}}\]\\])", text)
    inside = text[: closing.start()] if closing else text
    line = _one_line(inside, repairs)
    kept = line if closing else _without_comment(line, after_command=bool(before))
    kept = kept.rstrip(_QUOTES + " \t;,")
    if len(kept) < len(line) or (closing and text[closing.end() :]):
        repairs.append("trailing_characters")
    return kept


def _one_line(text: str, repairs: list[str]) -> str:
    """Rejoin a URL that was wrapped in the middle; drop other lines."""
    url, *others = [line.strip() for line in _LINE_BREAK.split(text)]
    wrapped = list(takewhile(lambda line: not _ANOTHER_LINE.match(line), others))
    if wrapped:
        repairs.append("line_breaks")
    if len(wrapped) < len(others):
        repairs.append("other_lines")
    return url + "".join(wrapped)


def _without_comment(text: str, *, after_command: bool) -> str:
    # A password may contain anything, so a comment is looked for only after the last '@'. Only
    # ` # ` is looked for after the first one, because a comment may contain an '@' itself.
    address = text.rfind("@") + 1
    comment = (
        _COMMENT_WITH_BLANKS.search(text, text.find("@") + 1)
        or _COMMENT.search(text, address)
        or (_COMMAND_LINE.search(text, address) if after_command else None)
    )
    return text[: comment.start()] if comment else text


def _refuse(found: re.Match[str] | None, reason: str) -> None:
    if found:
        raise UnusableURLError(reason)
