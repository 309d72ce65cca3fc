"""How soon the app answers, beside what importing its libraries takes, and what it needs at rest: `make bench`.

Both are started by turns, so that what else the machine does meets both alike.
"""

import http.client
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.serving import judge
from tests.support.bakery import BakedProject, Bakery
from tests.support.processes import bare_environment, free_port
from tests.support.server import serve

ROUNDS = 15
LIBRARIES = "import fastapi, sqlalchemy.orm, pydantic_settings, psycopg, uvicorn, os; os._exit(0)"
TIMES_LIBRARIES = 1.2
MOST_MEGABYTES = 85.0
PATIENCE = 60
# The image does not have it, and structlog would import it where it is.
ABSENT = "rich"


def environ(folder: Path) -> dict[str, str]:
    """Return an environment in which what the image does not have is missing."""
    hidden = folder / "absent" / ABSENT
    hidden.mkdir(parents=True, exist_ok=True)
    (hidden / "__init__.py").write_text("raise ImportError\n")
    return bare_environment(folder) | {"PYTHONPATH": str(hidden.parent)}


def seconds_to_import(folder: Path) -> float:
    """Return how long a process takes that only imports what every app of this kind imports."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], cwd=folder, env=environ(folder), check=True)
    return time.perf_counter() - begun


def seconds_to_answer(folder: Path) -> float:
    """Return how long the app takes to its first 200; its database is at the newest schema."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "src.main:app", "--port", str(port)]
    begun = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environ(folder), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as process:
        try:
            while not answers(port):
                time.sleep(0.005)
                assert time.perf_counter() < begun + PATIENCE and process.poll() is None  # noqa: S101, PT018
            return time.perf_counter() - begun
        finally:
            process.terminate()


def answers(port: int) -> bool:
    """Return whether /health is 200."""
    with ExitStack() as stack, suppress(ConnectionError):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        stack.callback(connection.close)
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    return False


def megabytes_at_rest(project: BakedProject) -> float:
    """Return what a process holds that serves SQLite and was asked for nothing but /health."""
    # PYTHONPATH also keeps it from being a fork of a process that has imported more.
    with serve(project.path, environ(project.path)) as server:
        assert server.settled()["status"] == "ok"  # noqa: S101
        status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found  # noqa: S101
    return int(found[1]) / 1024


def main() -> None:
    """Print the ratio and the megabytes; the exit code is 1 if one is too high."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as place:
        project = Bakery(Path(folder))().copy_to(Path(place))
        megabytes_at_rest(project)  # this start brings the database to the newest schema
        megabytes = [megabytes_at_rest(project)]
        measured = [(seconds_to_answer(project.path), seconds_to_import(project.path)) for _ in range(ROUNDS + 1)]
    ratios = [ours / theirs for ours, theirs in measured[1:]]  # the first round fills the caches
    held = [
        judge("start to the first 200 on /health / importing the libraries", ratios, TIMES_LIBRARIES, most=True),
        judge("MB at rest", megabytes, MOST_MEGABYTES, most=True),
    ]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
