"""What a release is to those who render it: a tag of a git URL, with a text that says what changed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bakery import ROOT, BakedProject, Bakery, cookiecutter_command
from tests.test_render import commit_all, fingerprint, git_environment

pytestmark = pytest.mark.slow

CHANGELOG = "# Changelog\n\n## Unreleased\n\n## 1.2.0 (2026-12-01)\n\n- Something new.\n\n## 1.1.0\n\n- Old.\n"


@pytest.fixture
def checkout(bake: Bakery, tmp_path: Path) -> Path:
    """A maintainer's clone of a repository that is bare, as GitHub's are."""
    git(tmp_path, "init", "--quiet", "--bare", "cookiecutter-fastapi-space.git")
    checkout = Path(shutil.copytree(bake.template, tmp_path / "checkout"))
    shutil.copytree(ROOT / "tools", checkout / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "CHANGELOG.md").write_text(CHANGELOG)
    commit_all(checkout)
    git(checkout, "remote", "add", "origin", str(tmp_path / "cookiecutter-fastapi-space.git"))
    return checkout


def git(folder: Path, *arguments: str) -> str:
    """What git prints."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, env=git_environment(folder), capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout


def release(checkout: Path, version: str) -> subprocess.CompletedProcess[str]:
    """What `make release` runs."""
    command = [sys.executable, str(checkout / "tools" / "release.py"), version]
    environ = git_environment(checkout)
    return subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)  # noqa: S603


def test_a_release_renders_from_its_url_by_its_tag_whatever_comes_later(
    bake: Bakery, checkout: Path, tmp_path: Path
) -> None:
    done = release(checkout, "1.2.0")
    assert done.returncode == 0, done.stderr
    assert git(checkout, "tag", "--list", "--format=%(contents)", "v1.2.0").strip() == "v1.2.0\n\n- Something new."
    (checkout / "{{cookiecutter.project_slug}}" / "README.md").write_text("Something else\n")
    commit_all(checkout)
    git(checkout, "push", "--quiet", "origin", "HEAD")

    url = f"git+file://{tmp_path}/cookiecutter-fastapi-space.git"
    rendering = cookiecutter_command("--no-input", "--checkout", "v1.2.0", template=url, folder=tmp_path / "here")
    assert rendering.exit_code == 0, rendering.output
    assert fingerprint(BakedProject(rendering.folder / "my-space")) == fingerprint(bake())


def test_a_release_that_cannot_be_says_why(checkout: Path) -> None:
    for version in ("", "v1.2"):
        assert release(checkout, version).stderr.strip() == "Which version? make release VERSION=1.2.0"
    told = "CHANGELOG.md has no section 1.3.0: rename Unreleased to it, and commit that."
    assert release(checkout, "1.3.0").stderr.strip() == told


def test_a_tag_is_made_once_and_only_of_what_is_committed(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text(CHANGELOG + "\n- More.\n")
    assert release(checkout, "1.2.0").stderr.strip() == "There are changes that are not committed."
    commit_all(checkout)
    assert release(checkout, "1.2.0").returncode == 0
    assert "v1.2.0 exists." in release(checkout, "1.2.0").stderr
