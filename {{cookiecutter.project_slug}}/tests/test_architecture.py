"""Who may import whom, which keeps each folder understandable by itself; and which files agree."""

import ast
import re
from pathlib import Path

import pytest

from src.config.settings import PROJECT_ROOT, Settings
from tools.checks import front_matter_problems

# what a part of the application may import of the others; main imports everything, nobody main
ALLOWED = {
    "config": set[str](),
    "database": {"config", "database", "observability"},
    "health": {"database"},
    "observability": {"config", "observability"},
    "security": {"config"},
    "status_page": {"config", "database", "health", "security"},
    "api_docs": {"errors", "security"},
    "items": {"database", "errors", "items"},
    "errors": {"database"},
    "middleware": {"observability", "security"},
    "commands": {"config", "database", "main"},
}
FILES = sorted((PROJECT_ROOT / "src").rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules.update(name.name for name in node.names)
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_each_part_imports_only_what_it_may(path: Path) -> None:
    part = path.relative_to(PROJECT_ROOT / "src").parts[0].removesuffix(".py")
    if part in ("main", "__init__"):
        return
    used = {match[1] for name in imports_of(path) if (match := re.match(r"src\.(\w+)", name))}
    # a resource of your own may do what the sample may
    assert used <= ALLOWED.get(part, ALLOWED["items"] - {"items"} | {part})


def test_services_and_the_resolver_know_nothing_of_http() -> None:
    for path in FILES:
        if path.name in ("models.py", "service.py", "resolver.py") or path.parent.name == "url":
            assert not any(name.startswith(("fastapi", "starlette")) for name in imports_of(path))


def test_sessions_are_committed_before_the_answer() -> None:
    """Without scope="function", FastAPI commits after the answer was sent."""
    for path in FILES:
        for call in re.findall(r"Depends\(get_session[^)]*\)", path.read_text(encoding="utf-8")):
            assert 'scope="function"' in call, path


def test_the_example_file_names_every_setting_and_nothing_else() -> None:
    text = (PROJECT_ROOT / ".env.example").read_text(encoding="utf-8")
    documented = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    assert documented == {name.upper() for name in Settings.model_fields} | {"DATABASE_URL"}


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
