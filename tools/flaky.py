"""Runs the suite over and over in random order, every other time beside a busy process: `make flaky`.

A test that fails in one of the runs is flaky, or its code is. The output of each run stays in a folder of `.flaky/`.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import randbelow

ROOT = Path(__file__).resolve().parents[1]
# of this call: what an earlier one saw is kept
FOLDER = ROOT / ".flaky" / time.strftime("%Y-%m-%d-%H%M%S")
SECONDS_FOR_A_RUN = 3600
SECONDS_TO_END = 60


def main() -> None:
    """Run, tell of each run in a line, and end with 1 if any test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int)
    parser.add_argument("pytest", nargs=argparse.REMAINDER, help="what pytest gets beside the order")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True)
    red = 0
    for number in range(1, arguments.runs + 1):
        red += not run(number, arguments.pytest, beside_load=number % 2 == 0)
    print(f"{arguments.runs - red} of {arguments.runs} runs were green; their output is in {FOLDER}")
    sys.exit(red > 0)


def run(number: int, options: list[str], *, beside_load: bool) -> bool:
    """Run the tests once and print how it went; return whether all passed."""
    seed = randbelow(2**32)
    order = ["-p", "randomly", f"--randomly-seed={seed}", "--randomly-dont-reset-seed"]
    output = FOLDER / f"run-{number}.txt"
    begun = time.monotonic()
    with output.open("w") as file, busy_loop(beside_load):
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "pytest", *order, *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS_FOR_A_RUN)
        except subprocess.TimeoutExpired:
            print(f"run {number} has not ended after {SECONDS_FOR_A_RUN} s", flush=True)
        finally:
            end(process)
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    text = output.read_text(encoding="utf-8", errors="replace")
    last_line = text.strip().rpartition("\n")[2].strip("= ")
    where = "beside a busy process" if beside_load else "alone"
    print(f"run {number}, {where}, order {seed}: {minutes}:{seconds:02}, {last_line}", flush=True)
    for failure in dict.fromkeys(re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", text, re.MULTILINE)):
        print(f"  {failure}", flush=True)
    return process.returncode == 0


def end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a run that has not ended, as Ctrl-C would, so that it ends what it started; kill what then remains."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_END)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def busy_loop(wanted: bool) -> Iterator[None]:
    """Let a process take all that it gets of one core until the block ends."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
