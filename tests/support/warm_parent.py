"""The process that tests.support.warm forks programs from: it imports libraries, then forks for each request.

A program of its own, which knows nothing of the tests: `warm_parent.py DESCRIPTOR LIBRARY...`.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
import threading
from typing import Any


def await_request(requests: socket.socket) -> tuple[dict[str, Any], int, int]:
    """Return, in each fork that is to become a program, what to run, where to print and where to reply."""
    # not one that is in the kernel, which forks would share
    with selectors.PollSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    tell_how_it_ended(selector, key)
                    continue
                message, (output, replies), _, _ = socket.recv_fds(requests, 2**20, 2)
                if (program := os.fork()) == 0:
                    selector.unregister(requests)
                    requests.close()
                    # nobody but the parent tells how the other programs end
                    for other in selector.get_map().values():
                        os.close(other.fd)
                        os.close(other.data[1])
                    return json.loads(message), output, replies
                os.close(output)
                selector.register(os.pidfd_open(program), selectors.EVENT_READ, (program, replies))


def tell_how_it_ended(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Reply with the exit code of a program, if anybody still wants to know."""
    program, replies = key.data
    _, status = os.waitpid(program, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(replies, b"%d\n" % os.waitstatus_to_exitcode(status))
    selector.unregister(key.fd)
    os.close(key.fd)
    os.close(replies)


def become_a_program(request: dict[str, Any], output: int, replies: int) -> tuple[str, str]:
    """Take on what a process that begins gets from who starts it, tell the id, and return what to run."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    os.write(replies, b"%d\n" % os.getpid())
    os.close(replies)
    option, what, *others = request["arguments"]
    sys.argv = [option, *others]
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    # the folder that the process is in
    sys.path[0] = ""
    return option, what


def run(option: str, what: str) -> None:
    """Run it as `python -m` or `python -c` does, and end as that would, but for what takes half a second of a fork.

    At its end, an interpreter takes all apart that it has, which would have to be copied before.
    """
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        leave_at_the_end.append(int(end.code or 0))
        raise
    leave_at_the_end.append(0)


leave_at_the_end: list[int] = []


# the first that is registered is called after all others
@atexit.register
def leave() -> None:
    """End at once, where the exit code is known."""
    if leave_at_the_end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leave_at_the_end[0])


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would lack the other threads"
    # who looks through all of it for garbage would copy it
    gc.freeze()
    try:
        program = become_a_program(*await_request(socket.socket(fileno=int(sys.argv[1]))))
    except ValueError:
        # no descriptors came with a message: nobody is left who asks
        sys.exit()
    run(*program)
