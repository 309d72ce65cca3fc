"""`make demo` shows a Space that answers, stops cleanly, and says plainly what is in its way."""

import importlib.util
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from tests.support.bakery import ROOT, TEMPLATE_FOLDER, copy_template
from tests.support.machine import need
from tests.support.processes import end, free_port, is_listening, turn

# An owner may have a demo open meanwhile, at the port that it has by default.
PORT = free_port()
ENVIRON = os.environ | {"PORT": str(PORT)}
DEMO = [sys.executable, "tools/demo.py"]
pytestmark = pytest.mark.slow


def read_until(output: int, expected: str | None) -> str:
    """What is printed up to `expected`, or up to the end."""
    shown = b""
    deadline = time.monotonic() + 120
    # Reading a terminal whose program has ended is an error on Linux.
    with suppress(OSError):
        while expected is None or expected.encode() not in shown:
            ready, _, _ = select.select([output], [], [], deadline - time.monotonic())
            assert ready, f"{expected!r} was not printed, but:\n{shown.decode()}"
            part = os.read(output, 4096)
            if not part:
                break
            shown += part
    assert expected is None or expected.encode() in shown, f"It ended, and had printed:\n{shown.decode()}"
    return shown.decode()


@contextmanager
def started(command: list[str], **where: int) -> "Iterator[subprocess.Popen[bytes]]":
    # all demos are rendered into one folder
    with turn("demo"):
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRON, start_new_session=True, **where)  # type: ignore[call-overload]  # noqa: S603
        try:
            yield process
        finally:
            end(process)


def test_the_demo_says_where_it_answers_and_ctrl_c_stops_it_cleanly() -> None:
    with started(DEMO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as demo:
        assert demo.stdout is not None
        shown = read_until(demo.stdout.fileno(), "Ctrl-C stops the server.")
        assert f"The Space answers at http://127.0.0.1:{PORT} - SQLite serves." in shown
        assert httpx2.get(f"http://127.0.0.1:{PORT}/", trust_env=False, verify=False).status_code == 200
        os.killpg(demo.pid, signal.SIGINT)
        shown += read_until(demo.stdout.fileno(), None)
        assert demo.wait(30) == 0
        demo.stdout.close()
        assert "Traceback" not in shown
        # Neither our own requests nor anything else stands around the line that matters.
        assert "GET" not in shown
        assert not is_listening(PORT)


def test_ctrl_c_on_a_terminal_lets_make_succeed_at_any_port(tmp_path: Path) -> None:
    need("make", "it runs the demo as a person would")
    (tmp_path / "Makefile").write_text(f"demo:\n\t@{' '.join(DEMO)}\n")
    port = free_port()
    ours, theirs = pty.openpty()
    # The session's leader takes the terminal, as a shell has, before it becomes `make`.
    become_make = (
        "import fcntl, os, termios;"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        f"os.execlp('make', 'make', '--file', '{tmp_path}/Makefile', 'PORT={port}')"
    )
    with started([sys.executable, "-c", become_make], stdin=theirs, stdout=theirs, stderr=theirs) as make:
        os.close(theirs)
        shown = read_until(ours, "Ctrl-C stops the server.")
        assert f"The Space answers at http://127.0.0.1:{port} - SQLite serves." in shown
        os.write(ours, b"\x03")
        shown += read_until(ours, None)
        assert make.wait(30) == 0, shown
        os.close(ours)
        assert "Traceback" not in shown
        assert not is_listening(port)


def test_a_taken_port_is_told_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", PORT)):
        done = subprocess.run(DEMO, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1
    assert done.stderr == f"Port {PORT} is taken: end what listens there, or choose another with PORT=...\n"


def test_an_impossible_port_is_told_in_one_sentence() -> None:
    for port in ("eighty", "99999", "-1"):
        environ = os.environ | {"PORT": port}
        done = subprocess.run(DEMO, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
        assert (done.returncode, done.stderr) == (1, "PORT must be a whole number from 1 to 65535.\n")


def test_bytecode_that_comes_and_goes_in_the_template_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PORT", raising=False)
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.URL == "http://127.0.0.1:7860"
    checkout = copy_template(tmp_path / "checkout")
    cache = checkout / TEMPLATE_FOLDER / "src" / "__pycache__"
    cache.mkdir()
    # listed, and not there: Python writes bytecode under another name first
    (cache / "main.cpython-311.pyc.1").symlink_to("nowhere")
    monkeypatch.setattr(demo, "ROOT", checkout)
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "demo")
    project: Path = demo.render()
    assert (project / "src" / "main.py").is_file()
    assert not (project / "src" / "__pycache__").exists()
