"""Whether a server can listen on a port: `python -m space_runtime.port 7860` ends well, or says."""

import errno
import socket
import sys


def usable_port(port: str | int, host: str = "127.0.0.1") -> int:
    """Return the port as a number, or exit with a sentence if nothing can listen on it."""
    # int() would also take signs, blanks and digits of other scripts.
    if not str(port).isascii() or not str(port).isdigit() or not 1 <= int(port) <= 65535:
        raise SystemExit("PORT must be a whole number from 1 to 65535.")
    with socket.socket() as probe:
        # As servers do, so that lingering connections of the last server do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            why = {
                errno.EADDRINUSE: "is taken: end what listens there",
                errno.EACCES: "is one that only root may use: become root",
            }.get(error.errno or 0, f"cannot be used ({error.strerror}): free it")
            raise SystemExit(f"Port {port} {why}, or choose another with PORT=...") from None
    return int(port)


if __name__ == "__main__":
    usable_port(sys.argv[1])
