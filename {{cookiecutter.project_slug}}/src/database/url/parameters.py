"""Keep libpq's own parameters, translate those that mean the same, drop the rest by name."""

import re
from ipaddress import ip_address

from src.database.url.keywords import ALIASES, CHOICES, KEPT, KNOWN, WHOLE_NUMBERS
from src.database.url.text import refuse_control_characters

_SSL_MODES = {
    **dict.fromkeys(["1", "true", "t", "yes", "y", "on", "required", "no-verify"], "require"),
    **dict.fromkeys(["0", "false", "f", "no", "n", "off", "none", "disabled"], "disable"),
    "preferred": "prefer",
}
_SCHEMA = re.compile(r"[A-Za-z_][\w$-]*(?:,\s*[A-Za-z_\"][\w$\"-]*)*", re.ASCII)
_WHOLE_NUMBER = re.compile(r"-?\d{1,9}", re.ASCII)


def drop_parameters(query: str, repairs: list[str]) -> None:
    """Note that a query is not used, without showing what it holds."""
    for piece in filter(None, query.split("&")):
        repairs.append(f"dropped_parameter:{_showable(piece.partition('=')[0].lower())}")


def read_parameters(
    given: list[tuple[str, str]], hosts: int, repairs: list[str], *, pooled: bool
) -> dict[str, str]:
    """Return what psycopg is to receive beside user, password, hosts and database."""
    kept: dict[str, str] = {}
    for written, value in sorted(given, key=_order):
        name, value = _translate(ALIASES.get(written, written), value, pooled=pooled)
        if name in KEPT:
            refuse_control_characters(value)
        if name == "options" and written != "options":
            kept["options"] = f"{kept['options']} {value}" if "options" in kept else value
        elif _is_usable(name, value, hosts):
            kept[name] = value
        if name not in kept:
            repairs.append(f"dropped_parameter:{_showable(written)}")
        elif name != written:
            repairs.append(f"translated_parameter:{_showable(written)}")
    return kept


def _order(parameter: tuple[str, str]) -> int:
    """Put `ssl` first, so that an sslmode beside it wins, and last what is added to `options`."""
    name = ALIASES.get(parameter[0], parameter[0])
    return {"ssl": 0, "search_path": 2}.get(name, 1)


def _translate(name: str, value: str, *, pooled: bool) -> tuple[str, str]:
    if name in {"ssl", "sslmode"}:
        mode = value.partition("#")[0].strip().lower().replace("_", "-")
        return "sslmode", _SSL_MODES.get(mode, mode)
    # `public` is where tables go anyway, and transaction poolers refuse `options`.
    if name == "search_path" and _SCHEMA.fullmatch(value) and value != "public" and not pooled:
        return "options", f"-c search_path={value}"
    if name == "options":
        return name, value.replace("-c+", "-c ").replace("+-c ", " -c ")
    # Only these are folded: `options` and file names mean what their case says.
    if name in CHOICES or name in WHOLE_NUMBERS:
        return name, value.partition("#")[0].strip().lower()
    return name, value


def _is_usable(name: str, value: str, hosts: int) -> bool:
    if name not in KEPT or not value:
        return False
    if name in WHOLE_NUMBERS:
        return _WHOLE_NUMBER.fullmatch(value) is not None
    if name == "hostaddr":
        addresses = value.split(",")
        return len(addresses) == max(hosts, 1) and all(map(_is_address, addresses))
    return value in CHOICES.get(name, {value})


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _showable(name: str) -> str:
    return name if name in KNOWN else "unknown"
