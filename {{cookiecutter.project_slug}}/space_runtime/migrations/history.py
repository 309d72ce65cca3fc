"""What the migrations' files say, without running them.

They are only parsed: importing Alembic would double the startup time, and a migration for another
database, or one that looks at rows, could not be run for this.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

_ADDED_VALUE = re.compile(
    r"ALTER\s+TYPE\s+(?:\S+\.)?\"?(?P<enum>\w+)\"?\s+ADD\s+VALUE\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    r"'(?P<value>(?:[^']|'')+)'",
    re.IGNORECASE,
)
_CREATED_SEQUENCE = re.compile(
    r"CREATE\s+SEQUENCE\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:[\w\"]+\.)?\"?(?P<name>\w+)", re.IGNORECASE
)

TableName = tuple[str | None, str]
"""A schema, None for the default one, and a name."""


class OwnNames(NamedTuple):
    """What the migrations have created and not removed again."""

    tables: set[TableName]
    indexes: set[str]
    enums: dict[str, set[str]]
    """The values of each enum that are written there."""
    sequences: set[str]


def read_revisions(folder: Path) -> dict[str, set[str]]:
    """Return the revisions, each with those that it comes directly after."""
    return {revision: before for revision, before, _ in _read(folder)}


def own_names(folder: Path) -> OwnNames:
    """Return what exists after the newest revision, and the enums and sequences that are named.

    Names that are computed, and those in raw SQL, are not found.
    """
    scripts = list(_read(folder))
    modules = {revision: module for revision, _, module in scripts}
    names = OwnNames(set(), set(), {}, set())
    for revision in TopologicalSorter({one: before for one, before, _ in scripts}).static_order():
        if revision in modules:
            for call in _calls(modules[revision]):
                _follow(call, names)
    return names


def _read(folder: Path) -> Iterator[tuple[str, set[str], ast.Module]]:
    for script in folder.glob("*.py"):
        module = ast.parse(script.read_bytes())
        found: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
        for node in module.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(name), *_], value=value)
                    | ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value)
                ) if name in found:
                    found[name].update(_strings_in(value))
        for revision in found["revision"]:
            yield revision, found["down_revision"], module


def _calls(module: ast.Module) -> list[ast.Call]:
    """Return the calls outside of `downgrade`, in the order of the text."""
    parts = (part for part in module.body if getattr(part, "name", None) != "downgrade")
    nodes = (node for part in parts for node in ast.walk(part))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def _follow(call: ast.Call, names: OwnNames) -> None:
    if not isinstance(call.func, ast.Attribute):
        return
    keywords = {keyword.arg: _text(keyword.value) for keyword in call.keywords}
    arguments = [_text(argument) for argument in call.args]
    schema = keywords.get("schema")
    texts = [text for text in arguments if text is not None]
    if call.func.attr in ("Enum", "ENUM") and (enum := keywords.get("name")) and texts:
        names.enums.setdefault(enum, set()).update(texts)
    for added in (match for text in texts for match in _ADDED_VALUE.finditer(text)):
        value = added["value"].replace("''", "'")
        names.enums.setdefault(added["enum"], set()).add(value)
    names.sequences.update(
        one["name"] for text in texts for one in _CREATED_SEQUENCE.finditer(text)
    )
    match call.func.attr, *arguments, *keywords.values():
        case "Sequence", str(name), *_:
            names.sequences.add(name)
        case "create_table", str(name), *_:
            names.tables.add((schema, name))
        case "drop_table", str(name), *_:
            names.tables.discard((schema, name))
        case "rename_table", str(old), str(new), *_:
            names.tables.discard((schema, old))
            names.tables.add((schema, new))
        case "create_index", str(name), *_:
            names.indexes.add(name)


def _text(value: ast.expr) -> str | None:
    """Return the string that is written there, if need be inside of op.f()."""
    match value:
        case ast.Constant(str(text)) | ast.Call(
            ast.Attribute(attr="f"), args=[ast.Constant(str(text))]
        ):
            return text
    return None


def _strings_in(value: ast.expr) -> list[str]:
    constants = (node.value for node in ast.walk(value) if isinstance(node, ast.Constant))
    return [constant for constant in constants if isinstance(constant, str)]
