"""The project holds what the template holds and no more, and nothing of the template's language is left in it."""

import ast
import re

import pytest

from tests.support.bakery import TEMPLATE_FOLDER, Bakery
from tests.support.parsing import parse

WRITTEN_BY_THE_HOOK = {"Dockerfile"}
RELIED_ON = {
    ".dockerignore", ".env.example", ".gitignore", "Dockerfile", "Makefile", "README.md",
    "alembic.ini", "migrations/env.py", "pyproject.toml", "requirements.lock", "requirements.txt",
    "src/config/about.json", "src/config/settings.py", "src/database/resolver.py", "src/database/session.py",
    "src/main.py",
}  # fmt: skip
# Those of make, of the Hub and of GitHub
NO_SETTINGS = {"HF_SPACE", "HF_TOKEN"}
# A workflow has braces of its own: `${{ ... }}`. Shell and make have `${#...}` or `$(...)`.
JINJA = re.compile(r"(?<!\$)\{\{|\{%|(?<!\$)\{#|cookiecutter\.")


def test_the_render_has_every_file_of_the_template_and_the_dockerfile(bake: Bakery) -> None:
    folder = bake.template / TEMPLATE_FOLDER
    template = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(bake().files()) == template | WRITTEN_BY_THE_HOOK


def test_the_files_that_others_rely_on_are_there(bake: Bakery) -> None:
    assert set(bake().files()) >= RELIED_ON


def test_no_file_is_empty_but_package_markers(bake: Bakery) -> None:
    project = bake()
    empty = [name for name in project.files() if not project.read(name).strip()]
    assert [name for name in empty if not name.endswith("__init__.py")] == []


def test_no_jinja_is_left_in_any_file(bake: Bakery) -> None:
    project = bake()
    left = {name: JINJA.findall(project.read(name)) for name in project.files()}
    assert {name: found for name, found in left.items() if found} == {}


def test_no_python_file_of_the_template_contains_jinja(bake: Bakery) -> None:
    folder = bake.template / TEMPLATE_FOLDER
    sources = {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}
    assert [name for name, text in sources.items() if re.search(r"\{\{|\{%|\{#", text)] == []


def test_every_file_parses(bake: Bakery) -> None:
    project = bake()
    for name in project.files():
        parse(project.path / name)


def test_every_file_ends_its_lines_in_one_way(bake: Bakery) -> None:
    project = bake()
    texts = {name: project.read(name) for name in project.files()}
    assert [name for name, text in texts.items() if "\r" in text] == []
    assert [name for name, text in texts.items() if text and not text.endswith("\n")] == []


@pytest.mark.parametrize("hook", ["pre_gen_project.py", "post_gen_project.py"])
def test_a_hook_is_old_python_in_plain_ascii(bake: Bakery, hook: str) -> None:
    source = (bake.template / "hooks" / hook).read_text(encoding="ascii")
    ast.parse(source, feature_version=(3, 10))
    assert re.findall(r"\{\{.*?\}\}", source) == ["{{ cookiecutter | tojson }}"]


def test_the_readme_is_short_and_names_only_what_is_there(bake: Bakery) -> None:
    project = bake()
    readme = project.read("README.md")
    assert len(readme.splitlines()) <= 140
    text = readme + project.read("RECIPES.md")
    verbs = set(re.findall(r"^([a-z]+):.*## ", project.read("Makefile"), re.MULTILINE))
    commands = re.findall(r"(?:^|`)make ((?:[a-z]+[ `\n])+)", text, re.MULTILINE)
    assert {verb for command in commands for verb in re.findall(r"[a-z]+", command)} <= verbs
    assert set(re.findall(r"\]\(([\w/.]+)\)", readme)) <= set(project.files())
    settings = set(re.findall(r"^#(\w+)=", project.read(".env.example"), re.MULTILINE))
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)[=`]", readme)) <= settings | NO_SETTINGS
