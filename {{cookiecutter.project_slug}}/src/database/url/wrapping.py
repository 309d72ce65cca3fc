"""Take off what surrounds a pasted value: blanks, quotes, `DATABASE_URL=`, invisible characters."""

import re

from src.database.url.problem import UnusableURLError

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
