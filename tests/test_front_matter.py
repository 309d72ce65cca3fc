"""What opens README.md says to the Hub exactly what was typed, in Python's YAML and in JavaScript's."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bakery import BakedProject, Bakery
from tests.support.hooks import load_hook
from tests.support.javascript import installed_packages
from tests.support.machine import need
from tests.support.parsing import front_matter, front_matter_problems, parse
from tests.support.terminal import type_answers

HOSTILE = [
    'He said "hi"',
    "It's Bob's",
    "'quoted'",
    '"quoted"',
    '"""',
    "'''",
    "Title: with a colon",
    "key: [1, 2] {a: b}",
    "a # no comment",
    "#1 API",
    "back\\slash\\",
    "C:\\temp\\new",
    "\\N{BULLET} \\u0041 \\x41",
    "{{7*7}}",
    "{% raw %}{% endraw %}",
    "{{ cookiecutter.hf_username }}",
    "{# gone #} {%- if x -%}",
    "${{ x }} ${HOME} $(id) `id`",
    "%s %(x)s %d 100%",
    "@home & *alias !tag |",
    "- list",
    "---",
    "? key",
    "yes",
    "null",
    "1e3",
    "012",
    "12:30",
    "2026-08-19",
    "~",
    "  spaces around  ",
    "<script>alert('x')</script> &amp;",
    "</title><!-- --> ]]>",
    "مرحبا بالعالم",
    "\u202eoverridden\u202c \u2066isolated\u2069",
    "שלום \u200f עולם",
    "Zoë's 🚀 日本語 é",
    "👨‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "no\u00a0break \u200bzero\u00adsoft",
    "\ufeffmark",
    "\U0001f600\U0010fffd",
    "; DROP TABLE items; --",
    "a = 1 \\",
]  # fmt: skip


def read_in_javascript(texts: list[str]) -> Any:
    """What js-yaml reads in each of these."""
    command = [need("node", "it runs js-yaml"), "read_yaml.cjs"]
    done = subprocess.run(  # noqa: S603
        command, cwd=installed_packages(), input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


# Of the module, so that the tests of one text follow each other, and share its render.
@pytest.fixture(scope="module", params=HOSTILE)
def text(request: pytest.FixtureRequest) -> str:
    """What somebody typed."""
    return str(request.param)


@pytest.fixture
def project(bake: Bakery, text: str) -> BakedProject:
    """A project whose title and description are this text, as typed."""
    return bake.as_typed(project_name=text, short_description=text)


def written_by_the_hook(bake: Bakery, text: str) -> str:
    """The same project's front matter, without a render."""
    defaults = {name: one[0] if isinstance(one, list) else one for name, one in bake.questions.items()}
    answers = defaults | {"project_name": text, "short_description": text}
    written: str = load_hook("post_gen_project", answers).front_matter(answers)
    return written.removeprefix("---\n").removesuffix("---\n\n")


def test_front_matter_reads_back_identical_in_python(bake: Bakery, project: BakedProject, text: str) -> None:
    read = yaml.safe_load(front_matter(project))
    assert (read["title"], read["short_description"]) == (text, text)
    assert front_matter(project) == written_by_the_hook(bake, text)


@pytest.mark.slow
def test_front_matter_reads_back_identical_in_javascript(bake: Bakery) -> None:
    written = [written_by_the_hook(bake, text) for text in HOSTILE]
    read = read_in_javascript(written)
    assert [(one["title"], one["short_description"]) for one in read] == [(text, text) for text in HOSTILE]
    assert read == [yaml.safe_load(one) for one in written]


def test_the_projects_own_check_of_the_front_matter_passes(project: BakedProject) -> None:
    assert front_matter_problems(project.read("README.md"), project.read("Dockerfile")) == []


def test_every_file_still_parses_and_only_the_data_differ(bake: Bakery, project: BakedProject, text: str) -> None:
    plain = bake.as_typed()
    assert project.files() == plain.files()
    different = {name for name in project.files() if project.read(name) != plain.read(name)}
    assert different <= {"README.md", "src/config/about.json"}
    # test_tree.py parses the others
    for name in different:
        parse(project.path / name)
    about = json.loads(project.read("src/config/about.json"))
    assert about == {
        "title": text, "emoji": "🚀", "description": text, "color_from": "blue", "color_to": "green",
    }  # fmt: skip


def test_front_matter_says_what_the_hub_needs(bake: Bakery) -> None:
    project = bake(emoji="🐍", color_from="red", color_to="gray", license="apache-2.0")
    assert yaml.safe_load(front_matter(project)) == {
        "title": "My Space",
        "emoji": "🐍",
        "colorFrom": "red",
        "colorTo": "gray",
        "sdk": "docker",
        "app_port": 7860,
        "pinned": False,
        "license": "apache-2.0",
        "short_description": "A FastAPI backend on a Hugging Face Space",
    }


def test_the_readme_follows_its_front_matter(bake: Bakery) -> None:
    readme = bake(project_name="A Title").read("README.md")
    assert readme.split("---\n", 2)[2].startswith("\n# ")
    assert readme.count("\n---\n") == 1


def test_jinja_typed_at_a_prompt_stays_as_it_is(bake: Bakery, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    title, description = '{{7*7}} "q" \\ ${{ x }}', "{% raw %} it's: #1 🚀 שלום"
    typed_answers = [title, "typed", "", description, "", "", "", "", ""]
    exit_code, screen = type_answers(typed_answers, template=bake.template, folder=folder)
    assert exit_code == 0, screen
    read = yaml.safe_load(front_matter(BakedProject(folder / "typed")))
    assert (read["title"], read["short_description"]) == (title, description)
