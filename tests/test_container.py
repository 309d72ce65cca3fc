"""The image builds from a fresh render, runs as the Hub runs it, and holds only what runs."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.support.bakery import Bakery
from tests.support.load import SERVING, clients, titles_in, write
from tests.support.machine import base_image, need_base_image
from tests.support.processes import is_listening, reserved
from tests.test_stopping import SECONDS_ON_A_BUSY_MACHINE, SECONDS_TO_STOP

PORT = 7860
VERSIONS = ["3.14", "3.15", "3.13"]
# A change of code builds each anew.
IMAGES = [VERSIONS[0], *(pytest.param(version, marks=pytest.mark.thorough) for version in VERSIONS[1:])]
WITH_TEMP = ("--tmpfs", "/tmp")
# The Hub hands all variables of a Space to the build.
BUILD_ARGUMENT = "a-variable-of-the-space"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Image:
    """A built image."""

    engine: str
    name: str
    base: str
    project: Path

    def run(self, *command: str, user: str = "1000", base: bool = False) -> str:
        """What a command in a throw-away container prints, or in one of the base image."""
        name = self.base if base else self.name
        return engine_output(self.engine, "run", "--rm", "--network", "none", "--user", user, name, *command)

    def added(self, *command: str, user: str) -> set[str]:
        """The lines that a command prints in this image and not in its base."""
        ours, theirs = (self.run(*command, user=user, base=base).splitlines() for base in (False, True))
        return set(ours) - set(theirs)

    def layers(self) -> list[str]:
        """What the file system is made of, the oldest first."""
        layers: list[str] = json.loads(
            engine_output(self.engine, "image", "inspect", "--format", "{{json .RootFS.Layers}}", self.name)
        )
        return layers

    @contextmanager
    def serve(self, *options: str, **environ: str) -> Iterator["Container"]:
        """A container that is reached from outside and listens."""
        options = (*(options or WITH_TEMP), "--publish", f"127.0.0.1:{PORT}:{PORT}")
        # not another port of this machine: podman may be set up to share its network, and to publish nothing
        with reserved(PORT), self.start(*options, **environ) as container:
            deadline = time.monotonic() + 15
            while not is_listening(PORT):
                assert time.monotonic() < deadline, "The container did not listen"
                time.sleep(0.05)
            yield container

    @contextmanager
    def start(self, *options: str, **environ: str) -> Iterator["Container"]:
        """A container with a read-only root. It is removed afterwards, and shown when the block fails."""
        container = Container(self.engine, f"space-{uuid4().hex}")
        variables = [part for key, value in environ.items() for part in ("--env", f"{key}={value}")]
        options = ("--read-only", *options, *variables)
        engine_output(self.engine, "run", "--detach", "--name", container.name, *options, self.name)
        try:
            yield container
        except BaseException:
            sys.stderr.write(container.log())
            raise
        finally:
            engine_output(self.engine, "rm", "--force", container.name)


@dataclass(frozen=True)
class Container:
    """A running container."""

    engine: str
    name: str

    def execute(self, *command: str) -> str:
        """What a command in it prints."""
        return engine_output(self.engine, "exec", self.name, *command)

    def log(self) -> str:
        """All that it printed."""
        return engine_output(self.engine, "logs", self.name)

    def wait_until_it_tells(self, text: str) -> None:
        """Return when this is in its log, which follows what it tells of."""
        deadline = time.monotonic() + 30
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def client(self) -> httpx2.Client:
        """A client of its app."""
        return httpx2.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=20, trust_env=False, verify=False)


def engine_output(engine: str, *arguments: str) -> str:
    """Run docker or podman; output and errors together. A failure shows them."""
    done = subprocess.run(  # noqa: S603
        [engine, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{engine} {' '.join(arguments)}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest, built: Callable[[str], Image]) -> Image:
    """The image of a project in which somebody has worked, once for each Python that is offered."""
    return built(str(request.param))


@pytest.fixture(scope="module")
def built(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Image]:
    """What builds the image for a Python once, however often pytest sets `image` up for it."""

    @cache
    def build_for(version: str) -> Image:
        engine = need_base_image(version)
        project = bake(python_version=version).copy_to(tmp_path_factory.mktemp("image"))
        for name in LEFTOVERS:
            leftover = project.path / name
            leftover.parent.mkdir(parents=True, exist_ok=True)
            leftover.write_text("left by somebody\n")
        name = f"localhost/space-of-the-tests:{version}"
        build(engine, name, project.path)
        return Image(engine, name, base_image(version), project.path)

    return build_for


def build(engine: str, name: str, project: Path) -> None:
    """Build an image as the Hub does."""
    engine_output(engine, "build", "--build-arg", f"API_TOKEN={BUILD_ARGUMENT}", "--tag", name, str(project))


LEFTOVERS = [
    ".env", ".env.local", "src/.env", "app.db", "data/app.db", "data/app.db-wal", "src/app.sqlite3", ".git/config",
    "tests/test_left.py", "src/__pycache__/left.cpython-313.pyc", ".pytest_cache/left", ".mypy_cache/left",
    ".venv/bin/left", "secret.txt", "node_modules/left",
]  # fmt: skip


def test_every_offered_python_is_tested(bake: Bakery) -> None:
    assert bake.questions["python_version"] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_hadolint_finds_nothing(bake: Bakery, version: str) -> None:
    dockerfile = bake(python_version=version).path / "Dockerfile"
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, dockerfile], capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_dockerfile_and_the_front_matter_agree(bake: Bakery, version: str) -> None:
    project = bake(python_version=version)
    dockerfile = project.read("Dockerfile")
    assert f"FROM python:{version}-slim\n" in dockerfile
    assert set(re.findall(r"\b\d{4,5}\b", dockerfile)) == {"1000", str(PORT)}
    assert f"EXPOSE {PORT}\n" in dockerfile
    assert f"\napp_port: {PORT}\n" in project.read("README.md")
    command = json.loads(re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)[-1])
    assert command == ["uvicorn", "src.main:app", "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104


@pytest.mark.parametrize("listed", [None, "# a sound\nffmpeg # and a picture\n\ngit\n"])
def test_the_image_installs_what_apt_txt_names_and_asks_for_nothing_without_it(
    bake: Bakery, tmp_path: Path, listed: str | None
) -> None:
    (step,) = re.findall(r"^RUN (if \[ -f apt.txt .*?)\n\n", bake().read("Dockerfile"), re.DOTALL | re.MULTILINE)
    if listed is not None:
        (tmp_path / "apt.txt").write_text(listed)
    (tmp_path / "apt-get").write_text('#!/bin/sh\necho "$@" >> asked\n')
    (tmp_path / "apt-get").chmod(0o755)
    # not on the machine of the tests
    step = step.replace("/var/lib/apt/lists", str(tmp_path / "lists"))
    subprocess.run(["sh", "-ec", step], cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)  # noqa: S603, S607
    asked = (tmp_path / "asked").read_text().splitlines() if listed else []
    assert asked == (["update", "install --yes --no-install-recommends ffmpeg git"] if listed else [])
    assert (tmp_path / "asked").exists() is bool(listed)


def test_the_container_serves_with_a_read_only_root_as_an_ordinary_user(image: Image) -> None:
    with image.serve() as container, container.client() as space:
        assert settled(space)["database"]["backend"] == "sqlite"
        assert space.get("/").status_code == 200
        assert space.post("/api/items", json={"title": "In the image"}).status_code == 201
        assert [item["title"] for item in space.get("/api/items").json()["items"]] == ["In the image"]
        asked = "import os; print(os.getuid(), os.getgid(), os.environ['HOME'], os.getcwd())"
        answer = container.execute("python", "-c", asked)
        assert answer.split() == ["1000", "1000", "/home/user", "/home/user/app"]


def test_the_health_check_of_the_image_tells_whether_it_serves(image: Image) -> None:
    dockerfile = (image.project / "Dockerfile").read_text(encoding="utf-8")
    check = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.*)$", dockerfile, re.MULTILINE)[0])
    elsewhere = [part.replace("/health/live", "/nowhere") for part in check]
    with image.serve() as container:
        container.execute(*check)
        answers_404 = subprocess.run(  # noqa: S603
            [image.engine, "exec", container.name, *elsewhere], capture_output=True, check=False
        )
    alone = subprocess.run(  # noqa: S603
        [image.engine, "run", "--rm", image.name, *check], capture_output=True, check=False
    )
    assert (answers_404.returncode, alone.returncode) == (1, 1)


def test_requests_that_run_at_sigterm_finish_and_the_exit_code_is_0(image: Image) -> None:
    with image.serve() as container:
        with container.client() as space:
            settled(space)
        requests = [UnfinishedRequest(f"Number {number}") for number in range(5)]
        stop = [image.engine, "stop", "--time", "30", container.name]
        with subprocess.Popen(stop, stdout=subprocess.DEVNULL) as stopping:  # noqa: S603
            container.wait_until_it_tells("Shutting down")
            # it might end without waiting
            time.sleep(0.5)
            assert stopping.poll() is None, "The container stopped although requests were running"
            answers = [request.finish() for request in requests]
            assert stopping.wait(60) == 0
        assert [answer.split(" ", 2)[1] for answer in answers] == ["201"] * len(answers)
        state = engine_output(image.engine, "inspect", "--format", "{{.State.ExitCode}}", container.name)
        assert state.strip() == "0", container.log()


MOMENTS = [tenths / 10 for tenths in range(21)]
IN_EVERY_RUN = (0.0, SERVING)


@pytest.mark.parametrize(
    ("image", "seconds", "within"),
    [
        *((VERSIONS[0], moment, SECONDS_ON_A_BUSY_MACHINE) for moment in IN_EVERY_RUN),
        *(pytest.param(VERSIONS[0], s, SECONDS_TO_STOP, marks=pytest.mark.alone) for s in (SERVING, *MOMENTS)),
        *(
            pytest.param(v, s, SECONDS_ON_A_BUSY_MACHINE, marks=pytest.mark.thorough)
            for v in VERSIONS[1:]
            for s in IN_EVERY_RUN
        ),
    ],
    indirect=["image"],
)
def test_it_stops_whenever_it_is_asked_to_and_keeps_what_it_acknowledged(
    image: Image, tmp_path: Path, seconds: float | None, within: float
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    options = (*WITH_TEMP, f"--volume={volume}:/home/user/app/data", "--publish", f"127.0.0.1:{PORT}:{PORT}")
    with reserved(PORT), image.start(*options) as container, clients(1, write, PORT) as told:
        until_sigterm_is_heard(container)
        told.wait_until(seconds)
        engine_output(image.engine, "kill", "--signal", "TERM", container.name)
        asked = time.monotonic()
        assert engine_output(image.engine, "wait", container.name).strip() == "0"
        assert time.monotonic() - asked < within
    titles = titles_in(volume / "app.db") if (volume / "app.db").exists() else []
    told.compare(Counter(titles))


def until_sigterm_is_heard(container: Container) -> None:
    """Return when it would not be lost: the kernel drops what the first process of a container does not handle yet."""
    pid = engine_output(container.engine, "inspect", "--format", "{{.State.Pid}}", container.name).strip()
    deadline = time.monotonic() + 20
    while (
        not int(re.findall(r"^SigCgt:\s(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0], 16) >> 14 & 1
    ):
        assert time.monotonic() < deadline, container.log()


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.thorough)])
def test_port_is_honoured_on_both_kinds_of_addresses(image: Image, workers: str) -> None:
    dockerfile = (image.project / "Dockerfile").read_text(encoding="utf-8")
    check = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.*)$", dockerfile, re.MULTILINE)[0])
    with image.start("--network", "none", *WITH_TEMP, PORT="8099", WEB_CONCURRENCY=workers) as container:
        until_healthy(container, *check)
        container.execute(*[part.replace("127.0.0.1/${PORT:-7860}", "::1/8099") for part in check])


def until_healthy(container: Container, *check: str) -> None:
    """Return when the image's own check of its health succeeds."""
    command = [container.engine, "exec", container.name, *check]
    deadline = time.monotonic() + 20
    while subprocess.run(command, capture_output=True, check=False).returncode != 0:  # noqa: S603
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_data_folder_and_the_code_belong_to_the_user(image: Image) -> None:
    asked = "import os; print(*[os.stat(p).st_uid for p in ('.', 'data', 'src', 'migrations', 'src/main.py')])"
    assert set(image.run("python", "-c", asked).split()) == {"1000"}


def test_the_image_holds_no_test_cache_secret_or_database(image: Image) -> None:
    listing = image.run("find", "/home/user", "/root", "-mindepth", "1", user="0")
    app = "/home/user/app/"
    files = {line.removeprefix(app) for line in listing.splitlines() if line.startswith(app)}
    assert {name.split("/")[0] for name in files} == {
        "alembic.ini", "data", "migrations", "requirements.lock", "space_runtime", "src", "web"
    }  # fmt: skip
    assert "src/main.py" in files
    unwanted = re.compile(r"test|\.git|\.env|\.db|\.sqlite|secret|_cache|/\.cache|left")
    assert [line for line in listing.splitlines() if unwanted.search(line)] == []
    # Bytecode of what is there, and of nothing else.
    compiled = {name for name in files if name.endswith(".pyc")}
    sources = {name for name in files if name.endswith(".py")}
    assert {re.sub(r"__pycache__/(.*?)\.cpython-\d+\.pyc", r"\1.py", name) for name in compiled} == sources


def test_what_the_image_adds_to_its_base_runs_and_was_not_left_by_the_build(image: Image) -> None:
    places = (
        r"/home/user",
        r"/usr/local/bin/[\w-]+",
        r"/usr(/local)?/lib/python3\.\d+/(site|dist)-packages/.+",
        # bytecode, but none of pip, which does not run
        r"/usr(/local)?/lib/python3\.\d+/(?!(site|dist)-packages)(.+/)?__pycache__(/.+\.pyc)?",
        # what Debian's own Python imports before anything else
        r"/usr/lib/python3/dist-packages/_distutils_hack(/__pycache__)?(/.+\.pyc)?",
        # the user
        r"/etc/(passwd|shadow|group|gshadow|subuid|subgid)-?",
        # what Debian's own Python has as a link
        r"/usr/local/lib/python3\.\d+(/dist-packages)?",
    )
    added = image.added("find", "/", "-xdev", "-not", "-path", "/home/user/*", "-printf", "%p\n", user="0")
    assert {path for path in added if not re.fullmatch("|".join(places), path)} == set()
    assert image.run("sh", "-c", "command -v cc gcc g++ clang ld as make rustc cargo || true") == ""
    assert image.run("sh", "-c", "ls -A /root /tmp /var/tmp /var/lib/apt/lists", user="0").split("\n\n") == [
        "/root:\n.bashrc\n.profile", "/tmp:", "/var/lib/apt/lists:", "/var/tmp:\n",
    ]  # fmt: skip


def test_what_the_user_may_write_is_its_own_and_nothing_else(image: Image) -> None:
    found = ("find", "/", "-xdev", "-not", "-type", "l", "-writable", "-printf", "%U %p\n")
    # `find` ends with 1 where it may not look.
    writable = image.added("sh", "-c", f"{shlex.join(found)} 2>/dev/null || true", user="1000")
    assert {line for line in writable if not line.startswith("1000 /home/user")} == set()
    # Bytecode is written by root, and only by root.
    others = image.run("find", "/home/user", "-not", "-user", "1000", "-not", "-path", "*/__pycache__*")
    assert others == ""
    world = ("find", "/", "-xdev", "-not", "-type", "l", "(", "-perm", "/o+w", "-o", "-perm", "/6000", ")")
    assert image.added(*world, user="0") == set()


def test_a_start_compiles_nothing_neither_ours_nor_the_standard_library(image: Image) -> None:
    with image.serve(PYTHONVERBOSE="1") as container, container.client() as space:
        settled(space)
        assert space.post("/api/items", json={"title": "A title"}).status_code == 201
        assert space.get("/docs").status_code == 200
        log = container.log()
    used = re.findall(r"^# \S+\.pyc matches (\S+\.py)$", log, re.MULTILINE)
    assert {"/home/user/app/src/main.py", "/home/user/app/migrations/env.py"} <= set(used)
    assert any("/asyncio/" in path for path in used)
    assert re.findall(r"^# code object from (\S+\.py)$", log, re.MULTILINE) == []


def test_a_change_of_code_builds_only_the_last_layers_again(image: Image) -> None:
    before = image.layers()
    main = image.project / "src/main.py"
    text = main.read_text(encoding="utf-8")
    try:
        main.write_text(text + "# changed\n", encoding="utf-8")
        name = f"{image.name}-changed"
        build(image.engine, name, image.project)
        after = Image(image.engine, name, image.base, image.project).layers()
    finally:
        main.write_text(text, encoding="utf-8")
    kept = [one for one, other in zip(before, after, strict=True) if one == other]
    assert kept == before[: len(kept)]
    # the code and its bytecode
    assert len(before) - len(kept) == 2


def test_neither_history_nor_environment_of_the_image_holds_what_the_build_was_told(image: Image) -> None:
    history = engine_output(image.engine, "history", "--no-trunc", "--format", "{{.CreatedBy}}", image.name)
    assert "requirements.lock" in history
    environ = engine_output(image.engine, "image", "inspect", "--format", "{{json .Config}}", image.name)
    assert "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN" in environ
    for told in (BUILD_ARGUMENT, "left by somebody"):
        assert told not in history + environ


def test_with_no_disk_to_write_to_memory_serves_and_says_so(image: Image) -> None:
    # podman alone gives a read-only container temporary folders of its own accord.
    options = ("--read-only-tmpfs=false", "--tmpfs=/dev/shm") if image.engine == "podman" else ("--user", "1000")
    with image.serve(*options) as container, container.client() as space:
        report = settled(space)
        assert (report["status"], report["database"]["reason"]) == ("degraded", "no_writable_path")
        assert report["database"]["persistent"] is False
        assert space.post("/api/items", json={"title": "In memory"}).status_code == 201


def test_a_volume_of_somebody_else_is_told_and_what_goes_with_the_container_is_never_called_persistent(
    image: Image, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)
    options = ("--read-only=false", f"--volume={volume}:/home/user/app/data")
    with image.serve(*options) as container, container.client() as space:
        report = settled(space)
        assert (report["status"], report["database"]["reason"]) == ("degraded", "no_writable_path")
        assert report["database"]["persistent"] is False
        assert space.post("/api/items", json={"title": "Elsewhere"}).status_code == 201
        container.wait_until_it_tells("data cannot be written to: SQLite is kept elsewhere")
    volume.chmod(0o777)
    with image.serve(*options) as container, container.client() as space:
        report = settled(space)
        assert (report["status"], report["database"]["persistent"]) == ("ok", True)
    with image.serve("--read-only=false") as container, container.client() as space:
        report = settled(space)
        assert (report["status"], report["database"]["persistent"]) == ("ok", False)


def test_any_other_user_may_run_it(image: Image) -> None:
    with image.serve(*WITH_TEMP, "--user", "12345:0") as container, container.client() as space:
        assert settled(space)["status"] == "ok"
        assert space.post("/api/items", json={"title": "By somebody"}).status_code == 201
        assert container.execute("id", "-u").strip() == "12345"


def settled(space: httpx2.Client) -> dict[str, Any]:
    """The first health report that is no longer `starting`."""
    for _ in range(200):
        report: dict[str, Any] = space.get("/health").json()
        if report["status"] != "starting":
            return report
        time.sleep(0.1)
    raise AssertionError(f"Still {report}")


class UnfinishedRequest:
    """A request whose body is only half sent, so that it runs for as long as the test wants."""

    def __init__(self, title: str) -> None:
        """Send the head, and half of the body once the app asks for it."""
        body = json.dumps({"title": title}).encode()
        head = (
            f"POST /api/items HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        self._connection = socket.create_connection(("127.0.0.1", PORT), timeout=20)
        self._connection.sendall(head.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            part = self._connection.recv(1024)
            assert part, answer
            answer += part
        assert answer.startswith(b"HTTP/1.1 100 "), answer
        self._connection.sendall(body[:5])
        self._rest = body[5:]

    def finish(self) -> str:
        """Send the rest, and return the answer's first part."""
        with self._connection as connection:
            connection.sendall(self._rest)
            return connection.recv(65536).decode("utf-8", "replace")
