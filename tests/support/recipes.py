"""Does what RECIPES.md says to a project, to the letter, as somebody who pastes its blocks would."""

import re
import sys
import sysconfig
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.bakery import BakedProject

IMPORT = re.compile(r"(from|import) ")
NEW_FILE = re.compile(r"`((?:src|web)/[\w./]+\.\w+)`")
PLACE = re.compile(r"In `([^`]+)`, (above|below|at the end of) `([^`]+)`")
END_OF_FILE = re.compile(r"At the end of `([^`]+)`")
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Block:
    """Something in a fence, and the words before it, which say where it belongs."""

    where: str
    language: str
    text: str

    @property
    def lines_that_count(self) -> int:
        """How many lines of code there are to understand: neither blank ones nor imports."""
        if self.language == "sh":
            return 0
        return sum(bool(line.strip()) and not IMPORT.match(line.strip()) for line in self.text.splitlines())


def recipes_of(project: BakedProject) -> dict[str, list[Block]]:
    """The blocks of each recipe by its title; those of the introduction have the title ""."""
    beginning, *sections = project.read("RECIPES.md").split("\n## ")
    recipes = {"": list(_blocks(beginning))}
    for section in sections:
        title, _, text = section.partition("\n")
        recipes[title] = list(_blocks(text))
    return recipes


def _blocks(text: str) -> Iterator[Block]:
    for before, language, block in re.findall(r"(.*?)^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(before.strip().rpartition("\n\n")[2].replace("\n", " "), language, block)


def follow(project: BakedProject, *titles: str, programs: Path = PROGRAMS) -> None:
    """Do what these recipes say, and format the result as `make fix` does.

    Where several want a migration, the last one is written, which is that of all.
    """
    recipes = recipes_of(project)
    migration = ""
    for title in titles:
        for block in recipes[title]:
            if block.language == "sh":
                *commands, last = block.text.splitlines()
                if last.startswith("make migration"):
                    migration = last
                else:
                    commands.append(last)
                run_verbs(project, "\n".join(commands))
                continue
            file = _paste(project, block)
            if re.fullmatch(r"src/\w+\.py", file) and "router = " in block.text:
                (included,) = recipes[""]
                name = Path(file).stem
                _paste(project, Block(included.where, "python", included.text.replace("predict", name)))
    run_verbs(project, f"make fix\n{migration}", programs=programs)


def run_verbs(
    project: BakedProject, commands: str, environ: Mapping[str, str] | None = None, programs: Path = PROGRAMS
) -> str:
    """Run lines of shell, whose make finds its programs in this folder; return what they print."""
    # as if `make dev` had installed what the tests have
    (project.path / ".venv").mkdir(exist_ok=True)
    (project.path / ".venv" / "ready").touch()
    environ = {"MAKEFLAGS": f"BIN={programs}"} | dict(environ or {})
    return project.run("sh", "-ec", commands, environ=environ).stdout


def programs_with(folder: Path, packages: Path) -> Path:
    """A folder with the tests' interpreter, for which these packages are installed, too."""
    venv.create(folder, symlinks=True)
    installed = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (installed / "more.pth").write_text(f"{sysconfig.get_path('purelib')}\n{packages}\n")
    return folder / "bin"


def _paste(project: BakedProject, block: Block) -> str:
    """Put a block where its words say, and return the name of the file."""
    if place := PLACE.search(block.where):
        name, side, anchor = place.groups()
        text = _insert(project.read(name), block.text, side, anchor)
    elif end := END_OF_FILE.search(block.where):
        name = end[1]
        text = project.read(name) + block.text
    else:
        found = NEW_FILE.search(block.where)
        assert found, f"nothing says where this belongs: {block}"
        name, text = found[1], block.text
        assert not (project.path / name).exists(), name
    (project.path / name).parent.mkdir(exist_ok=True)
    (project.path / name).write_text(text, encoding="utf-8")
    return name


def _insert(text: str, block: str, side: str, anchor: str) -> str:
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip().startswith(anchor))
    indentation = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    if side == "below":
        at += 1
    elif side == "at the end of":
        indentation += "    "
        at = next(n for n in range(at + 1, len(lines) + 1) if n == len(lines) or lines[n][:1] not in ("", " "))
        while not lines[at - 1]:
            at -= 1
    imports = [line for line in block.splitlines() if IMPORT.match(line)]
    others = [indentation + line.strip() for line in block.splitlines() if line and not IMPORT.match(line)]
    lines[at:at] = others
    first_import = next((number for number, line in enumerate(lines) if IMPORT.match(line)), 0)
    lines[first_import:first_import] = imports
    return "\n".join(lines) + "\n"
