"""The process that tests.support.warm forks apps from: it imports libraries, then forks for each request.

A program of its own, which knows nothing of the tests: `warm_parent.py DESCRIPTOR LIBRARY...`.
"""

import importlib
import json
import os
import runpy
import socket
import sys
import threading
from typing import Any


def await_request(requests: socket.socket) -> tuple[dict[str, Any], int, int]:
    """Return, in each fork that is to become an app, what to run, where to print and where to reply."""
    while True:
        message, (log, replies), _, _ = socket.recv_fds(requests, 2**20, 2)
        # A process of its own waits for the app, so that this one can go on; who made that process is waited for here.
        if (between := os.fork()) == 0:
            requests.close()
            if os.fork() != 0:
                os._exit(0)
            if (app := os.fork()) == 0:
                return json.loads(message), log, replies
            _, status = os.waitpid(app, 0)
            os.write(replies, b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        os.close(log)
        os.close(replies)
        os.waitpid(between, 0)


def become_an_app(request: dict[str, Any], log: int, replies: int) -> None:
    """Take on what a process that begins gets from who starts it, and tell the id."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    os.write(replies, b"%d\n" % os.getpid())
    os.close(replies)
    sys.argv = ["uvicorn", *request["arguments"]]
    # as with `python -m`: the folder that the process is in
    sys.path[0] = ""


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would lack the other threads"
    try:
        become_an_app(*await_request(socket.socket(fileno=int(sys.argv[1]))))
    except ValueError:
        # no descriptors came with a message: nobody is left who asks
        sys.exit()
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
