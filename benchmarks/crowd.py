"""How long requests wait where many clients ask at once, beside what another template generates: `make bench`."""

import sys
import tempfile
from pathlib import Path

from benchmarks.serving import (
    ITEM_APPS,
    Extent,
    Served,
    judge,
    measure,
    peer_if_there,
    requests_for_items,
    show,
    sqlite_url,
)
from tests.support.bakery import Bakery
from tests.support.postgres import new_postgres

FEW, MANY, MOST = CROWDS = (48, 64, 256)
EXTENT = Extent(starts=1, rounds=3, seconds=2.0)
P99_OF_P50 = 3.0
OF_THE_RATIO_WITH_FEW = 0.9
"""The same, but for what one round differs from another."""


def judged(database: str, table: list[Served]) -> list[bool]:
    """Print whether the slowest wait about as long as the others, and whether more clients change what is served."""
    held = []
    rows = {(row.situation, row.clients): row for row in table}
    for situation in dict.fromkeys(row.situation for row in table):
        if (database, situation) != ("PostgreSQL", "create"):
            waits = [
                answers.percentile(99) / answers.percentile(50) for answers in rows[situation, MANY].rounds["ours"]
            ]
            held.append(judge(f"p99 / p50, {database}, {situation}, c={MANY}", waits, P99_OF_P50, most=True))
        if "generated" in table[0].rounds:
            few, most = (sorted(rows[situation, crowd].ratios("ours", "generated")) for crowd in (FEW, MOST))
            least = OF_THE_RATIO_WITH_FEW * few[len(few) // 2]
            held.append(judge(f"ours / generated, {database}, {situation}, c={MOST}", most, least))
    return held


def main() -> None:
    """Print what is served and the ratios; the exit code is 1 if one does not hold, or a request was lost."""
    held = []
    with tempfile.TemporaryDirectory() as folder, new_postgres() as postgres, peer_if_there() as peer:
        project = Bakery(Path(folder))().path
        for database, new_url in (("SQLite", sqlite_url), ("PostgreSQL", postgres.create_database)):
            apps = {"ours": ITEM_APPS["ours"]}
            table = measure(apps, project, new_url, requests_for_items, EXTENT, peer, CROWDS)
            show(database, table)
            held += judged(database, table)
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
