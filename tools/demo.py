"""Renders a Space with the default answers and serves it, until Ctrl-C: `make demo`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import httpx2
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE_FOLDER = "{{cookiecutter.project_slug}}"
FOLDER = ROOT / ".demo"
PORT = os.environ.get("PORT") or "7860"
URL = f"http://127.0.0.1:{PORT}"
SECONDS_TO_START = 60
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class StopRequestedError(Exception):
    """Somebody pressed Ctrl-C, or asked the process to end."""


def main() -> None:
    """Render, serve, report, wait."""
    for number in STOPPING:
        signal.signal(number, stop_requested)
    try:
        with alone_on_the_terminal():
            # In the project's own words, and before anything is rendered.
            check = [sys.executable, "-m", "space_runtime.port", PORT]
            if subprocess.run(check, cwd=ROOT / TEMPLATE_FOLDER, check=False).returncode:  # noqa: S603
                sys.exit(1)
            serve(render())
    except StopRequestedError:
        print("\nStopped.")


def stop_requested(_number: int, _frame: FrameType | None) -> None:
    """Leave what is being done, once: pressing again must not interrupt the cleaning up."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise StopRequestedError


@contextmanager
def alone_on_the_terminal() -> Iterator[None]:
    """Be the only one that Ctrl-C reaches: `make` would report an interrupted recipe as an error."""
    group = os.getpgrp()
    if not sys.stdin.isatty() or os.tcgetpgrp(0) != group:
        yield
        return
    # Neither being put back into the background nor Ctrl-Z, which `make` would not see, may stop us.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(0, group)


def render() -> Path:
    """Render afresh, and keep only the data of an earlier demo."""
    for leftover in FOLDER.glob("*/*"):
        if leftover.name != "data":
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    FOLDER.mkdir(exist_ok=True)
    # Nobody's own defaults, and no trace in anybody's home.
    config = FOLDER / "cookiecutter.yaml"
    config.write_text(json.dumps({"replay_dir": str(FOLDER / "replay")}))
    options = {"no_input": True, "overwrite_if_exists": True, "output_dir": str(FOLDER), "config_file": str(config)}
    return Path(cookiecutter(str(copy_template(FOLDER / "template")), **options))


def copy_template(destination: Path) -> Path:
    """Copy the template without caches: a test or a tool may be writing them, and files that vanish stop a render."""
    destination.mkdir(exist_ok=True)
    for file in ("cookiecutter.json", "cookiecutter_fastapi_space.py"):
        shutil.copy(ROOT / file, destination)
    for folder in ("hooks", "templates", TEMPLATE_FOLDER):
        caches = shutil.ignore_patterns("__pycache__", ".*_cache")
        shutil.copytree(ROOT / folder, destination / folder, ignore=caches)
    return destination


def serve(project: Path) -> None:
    """Run the server until somebody stops it, or it ends by itself."""
    command = [sys.executable, "-m", "uvicorn", "src.main:app", "--host", "127.0.0.1", "--port", PORT]
    # Otherwise the one line that matters would stand between those about our own requests.
    environ = {"LOG_LEVEL": "warning"} | os.environ
    # In a session of its own, so that Ctrl-C reaches it once, as our SIGTERM.
    server = subprocess.Popen(command, cwd=project, env=environ, start_new_session=True)  # noqa: S603
    try:
        print(f"\n{describe(server)}\nThe project is in {project}. Ctrl-C stops the server.\n", flush=True)
        sys.exit(f"The server ended by itself with exit code {server.wait()}.")
    finally:
        server.terminate()
        server.wait()


def describe(server: "subprocess.Popen[bytes]") -> str:
    """One line: where the Space answers, and which database serves."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(httpx2.TransportError):
            report = httpx2.get(f"{URL}/health", timeout=5, trust_env=False).json()
            if report["status"] != "starting":
                return f"The Space answers at {URL} - {report['database']['detail']}"
        time.sleep(0.1)
    sys.exit(f"The Space did not answer at {URL} within {SECONDS_TO_START} seconds.")


if __name__ == "__main__":
    main()
