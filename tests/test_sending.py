"""What `make deploy` sends is what git would put into a commit, and never a secret or a database."""

import fnmatch
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bakery import BakedProject
from tests.support.examples import examples
from tests.support.machine import need
from tests.support.project_tools import project_tool

selection, parts = project_tool("selection"), project_tool("gitignore").parts
BYTE_ORDER_MARK = "\ufeff"
LISTED = ("--cached", "--others", "--exclude-standard")


@pytest.fixture(scope="module", autouse=True)
def rules_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file in which the user of this machine tells git what to ignore everywhere."""
    need("git", "it says what it ignores")
    folder = tmp_path_factory.mktemp("home")
    config, rules = folder / "config", folder / "ignore"
    config.write_text(f"[core]\n\texcludesFile = {rules}\n[user]\n\tname = A\n\temail = a@example.com\n")
    rules.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(config))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield rules


def git(folder: Path, *arguments: str, given: bytes = b"") -> list[str]:
    """The names that git answers with."""
    done = subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607
        cwd=folder,
        input=given,
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"GIT_LITERAL_PATHSPECS": "1"},
    )
    return os.fsdecode(done.stdout).split("\0")[:-1]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())


def sent(folder: Path) -> set[str]:
    return set(selection.select(folder).files)


def why_left_out(folder: Path) -> dict[str, str]:
    left: dict[str, str] = selection.left_out(folder, selection.select(folder))
    return left


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    """A project that is a folder of a larger repository."""
    folder = tmp_path / "larger" / "apps" / "space"
    write(folder, {"README.md": "", "src/main.py": ""})
    git(tmp_path / "larger", "init", "--quiet")
    return folder


@pytest.fixture
def without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)


# random trees

NAMES = ["a", "b.txt", "c.log", "é.txt", "sp ace", "#h", "!n", "[b]", "e\n.txt", "caf\udce9", "x.db", ".env", "k.pem"]
FOLDERS = ["", "", "deep/", "deep/er/", "a/", "data/", "web/dist/", "ünder score/", ".venv/"]
PATTERNS = [
    "*.log", "!c.log", "/a", "a/", "deep/", "deep/*", "!deep/er/", "!deep/er/a", "**/b.txt", "deep/**", "/deep/**/a",
    "*", "!*/", "!*.txt", "[ab]", "[!a]", "\\[b\\]", "\\#h", "\\!n", "sp ace", "sp ace\\ ", "é*", "?.txt", "caf?", "er",
    "# no rule", "", "web", "dist", "a ", "b.txt   ", "link*", "[[:alpha:]]", "\\", "[a", "!", "/",
]  # fmt: skip
TARGETS = [
    "a",
    "deep",
    "deep/er",
    "deep/b.txt",
    ".",
    "..",
    "../..",
    "nothing",
    "x.db",
    ".env",
    "/etc/hostname",
    "link1",
]
rules = st.builds(
    lambda mark, lines, end: mark + end.join(lines),
    st.sampled_from(["", BYTE_ORDER_MARK]),
    st.lists(st.sampled_from(PATTERNS), max_size=5),
    st.sampled_from(["\n", "\r\n"]),
)


@dataclass
class Tree:
    """What stands in a folder: files, files of rules by their folder, links, and what git was told to keep."""

    files: list[str]
    ignores: dict[str, str]
    links: dict[str, str]
    excluded: str = ""
    users: str = ""
    parents: str = ""
    tracked: list[str] = field(default_factory=list)

    def grow(self, top: Path, rules_of_the_user: Path) -> Path:
        """Write it all; return the folder of the project in this repository."""
        folder = top / "apps" / "space"
        folder.mkdir(parents=True)
        git(top, "init", "--quiet", "--template=")
        (top / ".git" / "info").mkdir()
        for file, text in [
            (top / ".git" / "info" / "exclude", self.excluded),
            (top / ".gitignore", self.parents),
            (rules_of_the_user, self.users),
        ]:
            file.write_bytes(text.encode())
        contents = dict.fromkeys(self.files, "x") | {f"{at}.gitignore": text for at, text in self.ignores.items()}
        for name, text in contents.items():
            if all(not part.is_file() for part in (folder / name).parents) and not (folder / name).is_dir():
                write(folder, {name: text})
        for name, target in self.links.items():
            if (folder / name).parent.is_dir() and not os.path.lexists(folder / name):
                (folder / name).symlink_to(target)
        # git keeps nothing that is behind a link
        kept = [
            name for name in self.tracked if (folder / name).is_file() and (folder / name).resolve() == folder / name
        ]
        given = b"".join(os.fsencode(name) + b"\0" for name in kept)
        git(folder, "add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul", given=given) if kept else None
        return folder


paths = st.builds(str.__add__, st.sampled_from(FOLDERS), st.sampled_from(NAMES))
file_rules = st.dictionaries(st.sampled_from(FOLDERS), rules, max_size=3)
links = st.dictionaries(
    st.builds(str.__add__, st.sampled_from(FOLDERS[:4]), st.sampled_from(["link1", "link2.txt", "link.db", "data"])),
    st.sampled_from(TARGETS),
    max_size=3,
)
files = st.lists(paths, min_size=1, max_size=12)
trees = st.builds(Tree, files, file_rules, links, rules, rules, rules, st.lists(paths, max_size=3))
trees_of_files_alone = st.builds(Tree, files, file_rules, links, rules)
NEVER = ["*.db", ".env", "*.pem", ".venv"]


def is_never_sent(path: str) -> bool:
    parts = path.split("/")
    return (parts[0] == "data" and len(parts) > 1) or any(
        fnmatch.fnmatch(part, rule) for part in parts for rule in NEVER
    )


def what_git_says(folder: Path) -> set[str]:
    """What git would commit and the built page, with what links inside lead to, less what is never sent."""
    listed = set(git(folder, "ls-files", "-z", *LISTED))
    listed |= {
        path.relative_to(folder).as_posix() for path in (folder / "web" / "dist").rglob("*") if not path.is_dir()
    }
    listed = {path for path in listed if os.path.lexists(folder / path) and not is_never_sent(path)}
    plain = {path for path in listed if not (folder / path).is_symlink()}
    where = {path: os.path.relpath(os.path.realpath(folder / path), folder) for path in listed - plain}
    plain |= {path for path, target in where.items() if target in plain}
    behind = {
        path + name.removeprefix(target)
        for path, target in where.items()
        for name in plain
        if name.startswith(f"{target}/") and not path.startswith(f"{target}/")
    }
    return plain | {path for path in behind if not is_never_sent(path)}


def check_a_tree(tree: Tree, rules_of_the_user: Path) -> None:
    with TemporaryDirectory() as temporary:
        folder = tree.grow(Path(temporary).resolve(), rules_of_the_user)
        if all(map(is_never_sent, git(folder, "ls-files", "-z", *LISTED))):
            with pytest.raises(ValueError, match="ignores all of this folder"):
                selection.select(folder)
            return
        selected = selection.select(folder)
        assert set(selected.files) == what_git_says(folder)
        left = selection.left_out(folder, selected)
        assert not set(left) & set(selected.files)
        stands_for = {part.removesuffix("/") for path in selected.files for part in parts(path)}
        for path in selection.walk(folder, "", lambda path: path not in {".venv/", *left}):
            assert path in stands_for or path == ".venv/" or {*left} & {*parts(path), f"{path}/"}, path


def check_without_git(tree: Tree, rules_of_the_user: Path) -> None:
    with TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        folder = tree.grow(Path(temporary).resolve(), rules_of_the_user)
        by_git = sent_if_anything(folder)
        patch.setattr(shutil, "which", lambda _: None)
        assert sent_if_anything(folder) == by_git


def sent_if_anything(folder: Path) -> set[str]:
    """What is sent; nothing, if all of the folder is ignored."""
    try:
        return sent(folder)
    except ValueError:
        return set()


@examples(few=20, many=200)
def test_what_is_sent_is_what_git_would_commit_less_what_is_never_sent(rules_of_the_user: Path, examples: int) -> None:
    settings(max_examples=examples)(given(trees, st.just(rules_of_the_user))(check_a_tree))()


@examples(few=20, many=200)
def test_without_git_the_files_of_rules_say_the_same(rules_of_the_user: Path, examples: int) -> None:
    settings(max_examples=examples)(given(trees_of_files_alone, st.just(rules_of_the_user))(check_without_git))()


# what people meet


def test_what_is_left_out_is_named_with_its_rule(inner: Path, rules_of_the_user: Path) -> None:
    top = inner.parents[1]
    write(top, {".gitignore": "# Ours\nnotes/\n", ".git/info/exclude": "*.draft\n"})
    write(inner, {"notes/diary.txt": "", "plan.draft": "", "logs/.gitignore": "*\n", "logs/today": "", "kept.db": ""})
    write(inner, {".gitignore": f"{BYTE_ORDER_MARK}*.first\r\n", "x.first": "", ".venv/lib": "", "me.swp": ""})
    rules_of_the_user.write_text("*.swp\n")
    git(inner, "add", "--force", "kept.db")
    assert sent(inner) == {".gitignore", "README.md", "src/main.py"}
    assert why_left_out(inner) == {
        "kept.db": "never sent: *.db",
        "logs/.gitignore": "apps/space/logs/.gitignore:1: *",
        "logs/today": "apps/space/logs/.gitignore:1: *",
        "me.swp": f"{rules_of_the_user}:1: *.swp",
        "notes/": ".gitignore:2: notes/",
        "plan.draft": ".git/info/exclude:1: *.draft",
        "x.first": "apps/space/.gitignore:1: *.first",
    }


@pytest.mark.usefixtures("without_git")
def test_without_git_the_first_line_counts_after_a_byte_order_mark(inner: Path) -> None:
    write(inner, {".gitignore": f"{BYTE_ORDER_MARK}*.first\r\n", "x.first": ""})
    assert sent(inner) == {".gitignore", "README.md", "src/main.py"}
    assert why_left_out(inner) == {"x.first": "apps/space/.gitignore:1: *.first"}


def test_what_links_lead_to_is_sent_if_it_is_sent_itself(inner: Path) -> None:
    write(inner, {"shared/a.py": "", "shared/key.pem": "", ".env": "", "secret/s.txt": "", ".gitignore": "secret/\n"})
    links = {
        "src/one.py": "main.py", "src/shared": "../shared", "src/two.py": "shared/a.py", "again": "src/shared",
        "env.txt": ".env", "s.txt": "secret/s.txt", "secrets": "secret", "out.txt": "/etc/hostname", "up": "..",
        "here": ".", "src/loop": "../src", "lost": "nowhere", "self": "self", "shared/deeper": "../src",
        "x.db": "README.md",
    }  # fmt: skip
    for name, target in links.items():
        (inner / name).symlink_to(target)
    selected = selection.select(inner)
    linked = {path: file.relative_to(inner).as_posix() for path, file in selected.files.items() if path != str(file)}
    assert {path: real for path, real in linked.items() if path != real} == {
        "src/one.py": "src/main.py", "src/shared/a.py": "shared/a.py", "src/two.py": "shared/a.py",
        "again/a.py": "shared/a.py", "shared/deeper/main.py": "src/main.py", "shared/deeper/one.py": "src/main.py",
        "shared/deeper/two.py": "shared/a.py",
    }  # fmt: skip
    outside, unsent = "a link that leads out of this folder", "a link to what is not sent"
    nested = "a link to a folder in a linked folder"
    assert selected.withheld == {
        ".env": "never sent: .env", "shared/key.pem": "never sent: *.pem", "x.db": "never sent: *.db",
        "out.txt": outside, "up": outside, "env.txt": unsent, "s.txt": unsent, "secrets": unsent,
        "lost": "a link to nothing", "self": "a link to nothing",
        "here": "a link to a folder that it is in", "src/loop": "a link to a folder that it is in",
        "again/deeper": nested, "src/shared/deeper": nested, "shared/deeper/shared": nested,
    }  # fmt: skip


def test_a_folder_that_became_a_link_leads_nowhere_else(inner: Path, tmp_path: Path) -> None:
    write(inner, {"settings/a.txt": "mine"})
    write(tmp_path, {"private/a.txt": "private"})
    git(inner, "add", ".")
    shutil.rmtree(inner / "settings")
    (inner / "settings").symlink_to(tmp_path / "private")
    assert sent(inner) == {"README.md", "src/main.py"}
    assert set(why_left_out(inner)) == {"settings", "settings/a.txt"}


@pytest.mark.parametrize("has_git", [True, False])
def test_a_repository_inside_is_asked_for_its_own_rules(
    inner: Path, monkeypatch: pytest.MonkeyPatch, has_git: bool
) -> None:
    write(inner, {"library/.gitignore": "*.tmp\n", "library/a.py": "", "library/b.tmp": "", "library/x.db": ""})
    git(inner / "library", "init", "--quiet")
    git(inner / "library", "add", "a.py")
    git(inner / "library", "commit", "--quiet", "--message", "First")
    git(inner, "add", ".", "README.md")
    if not has_git:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    assert sent(inner) == {"README.md", "src/main.py", "library/.gitignore", "library/a.py"}
    assert why_left_out(inner) == {"library/b.tmp": ".gitignore:1: *.tmp", "library/x.db": "never sent: *.db"}


def test_a_submodule_that_is_not_here_is_named(inner: Path) -> None:
    (inner / "library").mkdir()
    git(inner, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},apps/space/library")
    assert why_left_out(inner) == {"library/": "a submodule whose files are not here: git submodule update --init"}


def test_a_repository_that_ignores_the_whole_folder_is_told(inner: Path) -> None:
    write(inner.parents[1], {".gitignore": "*\n"})
    with pytest.raises(ValueError, match=f"^the repository at {inner.parents[1]} ignores all of this folder: git init"):
        selection.select(inner)


def test_a_repository_that_git_does_not_read_is_told(inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # git's own way to try what it does with the repository of another user
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(ValueError, match=f"^git does not read the repository at {inner.parents[1]}: git status"):
        selection.select(inner)


def test_a_hook_of_another_repository_changes_nothing(inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", ".git")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert sent(inner) == {"README.md", "src/main.py"}


def test_what_is_gone_or_no_file_is_not_sent(inner: Path) -> None:
    write(inner, {"gone.txt": "", "pipe": ""})
    git(inner, "add", ".")
    for name in ("gone.txt", "pipe"):
        (inner / name).unlink()
    os.mkfifo(inner / "pipe")
    assert sent(inner) == {"README.md", "src/main.py"}
    assert why_left_out(inner) == {"pipe": "not a file, or it cannot be read"}


def test_git_is_asked_once_for_any_number_of_files(inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(inner, {f"many/{number}.txt": "" for number in range(200)})
    git_itself = Mock(wraps=subprocess.run)
    monkeypatch.setattr(subprocess, "run", git_itself)
    assert len(sent(inner)) == 202
    git_itself.assert_called_once()


def test_the_list_needs_neither_a_token_nor_the_hub(project: BakedProject) -> None:
    write(
        project.path, {".gitignore": "", "src/model.db": "", "API_TOKEN\n": "", ".env": "API_TOKEN=a-secret-of-mine\n"}
    )
    (project.path / "src" / "linked.py").symlink_to("main.py")
    done = project.run("python", "-m", "tools.deploy", "your-username/my-space", "--list")
    lines = done.stdout.splitlines()
    assert "sent     README.md" in lines
    assert "sent     src/linked.py (from src/main.py)" in lines
    assert "sent     'API_TOKEN\\n'" in lines
    assert "stays    src/model.db (never sent: *.db)" in lines
    assert lines[-1].endswith(" files to send, 2 that stay")
    assert "a-secret-of-mine" not in done.stdout
