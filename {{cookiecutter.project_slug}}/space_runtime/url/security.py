"""Read the parameters about encryption and authentication; drop one only where that is safe.

If sslmode were dropped, the connection would still succeed, but unencrypted or to an impostor. So a
security parameter that is not understood makes the URL unusable, while any other is just dropped.
Other drivers' parameters are translated if their meaning is clear, never to something weaker.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from space_runtime.url.vocabulary import UnusableURLError, refuse_control_characters

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")

# The values that libpq accepts.
_CHOICES = {
    "channel_binding": ("disable", "prefer", "require"),
    "gssdelegation": ("0", "1"),
    "gssencmode": ("disable", "prefer", "require"),
    "gsslib": ("gssapi", "sspi"),
    "ssl_max_protocol_version": _VERSIONS,
    "ssl_min_protocol_version": _VERSIONS,
    "sslcertmode": ("disable", "allow", "require"),
    "sslcompression": ("0", "1"),
    "sslmode": MODES,
    "sslnegotiation": ("postgres", "direct"),
    "sslsni": ("0", "1"),
}
_METHODS = ("password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none")
_METHOD = f"(?:{'|'.join(_METHODS)})"
# libpq rejects a list that mixes methods and exclusions.
_METHOD_LIST = re.compile(f"{_METHOD}(?:,{_METHOD})*|!{_METHOD}(?:,!{_METHOD})*")
_ANY_TEXT = """
krbsrvname oauth_client_id oauth_client_secret oauth_issuer oauth_scope passfile requirepeer
scram_client_key scram_server_key sslcert sslcrl sslcrldir sslkey sslpassword sslrootcert
"""
OWN_NAMES = frozenset([*_CHOICES, "require_auth", *_ANY_TEXT.split()])

_YES = ("1", "true", "t", "yes", "y", "on")
_NO = ("0", "false", "f", "no", "n", "off")
# What tools write for sslmode; `no-verify` is node-postgres' word.
_MODES = {
    **{mode: mode for mode in MODES},
    **dict.fromkeys([*_YES, "required", "no-verify"], "require"),
    **dict.fromkeys([*_NO, "none", "disabled"], "disable"),
    "preferred": "prefer",
}

_Wanted = dict[str, str]
# The key for the weakest sslmode that a parameter accepts.
_AT_LEAST = "at least"
_MODE_OR_BETTER = {word: {_AT_LEAST: mode} for word, mode in _MODES.items()}
_REQUIRE = {_AT_LEAST: "require"}


def _answers(yes: _Wanted | None, no: _Wanted | None) -> dict[str, _Wanted | None]:
    return {**dict.fromkeys(_YES, yes), **dict.fromkeys(_NO, no)}


# What each value of a parameter asks for. A value that asks for nothing ({}) can be dropped, since
# libpq's default is at least as strict; a value that maps to None is refused.
_MEANINGS: dict[str, Mapping[str, _Wanted | None]] = {
    **{name: {one.lower(): {name: one} for one in some} for name, some in _CHOICES.items()},
    "sslmode": {word: {"sslmode": mode} for word, mode in _MODES.items()},
    # In JDBC, `ssl` without a value means true; asyncpg gives it the values of sslmode.
    "ssl": {**_MODE_OR_BETTER, "": _REQUIRE},
    **dict.fromkeys(["tls", "usessl", "usetls"], _MODE_OR_BETTER),
    # From old versions of libpq: "no" means that encryption is optional, not that it is off.
    "requiressl": _answers(_REQUIRE, {}),
    # dj-database-url
    "sslrequire": _answers(_REQUIRE, {}),
    # TablePlus adds 0, which means "not set", to every URL.
    "tlsmode": {**{mode: {_AT_LEAST: mode} for mode in MODES}, "0": {}},
    "useprivatekey": _answers(None, {}),
    # Prisma
    "sslaccept": {"strict": {_AT_LEAST: "verify-full"}, "accept-invalid-certs": {}},
    # asyncpg
    "directtls": _answers({**_REQUIRE, "sslnegotiation": "direct"}, {}),
    # node-postgres
    "rejectunauthorized": _answers({_AT_LEAST: "verify-full"}, {}),
    # Npgsql
    "trustservercertificate": _answers({}, None),
}
# Makes libpq write the TLS session keys to a file, so it is dropped like any other parameter.
_NOT_READ = "sslkeylogfile"


def _folded(name: str) -> str:
    """Return the name without separators, so that ssl-mode and ssl_mode become sslmode."""
    return re.sub(r"[-_ .]", "", name)


_OWN = {**{_folded(name): name for name in OWN_NAMES}, "sslca": "sslrootcert"}
NAMES = {*_OWN, *_OWN.values(), *_MEANINGS, "ssl-mode", "ssl_mode"}

_WORDS = """
ssl tls cert certs certificate encrypt encryption verify trust auth authentication kerberos spnego
cipher require enabled use min max version protocol ca server client check hostname name identity
factory arg context key file path store password
"""
_ABOUT_SECURITY = re.compile(
    r"ssl|tls|cert|crypt|secur|verif|trust|auth(?!or)|bind|gss|krb|kerber|sasl|scram|spnego|sspi"
    r"|jaas|pkcs|pem|cipher|unauthorized|^ca(?:file|path)?$"
)
# A message shows only names made of these words: any other may be the tail of a password.
_NOTHING_BUT_WORDS = re.compile(rf"(?:{'|'.join(sorted(_WORDS.split(), reverse=True))})++")
# How similar a short name is to itself with one letter missing, wrong, doubled or swapped.
_ONE_SLIP = 0.83
# libpq's environment variables, as in `PGSSLMODE=require psql ...`
_VARIABLE = re.compile(r"\bPG(?:SSL|REQUIRE|CHANNEL|GSS|KRB)[A-Z]*(?=\s*=)")
_INNER_NAME = re.compile(r"(?<![\w-])[A-Za-z][\w-]{1,40}(?==)")


def read_security(
    given: Iterable[tuple[str, str]], repairs: list[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return libpq's security parameters, and the parameters that are not about security."""
    read: dict[str, _Wanted] = {}
    others: list[tuple[str, str]] = []
    for written, value in given:
        name = _name_of(written)
        if name is None:
            others.append((written, value))
            continue
        wanted = _read(name, value)
        if read.setdefault(name, wanted) != wanted:
            raise _refused(
                f"DATABASE_URL sets {name} more than once, to different values:"
                f" set it once, to {_allowed(name)}."
            )
        if not wanted:
            repairs.append(f"dropped_parameter:{name}")
        elif written != name or name not in OWN_NAMES:
            repairs.append(f"translated_parameter:{written if written in NAMES else name}")
    return _combined(read), others


def refuse_security_inside(value: str) -> None:
    """Refuse a security parameter inside another one's value, as when a '&' is missing."""
    for inner in _INNER_NAME.finditer(value):
        written = inner[0].lower()
        if _name_of(written):
            raise _refused(
                f"DATABASE_URL holds {written} inside the value of another parameter:"
                " put a '&' before it."
            )


def refuse_security_outside(pasted: str) -> None:
    """Refuse a security variable that was pasted beside the URL, such as PGSSLMODE=require."""
    if _VARIABLE.search(pasted):
        raise _refused(
            "DATABASE_URL holds a variable like PGSSLMODE outside the URL, where it has no effect:"
            " add the matching parameter, such as sslmode, to the URL."
        )


def _name_of(written: str) -> str | None:
    """Return the canonical name of a security parameter, or None if it is not one."""
    folded = _folded(written)
    if folded in _OWN:
        return _OWN[folded]
    if folded in _MEANINGS:
        return folded
    if folded == _NOT_READ:
        return None
    as_long = [own for own in _OWN if abs(len(own) - len(folded)) <= 1]
    if likely := get_close_matches(folded, as_long, 1, _ONE_SLIP):
        name = _OWN[likely[0]]
        raise _refused(
            f"DATABASE_URL holds a parameter that is spelled almost like {name}:"
            f" correct its name, and set it to {_allowed(name)}."
        )
    if _ABOUT_SECURITY.search(folded):
        shown = "a parameter about encryption or login"
        if _NOTHING_BUT_WORDS.fullmatch(folded):
            shown = f"the parameter {written}"
        raise _refused(
            f"DATABASE_URL holds {shown}, which is not understood:"
            " use sslmode=require or sslmode=verify-full instead."
        )
    return None


def _read(name: str, value: str) -> _Wanted:
    """Return what a parameter asks for, in libpq's words."""
    # Browsers and one provider's page append a fragment such as `#main`.
    word, _, fragment = value.partition("#")
    word = (value if "=" in fragment else word).strip().lower()
    if name in _MEANINGS:
        wanted = _MEANINGS[name].get(word.replace("_", "-"))
    elif name == "require_auth":
        wanted = {name: word} if _METHOD_LIST.fullmatch(word) else None
    else:
        refuse_control_characters(value)
        wanted = {name: value} if value else None
    if wanted is None:
        raise _refused(
            f"DATABASE_URL sets {name} to something that is not understood:"
            f" set it to {_allowed(name)}."
        )
    return wanted


def _combined(read: dict[str, _Wanted]) -> dict[str, str]:
    """Merge what all parameters ask for; the strictest sslmode wins."""
    together: dict[str, str] = {}
    bounds: list[str] = []
    for name, wanted in read.items():
        for parameter, value in wanted.items():
            if parameter == _AT_LEAST:
                bounds.append(value)
            elif together.setdefault(parameter, value) != value:
                raise _refused(
                    f"DATABASE_URL sets {parameter} and {name} to different things: keep one."
                )
    if bounds:
        bound, mode = max(bounds, key=MODES.index), together.get("sslmode")
        if mode == "disable" != bound:
            raise _refused(
                "DATABASE_URL asks for encryption, but sets sslmode to disable:"
                " set it to require or verify-full."
            )
        together["sslmode"] = max(bound, mode or bound, key=MODES.index)
    return together


def _allowed(name: str) -> str:
    """Return the values that a parameter may have, worded for a message."""
    if name == "require_auth":
        return f"methods out of {_listed(_METHODS)}, separated by commas"
    if name in _CHOICES:
        return _listed(_CHOICES[name])
    if name in _MEANINGS:
        shown = {"true", "false", "strict", *MODES}
        words = [word for word, wanted in _MEANINGS[name].items() if wanted is not None]
        return f"{_listed(word for word in words if word in shown)}, or use sslmode"
    return "a value that is not empty, or remove it"


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _refused(message: str) -> UnusableURLError:
    return UnusableURLError("tls", message)
