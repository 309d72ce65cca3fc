"""Types answers at cookiecutter's prompts, on a pseudo-terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.processes import bare_environment, end

SECONDS = 60


def type_answers(answers: Sequence[str], *, template: Path, folder: Path) -> tuple[int, str]:
    """Answer one prompt after the other ("" takes what is offered); the exit code and all that the screen showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "cookiecutter", "--default-config", str(template)],
        cwd=folder,
        env=bare_environment(folder.parent) | {"TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        screen = bytearray()
        for number, answer in enumerate(answers, start=1):
            # Each question shows its number, and ends with what is offered in brackets and a colon.
            read_until(ours, screen, rb"\[%d/%d\](?s:.*?)\): " % (number, len(answers)))
            os.write(ours, answer.encode() + b"\n")
        read_until(ours, screen, None)
        return process.wait(SECONDS), screen.decode("utf-8", "replace")
    finally:
        end(process)
        os.close(ours)


def read_until(terminal: int, screen: bytearray, expected: bytes | None) -> None:
    """Add to the screen what is shown, until it matches `expected`, or until the program has ended."""
    deadline = time.monotonic() + SECONDS
    # Reading a terminal whose program has ended is an error on Linux.
    with suppress(OSError):
        while expected is None or not re.search(expected, screen):
            ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
            assert ready, f"{expected!r} was not shown, but:\n{screen.decode()}"
            screen += os.read(terminal, 4096)
