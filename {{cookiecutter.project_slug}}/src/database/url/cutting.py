"""Cut the URL out of what was pasted with it: a command, a code block, a comment, other lines."""

import re
from urllib.parse import unquote

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
