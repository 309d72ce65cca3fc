"""Whenever it is asked to stop, it ends within three seconds, and keeps every row that it acknowledged."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.bakery import ROOT, TEMPLATE_FOLDER, Bakery
from tests.support.faults import listening
from tests.support.load import SERVING, clients, titles_in, write
from tests.support.processes import bare_environment, free_port

pytestmark = pytest.mark.slow

# What is promised is held where the machine has time.
SECONDS_TO_STOP = 3
SECONDS_ON_A_BUSY_MACHINE = 8
# uvicorn does not look for signals while it waits for workers that begin, which may take so long
SECONDS_WITH_WORKERS = 10
MOMENTS = [tenths / 10 for tenths in range(1, 21)]
WITH_WORKERS = [SERVING, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("workers", "seconds", "within"),
    [
        *(("1", moment, SECONDS_ON_A_BUSY_MACHINE) for moment in (SERVING, 0.5)),
        *(pytest.param("1", moment, SECONDS_TO_STOP, marks=pytest.mark.alone) for moment in (SERVING, *MOMENTS)),
        *(pytest.param("2", moment, SECONDS_WITH_WORKERS, marks=pytest.mark.alone) for moment in WITH_WORKERS),
    ],
)
def test_it_stops_whenever_it_is_asked_to_and_keeps_what_it_acknowledged(
    bake: Bakery, tmp_path: Path, workers: str, seconds: float | None, within: float
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "src.main:app", "--port", str(port)]
    data, copies = tmp_path / "data", tmp_path / "copies"
    environ = {"SQLITE_DIR": str(data), "SNAPSHOT_URL": str(copies), "SNAPSHOT_INTERVAL": "3600"}
    environ |= bare_environment("/nowhere") | {"WEB_CONCURRENCY": workers}
    with (
        clients(2, write, port) as told,
        subprocess.Popen(command, cwd=bake().path, env=environ, stderr=subprocess.DEVNULL) as process,  # noqa: S603
    ):
        told.wait_until(seconds)
        process.send_signal(signal.SIGTERM)
        assert process.wait(within) in (0, -signal.SIGTERM)
    for kept in (data / "app.db", max(copies.glob("*.db"), default=copies / "none")):
        titles = titles_in(kept) if kept.exists() else []
        told.compare(Counter(titles))


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": "postgresql://a:b@127.0.0.1:{port}/c"},
        pytest.param(
            {"SNAPSHOT_URL": "hf://buckets/example/backups", "HF_ENDPOINT": "http://127.0.0.1:{port}"},
            marks=pytest.mark.thorough,
        ),
    ],
    ids=["PostgreSQL", "snapshots"],
)
@pytest.mark.parametrize("within", [SECONDS_ON_A_BUSY_MACHINE, pytest.param(SECONDS_TO_STOP, marks=pytest.mark.alone)])
def test_it_does_not_wait_for_a_server_that_says_nothing(
    bake: Bakery, tmp_path: Path, environ: dict[str, str], within: float
) -> None:
    was_asked = threading.Event()
    with listening(lambda _: was_asked.set()) as silent:
        environ = {name: value.format(port=silent) for name, value in environ.items()}
        with bake().boot(environ | {"SQLITE_DIR": str(tmp_path)}) as server:
            assert was_asked.wait(30)
            begun = time.monotonic()
            assert server.stop() in (0, -signal.SIGTERM)
            assert time.monotonic() - begun < within
            log = server.log()
            assert "stopped: no database served" in log
            assert "closed" not in log


# A library that, while it is imported, is asked to stop, and lets no exception pass.
STUBBORN = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGTERM)
except BaseException:
    pass
print("went on", flush=True)
"""


def test_a_stop_during_the_imports_is_heard_whatever_the_libraries_do_with_exceptions(tmp_path: Path) -> None:
    (tmp_path / "uvicorn").mkdir()
    (tmp_path / "uvicorn" / "__init__.py").write_text(STUBBORN)
    command = [sys.executable, "-m", "space_runtime.entrypoint", "uvicorn", "src.main:app"]
    environ = bare_environment(tmp_path) | {"PYTHONPATH": f"{tmp_path}:{ROOT / TEMPLATE_FOLDER}"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout) == (0, "")
