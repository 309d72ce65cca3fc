"""The project is clean as rendered, and its own tests and migrations pass on both databases."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.support.bakery import ROOT, BakedProject

# Those that happen to be installed for the template's tests are not the project's, and load for a second.
NO_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check ."])
def test_the_project_is_clean_as_rendered(project: BakedProject, command: str) -> None:
    project.run("python", "-m", *command.split())


@pytest.mark.slow
def test_the_types_of_the_project_are_right_as_rendered(project: BakedProject) -> None:
    # what the last run found out about the libraries, which mypy believes only where nothing has changed since
    cache = ROOT / ".mypy_cache" / "of-a-rendered-project"
    project.run("python", "-m", "mypy", "--strict", "--cache-dir", str(cache))


@pytest.mark.slow
def test_its_own_tests_pass_on_both_databases(project: BakedProject) -> None:
    done = project.run("python", "-m", "pytest", "--verbose", environ=NO_PLUGINS)
    assert "[sqlite" in done.stdout
    assert "[postgresql" in done.stdout
    assert " SKIPPED" not in done.stdout


@pytest.mark.slow
@pytest.mark.thorough
def test_its_own_tests_pass_with_the_runtime_as_a_package_from_elsewhere(project: BakedProject) -> None:
    elsewhere = project.path.parent / "elsewhere"
    elsewhere.mkdir()
    (project.path / "space_runtime").rename(elsewhere / "space_runtime")
    done = project.run("python", "-m", "pytest", "--verbose", environ=NO_PLUGINS | {"PYTHONPATH": str(elsewhere)})
    assert "[postgresql" in done.stdout
    assert " SKIPPED" not in done.stdout


# What somebody may write into a file, and what the test of the architecture then says.
BREACHES = {
    "space_runtime/reasons.py": ("import src.main", "pass it as an argument"),
    "space_runtime/settings.py": ("from space_runtime.runtime import Runtime", "let the part above pass in"),
    "space_runtime/runtime.py": ("SQLITE = 'sqlite' == engine.dialect.name", "ask backend_of(engine) instead"),
    "src/items/models.py": ("import src.main", "nothing may import it"),
    "src/items/service.py": ("from fastapi import HTTPException", "raise an error of your own"),
}


@pytest.mark.slow
def test_where_the_wall_or_the_front_matter_is_broken_its_test_says_what_to_do(project: BakedProject) -> None:
    for file, (line, _) in BREACHES.items():
        # never run, since only the text is looked at
        (project.path / file).write_text(f"{project.read(file)}\n\ndef _broken() -> None:\n    {line}\n")
    readme = project.path / "README.md"
    readme.write_text(readme.read_text().replace('sdk: "docker"', "sdk: gradio"))
    done = project.run("python", "-m", "pytest", "tests/test_architecture.py", environ=NO_PLUGINS, check=False)
    assert f"{len(BREACHES) + 1} failed" in done.stdout
    assert [told for _, told in BREACHES.values() if told not in done.stdout] == []
    assert "sdk: docker is required" in done.stdout


@pytest.mark.slow
@pytest.mark.thorough
def test_the_sample_can_be_removed_as_the_readme_says(project: BakedProject) -> None:
    shutil.rmtree(project.path / "src" / "items")
    (project.path / "tests" / "test_items.py").unlink()
    for name, count in {"src/main.py": 2, "migrations/env.py": 1}.items():
        lines = project.read(name).splitlines(keepends=True)
        kept = [line for line in lines if "items" not in line]
        assert len(lines) - len(kept) == count
        (project.path / name).write_text("".join(kept))
    # as if `make dev` had installed what the tests have
    (project.path / ".venv").mkdir()
    (project.path / ".venv" / "ready").touch()
    programs = f"BIN={Path(sys.executable).parent}"
    project.run("make", "migration", "m=drop items", programs)
    (migration,) = (project.path / "migrations" / "versions").glob("*_drop_items.py")
    assert 'op.drop_table("items")' in migration.read_text()
    done = project.run("python", "-m", "pytest", "--verbose", environ=NO_PLUGINS)
    assert " SKIPPED" not in done.stdout
    project.run("make", "check", programs, environ={"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "without-the-sample")})
    with project.boot(in_place=True) as server:
        assert server.settled()["status"] == "ok"
        assert server.get("/api/items").status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize(
    "database_url", [pytest.param("sqlite", marks=pytest.mark.thorough), "postgresql"], indirect=True
)
def test_migrations_go_up_and_down_and_match_the_models(project: BakedProject, database_url: str) -> None:
    # as people type it
    project.run("alembic", "upgrade", "head", environ={"DATABASE_URL": database_url})
    for command in ("downgrade base", "upgrade head", "check"):
        done = project.run("python", "-m", "alembic", *command.split(), environ={"DATABASE_URL": database_url})
        assert "secret" not in done.stdout
    assert "No new upgrade operations detected" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.thorough)], indirect=True
)
def test_a_model_without_its_migration_is_noticed(project: BakedProject, database_url: str) -> None:
    models = project.path / "src" / "items" / "models.py"
    models.write_text(models.read_text() + "\n    forgotten: Mapped[int | None]\n")
    environ = {"DATABASE_URL": database_url}
    project.run("python", "-m", "alembic", "upgrade", "head", environ=environ)
    done = project.run("python", "-m", "alembic", "check", environ=environ, check=False)
    assert done.returncode != 0
    assert "forgotten" in done.stdout


def test_every_verb_of_its_makefile_is_listed_by_make_help(project: BakedProject) -> None:
    listed = project.run("make").stdout
    for verb in ("dev", "test", "check", "migration", "routes", "lock", "deploy", "help"):
        assert f"make {verb}" in listed
