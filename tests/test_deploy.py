"""`make deploy` puts a project online and tells the truth, against a Hub on loopback that builds by serving."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml

from tests.support.bakery import BakedProject, Bakery
from tests.support.edge import edge
from tests.support.hub import (
    GITHUB_TOKEN,
    OWNER,
    READ_ONLY_TOKEN,
    TOKEN,
    File,
    Hub,
    Refused,
    Repository,
    Space,
    XetFile,
    running_hub,
)
from tests.support.leaks import check_no_secret_in
from tests.support.parsing import front_matter_problems
from tests.support.processes import bare_environment
from tests.support.server import IMPATIENT, serve

SPACE = f"{OWNER}/my-space"
API_TOKEN = "a-secret-that-writes"  # noqa: S105
PASSWORD = "pass-word-of-postgres"  # noqa: S105
DATABASE_URL = f"postgresql://user:{PASSWORD}@127.0.0.1:1/app"
SECRETS = (API_TOKEN, PASSWORD, DATABASE_URL, TOKEN)
QUICK = ("--poll-seconds", "0.02")
PATIENT = ("--poll-seconds", "0.2")
OLD = "0" * 40


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def project(bake: Bakery, tmp_path: Path) -> BakedProject:
    """A fresh project in which a person has worked: secrets, databases and caches lie about."""
    project = bake(hf_username=OWNER).copy_to(tmp_path)
    (project.path / ".env").write_text(f"API_TOKEN={API_TOKEN}\nDATABASE_URL={DATABASE_URL}\n")
    (project.path / "data").mkdir()
    for name in ("data/app.db", "old.sqlite3", ".venv/secret", ".git/config", "src/__pycache__/main.pyc", "server.pem"):
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).write_text(API_TOKEN)
    return project


class Builder:
    """Does what the Hub's machines do: puts the files of a commit on a disk and runs them, secrets and all."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        """`folder` receives the builds."""
        self.hub = hub
        self.folder = folder
        self.started: list[str] = []
        # where the packages are that the lock names
        self.installed: dict[str, str] = {}
        # for who asks seldom
        self.says_nothing_until_it_serves = False
        self._running = ExitStack()
        self._threads: list[threading.Thread] = []
        hub.after_change = self.begin

    def begin(self, name: str) -> None:
        """Build in the background, as after a push."""
        space = self.hub.spaces[name]
        space.states = [("RUNNING_BUILDING", OLD) if space.address else ("BUILDING", "")]
        thread = threading.Thread(target=self.build, args=(name,))
        thread.start()
        self._threads.append(thread)

    def build(self, name: str) -> None:
        """Write what the Dockerfile copies of the newest commit and serve it with the Space's secrets."""
        repository, space = self.hub.repositories[f"spaces/{name}"], self.hub.spaces[name]
        self.started.append(repository.sha)
        folder = self.folder / f"build-{len(self.started)}"
        dockerfile = repository.files["Dockerfile"]
        assert isinstance(dockerfile, bytes)
        copied = re.findall(r"^COPY --chown=1000:1000 (.*) \S+$", dockerfile.decode(), re.MULTILINE)
        sources = " ".join(copied).replace("apt.tx[t]", "apt.txt").split()
        for path, content in repository.files.items():
            if not path.startswith(tuple(sources)):
                continue
            assert isinstance(content, bytes), path
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        environ = {"SPACE_ID": name, **IMPATIENT, **self.installed, **space.secrets}
        server = self._running.enter_context(serve(folder, environ))
        space.address = server.url
        if self.says_nothing_until_it_serves:
            server.settled()
            space.states = [("RUNNING", repository.sha)]
        else:
            space.states = [("APP_STARTING", ""), ("RUNNING", repository.sha)]

    def stop(self) -> None:
        """End all apps, whose logs must not hold a secret."""
        for thread in self._threads:
            thread.join(60)
        self._running.close()


@pytest.fixture
def builder(hub: Hub, tmp_path: Path) -> Iterator[Builder]:
    builder = Builder(hub, tmp_path)
    yield builder
    builder.stop()


def deploy(
    project: BakedProject, hub: Hub, *options: str, environ: Mapping[str, str | None] | None = None, space: str = SPACE
) -> subprocess.CompletedProcess[str]:
    """Run the tool, and fail if it prints a secret or a traceback."""
    variables = {**hub.environ, "API_TOKEN_OF_SHELL": API_TOKEN, **(environ or {})}
    done = project.run(
        "python", "-m", "tools.deploy", space, *QUICK, *options,
        environ={name: value for name, value in variables.items() if value is not None}, check=False, timeout=90,
    )  # fmt: skip
    check_no_secret_in(done.stdout.encode(), SECRETS)
    assert "Traceback" not in done.stdout, done.stdout
    return done


def when(holds: Callable[[], bool], then: Callable[[], object]) -> None:
    """Do something in the background as soon as something is true."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not holds():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        then()

    threading.Thread(target=watch, daemon=True).start()


def asked(hub: Hub, path: str) -> int:
    """How often somebody asked the Hub for what ends like this."""
    return sum(call.path.endswith(path) for call in hub.calls)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.splitlines()[-1]


def give_secrets(project: BakedProject, text: str = f"API_TOKEN={API_TOKEN}\n") -> None:
    (project.path / ".env.space").write_text(text)


QUESTIONS = re.compile(r"(GET|HEAD) .*|POST /api/validate-yaml|POST /api/spaces/.*/preupload/main")


def changes(hub: Hub) -> list[str]:
    """The calls that change something on the Hub, or might."""
    calls = [f"{call.method} {call.path}" for call in hub.calls]
    return [call for call in calls if not QUESTIONS.fullmatch(call)]


@pytest.fixture
def space(hub: Hub, bake: Bakery) -> Space:
    """A Space that already holds the project and runs it."""
    rendered = bake(hf_username=OWNER)
    files: dict[str, File] = {name: (rendered.path / name).read_bytes() for name in rendered.files()}
    hub.repositories[f"spaces/{SPACE}"] = Repository({".gitattributes": b"", **files}, ["initial commit", "Deploy"])
    hub.spaces[SPACE] = Space(states=[("RUNNING", "new")])
    return hub.spaces[SPACE]


def with_the_rest_thorough(cases: Sequence[tuple[Any, ...]], first: int) -> list[Any]:
    """The cases, of which `make test` runs the first ones only: each is a process of its own."""
    rest = [pytest.param(*case, marks=pytest.mark.thorough) for case in cases[first:]]
    return [*cases[:first], *rest]


# from nothing to online


@pytest.mark.slow
def test_a_fresh_project_goes_online_with_one_command(hub: Hub, builder: Builder, project: BakedProject) -> None:
    give_secrets(project, f"API_TOKEN={API_TOKEN}\nDATABASE_URL='{DATABASE_URL}'\n")
    make_venv_ready(project)
    # `make deploy` asks every five seconds
    builder.says_nothing_until_it_serves = True
    done = project.run("make", "deploy", environ=hub.environ, timeout=120)
    check_no_secret_in(done.stdout.encode(), SECRETS)
    steps = [line.split()[0] for line in done.stdout.splitlines()]
    assert list(dict.fromkeys(steps)) == ["check", "create", "secrets", "upload", "build", "health", "online"]
    assert "degraded: " in done.stdout
    assert last_line(done).endswith(f"{hub.url}/served/{SPACE}")
    assert hub.spaces[SPACE].secrets == {"API_TOKEN": API_TOKEN, "DATABASE_URL": DATABASE_URL}
    assert hub.repositories[f"spaces/{SPACE}"].settings == {
        "name": "my-space", "organization": OWNER, "type": "space", "sdk": "docker",
    }  # fmt: skip
    assert hub.refused == []


def make_venv_ready(project: BakedProject) -> None:
    """Let `make` use the tests' own interpreter instead of installing for a minute."""
    programs = project.path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    (project.path / ".venv" / "ready").touch()


def test_what_is_uploaded_is_the_project_and_no_secret(hub: Hub, project: BakedProject, bake: Bakery) -> None:
    give_secrets(project)
    deploy(project, hub)
    files = hub.repositories[f"spaces/{SPACE}"].files
    assert set(files) == {*bake(hf_username=OWNER).files(), ".gitattributes"}
    for path, content in files.items():
        assert isinstance(content, bytes)
        assert content == (project.path / path).read_bytes() if path != ".gitattributes" else True
        check_no_secret_in(content, SECRETS)


@pytest.mark.slow
def test_a_second_deploy_changes_nothing(hub: Hub, builder: Builder, project: BakedProject) -> None:
    give_secrets(project)
    assert deploy(project, hub, *PATIENT).returncode == 0
    hub.calls.clear()
    done = deploy(project, hub, *PATIENT)
    assert done.returncode == 0
    assert "nothing has changed" in done.stdout
    assert "API_TOKEN (to set again" in done.stdout
    assert "ok: " in done.stdout
    assert changes(hub) == []
    assert len(builder.started) == 1


def test_a_dry_run_only_asks_and_says_what_would_be_done(hub: Hub, project: BakedProject) -> None:
    give_secrets(project)
    done = deploy(project, hub, "--dry-run")
    assert done.returncode == 0
    assert changes(hub) == []
    assert hub.repositories == {}
    for said in ("would create the Docker Space", "would set API_TOKEN", "+ src/main.py", "would wait"):
        assert said in done.stdout
    assert ".env\n" not in done.stdout


def test_a_dry_run_lists_what_differs_from_the_space(hub: Hub, project: BakedProject, space: Space) -> None:
    (project.path / "src" / "extra.py").write_text("# new\n")
    (project.path / "src" / "main.py").write_text("# changed\n")
    (project.path / "Makefile").unlink()
    done = deploy(project, hub, "--dry-run")
    listed = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("upload ")]
    assert listed == ["+ src/extra.py", "+ src/main.py", "- Makefile", "2 files to send, 1 to delete"]
    assert changes(hub) == []


def test_a_password_that_is_a_plain_word_is_not_taken_for_a_leak(hub: Hub, project: BakedProject, space: Space) -> None:
    (project.path / ".env").write_text("DATABASE_URL=postgresql://postgres:postgres@localhost:5432/app\n")
    assert deploy(project, hub, "--dry-run").returncode == 0


def test_private_files_of_other_programs_stay_here(hub: Hub, project: BakedProject, space: Space) -> None:
    for name in (".envrc", ".pgpass", "id_ed25519", ".aws/credentials", "client.p12"):
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).write_text("private\n")
    assert "nothing has changed" in deploy(project, hub, "--dry-run").stdout


def test_a_space_of_another_kind_is_left_alone(hub: Hub, project: BakedProject, space: Space) -> None:
    hub.sdk = "gradio"
    done = deploy(project, hub)
    assert (done.returncode, last_line(done).partition(" is a ")[2]) == (
        1,
        "gradio Space: name another with SPACE=user/name.",
    )
    assert changes(hub) == []


@pytest.mark.slow
def test_a_changed_file_is_sent_and_a_deleted_one_goes(hub: Hub, builder: Builder, project: BakedProject) -> None:
    assert deploy(project, hub, *PATIENT).returncode == 0
    hub.calls.clear()
    (project.path / "src" / "extra.py").write_text("# new\n")
    (project.path / "LICENSE.txt").write_text("Mine\n")
    (project.path / "Makefile").unlink()
    done = deploy(project, hub, *PATIENT)
    assert done.returncode == 0
    assert "2 files to send, 1 to delete" in done.stdout
    files = hub.repositories[f"spaces/{SPACE}"].files
    assert {"src/extra.py", "LICENSE.txt", ".gitattributes"} <= set(files)
    assert "Makefile" not in files
    (commit,) = [call for call in hub.calls if "/commit/" in call.path]
    assert len(commit.body.splitlines()) == 4


def test_a_file_that_is_no_text_is_sent_once(hub: Hub, project: BakedProject) -> None:
    (project.path / "picture.png").write_bytes(b"\x89PNG\0")
    (project.path / ".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    deploy(project, hub)
    assert isinstance(hub.repositories[f"spaces/{SPACE}"].files["picture.png"], XetFile)
    hub.calls.clear()
    done = deploy(project, hub)
    assert "nothing has changed since commit" in done.stdout
    # its content may be offered to the storage again, which has it
    assert [call for call in changes(hub) if "/cas/" not in call] == []


def test_a_secret_that_is_there_is_set_again_only_when_named(hub: Hub, project: BakedProject, space: Space) -> None:
    space.secrets["API_TOKEN"] = API_TOKEN
    space.states = [("PAUSED", "")]
    give_secrets(project, "API_TOKEN=another-secret-that-writes\nSECOND_TOKEN=of-the-file\n")
    done = deploy(project, hub)
    assert space.secrets == {"API_TOKEN": API_TOKEN, "SECOND_TOKEN": "of-the-file"}
    deploy(project, hub, "--secrets", "API_TOKEN")
    assert "another-secret-that-writes" in space.secrets.values()
    assert "another-secret" not in done.stdout


def test_a_secret_may_come_from_the_environment(hub: Hub, project: BakedProject, space: Space) -> None:
    space.states = [("PAUSED", "")]
    options = ("--secrets", "API_TOKEN_OF_SHELL")
    deploy(project, hub, *options)
    assert space.secrets == {"API_TOKEN_OF_SHELL": API_TOKEN}


@pytest.mark.slow
def test_health_is_that_of_the_app_with_the_new_secret(hub: Hub, builder: Builder, project: BakedProject) -> None:
    """After a change of a secret alone, the old container answers for a while."""
    assert "ok: " in deploy(project, hub, *PATIENT).stdout
    give_secrets(project, f"DATABASE_URL={DATABASE_URL}\n")
    hub.calls.clear()
    hub.after_change = lambda name: when(lambda: asked(hub, "/health") > 2, lambda: builder.begin(name))
    done = deploy(project, hub, *PATIENT)
    assert "the old container still answers" in done.stdout
    assert "degraded: " in done.stdout
    assert len(builder.started) == 2


@pytest.mark.slow
def test_a_space_where_no_database_serves_is_a_failure(hub: Hub, builder: Builder, project: BakedProject) -> None:
    give_secrets(project, f"DATABASE_URL={DATABASE_URL}\nDATABASE_FALLBACK=strict\n")
    done = deploy(project, hub, *PATIENT)
    assert done.returncode == 1
    assert last_line(done).startswith("No database serves: ")


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False])
def test_the_token_goes_to_the_app_of_a_private_space_only(
    hub: Hub, builder: Builder, project: BakedProject, space: Space, private: bool
) -> None:
    space.private = private
    builder.begin(SPACE)
    done = deploy(project, hub, *PATIENT)
    assert done.returncode == 0, done.stdout
    calls = [call for call in hub.calls if call.path == f"/served/{SPACE}/health"]
    assert {call.headers.get("authorization") for call in calls} == {f"Bearer {TOKEN}" if private else None}


@pytest.mark.slow
def test_an_interrupted_deploy_goes_on(hub: Hub, project: BakedProject, tmp_path: Path) -> None:
    give_secrets(project)
    hub.after_change = lambda name: setattr(hub.spaces[name], "states", [("BUILDING", "")])
    with tmp_path.joinpath("output").open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tools.deploy", SPACE, *QUICK],
            cwd=project.path, env=bare_environment(tmp_path) | hub.environ, stdout=output, stderr=output,
        )  # fmt: skip
    until(lambda: asked(hub, "/runtime") > 0)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    text = tmp_path.joinpath("output").read_text()
    assert text.splitlines()[-1].startswith("Interrupted: ")
    assert "Traceback" not in text
    builder = Builder(hub, tmp_path)
    builder.begin(SPACE)
    hub.calls.clear()
    assert deploy(project, hub).returncode == 0
    builder.stop()
    assert changes(hub) == []


def until(holds: Callable[[], bool], patience: float = 30) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# what must be changed here first


def test_all_that_must_be_changed_here_is_said_at_once(hub: Hub, project: BakedProject) -> None:
    (project.path / "Dockerfile").unlink()
    readme = project.path / "README.md"
    readme.write_text(readme.read_text().replace('sdk: "docker"', "sdk: gradio"))
    (project.path / "src" / "leak.py").write_text(f"TOKEN = '{API_TOKEN}'\n")
    done = deploy(project, hub, environ={"HF_TOKEN": None}, space="your-username/my-space")
    assert done.returncode == 2
    leak = "src/leak.py holds the value of API_TOKEN"
    for said in ("SPACE=user/name", "Dockerfile is missing", "sdk: docker", "no token", leak):
        assert said in done.stdout
    assert hub.calls == []


NO_SPACES = [
    ("my-space", "SPACE=user/name"), ("a--b/c", "--"), ("a/b/c", "namespace"), ("a/b.git", ".git"), ("a b/c", "chars"),
    ("a/-b", "start"), (f"a/{'b' * 97}", "96"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), with_the_rest_thorough(NO_SPACES, 2))
def test_a_name_that_no_space_can_have_is_refused(hub: Hub, project: BakedProject, name: str, said: str) -> None:
    done = deploy(project, hub, space=name)
    assert (done.returncode, hub.calls) == (2, [])
    assert done.stdout.startswith("Nothing was sent: ")
    assert name in done.stdout
    assert said in done.stdout


def test_no_token_is_one_sentence(hub: Hub, project: BakedProject) -> None:
    done = deploy(project, hub, environ={"HF_TOKEN": None})
    assert done.returncode == 2
    assert done.stdout.startswith("Nothing was sent: no token: ")
    assert len(done.stdout.splitlines()) == 1


def test_a_secret_without_a_value_is_refused(hub: Hub, project: BakedProject) -> None:
    give_secrets(project, "API_TOKEN=\n")
    done = deploy(project, hub)
    assert (done.returncode, hub.calls) == (2, [])
    assert last_line(done).startswith("Nothing was sent: .env.space, line 1: ")


SECRETS_OF_ANY_NAME = {
    "STRIPE": "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "SENTRY_DSN": "https://4eC39HqLyj@o1.ingest.example/5",
    "API_TOKEN": "correcthorsebatterystaple",
}


def test_a_secret_of_any_name_is_found_in_the_code(hub: Hub, project: BakedProject) -> None:
    # settings of the runtime, whose values stand in .env.example, are no secrets
    ordinary = "PUBLIC_LIMIT=120/minute\nCORS_ORIGINS=https://example.com\nDATABASE_URL=sqlite:///data/app.db\nPLAIN=migrations\n"
    give_secrets(project, ordinary + "".join(f"{name}={value}\n" for name, value in SECRETS_OF_ANY_NAME.items()))
    (project.path / "src" / "x.py").write_text(repr(SECRETS_OF_ANY_NAME))
    done = deploy(project, hub)
    assert (done.returncode, hub.calls) == (2, [])
    told = [line.strip().partition(", ")[0] for line in done.stdout.splitlines()[1:]]
    assert told == [f"src/x.py holds the value of {name}" for name in sorted(SECRETS_OF_ANY_NAME)]


def test_a_secret_with_which_the_app_would_not_start_is_refused(hub: Hub, project: BakedProject) -> None:
    give_secrets(project, "API_TOKEN=short\nPOOL_SIZE=many\nMINE=x\n")
    done = deploy(project, hub, environ={"LOG_LEVEL": "loud"})
    assert (done.returncode, hub.calls) == (2, [])
    assert "API_TOKEN must be at least 8 characters." in done.stdout
    assert "POOL_SIZE must be a whole number from 1 to 100." in done.stdout
    assert "LOG_LEVEL" not in done.stdout
    assert "MINE" not in done.stdout
    assert "many" not in done.stdout


def test_ignored_folders_of_its_owner_stay_here(hub: Hub, project: BakedProject) -> None:
    inner = project.path / "notes"
    inner.mkdir()
    (inner / ".gitignore").write_text("*.txt\n!kept.txt\n")
    (project.path / "public.txt").write_text("public")
    for name in ("diary.txt", "kept.txt", "id_rsa"):
        (inner / name).write_text(name)
    (project.path / "outside").symlink_to("/etc/hostname")
    deploy(project, hub)
    files = set(hub.repositories[f"spaces/{SPACE}"].files)
    assert {name for name in files if name.endswith((".txt", "id_rsa", "outside"))} == {
        "public.txt", "notes/kept.txt", "requirements.txt", "requirements-dev.txt"
    }  # fmt: skip


def test_a_built_page_is_sent_although_its_own_gitignore_names_it(hub: Hub, project: BakedProject) -> None:
    (project.path / "web" / ".gitignore").write_text("node_modules\ndist\ndist-ssr\n*.local\n")
    names = ["dist/index.html", "dist/assets/app.js", "dist/.env", "dist-ssr/a.js", "dist-ssr/b.js", "x.local"]
    for name in [*names, "node_modules/react/index.js", "src/app.tsx", "package.json"]:
        (project.path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (project.path / "web" / name).write_text("x")
    for name in ("src/model.db", "a.pem", "b.pem", "c.pem", "d.pem"):
        (project.path / name).touch()
    (project.path / "src" / "linked").symlink_to(project.path / "migrations")
    done = deploy(project, hub)
    files = set(hub.repositories[f"spaces/{SPACE}"].files)
    assert {name.removeprefix("web/") for name in files if name.startswith("web/")} == {
        ".gitignore", "README.md", "dist/assets/app.js", "dist/index.html", "package.json", "src/app.tsx"
    }  # fmt: skip
    told = next(line for line in done.stdout.splitlines() if "stays here: " in line)
    named = "web/dist/.env, src/model.db, web/dist-ssr/, web/x.local, a.pem, 7 more"
    assert told.partition("stays here: ")[2] == f"{named} (LIST=1 says why)"


def test_what_the_image_would_lack_is_said_before_anything_is_sent(hub: Hub, project: BakedProject) -> None:
    (project.path / "web" / "README.md").rename(project.path / "web" / "package.json")
    (project.path / "web" / "package.json").write_text('{"scripts": {"build": "vite build"}}')
    (project.path / "migrations" / ".gitignore").write_text("*\n")
    done = deploy(project, hub)
    assert (done.returncode, hub.calls) == (2, [])
    assert "web/dist/index.html is missing: npm --prefix web run build" in done.stdout
    assert "migrations/, which the Dockerfile copies, is empty here" in done.stdout


def test_code_that_the_image_would_lack_is_named_before_anything_is_sent(hub: Hub, project: BakedProject) -> None:
    for name in (
        "training/fit.py",
        "helpers.py",
        "tests/yaml.py",
        "unused/it.py",
        "yaml/prepare.py",
        "src/voices/__init__.py",
    ):
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).touch()
    text = (
        "import os, yaml\nfrom migrations import env\nfrom . import sub\ndef f():\n    from training.fit import fit\n"
    )
    (project.path / "src" / "voices" / "router.py").write_text(f"{text}    import helpers.more; '\\d'\n")
    (project.path / "src" / "broken.py").write_bytes(b"\0 no Python")
    done = deploy(project, hub)
    assert (done.returncode, hub.calls) == (2, [])
    assert [line.strip(" .") for line in done.stdout.splitlines()[1:]] == [
        f"src/voices/router.py imports {name}, which the Dockerfile does not copy: move it into src/"
        for name in ("helpers", "training")
    ]
    with (project.path / "Dockerfile").open("a") as dockerfile:
        dockerfile.write('COPY ["./training/", \\\n"helpers.py", "./"]\n')
        # nothing of this folder, and what Docker allows
        dockerfile.write("COPY --chown=1000:1000 --from=page /dist/ web/dist/\nADD https://example.com/a.git/ /srv/a\n")
        dockerfile.write("copy\t/training/ training/ \n")
    assert deploy(project, hub, "--dry-run").returncode == 0


UNLOCKED = """\
gradio>=5  # a demo
FastAPI<0.1
sqlalchemy[asyncio]>=2  # is locked, as are those below
pydantic_settings; python_version > "3"
nothing; python_version < "3"
plotter @ https://packages.example/plotter-1.0-py3-none-any.whl
--extra-index-url https://packages.example/simple
-r more.txt
https://packages.example/another-1.0-py3-none-any.whl
"""


def test_a_package_that_is_not_in_the_lock_is_named_before_anything_is_sent(hub: Hub, project: BakedProject) -> None:
    (project.path / "requirements.txt").write_text(UNLOCKED)
    with (project.path / "requirements.lock").open("a") as lock:
        lock.write("plotter @ https://packages.example/plotter-1.0-py3-none-any.whl --hash=sha256:0\n")
    done = deploy(project, hub)
    assert (done.returncode, hub.calls) == (2, [])
    sentence = "requirements.lock has no gradio, FastAPI such as requirements.txt asks for: make lock"
    assert done.stdout == f"Nothing was sent: {sentence}.\n"


# what the Hub refuses

REFUSALS: list[tuple[str, Refused, str]] = [
    ("GET /api/spaces/.*", Refused(401, "Invalid credentials in Authorization header"), "does not know the token"),
    ("POST /api/repos/create", Refused(402, "Docker Spaces require PRO"), "paid plan"),
    ("POST /api/spaces/.*/commit/main", Refused(409, "Conflict"), "taken or just changing"),
    ("POST /api/spaces/.*/secrets", Refused(400, "MY-KEY is not allowed"), "fix what it names"),
    ("POST /api/repos/create", Refused(500, "Internal"), "https://status.huggingface.co"),
    ("POST /api/repos/create", Refused(403, "Forbidden"), "may not write to example/my-space"),
    ("POST /api/repos/create", Refused(409, "You already created this repo"), "taken or just changing"),
    ("POST /api/repos/create", Refused(429, "Too many requests"), "wait five minutes"),
    ("GET /api/spaces/.*", Refused(429, "Too many requests"), "wait five minutes"),
    ("POST /api/spaces/.*/commit/main", Refused(403, "Forbidden"), "may not write to example/my-space"),
    ("POST /api/spaces/.*/secrets", Refused(403, "Forbidden"), "may not write to example/my-space"),
    (
        "POST /api/spaces/.*/commit/main",
        Refused(412, "A commit has happened since"),
        "Somebody else pushed to example/my-space",
    ),
    ("POST /api/spaces/.*/commit/main", Refused(413, "Payload too large"), "the largest is src/big.bin, 9.0 MB"),
]


@pytest.mark.parametrize(("call", "refusal", "said"), with_the_rest_thorough(REFUSALS, 5))
def test_what_the_hub_refuses_is_one_sentence(
    hub: Hub, project: BakedProject, call: str, refusal: Refused, said: str
) -> None:
    give_secrets(project)
    if refusal.status == 413:
        (project.path / "src" / "big.bin").write_text("x" * 9_000_000)
        # goes to the storage, not into the request
        (project.path / "photo.png").write_bytes(b"\x89PNG\0" + os.urandom(10_000_000))
    hub.refusals[call] = refusal
    done = deploy(project, hub)
    assert done.returncode == 1
    assert said in last_line(done)
    assert f"hub      {refusal.message}\n" in done.stdout
    assert sentences_after_the_steps(done) == 1


def test_a_secret_that_is_a_variable_too_is_refused_before_it_takes_the_space_down(
    hub: Hub, project: BakedProject, space: Space
) -> None:
    space.variables["LOG_LEVEL"] = "info"
    give_secrets(project, "LOG_LEVEL=debug\nMINE=something\n")
    done = deploy(project, hub)
    assert (done.returncode, space.secrets) == (1, {})
    assert last_line(done).startswith("LOG_LEVEL: a variable of the Space, too")


def test_what_the_hub_says_of_a_space_that_cannot_start_is_shown(hub: Hub, project: BakedProject, space: Space) -> None:
    space.states, space.problem = [("BUILDING", ""), ("CONFIG_ERROR", "")], "Collision on names."
    done = deploy(project, hub)
    assert done.returncode == 1
    assert "hub      Collision on names.\n" in done.stdout


def sentences_after_the_steps(done: subprocess.CompletedProcess[str]) -> int:
    steps = ("check ", "create ", "secrets ", "upload ", "build ", "log ", "hub ", "health ", "online ")
    return sum(not line.startswith(steps) for line in done.stdout.splitlines())


def test_a_space_that_exists_needs_no_plan(hub: Hub, project: BakedProject, space: Space) -> None:
    hub.refusals["POST /api/repos/create"] = Refused(402, "Docker Spaces require PRO")
    done = deploy(project, hub, "--dry-run")
    assert done.returncode == 0


def test_a_read_only_token_and_a_wrong_namespace_are_told_apart_from_nothing(hub: Hub, project: BakedProject) -> None:
    reading = deploy(project, hub, environ={"HF_TOKEN": READ_ONLY_TOKEN})
    assert "may not write to example/my-space (403)" in last_line(reading)
    foreign = deploy(project, hub, space="somebody/my-space")
    assert "may not write to somebody/my-space (403)" in last_line(foreign)


def test_metadata_that_only_the_hub_refuses_is_shown_in_its_words(hub: Hub, project: BakedProject) -> None:
    words = '"emoji" must be a single character that we like'
    hub.refusals["POST /api/validate-yaml"] = Refused(400, words)
    done = deploy(project, hub)
    assert done.returncode == 1
    assert f"hub      {words}\n" in done.stdout
    assert last_line(done).startswith("The Hub refuses the front matter of README.md: ")


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_the_hub_judges_the_front_matter_before_anything_changes(
    hub: Hub, project: BakedProject, options: list[str]
) -> None:
    give_secrets(project)
    readme = project.path / "README.md"
    text = readme.read_text().replace('colorTo: "green"', "colorTo: orange")
    readme.write_text(re.sub("short_description: .*", f"short_description: {chr(0x1F680) * 31}", text))
    done = deploy(project, hub, *options)
    assert done.returncode == 1
    for words in ('"short_description" length must be', '"colorTo" must be one of'):
        assert words in done.stdout
    assert sentences_after_the_steps(done) == 1
    assert (changes(hub), hub.repositories) == ([], {})


def test_what_the_hub_warns_of_is_shown(hub: Hub, project: BakedProject) -> None:
    hub.warnings = ["empty or missing yaml metadata"]
    assert "hub      empty or missing yaml metadata\n" in deploy(project, hub, "--dry-run").stdout


@pytest.mark.slow
def test_another_operation_without_end_is_not_waited_for_without_end(hub: Hub, project: BakedProject) -> None:
    words = "Cannot create repo: another conflicting operation is in progress"
    hub.refusals["POST /api/repos/create"] = Refused(409, words)
    done = deploy(project, hub, "--timeout-minutes", "0.03")
    assert done.returncode == 1
    assert last_line(done) == "Not done after 0.03 minutes: make deploy goes on from here."


def test_no_network_is_one_sentence(hub: Hub, project: BakedProject) -> None:
    done = deploy(project, hub, environ={"HF_ENDPOINT": "http://127.0.0.1:1"})
    assert done.returncode == 1
    assert last_line(done).startswith("The Hub cannot be reached: ")
    assert sentences_after_the_steps(done) == 1


# Some of these huggingface_hub cannot even be imported with.
NO_ADDRESSES = [
    f"https://user:{PASSWORD}@[bad", "huggingface.co", f"https://hub:{PASSWORD}", "https://a..b", "", "ftp://hub", "https://",
    "https://hub:0", "https://hub:99999", " https://huggingface.co",
]  # fmt: skip


@pytest.mark.parametrize(
    "address", [*NO_ADDRESSES[:2], *(pytest.param(a, marks=pytest.mark.thorough) for a in NO_ADDRESSES[2:])]
)
def test_an_address_that_is_none_is_one_sentence_without_it(hub: Hub, project: BakedProject, address: str) -> None:
    done = deploy(project, hub, environ={"HF_ENDPOINT": address})
    sentence = "HF_ENDPOINT: not the address of a Hub: it must be https://host; or unset it"
    assert (done.returncode, done.stdout) == (2, f"Nothing was sent: {sentence}.\n")


def test_another_variable_that_huggingface_hub_cannot_read_is_one_sentence(hub: Hub, project: BakedProject) -> None:
    done = deploy(project, hub, environ={"HF_HUB_ETAG_TIMEOUT": "soon"})
    assert done.returncode == 2
    named = "HF_ENDPOINT, HF_HUB_DISABLE_TELEMETRY, HF_HUB_ETAG_TIMEOUT, HF_TOKEN"
    sentence = f"huggingface_hub cannot use one of these variables; correct or unset it: {named}"
    assert f"Nothing was sent: {sentence}.\n" in done.stdout
    assert hub.calls == []


@pytest.mark.parametrize(("name", "kind"), [("ALL_PROXY", "socks5://{}127.0.0.1:1"), ("https_proxy", "http://{}[bad")])
def test_a_proxy_that_cannot_be_used_is_named_and_its_password_is_not(
    hub: Hub, project: BakedProject, name: str, kind: str
) -> None:
    done = deploy(project, hub, environ={name: kind.format(f"user:{PASSWORD}@")})
    assert done.returncode == 2
    assert last_line(done).startswith(f"Nothing was sent: {name}: not a proxy that can be used here")
    assert hub.calls == []


@pytest.mark.slow
@pytest.mark.parametrize("is_there", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_storage_that_does_not_work_is_one_sentence(
    hub: Hub, project: BakedProject, space: Space, is_there: bool
) -> None:
    (project.path / "picture.png").write_bytes(b"\x89PNG\0")
    if is_there:
        hub.refusals["POST /cas/.*"] = Refused(500, "Internal")
    else:
        hub.storage.url = "http://127.0.0.1:1/cas"
    # Otherwise its client tries for six minutes.
    impatient = {"HF_XET_CLIENT_RETRY_MAX_DURATION": "1s", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    done = deploy(project, hub, environ=impatient)
    assert done.returncode == 1
    assert last_line(done).startswith("The Hub's storage of files that are not text fails: ")
    assert sentences_after_the_steps(done) == 1


def test_certificates_that_cannot_be_read_are_named_by_their_variable(hub: Hub, project: BakedProject) -> None:
    done = deploy(project, hub, environ={"REQUESTS_CA_BUNDLE": "/nowhere/company.pem"})
    assert done.returncode == 2
    assert "REQUESTS_CA_BUNDLE: the certificates that it names cannot be read" in done.stdout


@pytest.mark.parametrize(
    "variable",
    [
        "REQUESTS_CA_BUNDLE",
        pytest.param("CURL_CA_BUNDLE", marks=pytest.mark.thorough),
        pytest.param("SSL_CERT_FILE", marks=pytest.mark.thorough),
    ],
)
def test_a_companys_authority_is_trusted_for_the_variable_that_names_it(
    hub: Hub, project: BakedProject, space: Space, tmp_path: Path, variable: str
) -> None:
    authority = tmp_path / "company.pem"
    (project.path / "picture.png").write_bytes(b"\x89PNG\0")
    space.states = [("PAUSED", "")]
    with edge(int(hub.url.rpartition(":")[2]), authority=authority) as port:
        hub.url = f"https://127.0.0.1:{port}"
        hub.storage.url = f"{hub.url}/cas"
        done = deploy(project, hub, environ={variable: str(authority)})
        assert last_line(done).startswith("The Space is paused"), done.stdout
        assert isinstance(hub.repositories[f"spaces/{SPACE}"].files["picture.png"], XetFile)
        unknown = deploy(project, hub, environ={variable: certifi.where()})
        none = deploy(project, hub)
    assert last_line(unknown).endswith(f"its authority must vouch for it: those in {variable} do not.")
    assert last_line(none).endswith("its authority must vouch for it: set SSL_CERT_FILE to a file that does.")


def test_settings_of_this_machine_that_are_not_utf_8_are_named_and_not_shown(hub: Hub, project: BakedProject) -> None:
    (project.path / ".env").write_bytes(b"API_TOKEN=geheimni\xdfvoll\n")
    done = deploy(project, hub)
    assert (done.returncode, done.stdout) == (2, "Nothing was sent: .env is not UTF-8: save it as that.\n")


def test_a_name_that_is_not_utf_8_is_named_before_anything_is_sent(hub: Hub, project: BakedProject) -> None:
    Path(os.fsdecode(os.fsencode(project.path / "src") + b"/caf\xe9.txt")).write_text("menu")
    done = deploy(project, hub)
    assert done.returncode == 2
    assert r"'src/caf\udce9.txt': rename this file" in done.stdout
    assert changes(hub) == []


def test_a_hub_that_says_nothing_is_left_in_time(hub: Hub, project: BakedProject) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = deploy(project, hub, "--timeout-minutes", "0.01", environ={"HF_ENDPOINT": endpoint})
    assert done.returncode == 1
    assert last_line(done).startswith("Not done after 0.01 minutes")


@pytest.mark.slow
def test_something_else_than_the_hub_is_one_sentence(hub: Hub, project: BakedProject, bake: Bakery) -> None:
    with bake().boot() as server:
        done = deploy(project, hub, environ={"HF_ENDPOINT": f"{server.url}/docs?"})
    assert done.returncode == 1
    assert sentences_after_the_steps(done) == 1


# what the Space does

SECRET_LOG = [
    f"connecting to {DATABASE_URL}",
    f"with {TOKEN} and {API_TOKEN}",
    "\x1b[31merror: it does not build\x1b[0m",
]
ENDS: list[tuple[str, str]] = [
    ("BUILD_ERROR", "could not be built"),
    ("RUNTIME_ERROR", "The app ended"),
    ("PAUSED", "is paused"),
    ("CONFIG_ERROR", "front matter"),
    ("NO_APP_FILE", "Dockerfile"),
    ("STOPPED", "is stopped"),
    ("SLEEPING", "sleeps"),
    ("DELETING", "is being deleted"),
]


@pytest.mark.parametrize(("stage", "said"), with_the_rest_thorough(ENDS, 3))
def test_a_space_that_cannot_run_ends_it_with_one_sentence(
    hub: Hub, project: BakedProject, space: Space, stage: str, said: str
) -> None:
    give_secrets(project)
    space.states = [("RUNNING_BUILDING", OLD), (stage, "")]
    space.logs = {"build": [*SECRET_LOG, "the end"], "run": [*SECRET_LOG, "the end"]}
    done = deploy(project, hub)
    assert done.returncode == 1
    assert said in last_line(done)
    assert sentences_after_the_steps(done) == 1
    assert ("| the end" in done.stdout) == stage.endswith(("BUILD_ERROR", "RUNTIME_ERROR"))
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_an_error_of_the_time_before_the_push_is_not_taken_for_one(
    hub: Hub, builder: Builder, project: BakedProject, space: Space
) -> None:
    (project.path / "src" / "extra.py").write_text("# mends it\n")
    hub.after_change = lambda name: when(lambda: asked(hub, "/runtime") > 1, lambda: builder.begin(name))
    space.states = [("BUILD_ERROR", OLD)]
    done = deploy(project, hub, *PATIENT)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_an_old_commit_that_still_runs_is_not_the_new_one(hub: Hub, project: BakedProject, space: Space) -> None:
    space.states = [("RUNNING", OLD)]
    done = deploy(project, hub, "--timeout-minutes", "0.1")
    assert done.returncode == 1
    assert last_line(done).startswith("The old commit 0000000 still runs after 0.1 minutes: ")
    assert asked(hub, "/runtime") > 2


def test_a_start_that_never_comes_ends_with_the_apps_log(hub: Hub, project: BakedProject, space: Space) -> None:
    space.states = [("APP_STARTING", "")]
    space.logs["run"] = ["listening on 8000"]
    # there is no time for a second question
    done = deploy(project, hub, "--timeout-minutes", "1", "--poll-seconds", "61")
    assert done.returncode == 1
    assert "| listening on 8000" in done.stdout
    assert last_line(done).startswith("The app has not started after 1 minutes: ")


@pytest.mark.slow
def test_a_hub_that_stumbles_while_it_builds_is_asked_again(hub: Hub, builder: Builder, project: BakedProject) -> None:
    hub.refusals = {"GET /api/spaces/.*/runtime": Refused(502, "Bad gateway")}
    # the Hub may be going through the old ones at this moment
    when(lambda: asked(hub, "/runtime") > 2, lambda: setattr(hub, "refusals", {}))
    done = deploy(project, hub, *PATIENT)
    assert done.returncode == 0
    assert "the Hub does not answer; asking again" in done.stdout


@pytest.mark.slow
def test_a_space_that_runs_and_does_not_answer_is_a_failure(hub: Hub, project: BakedProject, space: Space) -> None:
    done = deploy(project, hub)
    assert done.returncode == 1
    assert last_line(done).startswith("The commit runs, but ")


def test_a_log_that_is_not_handed_out_is_no_traceback(hub: Hub, project: BakedProject, space: Space) -> None:
    space.states = [("BUILD_ERROR", "")]
    hub.refusals["GET /api/spaces/.*/logs/.*"] = Refused(403, "SSE is not enabled")
    done = deploy(project, hub)
    assert "the Hub hands out no log" in done.stdout
    assert done.returncode == 1


# from GitHub, without a stored token


def github(hub: Hub) -> dict[str, str | None]:
    return {
        "HF_TOKEN": None,
        "HF_OIDC_RESOURCE": f"spaces/{SPACE}",
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{hub.url}/github/identity",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": GITHUB_TOKEN,
    }


@pytest.mark.slow
def test_a_trusted_workflow_deploys_without_a_stored_token(hub: Hub, builder: Builder, project: BakedProject) -> None:
    done = deploy(project, hub, *PATIENT, environ=github(hub))
    assert done.returncode == 0, done.stdout
    assert hub.refused == []


def test_a_workflow_that_is_not_trusted_is_told_where_to_be(hub: Hub, project: BakedProject) -> None:
    environ = github(hub) | {"HF_OIDC_RESOURCE": "spaces/example/another"}
    done = deploy(project, hub, environ=environ)
    assert done.returncode == 1
    assert last_line(done).startswith("The Hub does not trust this workflow: ")
    no_right = deploy(project, hub, environ=github(hub) | {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": None})
    assert last_line(no_right).startswith("No identity from GitHub: ")


@pytest.fixture(scope="module")
def workflow(bake: Bakery) -> dict[Any, Any]:
    read: dict[Any, Any] = yaml.safe_load(bake().read(".github/workflows/ci.yml"))
    return read


def test_the_workflow_tests_and_then_deploys_main_alone(workflow: dict[Any, Any]) -> None:
    job = workflow["jobs"]["deploy"]
    assert job["needs"] == "test"
    for condition in ("github.event_name == 'push'", "github.ref == 'refs/heads/main'"):
        assert condition in job["if"]
    assert [step["run"] for step in job["steps"] if "run" in step][1:] == ["make deploy"]
    assert job["concurrency"] == {"group": "deploy", "cancel-in-progress": False}


@pytest.mark.parametrize(("answers", "newest"), [("echo abc123", "newest=abc123\n"), ("exit 1", "")])
def test_the_workflow_puts_no_old_commit_over_a_newer_one(
    workflow: dict[Any, Any], tmp_path: Path, answers: str, newest: str
) -> None:
    ask, make_deploy = [step for step in workflow["jobs"]["deploy"]["steps"] if "run" in step]
    assert make_deploy["if"] == f"steps.{ask['id']}.outputs.newest == github.sha"
    # GitHub's own client cannot be had without GitHub: this one answers, or fails, in its place
    (tmp_path / "gh").write_text(f"#!/bin/sh\n{answers}\n")
    (tmp_path / "gh").chmod(0o755)
    output = tmp_path / "output"
    output.touch()
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_REPOSITORY": "me/my-space", "GITHUB_OUTPUT": str(output)}
    done = subprocess.run(["bash", "-e", "-c", ask["run"]], env=environ, check=False)  # noqa: S603, S607
    assert (done.returncode == 0, output.read_text()) == (newest != "", newest)


def test_the_workflow_does_nothing_until_a_variable_switches_it_on(workflow: dict[Any, Any]) -> None:
    job = workflow["jobs"]["deploy"]
    assert job["if"].startswith("vars.HF_SPACE != '' && ")
    assert "||" not in job["if"]
    environ = job["steps"][-1]["env"]
    assert environ == {"SPACE": "${{ vars.HF_SPACE }}", "HF_OIDC_RESOURCE": "spaces/${{ vars.HF_SPACE }}"}


def test_the_workflow_may_do_as_little_as_possible(workflow: dict[Any, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"]["test"]
    assert workflow["jobs"]["deploy"]["permissions"] == {"contents": "read", "id-token": "write"}
    text = json.dumps(workflow)
    assert "secrets." not in text
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert "uses" not in step or len(step["uses"].partition("@")[2]) == 40
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


# the front matter


DOCKERFILE = "FROM python\nEXPOSE 7860\nEXPOSE 1025\n"
GOOD = "title: x\nsdk: docker\n"
BAD: list[tuple[str, Sequence[str]]] = [
    ("# Title\n", ["it must open the file"]),
    ("\ufeff---\ntitle: x\nsdk: docker\n---\n", ["it must open the file"]),
    ("text\n---\ntitle: x\nsdk: docker\n---\n", ["it must open the file"]),
    ("---\ntitle: x\nsdk: docker\n", ["it must open the file"]),
    ("---\n- a\n---\n", ["it must be lines of key: value"]),
    ("---\njust text\n---\n", ["it must be lines of key: value"]),
    ("---\ntitle: My API: v2\n---\n", ["line 2 is no valid YAML"]),
    ("---\nsdk: docker\ntitle: @me\n---\n", ["line 3 is no valid YAML"]),
    ("---\ntitle: 2026-02-31\n---\n", ["line 2 is no valid YAML"]),
    ("---\nemoji: \U0001f680\n---\n", ["sdk: docker"]),
    ("---\ntitle: x\nsdk: gradio\n---\n", ["sdk: docker"]),
    ("---\ntitle: x\nsdk: Docker\napp_port: 80\n---\n", ["sdk: docker", "app_port: "]),
]
BAD_LINES = [
    "app_port: 80", "app_port: 1024", "app_port: 7861", "app_port: 65536", 'app_port: "7860"', "app_port: true",
    "app_port: 7860.0", "app_port:",
]  # fmt: skip
GOOD_LINES = [
    "app_port: 7860", "app_port: 1025",
    # what the Hub alone can judge: its lists grow
    "license: one-of-tomorrow", "colorFrom: orange", "suggested_hardware: h100", "key_of_tomorrow: 1",
]  # fmt: skip


@pytest.mark.parametrize(("readme", "begins"), BAD)
def test_a_bad_front_matter_is_named(readme: str, begins: Sequence[str]) -> None:
    problems = front_matter_problems(readme, DOCKERFILE)
    assert len(problems) == len(begins)
    assert all(problem.startswith(begin) for problem, begin in zip(problems, begins, strict=True)), problems


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_value_is_one_problem_that_names_its_key(line: str) -> None:
    (problem,) = front_matter_problems(f"---\n{GOOD}{line}\n---\n# X\n", DOCKERFILE)
    assert problem.startswith(f"{line.split(':')[0]}: ")


@pytest.mark.parametrize("line", GOOD_LINES)
def test_a_good_value_is_none(line: str) -> None:
    assert front_matter_problems(f"---\r\n{GOOD}{line}\n---\n# X\n", DOCKERFILE) == []


@pytest.mark.parametrize("dockerfile", ["FROM python\n", "FROM python\nEXPOSE $PORT\n", "EXPOSE 80 443\n"])
def test_a_port_that_the_dockerfile_does_not_tell_is_left_to_the_hub(dockerfile: str) -> None:
    assert front_matter_problems(f"---\n{GOOD}app_port: 8000\n---\n", dockerfile) == []


def test_a_front_matter_without_a_port_means_the_hubs_own() -> None:
    assert front_matter_problems(f"---\n{GOOD}---\n", DOCKERFILE) == []
    (problem,) = front_matter_problems(f"---\n{GOOD}---\n", "EXPOSE 8000\n")
    assert problem.startswith("app_port: ")
