"""The block that opens README.md: what the Hub refuses in it, ignores, or fails on.

As of hub-docs 242f4a1e (2026-08-22); the licenses are those of docs/hub/repositories-licenses.md.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml
from huggingface_hub import SpaceHardware
from huggingface_hub.repocard import REGEX_YAML_BLOCK

COLORS = "red yellow green blue indigo purple pink gray".split()
LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
llama3.3 llama4 grok2-community gemma unknown other
""".split()
SCOPES = """
openid profile email read-billing read-memberships read-repos gated-repos contribute-repos
write-repos manage-repos read-collections write-collections inference-api read-endpoints
write-endpoints jobs webhooks write-discussions
""".split()
HEADERS = ["embedder-policy", "opener-policy", "resource-policy"]
_PICTURE = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u25fe\u2600-\u27bf"
    "\u2934\u2935\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
    "[\U0001f3fb-\U0001f3ff\ufe0f]?(?:[\U000e0020-\U000e007e]+\U000e007f)?"
)
_LETTER_OF_FLAG = "[\U0001f1e6-\U0001f1ff]"
EMOJI = re.compile(f"{_LETTER_OF_FLAG * 2}|[0-9#*]\ufe0f?\u20e3|{_PICTURE}(?:\u200d{_PICTURE})*")
NAME = r"(?![-.])(?!\S*(?:--|\.\.))[A-Za-z0-9_.-]{1,96}(?<![-.])(?<!\.git)"
REPOSITORY = re.compile(f"{NAME}(?:/{NAME})?")
SPACE = re.compile(f"{NAME}/{NAME}")
_FILES_AND_COMMIT = r"(?: [^\s,]+(?:,[^\s,]+)*(?: [0-9a-f]{40})?)?"
FILES_OF_REPOSITORY = re.compile(REPOSITORY.pattern + _FILES_AND_COMMIT)


def hub_length(text: str) -> int:
    """Return how many characters the Hub counts, to which most emoji are two (UTF-16 units)."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _one_of(choices: list[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in choices


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(holds(one) for one in value)


def _are_headers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key in [f"cross-origin-{name}" for name in HEADERS] and _is_text(one) and one == one.lower()
        for key, one in value.items()
    )


_TEXT = (_is_text, "text, in quotes where YAML would read something else")
_FLAG = (_is_flag, "true or false")
_REPOSITORIES = (_list_of(_matches(REPOSITORY)), "a list of names such as user/name")
_HARDWARE = [hardware.value for hardware in SpaceHardware]
# every key that a Docker Space may have: what its value must be, and how to say so
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "title": _TEXT,
    "emoji": (_matches(EMOJI), "exactly one emoji and nothing else"),
    "colorFrom": (_one_of(COLORS), f"one of {', '.join(COLORS)}"),
    "colorTo": (_one_of(COLORS), f"one of {', '.join(COLORS)}"),
    "sdk": (_one_of(["docker"]), "docker"),
    "app_port": (lambda value: _is_number(value, 1025, 65535), "a number from 1025 to 65535"),
    "base_path": (_matches(re.compile(r"/\S*")), "a path that begins with /"),
    "fullWidth": _FLAG,
    "header": (_one_of(["mini", "default"]), "mini or default"),
    "short_description": (
        lambda value: _is_text(value) and hub_length(value) <= 60,
        "text of 60 characters at most; most emoji count as two",
    ),
    "thumbnail": (_matches(re.compile(r"https?://\S+")), "a URL"),
    "pinned": _FLAG,
    "tags": (_list_of(_is_text), "a list of texts"),
    "models": _REPOSITORIES,
    "datasets": _REPOSITORIES,
    "license": (
        lambda value: all(map(_one_of(LICENSES), value if isinstance(value, list) else [value])),
        "an identifier of https://huggingface.co/docs/hub/repositories-licenses, in lower case",
    ),
    "license_name": _TEXT,
    "license_link": _TEXT,
    "suggested_hardware": (_one_of(_HARDWARE), f"one of {', '.join(_HARDWARE)}"),
    "startup_duration_timeout": (
        _matches(re.compile(r"[1-9]\d*\s*(s|m|h|d)")),
        "a duration such as 30m or 1h",
    ),
    "disable_embedding": _FLAG,
    "custom_headers": (
        _are_headers,
        f"a map of cross-origin-({'|'.join(HEADERS)}) to values, all in lower case",
    ),
    "hf_oauth": _FLAG,
    "hf_oauth_scopes": (_list_of(_one_of(SCOPES)), f"a list out of {', '.join(SCOPES)}"),
    "hf_oauth_expiration_minutes": (
        lambda value: _is_number(value, 1, 43200),
        "a number from 1 to 43200",
    ),
    "hf_oauth_authorized_org": (
        lambda value: _is_text(value) or (_list_of(_is_text)(value) and value != []),
        "the name of an organization, or a list of them",
    ),
    "preload_from_hub": (
        _list_of(_matches(FILES_OF_REPOSITORY)),
        'a list of "repository", "repository file,file" or "repository file,file commit"',
    ),
    "duplicated_from": (_matches(SPACE), "the name of a Space"),
}


def front_matter_problems(readme: str) -> list[str]:
    """Return what the Hub would refuse, ignore or fail on, one line each, saying what is allowed.

    README.md's text goes in. Nothing is asked of the Hub.
    """
    block = REGEX_YAML_BLOCK.match(readme)
    if block is None:
        return ["it must open the file, between two lines of ---, with nothing before it"]
    try:
        node = yaml.compose(block[2], Loader=yaml.SafeLoader)
        fields = yaml.safe_load(block[2])
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = readme.count("\n", 0, block.start(2)) + 1 + (mark.line if mark else 0)
        return [f"line {line} is no valid YAML; text with : # @ or quotes goes into double quotes"]
    if not isinstance(fields, dict) or not isinstance(node, yaml.MappingNode):
        return ["it must be lines of key: value"]
    keys = [str(key.value) for key, _ in node.value]
    problems = [f"{key}: it is there twice" for key in sorted(set(keys)) if keys.count(key) > 1]
    problems += [
        f"{key}: it is missing; {RULES[key][1]}" for key in ("title", "sdk") if key not in fields
    ]
    for key, value in fields.items():
        if key not in RULES:
            problems.append(f"{key}: not a key of a Docker Space, so it would have no effect")
        elif not RULES[key][0](value):
            shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
            problems.append(f"{key}: {RULES[key][1]} (not {shown})")
    return problems
