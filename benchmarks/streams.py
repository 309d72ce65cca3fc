"""What open streams cost other requests, and what the HTTP parser costs: `make bench`.

Each is a ratio of figures that were taken by turns. The parser is httptools with bounds for heads (`protocol.py`),
beside httptools and h11 as uvicorn brings them.
"""

import random
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.load import answers_per_second
from benchmarks.serving import (
    AS_ON_A_SPACE,
    LIST,
    TRIVIAL,
    Extent,
    Request,
    http,
    judge,
    measure,
    servers,
    show,
    sqlite_url,
)
from tests.support.bakery import Bakery
from tests.support.server import Server

STREAMS = 16
CLIENTS = 16
ROUNDS = 20
SECONDS = 0.3
OF_WITHOUT_STREAMS = 0.95

PARSERS = {parser: ("trivial:app", AS_ON_A_SPACE | {"UVICORN_HTTP": parser}) for parser in ("auto", "httptools", "h11")}
PARSER_EXTENT = Extent(starts=4, rounds=3, seconds=0.3)


@contextmanager
def open_streams(port: int) -> Iterator[None]:
    """Have streams whose answers have begun."""
    with ExitStack() as stack:
        for _ in range(STREAMS):
            stream = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            stream.sendall(http("GET", "/events"))
            received = b""
            while b"hello" not in received:
                received += stream.recv(65_536)
        yield


def cost_of_streams(project: Path) -> list[float]:
    """Return what is served with open streams as a multiple of what is served without, round by round."""
    ratios = []
    with servers({"streaming": ("streaming:app", AS_ON_A_SPACE)}, project, sqlite_url) as started:
        port = started["streaming"].port
        for number in range(ROUNDS + 1):
            figures = {}
            for is_open in random.sample([True, False], 2):
                with ExitStack() as stack:
                    if is_open:
                        stack.enter_context(open_streams(port))
                    figures[is_open] = answers_per_second(port, CLIENTS, SECONDS, lambda: TRIVIAL)
            if number > 0:  # the first round fills the caches
                ratios.append(figures[True] / figures[False])
    return ratios


def requests(server: Server) -> dict[str, Request]:
    """The trivial route, and one that asks the database."""
    for number in range(20):
        server.post("/api/items", json={"title": f"Item {number}"})
    return {"trivial": lambda: TRIVIAL, "list of 20": lambda: LIST}


def main() -> None:
    """Print the ratios; the exit code is 1 if open streams cost too much."""
    with tempfile.TemporaryDirectory() as folder:
        project = Bakery(Path(folder))().path
        parsers = measure(PARSERS, project, sqlite_url, requests, PARSER_EXTENT)
        is_held = judge(f"with {STREAMS} open streams / without", cost_of_streams(project), OF_WITHOUT_STREAMS)
    show("parsers", parsers)
    for row in parsers:
        for parser in ("auto", "h11"):
            ratio = statistics.median(row.ratios(parser, "httptools"))
            print(f"       {ratio:5.2f}  {parser} / httptools, {row.situation}, c={row.clients}")
    sys.exit(not is_held)


if __name__ == "__main__":
    main()
