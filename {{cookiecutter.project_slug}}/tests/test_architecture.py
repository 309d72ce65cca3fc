"""Which parts of your code and of the runtime may import which, and files that must agree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import space_runtime
from space_runtime.settings import variables
from src.config.settings import PROJECT_ROOT, Settings
from tools.checks import front_matter_problems

SOURCES = sorted((PROJECT_ROOT / "src").rglob("*.py"))
# The runtime may be a folder of this project, or an installed package.
RUNTIME = Path(space_runtime.__file__).parent
RUNTIME_SOURCES = sorted(RUNTIME.rglob("*.py"))
# Layers of the runtime's parts; each part may import its own layer and the layers listed before it.
LAYERS = (
    {"reasons", "port", "time_limit", "file_locks", "project", "settings", "columns"},
    {"url"},
    {"observability"},
    {"records"},
    {"backends"},
    {"migrations"},
    {"portability", "snapshots"},
    {"files"},
    {"failback", "serving"},
    {"lifecycle"},
    {"runtime"},
    {"http"},
)


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def part_of(path: Path, folder: Path) -> str:
    return path.relative_to(folder).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", RUNTIME_SOURCES, ids=lambda path: str(path.relative_to(RUNTIME)))
def test_the_runtime_knows_nothing_of_this_project(path: Path) -> None:
    known = [name for name in imports_of(path) if name.split(".")[0] in ("src", "tools", "tests")]
    assert not known, (
        f"{path.name} imports {known}: pass it as an argument, in Project or in the settings,"
        " so that the runtime can be replaced as one folder"
    )


@pytest.mark.parametrize("path", RUNTIME_SOURCES, ids=lambda path: str(path.relative_to(RUNTIME)))
def test_parts_of_the_runtime_import_only_those_below_them(path: Path) -> None:
    part = part_of(path, RUNTIME)
    if path.name in ("__init__.py", "__main__.py"):
        return
    allowed: set[str] = set()
    for layer in LAYERS:
        allowed |= layer
        if part in layer:
            break
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("space_runtime.")}
    assert used <= allowed, (
        f"{part} may not import {sorted(used - allowed)}, which stands above it in LAYERS:"
        " let the part above pass in what this one needs"
    )


def test_only_the_backends_of_the_runtime_ask_which_database_it_is() -> None:
    for path in RUNTIME_SOURCES:
        if "backends" in path.parts or path.name == "columns.py":
            continue
        text = path.read_text(encoding="utf-8")
        question = r"(==|!=) [\w.]*dialect\.name|dialect\.name (==|!=|in|not in) "
        assert not re.search(question, text), (
            f"{path}: ask backend_of(engine) instead, and let both backends have an answer"
        )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_your_parts_do_not_import_main(path: Path) -> None:
    assert "src.main" not in imports_of(path), (
        "main imports every part, so nothing may import it: move what both need into a part of its"
        " own; parts may import each other, src.config and space_runtime"
    )


def test_services_and_the_resolver_know_nothing_of_http() -> None:
    for path in SOURCES:
        if path.name in ("models.py", "service.py", "resolver.py"):
            used = [name for name in imports_of(path) if re.match("fastapi|starlette", name)]
            assert not used, (
                f"{path} imports {used}: raise NotFound of space_runtime.http.errors, or an error"
                " of your own that the router or an exception handler turns into an answer; or"
                " move this into router.py"
            )


def test_sessions_are_committed_before_the_answer() -> None:
    """Without scope="function", FastAPI would commit only after the answer is sent."""
    for path in SOURCES:
        for call in re.findall(r"Depends\(get_session[^)]*\)", path.read_text(encoding="utf-8")):
            assert 'scope="function"' in call, (
                f'{path}: write SessionDep instead, or Depends(get_session, scope="function")'
            )


def test_the_example_file_names_every_setting() -> None:
    text = (PROJECT_ROOT / ".env.example").read_text(encoding="utf-8")
    documented = set(re.findall(r"^#?([A-Z0-9_]+)=", text, re.MULTILINE))
    missing = sorted({*variables(Settings), "DATABASE_URL"} - documented)
    assert not missing, f"add {', '.join(missing)} to .env.example, commented out, with its default"


written_at_render = pytest.mark.skipif(
    not (PROJECT_ROOT / "Dockerfile").exists(),
    reason="the Dockerfile and the front matter are written when the template is rendered",
)


@written_at_render
def test_the_hub_can_use_the_front_matter_of_the_readme() -> None:
    readme, dockerfile = (
        (PROJECT_ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Dockerfile")
    )
    assert front_matter_problems(readme, dockerfile) == []


@written_at_render
def test_the_port_of_the_image_is_the_port_of_the_space() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    dockerfile = (PROJECT_ROOT / "Dockerfile").read_text(encoding="utf-8")
    (port,) = re.findall(r"^app_port: (\d+)$", readme, re.MULTILINE)
    assert f"EXPOSE {port}\n" in dockerfile
    assert f'"--port", "{port}"' in dockerfile
