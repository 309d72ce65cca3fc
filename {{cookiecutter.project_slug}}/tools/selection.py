"""What `make deploy` sends of this folder, what not, and why."""

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tools.gitignore import GitIgnores, deciding_rule, folder_of, parts, read_rules

BUILT_PAGE = "web/dist/"
REBUILT = b".git .venv venv node_modules __pycache__ .cache .*_cache"
SECRETS_AND_DATABASES = b"""
    .env .env.* !.env.example .envrc .netrc .pgpass .pypirc .npmrc .git-credentials .aws .ssh
    *.pem *.key *.p12 *.pfx id_rsa* id_ed25519*
    /data/ *.db *.db-* *.sqlite *.sqlite-* *.sqlite3 *.sqlite3-*
"""
IS_REBUILT = read_rules(b"\n".join(REBUILT.split()), "can be rebuilt")
# Whatever git says.
NEVER_SENT = IS_REBUILT + read_rules(b"\n".join(SECRETS_AND_DATABASES.split()), "never sent")
NOT_SENT_EITHER = "a link to what is not sent"
# With these, which git sets where it runs a hook, it would look at another folder than this one.
OF_GIT_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


class LocalProblem(ValueError):
    """Something here must be fixed first; the message says what and how."""


@dataclass
class Selection:
    """What is sent, and what stays here although git ignores none of it."""

    files: dict[str, Path] = field(default_factory=dict)
    """Where the content of each file is, which is elsewhere for a link."""
    withheld: dict[str, str] = field(default_factory=dict)
    """Why each of these stays here; the path of a folder ends in a slash."""


def select(folder: Path) -> Selection:
    """Return what to send: what git does not ignore, and the built page, but nothing NEVER_SENT.

    A link is sent as what it leads to, if that is sent. Raise LocalProblem if git ignores the
    whole folder, or does not say what it ignores.
    """
    folder = folder.resolve()
    selection, links = Selection(), []
    names, top = not_ignored(folder), repository(folder)
    if top and top != folder and all(map(never_sent, names)):
        raise LocalProblem(
            f"the repository at {top} ignores all of this folder: git init here, or change its rule"
        )
    for name in sorted({*names, *built_page(folder)}):
        file = folder / name
        # A link, or under one: git may still list what a folder held that became a link.
        is_link = file.is_symlink() or os.path.realpath(file) != str(file)
        path = f"{name.removesuffix('/')}/" if file.is_dir() and not is_link else name
        if not os.path.lexists(file):
            continue  # Deleted, and git was not told yet.
        if never := never_sent(path):
            if not deciding_rule(IS_REBUILT, never[0]):
                selection.withheld.setdefault(*never)
        elif is_link:
            links.append(path)
        elif file.is_file():
            selection.files[path] = file
        elif file.is_dir():
            selection.withheld[path] = (
                "a submodule whose files are not here: git submodule update --init"
                if os.access(file, os.R_OK)
                else "a folder that cannot be read"
            )
    follow(links, folder, selection)
    selection.files = dict(sorted(selection.files.items()))
    return selection


def follow(links: list[str], folder: Path, selection: Selection) -> None:
    """Select what these links lead to, under their names, and say which lead elsewhere."""
    ordinary = set(selection.files)
    linked_folders = {}
    for path in links:
        target = Path(os.path.realpath(folder / path))
        inside = target.relative_to(folder).as_posix() if target.is_relative_to(folder) else None
        if not target.exists():
            selection.withheld[path] = "a link to nothing"
        elif inside is None:
            selection.withheld[path] = "a link that leads out of this folder"
        elif inside in ordinary:
            selection.files[path] = target
        elif not target.is_dir():
            selection.withheld[path] = NOT_SENT_EITHER
        elif inside == "." or path.startswith(f"{inside}/"):
            selection.withheld[path] = "a link to a folder that it is in"
        else:
            linked_folders[path] = f"{inside}/"
    files = dict(selection.files)
    for path, inside in linked_folders.items():
        # Links to folders are followed once: those that lead to each other would never end.
        for name in [*files, *linked_folders]:
            if name.startswith(inside):
                new = f"{path}/{name.removeprefix(inside)}"
                if never := never_sent(new):
                    selection.withheld.setdefault(*never)
                elif name in linked_folders:
                    selection.withheld[new] = "a link to a folder in a linked folder"
                else:
                    selection.files[new] = files[name]
        if not any(name.startswith(inside) for name in files):
            selection.withheld[path] = NOT_SENT_EITHER


@cache
def never_sent(path: str) -> tuple[str, str] | None:
    """Return what is never sent, a path or the folder that it is in, and why."""
    folder = folder_of(path)
    if folder and (found := never_sent(folder)):
        return found
    rule = deciding_rule(NEVER_SENT, path)
    return (path, f"{rule.source}: {rule.text}") if rule and not rule.is_negated else None


def not_ignored(folder: Path) -> list[str]:
    """Return what git would let into a commit; where there is no git, the .gitignore files decide.

    Links are named, not followed. So are submodules, if their files are not here.
    """
    top = repository(folder)
    names = None
    if top:
        names = ask_git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if names is None:
        names = not_ignored_without_git(folder, top or folder)
    return [path for name in names for path in of_its_own_repository(folder, name)]


def not_ignored_without_git(folder: Path, top: Path) -> list[str]:
    """Return what git would, if it had no index and its user no rules of their own."""
    ignores, inside = GitIgnores(top), inside_of(top, folder)

    def is_entered(path: str) -> bool:
        is_left_out = ignores.rule(inside + path) or never_sent(path)
        return not is_left_out and not is_repository(folder / path)

    return [path for path in walk(folder, "", is_entered) if not ignores.rule(inside + path)]


def of_its_own_repository(folder: Path, name: str) -> Iterator[str]:
    """Yield a name; if it is that of another repository, what that does not ignore."""
    inner, prefix = folder / name, f"{name.removesuffix('/')}/"
    if inner.is_symlink() or not is_repository(inner) or never_sent(prefix):
        yield name
    else:
        yield from (prefix + path for path in not_ignored(inner))


def is_repository(folder: Path) -> bool:
    """Return whether a repository begins here; the .git of submodules and worktrees is a file."""
    return (folder / ".git").is_file() or (folder / ".git" / "HEAD").is_file()


def repository(folder: Path) -> Path | None:
    """Return the top folder of the repository that this folder is in, if it is in one."""
    return next((path for path in (folder, *folder.parents) if is_repository(path)), None)


def inside_of(top: Path, folder: Path) -> str:
    """Return where in `top` this folder is, as the beginning of a path."""
    return f"{folder.relative_to(top).as_posix()}/" if top != folder else ""


def ask_git(folder: Path, *arguments: str, paths: Iterable[str] = ()) -> list[str] | None:
    """Return the names that git answers with, or None if there is no git.

    Raise LocalProblem if it refuses, such as for a repository of another user.
    """
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(
        # A monitor of files would be started in the background, and stay.
        [git, "-c", "core.fsmonitor=false", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in OF_GIT_HOOKS},
        input=b"".join(os.fsencode(path) + b"\0" for path in paths),
        capture_output=True,
        check=False,
    )
    # 1 says that none of the paths is ignored.
    if done.returncode > 1:
        raise LocalProblem(
            f"git does not read the repository at {repository(folder)}: git status there says why"
        )
    return os.fsdecode(done.stdout).split("\0")[:-1]


def built_page(folder: Path) -> Iterator[str]:
    """Yield the files of the built page: what a front end's build writes, its .gitignore names."""
    page = folder / BUILT_PAGE
    if page.is_symlink():
        yield BUILT_PAGE.removesuffix("/")
    elif page.is_dir():
        yield from contents(folder, BUILT_PAGE)


def walk(folder: Path, start: str, is_entered: Callable[[str], bool]) -> Iterator[str]:
    """Yield each file, link, and folder that is not entered; a folder's path ends in a slash."""
    try:
        entries = sorted(os.scandir(folder / start), key=lambda entry: entry.name)
    except PermissionError:
        yield start
        return
    for entry in entries:
        path = f"{start}{entry.name}"
        if not entry.is_dir(follow_symlinks=False):
            yield path
        elif is_entered(f"{path}/"):
            yield from walk(folder, f"{path}/", is_entered)
        else:
            yield f"{path}/"


def ignored(folder: Path, selection: Selection) -> Iterator[str]:
    """Yield what git ignores, but nothing that can be rebuilt.

    A folder of which nothing is sent is one path, with a slash at its end.
    """
    paths = (*selection.files, *selection.withheld)
    known = {part.removesuffix("/") for path in paths for part in parts(path)}

    def is_entered(path: str) -> bool:
        return path.removesuffix("/") in known and path not in selection.withheld

    for path in walk(folder, "", is_entered):
        if path.removesuffix("/") not in known and not deciding_rule(IS_REBUILT, path):
            is_empty = path.endswith("/") and not any(walk(folder, path, lambda _: True))
            if not is_empty:
                yield path


def left_out(folder: Path, selection: Selection) -> dict[str, str]:
    """Return why each path stays here that does, but for what can be rebuilt.

    A folder that is ignored, or never sent, is one path.
    """
    folder = folder.resolve()
    found = {path: [path, *contents(folder, path)] for path in ignored(folder, selection)}
    reasons = rules(folder, [path for paths in found.values() for path in paths])
    reasons |= {
        path: never[1] for paths in found.values() for path in paths if (never := never_sent(path))
    }
    left = dict(selection.withheld)
    for path, paths in found.items():
        for name in [path] if path in reasons else paths[1:] or [path]:
            left[name] = reasons.get(name, "not a file, or it cannot be read")
    return dict(sorted(left.items()))


def contents(folder: Path, path: str) -> Iterator[str]:
    """Yield what is in a folder."""
    if path.endswith("/"):
        yield from walk(folder, path, lambda _: True)


def rules(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return by which rule of git these paths are ignored, for those that are."""
    by_repository = defaultdict(list)
    begins_one = cache(lambda path: is_repository(folder / path))
    for path in paths:
        inner = max((part for part in parts(path)[:-1] if begins_one(part)), default="")
        by_repository[inner].append(path.removeprefix(inner))
    found: dict[str, str] = {}
    for inner, names in by_repository.items():
        at = folder / inner
        top, told = repository(at), None
        # A folder's own rules would count for it if its path ended in a slash.
        asked = {name.removesuffix("/"): name for name in names}
        if top:
            told = ask_git(at, "check-ignore", "-z", "--verbose", "--stdin", paths=asked)
        if told is None:
            ignores, inside = GitIgnores(top or at), inside_of(top or at, at)
            by_name = {name: ignores.rule(inside + name) for name in names}
            found |= {inner + name: str(rule) for name, rule in by_name.items() if rule}
        else:
            for source, line, text, name in zip(*[iter(told)] * 4, strict=True):
                if not text.startswith("!"):
                    found[inner + asked[name]] = f"{source}:{line}: {text}"
    return found


def shown(name: str) -> str:
    """Return a name as it can be printed: it may be no UTF-8, or hold the end of a line."""
    return name if name.isprintable() else ascii(name)
