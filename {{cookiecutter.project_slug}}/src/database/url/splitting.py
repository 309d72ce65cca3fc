"""Split `user:password@hosts/database?query` so that raw `@ : / # ? %` in a password survive."""

import re

from src.database.url.keywords import KNOWN
from src.database.url.parts import Parts
from src.database.url.text import decode

_HOST = r"(?:\[[^\[\]/@]*\]|[\w.%-]*)(?::\d*)?"
_ADDRESS = re.compile(rf"{_HOST}(?:,{_HOST})*(?P<path>/.*)?", re.DOTALL)
# An address that cannot be the middle of a password by accident.
_CERTAIN_HOST = re.compile(
    r"\[[0-9A-Fa-f:.%]+\]|localhost(?=[:/])|[\w-]+\.[\w.-]+|[\w-]+(?=:\d{2,5}/)"
)
_QUERY = re.compile(r"\?&?(?P<name>[A-Za-z_]{2,40})=")
_SEPARATOR = re.compile(r"&(?:amp;)?|[?;](?=[A-Za-z_]{2,40}=)")
_OTHER_QUESTION_MARK = re.compile(r"[&;](?P<name>[A-Za-z_]{2,40})=")
# Where an unencoded socket folder is likelier than a database of that name.
_SOCKET_FOLDER = re.compile(r"/(?:cloudsql|var|run|tmp)/")
# No password holds more; text made of '@' must not cost time.
_MOST_SIGNS = 100
_WEB_SCHEME = re.compile(r"^(?:https?|tcp)://", re.IGNORECASE)


def split_url(text: str, repairs: list[str]) -> Parts:
    """Take apart what follows `postgresql://`; decode nothing but the query's names."""
    before, query = _split_query(text, repairs)
    at = _end_of_credentials(before)
    username, _, password = before[: max(at, 0)].partition(":")
    hosts, database = _split_address(before[at + 1 :].strip(), repairs)
    parameters = [_split_parameter(piece) for piece in _SEPARATOR.split(query) if piece]
    return Parts(username, password, hosts, database, parameters)


def _split_query(text: str, repairs: list[str]) -> tuple[str, str]:
    """Split at the first '?' that no password can hold."""
    last_at = text.rfind("@")
    for mark in _QUERY.finditer(text, 0, last_at + 1):
        before = text[: mark.start()]
        address = _ADDRESS.fullmatch(before, before.rfind("@") + 1)
        if address and (mark["name"].lower() in KNOWN or ("@" in before and address["path"])):
            return before, text[mark.start() + 1 :]
    start = text.find("?", last_at + 1)
    if start >= 0:
        return text[:start], text[start + 1 :]
    mistyped = _OTHER_QUESTION_MARK.search(text, text.rfind("/") + 1)
    if mistyped and mistyped["name"].lower() in KNOWN and mistyped.start() > last_at:
        repairs.append("query")
        return text[: mistyped.start()], text[mistyped.start() + 1 :]
    return text, ""


def _end_of_credentials(text: str) -> int:
    """Return the index of the '@' before the hosts, or -1.

    That is the last one, unless what follows it can only be the end of a database's name. To take
    too much for a password is a failed login; to take too little prints half of it as a host.
    """
    last = text.rfind("@")
    tail = text[last + 1 :]
    if "/" in tail or "." in tail or "," in tail:
        return last
    at = last
    for _ in range(_MOST_SIGNS):
        at = text.rfind("@", 0, max(at, 0))
        if at >= 0 and _CERTAIN_HOST.match(text, at + 1) and _has_path(text, at + 1):
            return at
    return -1 if re.match(r"localhost[:/]|[\w-]+\.[\w.-]+(?::\d+)?/", text) else last


def _has_path(text: str, start: int) -> bool:
    address = _ADDRESS.match(text, start)
    return address is not None and bool(address["path"])


def _split_address(text: str, repairs: list[str]) -> tuple[str, str]:
    """Split hosts from database, for a socket's folder at its last slash."""
    plain = _WEB_SCHEME.sub("", text).replace("\\", "/")
    if plain != text:
        repairs.append("host")
    text = plain
    if text.startswith("//") or _SOCKET_FOLDER.match(text):
        folder, _, database = text.rpartition("/")
        return "/" + folder.lstrip("/"), database
    hosts, _, database = text.partition("/")
    return hosts.strip(), database.strip("/")


def _split_parameter(piece: str) -> tuple[str, str]:
    name, _, value = piece.partition("=")
    return decode(name).strip().lower(), value.removesuffix("\\")
