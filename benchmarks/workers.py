"""What a second worker brings: `make bench`.

Whatever asks takes a part of the machine, too: with two cores, a part of what the second worker would have.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.serving import AS_ON_A_SPACE, LIST, Extent, Request, judge, measure, show, sqlite_url
from benchmarks.streams import requests
from tests.support.bakery import Bakery
from tests.support.server import Server

APPS = {
    "two": ("src.main:app", AS_ON_A_SPACE | {"WEB_CONCURRENCY": "2"}),
    "one": ("src.main:app", AS_ON_A_SPACE),
}
EXTENT = Extent(starts=3, rounds=3, seconds=1.0)
TIMES_ONE = 1.6


def lists(server: Server) -> dict[str, Request]:
    """A list of 20."""
    requests(server)
    return {"list of 20": lambda: LIST}


def main() -> None:
    """Print the ratio; the exit code is 1 if it is too low."""
    with tempfile.TemporaryDirectory() as folder:
        table = measure(APPS, Bakery(Path(folder))().path, sqlite_url, lists, EXTENT)
    show("SQLite", table)
    held = [
        judge(f"two workers / one, SQLite, list, c={row.clients}", row.ratios("two", "one"), TIMES_ONE) for row in table
    ]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
