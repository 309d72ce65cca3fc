"""The first program in the container: starts the container's command, and stops when asked to.

Signals to a container's first process are dropped unless it handles them, and uvicorn does so only
after it has imported the application. Any other command than uvicorn replaces this program.
"""

import os
import signal
import sys
from collections.abc import Mapping

EVERY_ADDRESS = "0.0.0.0"  # noqa: S104


def adapted(command: list[str], environ: Mapping[str, str], *, has_ipv6: bool) -> list[str]:
    """Return uvicorn's command with the port that PORT names, on IPv6 as well as on IPv4."""
    command = list(command)
    port = environ.get("PORT", "").strip()
    # On a Space, `app_port` in README.md says where the Hub looks for the server. A PORT that is no
    # number is left to the settings, which say what it may be.
    if "--port" in command[:-1] and port.isdecimal() and "SPACE_ID" not in environ:
        command[command.index("--port") + 1] = port
    if has_ipv6 and EVERY_ADDRESS in command:
        # uvicorn opens a socket for each family itself, or one for both that all workers share.
        is_shared = environ.get("WEB_CONCURRENCY", "1") != "1"
        command[command.index(EVERY_ADDRESS)] = "::" if is_shared else ""
    return command


def main() -> None:
    """Run the command that was given as arguments."""
    # Not sys.exit(), because a library that is being imported may swallow the exception. Nothing
    # needs to be closed before uvicorn has its own handler, or after it has removed it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    command = sys.argv[1:]
    if command[0] != "uvicorn":
        os.execvp(command[0], command)  # noqa: S606
    import socket

    sys.argv = adapted(command, os.environ, has_ipv6=socket.has_dualstack_ipv6())
    from uvicorn.main import main as serve

    serve()


if __name__ == "__main__":
    main()
