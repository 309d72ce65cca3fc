"""How many instructions the lifecycle adds to a request, counted by valgrind: `make bench`.

A list on PostgreSQL, asked for in the process itself; what a process does before and afterwards is not counted.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.serving import PEERS, QUIET, judge
from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import new_postgres
from tests.support.processes import bare_environment

REQUESTS = 200
ROUNDS = 3
TIMES_BYPASSED = 1.01
# Nothing that looks at the database now and then is part of a request.
ENVIRON = QUIET | {"PYTHONHASHSEED": "0", "DATABASE_CHECK_SECONDS": "60", "DATABASE_CONNECT_SECONDS": "60"}
COUNT = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null"]


def instructions(project: BakedProject, module: str, url: str) -> float:
    """Return how many one request takes."""
    environ = bare_environment(project.path) | ENVIRON | {"DATABASE_URL": url}
    command = [*COUNT, sys.executable, "driven.py", module, str(REQUESTS)]
    with subprocess.Popen(
        command,
        cwd=project.path,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(project.path / "counted").open("wb"),
        text=True,
    ) as process:
        assert process.stdin and process.stdout  # noqa: S101, PT018
        for said, switch in (("warm", "on"), ("done", "off")):
            while process.stdout.readline().strip() != said:
                assert process.poll() is None, (project.path / "counted").read_text()  # noqa: S101
            subprocess.run(["callgrind_control", "-i", switch, str(process.pid)], check=True, capture_output=True)  # noqa: S607
            process.stdin.write("\n")
            process.stdin.flush()
    found = re.search(r"Collected : (\d+)", (project.path / "counted").read_text())
    assert found, (project.path / "counted").read_text()  # noqa: S101
    return int(found[1]) / REQUESTS


def main() -> None:
    """Print the ratio; the exit code is 1 if it is too high."""
    if shutil.which("valgrind") is None:
        print("Without a count of instructions: there is no valgrind (apt install valgrind).")
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as place, new_postgres() as postgres:
        project = Bakery(Path(folder))().copy_to(Path(place))
        shutil.copytree(PEERS, project.path, dirs_exist_ok=True)
        url = postgres.create_database()
        pairs = [[instructions(project, module, url) for module in ("src.main", "bypassed")] for _ in range(ROUNDS)]
    print(f"{pairs[0][0]:,.0f} instructions for a list on PostgreSQL, {pairs[0][1]:,.0f} without the lifecycle")
    ratios = [ours / theirs for ours, theirs in pairs]
    sys.exit(not judge("instructions with the lifecycle / without", ratios, TIMES_BYPASSED, most=True))


if __name__ == "__main__":
    main()
