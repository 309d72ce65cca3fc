"""Rendering needs no network, gives the same bytes each time, and works under cruft."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bakery import TEMPLATE_FOLDER, BakedProject, Bakery, cookiecutter_command
from tests.support.disks import without_roots_rights
from tests.support.machine import NAMESPACES, can_unshare_network
from tests.support.processes import bare_environment

# Loaded by every Python that starts, cookiecutter's hooks included.
NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        raise RuntimeError(f"The network was used: {event} {arguments}")

sys.addaudithook(refuse)
"""


def fingerprint(project: BakedProject) -> dict[str, tuple[str, int]]:
    """Content and permissions of each file."""
    return {
        name: (hashlib.sha256((project.path / name).read_bytes()).hexdigest(), (project.path / name).stat().st_mode)
        for name in project.files()
    }


def test_rendering_works_with_every_socket_refused(bake: Bakery, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    environ = {"PYTHONPATH": str(tmp_path)}
    rendering = cookiecutter_command("--no-input", template=bake.template, folder=tmp_path / "here", environ=environ)
    assert rendering.exit_code == 0, rendering.output
    assert fingerprint(BakedProject(rendering.folder / "my-space")) == fingerprint(bake())
    # The guard itself works.
    asked = [sys.executable, "-c", "import socket; socket.getaddrinfo('localhost', 80)"]
    assert subprocess.run(asked, env=environ, capture_output=True, check=False).returncode != 0  # noqa: S603


def test_rendering_works_on_a_machine_without_a_network(bake: Bakery, tmp_path: Path) -> None:
    if not can_unshare_network():
        pytest.skip(f"this user may not have a namespace ({NAMESPACES}): a process without a network")
    rendering = cookiecutter_command(
        "--no-input",
        template=bake.template,
        folder=tmp_path / "here",
        prefix=["unshare", "--net", "--map-root-user"],
    )
    assert rendering.exit_code == 0, rendering.output
    assert fingerprint(BakedProject(rendering.folder / "my-space")) == fingerprint(bake())


def test_two_renders_have_the_same_bytes(bake: Bakery, tmp_path: Path) -> None:
    answers = ["--no-input", 'project_name=Bob\'s "API": v2 é', "emoji=🐍", "project_slug=again"]
    fingerprints = [
        fingerprint(
            BakedProject(cookiecutter_command(*answers, template=bake.template, folder=folder).folder / "again")
        )
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert len(fingerprints[0]) > len(["Dockerfile", "README.md"])
    assert fingerprints[0] == fingerprints[1]


def test_rendering_over_an_older_project_keeps_one_front_matter(bake: Bakery, tmp_path: Path) -> None:
    project = bake().copy_to(tmp_path)
    before = fingerprint(project)
    for options in (["--overwrite-if-exists"], ["--overwrite-if-exists", "--skip-if-file-exists"]):
        rendering = cookiecutter_command("--no-input", *options, template=bake.template, folder=tmp_path)
        assert rendering.exit_code == 0, rendering.output
        assert fingerprint(project) == before


def test_caches_of_whoever_works_in_the_template_are_not_rendered(bake: Bakery, tmp_path: Path) -> None:
    template = Path(shutil.copytree(bake.template, tmp_path / "template"))
    for cache in ("src/__pycache__", "__pycache__", ".mypy_cache/3.11", ".ruff_cache"):
        folder = template / TEMPLATE_FOLDER / cache
        folder.mkdir(parents=True)
        (folder / "main.cpython-311.pyc").write_bytes(b"\xff\xfe{{ no jinja }}")
    rendering = cookiecutter_command("--no-input", template=template, folder=tmp_path / "here")
    assert rendering.exit_code == 0, rendering.output
    assert fingerprint(BakedProject(rendering.folder / "my-space")) == fingerprint(bake())


@pytest.mark.parametrize(
    ("name", "title", "holder"),
    [
        ("mit", "MIT License", "Copyright (c) someone"),
        ("apache-2.0", "Apache License", ""),
        ("bsd-2-clause", "BSD 2-Clause License", "Copyright (c) someone"),
        ("bsd-3-clause", "BSD 3-Clause License", "Copyright (c) someone"),
        ("isc", "ISC License", "Copyright (c) someone"),
        ("mpl-2.0", "Mozilla Public License Version 2.0", ""),
        ("lgpl-3.0", "GNU LESSER GENERAL PUBLIC LICENSE", "GNU GENERAL PUBLIC LICENSE\n"),
        ("gpl-3.0", "GNU GENERAL PUBLIC LICENSE", ""),
        ("agpl-3.0", "GNU AFFERO GENERAL PUBLIC LICENSE", ""),
        ("eupl-1.2", "EUROPEAN UNION PUBLIC LICENCE v. 1.2", ""),
        ("unlicense", "This is free and unencumbered software released into the public domain.", ""),
    ],
)
def test_the_chosen_license_is_there_in_full(bake: Bakery, name: str, title: str, holder: str) -> None:
    text = bake(license=name, hf_username="someone").read("LICENSE")
    assert text.splitlines()[0].strip() == title
    assert holder in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_every_license_that_is_offered_has_a_text_but_the_one_that_is_not_listed(bake: Bakery) -> None:
    texts = {path.stem for path in (bake.template / "templates" / "licenses").iterdir()}
    assert texts == set(bake.questions["license"]) - {"other"}
    assert "LICENSE" not in bake(license="other").files()


def test_the_last_words_say_what_to_do_next(bake: Bakery, tmp_path: Path) -> None:
    rendering = cookiecutter_command("--no-input", template=bake.template, folder=tmp_path / "here")
    assert re.search(r"cd my-space\n  make dev\n  make deploy SPACE=<your user name>/my-space", rendering.output)
    answered = cookiecutter_command(
        "--no-input", "hf_username=someone", template=bake.template, folder=tmp_path / "there"
    )
    assert "  make deploy   (README.md" in answered.output
    assert "your-username" not in answered.output


def test_a_template_that_may_only_be_read_renders_what_its_owner_may_write(bake: Bakery, tmp_path: Path) -> None:
    template = Path(shutil.copytree(bake.template, tmp_path / "template"))
    for path in sorted(template.rglob("*"), reverse=True):
        path.chmod(path.stat().st_mode & ~0o222)
    rendering = cookiecutter_command(
        "--no-input", template=template, folder=tmp_path / "here", prefix=without_roots_rights()
    )
    assert rendering.exit_code == 0, rendering.output
    project = BakedProject(rendering.folder / "my-space")
    assert fingerprint(project) == fingerprint(bake())
    assert [name for name in project.files() if not (project.path / name).stat().st_mode & 0o200] == []


@pytest.mark.slow
def test_cruft_creates_what_cookiecutter_renders_and_updates_it(bake: Bakery, tmp_path: Path) -> None:
    template = Path(shutil.copytree(bake.template, tmp_path / "template"))
    commit_all(template)
    cruft(tmp_path, "create", str(template), "--no-input", "--output-dir", str(tmp_path))
    project = BakedProject(tmp_path / "my-space")
    created = fingerprint(project)
    assert set(created) - set(bake().files()) == {".cruft.json"}
    assert {name: created[name] for name in bake().files()} == fingerprint(bake())

    # Somebody works on the project, then the template moves on.
    with (project.path / "README.md").open("a") as readme:
        readme.write("\nMine.\n")
    commit_all(project.path)
    example = template / TEMPLATE_FOLDER / ".gitignore"
    example.write_text(example.read_text() + "*.new\n")
    commit_all(template)
    cruft(project.path, "update", "--skip-apply-ask")
    assert project.read(".gitignore").endswith("*.new\n")
    assert project.read("README.md").endswith("\nMine.\n")
    assert [name for name in project.files() if name.endswith((".rej", ".orig"))] == []
    assert json.loads(project.read(".cruft.json"))["context"]["cookiecutter"]["project_slug"] == "my-space"


def cruft(folder: Path, *arguments: str) -> None:
    """Run cruft with nobody's configuration."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "cruft", *arguments],
        cwd=folder,
        env=git_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def commit_all(folder: Path) -> None:
    """Commit everything in a folder, which becomes a repository if it was none."""
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Work"]):
        subprocess.run(["git", *arguments], cwd=folder, env=git_environment(folder), check=True)  # noqa: S603, S607


def git_environment(folder: Path) -> dict[str, str]:
    """An environment in which git knows who commits."""
    person = {"NAME": "Someone", "EMAIL": "someone@example.com"}
    names = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in person.items()}
    return bare_environment(folder.parent) | names
