"""What it brings to read without a transaction where PostgreSQL is 20 ms away: `make bench`."""

import contextlib
import socket
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.serving import AS_ON_A_SPACE, LIST, Extent, Request, http, judge, measure, show
from tests.support.bakery import Bakery
from tests.support.faults import Network, shut
from tests.support.postgres import new_postgres
from tests.support.server import Server

SECONDS_EACH_WAY = 0.01
CROWDS = (64,)
POOL_SIZE = {"POOL_SIZE": "20"}
APPS = {
    "ours": ("src.main:app", AS_ON_A_SPACE | POOL_SIZE),
    "transactional": ("transactional:app", AS_ON_A_SPACE | POOL_SIZE),
}
EXTENT = Extent(starts=2, rounds=3, seconds=1.0)
TIMES_TRANSACTIONAL = 1.6


class Distance(Network):
    """Forwards everything, later. Client and server take turns, so that nothing else has to wait meanwhile."""

    def _forward(self, source: socket.socket, sink: socket.socket, cut_after: deque[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(SECONDS_EACH_WAY)
                sink.sendall(data)
        shut(source)
        shut(sink)


def distant(port: int) -> int:
    """Return a port that leads to another, from afar, as long as the process lives in which this is called."""
    return Distance(port).port


def reads(server: Server) -> dict[str, Request]:
    """What is asked; few items, since each takes its time from so far away."""
    made = [server.post("/api/items", json={"title": f"Item {number}"}) for number in range(20)]
    one = http("GET", made[0].headers["Location"])
    return {"list of 20": lambda: LIST, "read one": lambda: one}


def main() -> None:
    """Print the ratios; the exit code is 1 if one is too low."""
    # A process of its own, since whatever asks has enough to do.
    with tempfile.TemporaryDirectory() as folder, new_postgres() as postgres, ProcessPoolExecutor(1) as process:
        near, far = postgres.port, process.submit(distant, postgres.port).result()
        project = Bakery(Path(folder))().path

        def new_url() -> str:
            return postgres.create_database().replace(f":{near}/", f":{far}/")

        table = measure(APPS, project, new_url, reads, EXTENT, crowds=CROWDS)
    show("20 ms away", table)
    held = [
        judge(
            f"without / with a transaction, 20 ms away, {row.situation}",
            row.ratios("ours", "transactional"),
            TIMES_TRANSACTIONAL,
        )
        for row in table
    ]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
