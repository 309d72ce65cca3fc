"""The rules of .gitignore files as git reads them, for where git cannot be asked.

Libraries match whole paths, with `*` for parts of folders as well. Git asks about each folder on
the way to a file, byte by byte, and forgives every pattern.
"""

import os
import re
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Bytes are kept apart by reading them as if each were a letter: `?` stands for one byte.
BYTES = "latin-1"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# All of a line but the spaces at its end, unless a backslash keeps them.
KEPT = re.compile(r"\\.|[^ \\]| (?! *$)|\\$", re.DOTALL)
IN_BRACKETS = r"\\.|\[:\w*:\]|[^\\\]]"
TOKEN = re.compile(
    r"(?P<folders>(?:^|(?<=/))\*{2,}/)|(?P<everything>(?:^|(?<=/))\*{2,}$)"
    r"|(?P<some>\*+)|(?P<one>\?)"
    rf"|\[(?P<negated>[!^]?)(?P<bytes>(?:\]|{IN_BRACKETS})(?:{IN_BRACKETS})*)\]"
    r"|\\(?P<escaped>.)|(?P<plain>[^\[\\])|(?P<nothing>.)",
    re.DOTALL,
)
MEANINGS = {
    "folders": "(?:.*/)?",
    "everything": ".*",
    "some": "[^/]*",
    "one": "[^/]",
    "nothing": "(?!)",
}
PART_OF_BRACKETS = re.compile(r"\[:(\w*):\]|(\\.|.)(?:-(\\.|[^\]\\]))?", re.DOTALL)
CLASSES = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "digit": string.digits,
    "lower": string.ascii_lowercase,
    "punct": string.punctuation,
    "space": string.whitespace,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}


class Rule(NamedTuple):
    """One line of a file of rules, which counts in the folder of that file."""

    source: str
    line: int
    text: str
    folder: str
    pattern: re.Pattern[str]
    is_of_name: bool
    is_of_folders: bool
    is_negated: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.text}"


def read_rules(content: bytes, source: str, folder: str = "") -> list[Rule]:
    """Return the rules of a file; `folder` is "" or ends in a slash."""
    lines = content.removeprefix(BYTE_ORDER_MARK).decode(BYTES).split("\n")
    rules = []
    for number, line in enumerate(lines, start=1):
        text = "".join(KEPT.findall(line.removesuffix("\r")))
        if text and not text.startswith("#"):
            glob = text.removeprefix("!").removesuffix("/")
            pattern = re.compile(TOKEN.sub(_meaning, glob.removeprefix("/")), re.DOTALL)
            shown = os.fsdecode(text.encode(BYTES))
            rule = Rule(
                *(source, number, shown, _bytes(folder), pattern),
                is_of_name="/" not in glob,
                is_of_folders=text.endswith("/"),
                is_negated=text.startswith("!"),
            )
            rules.append(rule)
    return rules


def deciding_rule(rules: Sequence[Rule], path: str) -> Rule | None:
    """Return the last rule for this path, if any; the path of a folder ends in a slash.

    The path is ignored unless that rule is negated, or if a folder above it is ignored.
    """
    name = _bytes(path).removesuffix("/")
    for rule in reversed(rules):
        if name.startswith(rule.folder) and (path.endswith("/") or not rule.is_of_folders):
            subject = name.rpartition("/")[2] if rule.is_of_name else name[len(rule.folder) :]
            if rule.pattern.fullmatch(subject):
                return rule
    return None


class GitIgnores:
    """The rules that count in a folder and what it holds, from the top of its repository down."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.rule = cache(self._rule)
        self._rules_in = cache(self._read)

    def _rule(self, path: str) -> Rule | None:
        """Return the rule by which this path or a folder above it is ignored, if one is."""
        folder = folder_of(path)
        if folder and (rule := self.rule(folder)):
            return rule
        rule = deciding_rule(self._rules_in(folder), path)
        return rule if rule and not rule.is_negated else None

    def _read(self, folder: str) -> list[Rule]:
        rules = [*self._rules_in(folder_of(folder))] if folder else []
        for name in [".gitignore"] if folder else [".git/info/exclude", ".gitignore"]:
            file = self.top / folder / name
            # Git follows no link here: it may lead anywhere.
            if file.is_file() and not file.is_symlink():
                rules += read_rules(file.read_bytes(), f"{folder}{name}", folder)
        return rules


def folder_of(path: str) -> str:
    """Return the path of the folder that a path is in: "", or with a slash at its end."""
    return path[: path.removesuffix("/").rfind("/") + 1]


def parts(path: str) -> list[str]:
    """Return the folders above a path, outermost first and each with a slash, then the path."""
    folder = folder_of(path)
    return [*parts(folder), path] if folder else [path]


def _bytes(path: str) -> str:
    return os.fsencode(path).decode(BYTES)


def _meaning(token: re.Match[str]) -> str:
    """Return the regular expression for a part of a pattern."""
    kind = token.lastgroup or ""
    if kind != "bytes":
        return MEANINGS.get(kind) or re.escape(token[kind])
    found: set[str] = set()
    for name, first, last in PART_OF_BRACKETS.findall(token["bytes"]):
        if name and name not in CLASSES:
            return MEANINGS["nothing"]
        if name:
            found.update(CLASSES[name])
        else:
            low, high = first[-1], (last or first)[-1]
            found.update(low, map(chr, range(ord(low), ord(high) + 1)))
    listed = "".join(map(re.escape, sorted(found)))
    if token["negated"]:
        return f"[^/{listed}]"
    return f"(?!/)[{listed}]" if listed else MEANINGS["nothing"]
