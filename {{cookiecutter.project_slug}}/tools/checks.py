"""What `make deploy` checks in this folder before it asks the Hub."""

import ast
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import yaml
from dotenv.parser import parse_stream
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from space_runtime.settings import RuntimeSettings
from src.config.settings import setting_problems
from tools.selection import BUILT_PAGE, LocalProblem

SECRETS_FILE = ".env.space"
LOCKED = re.compile(r"^([\w.-]+)(?:\[.*\])? ?(?:@|==([^\s;]+))", re.MULTILINE)
USABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"://[^\s:/@]*:(\S+)@")
COPIED = re.compile(
    r"^[ \t]*(?:COPY|ADD)[ \t]((?:[ \t]*--\S+[ \t])*)(.*)[ \t]\S+[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
COPIED_WORD = re.compile(r"[^\s\",\[\]]+")
COPIES_ALL = {"", ".", "*", "*.py"}
SHORTEST_SECRET, SHORTEST_SECRET_WORD = 8, 16
ORDINARY_SETTINGS = {"DATABASE_URL", *map(str.upper, RuntimeSettings.model_fields)}
DEFAULT_APP_PORT = 7860
SIGNS_IN = re.compile(rb"^\s*from space_runtime\.http\.sign_in import", re.MULTILINE)
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def read_secrets(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the secrets in SECRETS_FILE; these names may also come from the environment.

    Raise LocalProblem, which tells a place and nothing that stands there, if the file contains
    anything but secrets, or a name has no value: of a key that was pasted without quotes, each line
    looks like something else, and the last one, which ends in "=", like a name.
    """
    secrets = {name: os.environ.get(name, "") for name in names}
    for binding in parse_stream(StringIO(text_of(folder / SECRETS_FILE))):
        name, content = binding.key or "", binding.original.string
        if binding.key is None and not binding.error:
            continue  # A comment, or the end.
        if not (binding.value or "").strip("=") or not USABLE_NAME.fullmatch(name):
            blank_lines = content[: len(content) - len(content.lstrip())].count("\n")
            raise LocalProblem(
                f"{SECRETS_FILE}, line {binding.original.line + blank_lines}: not NAME=value, or no"
                " value. A value of several lines, such as a key, goes into quotes"
            )
        secrets[name] = binding.value or ""
    for number, name in enumerate(names, 1):
        if not secrets[name] or not USABLE_NAME.fullmatch(name):
            raise LocalProblem(
                f"SECRETS, name {number}: it has no value here, or is no name: write NAME=value into"
                f" {SECRETS_FILE}, and SECRETS=NAME"
            )
    return secrets


def read_local_settings(folder: Path) -> dict[str, str | None]:
    """Return what `.env` sets, if there is one; raise LocalProblem if it is not UTF-8."""
    bindings = parse_stream(StringIO(text_of(folder / ".env")))
    return {binding.key: binding.value for binding in bindings if binding.key}


def text_of(file: Path) -> str:
    """Return what is in a file, or "" if it is not there; raise LocalProblem if it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig") if file.is_file() else ""
    except UnicodeDecodeError:
        raise LocalProblem(f"{file.name} is not UTF-8: save it as that") from None


def secret_values(
    variables: Mapping[str, str | None], secrets: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Yield name and value of each token and password, and of each URL that holds a password.

    Those named in `secrets` are secret whatever their name is, unless it is that of a setting.
    """
    for name, value in variables.items():
        passwords = PASSWORD_IN_URL.findall(value or "")
        is_secret = SECRET_NAME.search(name) or (name in secrets and name not in ORDINARY_SETTINGS)
        for secret in [value or "", *passwords] if passwords or is_secret else []:
            # A plain word such as "postgres" occurs in many files without being a secret there.
            if len(secret) >= (SHORTEST_SECRET_WORD if secret.isalpha() else SHORTEST_SECRET):
                yield name, secret


# ---- Each of these yields a line per problem that must be fixed before anything is sent ----


def space_problems(space: str) -> Iterator[str]:
    """Check the name of the Space; "your-username" is the template's placeholder."""
    try:
        validate_repo_id(space)
    except HFValidationError as error:
        yield str(error)
    if "/" not in space or space.startswith("your-username/"):
        yield f"{space} is not one of your Spaces: make deploy SPACE=user/name"


def token_problems(token: str) -> Iterator[str]:
    """Check that there is a token, made only of characters that a header can carry."""
    if not token:
        yield (
            f"no token: create one with write access at {TOKENS_PAGE} and set HF_TOKEN, or "
            ".venv/bin/python -m huggingface_hub.cli.hf auth login"
        )
    elif not token.isascii() or not token.isprintable():
        yield "HF_TOKEN holds characters that no token has: copy it again"


def secret_problems(secrets: Mapping[str, str]) -> Iterator[str]:
    """Check that the app can start with these."""
    for problem in setting_problems(secrets):
        yield f"{SECRETS_FILE}: {problem}"


def leak_problems(files: Mapping[str, bytes], values: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Check that no file holds one of these values, which have names."""
    secrets = [(name, value.encode()) for name, value in values]
    for path, content in files.items():
        for name in sorted({name for name, secret in secrets if secret in content}):
            yield (
                f"{path} holds the value of {name}, which everybody could read: take it out, or, if"
                " it is no secret, set it as a variable in the Space's settings"
            )


def file_problems(files: Mapping[str, bytes]) -> Iterator[str]:
    """Check the two files that every Docker Space needs, and that the page is built."""
    for path in files:
        if path.encode("utf-8", "replace").decode() != path:
            yield f"{path!a}: rename this file, because its name is not UTF-8"
    for name in ("README.md", "Dockerfile"):
        if name not in files:
            yield f"{name} is missing here, or ignored"
    readme, dockerfile = (
        files.get(name, b"").decode("utf-8", "replace") for name in ("README.md", "Dockerfile")
    )
    if readme.encode() != files.get("README.md", b""):
        yield "README.md is not UTF-8: save it as that"
    lines = COPIED.findall(dockerfile.replace("\\\n", " "))
    sources = [
        word.removeprefix("./").lstrip("/")
        for options, line in lines
        for word in COPIED_WORD.findall(line)
        # Of another stage, or from elsewhere.
        if "--from=" not in options and "://" not in word
    ]
    for source in sources:
        if source.endswith("/") and not any(path.startswith(source) for path in files):
            yield f"{source}, which the Dockerfile copies, is empty here, or ignored"
    if b'"build"' in files.get("web/package.json", b"") and f"{BUILT_PAGE}index.html" not in files:
        yield f"{BUILT_PAGE}index.html is missing: npm --prefix web run build"
    if "requirements.lock" in dockerfile and (unlocked := ", ".join(not_locked(files))):
        yield f"requirements.lock has no {unlocked} such as requirements.txt asks for: make lock"
    copied = {source.partition("/")[0] for source in sources}
    for path, name in imports_of_the_code(files) if copied else ():
        if not copied & {name, f"{name}.py", *COPIES_ALL}:
            yield f"{path} imports {name}, which the Dockerfile does not copy: move it into src/"
    code = (content for path, content in files.items() if path.startswith("src/"))
    signs_in = any(SIGNS_IN.search(content) for content in code)
    for problem in front_matter_problems(readme, dockerfile, signs_in=signs_in) if readme else ():
        yield f"README.md, front matter: {problem}"


def imports_of_the_code(files: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Return which files of src import what stands at the top of this folder, and its name."""
    here = {path.partition("/")[0].removesuffix(".py") for path in files if path.endswith(".py")}
    found = set()
    for path, content in files.items():
        if not path.startswith("src/") or not path.endswith(".py"):
            continue
        with suppress(SyntaxError, ValueError), warnings.catch_warnings(action="ignore"):
            for node in ast.walk(ast.parse(content)):
                if isinstance(node, ast.ImportFrom) and not node.level:
                    found.add((path, str(node.module).partition(".")[0]))
                elif isinstance(node, ast.Import):
                    found |= {(path, alias.name.partition(".")[0]) for alias in node.names}
    return sorted((path, name) for path, name in found if name in here and is_own(name, files))


def is_own(name: str, files: Mapping[str, bytes]) -> bool:
    """Return whether this name means what stands here: else, an installed package comes first."""
    if f"{name}.py" in files or f"{name}/__init__.py" in files:
        return True
    spec = find_spec(name)
    return spec is None or spec.origin is None


def not_locked(files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what requirements.txt names and requirements.lock, which the image installs, has not.

    A line that is an option or an address alone is left to `make lock`.
    """
    requirements, lock = (
        files.get(f"requirements.{ending}", b"").decode("utf-8", "replace")
        for ending in ("txt", "lock")
    )
    locked = [(canonicalize_name(name), version) for name, version in LOCKED.findall(lock)]
    for line in requirements.splitlines():
        try:
            wanted = Requirement(line.partition(" #")[0])
        except InvalidRequirement:
            continue
        has_it = any(
            name == canonicalize_name(wanted.name)
            and (not version or wanted.specifier.contains(version, prereleases=True))
            for name, version in locked
        )
        if not has_it and (wanted.marker is None or wanted.marker.evaluate()):
            yield wanted.name


def front_matter_problems(readme: str, dockerfile: str, *, signs_in: bool = False) -> list[str]:
    """Return one line for each problem with the YAML block at the top of README.md.

    `signs_in` says whether the code asks for users who are signed in.

    Only mistakes that the Hub accepts but that keep the Space from running are checked here. `make
    deploy` asks the Hub about the rest, such as license and colors: a list here would go stale.
    """
    block = REGEX_YAML_BLOCK.match(readme)
    if block is None:
        return ["it must open the file, between two lines of ---, with nothing before it"]
    try:
        fields = yaml.safe_load(block[2])
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = readme.count("\n", 0, block.start(2)) + 1 + (mark.line if mark else 0)
        return [f"line {line} is no valid YAML; text with : # @ or quotes goes into double quotes"]
    if not isinstance(fields, dict):
        return ["it must be lines of key: value"]
    problems = []
    if fields.get("sdk") != "docker":
        problems.append(f"sdk: docker is required, not {fields.get('sdk')!r}")
    port = fields.get("app_port", DEFAULT_APP_PORT)
    exposed = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    if exposed and (type(port) is not int or str(port) not in exposed):
        problems.append(f"app_port: not {port!r}, but what the Dockerfile exposes: {exposed[0]}")
    if signs_in and fields.get("hf_oauth") is not True:
        problems.append("hf_oauth: true is required, since the code asks who is signed in")
    return problems
