"""Find the URL in what was pasted, and refuse what only stands for one.

First comes off what encloses the whole value: blanks, quotes, `DATABASE_URL=`, invisible
characters. Then what was pasted along with the URL: a command, a code block, a comment, other
lines. The word None, a placeholder or a variable that nobody expanded may stand for the whole URL
or for a piece of it; a real password must never be refused as one.
"""

import re
from urllib.parse import unquote

from space_runtime.url.splitting import split_list
from space_runtime.url.vocabulary import Parts, Reason, UnusableURLError, decode

# Far more than a token used as a password needs, far less than what slows a step down.
_LONGEST = 8_192

_INVISIBLE = dict.fromkeys(
    [0x00AD, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
)
_QUOTES = [
    ('"', '"'),
    ("'", "'"),
    ("`", "`"),
    ("\u201c", "\u201d"),
    ("\u201d", "\u201d"),
    ("\u201e", "\u201c"),
    ("\u2018", "\u2019"),
    ("\u2019", "\u2019"),
    ("\u00ab", "\u00bb"),
    ("\u2039", "\u203a"),
    ('\\"', '\\"'),
    ("\\'", "\\'"),
    ("&quot;", "&quot;"),
    ("&#34;", "&#34;"),
    ("&#39;", "&#39;"),
    ("&apos;", "&apos;"),
]
_QUOTE_CHARACTERS = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\u2039\u203a\\"
# Only a NAME in capitals: `host=...` is the start of a libpq connection string.
_ASSIGNMENT = re.compile(
    r"(?:(?:export|set|env|ENV|-e|--env)\s+)?[A-Z][A-Z0-9_]*[\"'`]?\s*(?:=|:(?=\s|$))\s*"
)
# Shells and people nest two or three of these; more is noise that must not cost time.
_ROUNDS = 8

_SCHEME = r"(?:postgres(?:ql)?|psql|pgsql|postgis|sqlite3?)(?:[+_.-]\w[\w+.-]*)?"
_OWN_URL = re.compile(
    rf"(?:^|(?<=[\s\"'`=:(\[\x7b<,\u201c\u201d\u201e\u2018\u2019\u00ab\u2039]))"
    rf"(?:(?:jdbc|r2dbc):)?{_SCHEME}:(?=[/\\])",
    re.IGNORECASE,
)
_ENCODED_URL = re.compile(rf"{_SCHEME}%3A%2F%2F", re.IGNORECASE)
_CLOSING = {
    opening: re.compile(rf"[{closing}](?=$|[\s,;()}}\]\\])")
    for opening, closing in [
        ('"', '"'),
        ("'", "'"),
        ("`", "`"),
        ("<", ">"),
        ("(", ")"),
        ("[", r"\]"),
        ("\u201c", "\u201c\u201d"),
        ("\u201d", "\u201d"),
        ("\u201e", "\u201c\u201d"),
        ("\u2018", "\u2018\u2019"),
        ("\u2019", "\u2019"),
        ("\u00ab", "\u00bb"),
        ("\u2039", "\u203a"),
    ]
}
_COMMENT = re.compile(r"\s(?:#|//\s)")
_COMMENT_WITH_BLANKS = re.compile(r"\s#\s")
_COMMAND_LINE = re.compile(r"\s(?:--?[A-Za-z]|[|<>&])")
_LINE_BREAK = re.compile(r"\r\n|[\r\n\u2028\u2029]")
_ANOTHER_LINE = re.compile(
    r"$|#|```|[\]})]|(?:export\s+)?[A-Z_][A-Z0-9_]*\s*=|[\w.-]+:\s|.*(?:://|\s)"
)
_TRAILING = " \t;,\\\"'`\u201d\u2019\u00bb\u203a"

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


def unwrap(value: str, repairs: list[str]) -> str:
    """Return the value without what people paste around it."""
    text = _without_blanks(value, repairs)
    for _ in range(_ROUNDS):
        unwrapped = _without_assignment(_without_quotes(text, repairs), repairs)
        if unwrapped == text:
            break
        text = unwrapped
    if text.strip(_QUOTE_CHARACTERS) == "":
        raise UnusableURLError("empty")
    return _without_escapes(text, repairs)


def cut_out_url(text: str, repairs: list[str]) -> str:
    """Return the first URL of a database that we serve, or the text when it holds none."""
    if _ENCODED_URL.match(text):
        repairs.append("escapes")
        text = unquote(text)
    url = _OWN_URL.search(text)
    if url is None:
        return text
    before = text[: url.start()]
    same_line = before.rpartition("\n")[2]
    if "://" in same_line or "@" in same_line:
        return text
    quoted = before[-1:] in _CLOSING
    if quoted:
        repairs.append("quotes")
    if len(before) > quoted:
        repairs.append("prefix")
    return _without_what_follows(text[url.start() :], before, repairs)


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


def _without_blanks(value: str, repairs: list[str]) -> str:
    text = value.strip()
    if len(text) > _LONGEST:
        raise UnusableURLError("too_long")
    visible = text.translate(_INVISIBLE).strip()
    if len(visible) < len(text):
        repairs.append("invisible_characters")
    if len(text) < len(value):
        repairs.append("blanks")
    return visible


def _without_quotes(text: str, repairs: list[str]) -> str:
    for opening, closing in _QUOTES:
        long_enough = len(text) >= len(opening) + len(closing)
        if long_enough and text.startswith(opening) and text.endswith(closing):
            repairs.append("quotes")
            return text[len(opening) : -len(closing)].strip()
    return text


def _without_assignment(text: str, repairs: list[str]) -> str:
    name = _ASSIGNMENT.match(text)
    if name is None:
        return text
    repairs.append("prefix")
    return text[name.end() :].strip()


def _without_escapes(text: str, repairs: list[str]) -> str:
    """Undo what JSON encoders and form fields do to a whole URL."""
    if ":\\/\\/" in text:
        repairs.append("escapes")
        text = text.replace("\\/", "/")
    if "\\u0026" in text:
        repairs.append("escapes")
        text = text.replace("\\u0026", "&")
    return text


def _without_what_follows(text: str, before: str, repairs: list[str]) -> str:
    closing = _CLOSING[before[-1]].search(text) if before[-1:] in _CLOSING else None
    inside = text[: closing.start()] if closing else text
    line = _one_line(inside, repairs)
    kept = line if closing else _without_comment(line, after_command=bool(before))
    kept = kept.rstrip(_TRAILING)
    if len(kept) < len(line) or (closing and text[closing.end() :].strip()):
        repairs.append("trailing_characters")
    return kept


def _one_line(text: str, repairs: list[str]) -> str:
    """Join a URL that was wrapped in the middle; leave other lines behind."""
    lines = [line.strip() for line in _LINE_BREAK.split(text)]
    url = lines[0]
    for line in lines[1:]:
        if _ANOTHER_LINE.match(line):
            repairs.append("other_lines")
            break
        repairs.append("line_breaks")
        url += line
    return url


def _without_comment(text: str, *, after_command: bool) -> str:
    # A password may hold anything, so nothing is cut before the '@' that ends it.
    address = text.rfind("@") + 1
    comment = (
        _COMMENT_WITH_BLANKS.search(text, text.find("@") + 1)
        or _COMMENT.search(text, address)
        or (_COMMAND_LINE.search(text, address) if after_command else None)
    )
    return text[: comment.start()] if comment else text


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
