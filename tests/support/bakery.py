"""Bakes projects from the template, once for each set of answers, and hands out something to read, run and boot."""

import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from cookiecutter.main import cookiecutter
from pytest_cookies.plugin import Cookies

from tests.support.processes import Process, bare_environment
from tests.support.server import Server, serve
from tests.support.warm import can_be_forked, fork

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE_FOLDER = "{{cookiecutter.project_slug}}"


class RefusedError(Exception):
    """The template refused to render. The text is what a person would have read."""

    def __init__(self, text: str, left_behind: list[str]) -> None:
        """`left_behind` lists what is on disk all the same."""
        super().__init__(text)
        self.left_behind = left_behind


@dataclass(frozen=True)
class BakedProject:
    """A rendered project. Those that `bake()` returns are shared by all tests: write only to a copy."""

    path: Path

    def read(self, name: str) -> str:
        """The text of one file, with the line ends that are on disk."""
        return (self.path / name).read_bytes().decode("utf-8")

    def files(self) -> list[str]:
        """Every file, as sorted relative paths; bytecode is none."""
        found = (path for path in self.path.rglob("*") if path.is_file() and path.suffix != ".pyc")
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    def copy_to(self, folder: Path, linked: tuple[str, ...] = (".pyc",)) -> "BakedProject":
        """A private copy inside `folder`, which may be written to, but for files with endings that are `linked`.

        It comes with bytecode, so that not each copy's first start compiles the same again; Python replaces that, and
        does not write into it. A link takes a tenth of the time of a copy.
        """
        if not (self.path / "src" / "__pycache__").exists():
            for part in ("migrations", "space_runtime", "src"):
                compileall.compile_dir(self.path / part, quiet=2)

        def copy(source: str, target: str) -> None:
            (os.link if source.endswith(linked) else shutil.copy2)(source, target)

        return BakedProject(Path(shutil.copytree(self.path, folder / self.path.name, copy_function=copy)))

    def run(
        self,
        *command: str,
        environ: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project, with a bare environment and what is given.

        `python` and the programs beside it are those of the tests, which have the project's requirements. Output and
        errors come back together in `stdout`; a failure shows them.
        """
        environ = environ or {}
        with tempfile.TemporaryDirectory(prefix="run-") as private:
            home, output_file = Path(private, "home"), Path(private, "output")
            home.mkdir()
            full_environ = bare_environment(home) | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(environ)
            with output_file.open("wb") as output:
                process: Process
                if can_be_forked(command, environ):
                    process = fork(command, self.path, full_environ, output.fileno())
                else:
                    process = subprocess.Popen(  # noqa: S603
                        command,
                        cwd=self.path,
                        env=full_environ,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
            try:
                code = process.wait(timeout)
            except BaseException:
                process.kill()
                process.wait(10)
                raise
            printed = output_file.read_text(encoding="utf-8", errors="replace")
        if check and code != 0:
            raise AssertionError(f"{command} ended with {code}:\n{printed}")
        return subprocess.CompletedProcess(command, code, printed)

    @contextmanager
    def boot(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        in_place: bool = False,
        app: str = "src.main:app",
        command: Sequence[str] | None = None,
        prefix: Sequence[str] = (),
        port: int | None = None,
    ) -> Iterator[Server]:
        """Serve the project with a real uvicorn until the block ends (`serve` explains the options).

        It runs in a fresh folder, so that no database file outlives the block. `in_place` serves this very folder, for
        a test that made its own copy and starts it twice.
        """
        # beside the project, where links to its code are possible, which an app only reads
        with tempfile.TemporaryDirectory(prefix="boot-", dir=self.path.parent) as folder:
            project = self if in_place else self.copy_to(Path(folder), linked=(".py", ".pyc"))
            with serve(project.path, environ, app=app, command=command, prefix=prefix, port=port) as server:
                yield server


class Bakery:
    """Bakes projects and remembers them for the whole test run."""

    def __init__(self, folder: Path) -> None:
        """`folder` receives a clean copy of the template and everything that is rendered from it."""
        self._folder = folder
        self._baked: dict[str, BakedProject | RefusedError] = {}
        self._config = folder / "config.yaml"
        self._config.write_text(yaml.safe_dump({"replay_dir": str(folder / "replay")}))
        self.template = copy_template(folder / "template")
        questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
        self.questions = {name: default for name, default in questions.items() if name[0] != "_"}

    def __call__(self, **answers: str) -> BakedProject:
        """Bake with answers as on the command line, where cookiecutter evaluates Jinja in them."""
        return self._once("given", answers, self._bake)

    def as_typed(self, **answers: str) -> BakedProject:
        """Bake with answers as at a prompt, where they are taken as they stand. Cookiecutter's own checks are skipped.

        The slug is `my-space` unless it is given.
        """
        return self._once("typed", answers, self._replay)

    def _once(
        self,
        how: str,
        answers: dict[str, str],
        render: Callable[[dict[str, str], Path], Path],
    ) -> BakedProject:
        unknown = set(answers) - set(self.questions)
        if unknown:
            raise TypeError(f"cookiecutter would ignore these answers in silence: {sorted(unknown)}")
        key = json.dumps([how, answers], sort_keys=True)
        if key not in self._baked:
            # One folder deeper than needed, so that what escapes upwards is found.
            around = Path(tempfile.mkdtemp(prefix="bake-", dir=self._folder))
            output_folder = around / "output"
            output_folder.mkdir()
            with captured_output() as output:
                try:
                    self._baked[key] = BakedProject(render(answers, output_folder))
                except Exception as refusal:  # noqa: BLE001 - whatever stops cookiecutter is a refusal
                    left = sorted(str(path) for path in around.rglob("*") if path != output_folder)
                    self._baked[key] = RefusedError(f"{output()}{refusal}", left)
        baked = self._baked[key]
        if isinstance(baked, RefusedError):
            raise baked
        return baked

    def _bake(self, answers: dict[str, str], output_folder: Path) -> Path:
        # pytest-cookies' own fixtures forget a bake after a test, or keep no track of its folder.
        cookies = Cookies(str(self.template), lambda _: output_folder, self._config)
        result = cookies.bake(extra_context=answers)
        if result.exception is not None:
            raise result.exception
        return Path(result.project_path)

    def _replay(self, answers: dict[str, str], output_folder: Path) -> Path:
        defaults = {
            name: default[0] if isinstance(default, list) else default for name, default in self.questions.items()
        }
        context = {"cookiecutter": defaults | {"project_slug": "my-space"} | answers}
        with tempfile.TemporaryDirectory() as folder:
            answers_file = Path(folder, "answers.json")
            answers_file.write_text(json.dumps(context), encoding="ascii")
            rendered = cookiecutter(
                str(self.template),
                replay=str(answers_file),
                output_dir=str(output_folder),
                config_file=str(self._config),
            )
        return Path(rendered)


def copy_template(destination: Path) -> Path:
    """Copy what a clone of the repository would hold, because cookiecutter would render stray caches too."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    wanted = ("cookiecutter.json", "cookiecutter_fastapi_space.py", "hooks/", "templates/", TEMPLATE_FOLDER + "/")
    names = [name for name in listing.stdout.decode().split("\0") if name.startswith(wanted)]
    if listing.returncode != 0:  # not a git checkout: an unpacked archive holds no caches either
        names = [
            path.relative_to(ROOT).as_posix()
            for path in ROOT.rglob("*")
            if path.is_file() and path.relative_to(ROOT).as_posix().startswith(wanted)
        ]
    for name in names:
        if (ROOT / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, destination / name)
    return destination


@contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Catch what this process and its children print, since a hook's message is on their stderr only."""
    with tempfile.TemporaryFile() as caught:
        sys.stdout.flush()
        sys.stderr.flush()
        before = os.dup(1), os.dup(2)
        os.dup2(caught.fileno(), 1)
        os.dup2(caught.fileno(), 2)
        try:

            def text() -> str:
                caught.seek(0)
                return caught.read().decode("utf-8", "replace")

            yield text
        finally:
            os.dup2(before[0], 1)
            os.dup2(before[1], 2)
            os.close(before[0])
            os.close(before[1])


@dataclass(frozen=True)
class Rendering:
    """What running the `cookiecutter` command gave."""

    exit_code: int
    output: str
    folder: Path


def cookiecutter_command(
    *arguments: str,
    template: Path | str,
    folder: Path,
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Rendering:
    """Run `cookiecutter` as a person would, in `folder`, with nobody's configuration."""
    home = folder.parent / f"{folder.name}-home"
    home.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    done = subprocess.run(  # noqa: S603
        [*prefix, sys.executable, "-m", "cookiecutter", "--default-config", str(template), *arguments],
        cwd=folder,
        env=bare_environment(home) | dict(environ or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=60,
    )
    return Rendering(done.returncode, done.stdout.decode("utf-8", "replace"), folder)
