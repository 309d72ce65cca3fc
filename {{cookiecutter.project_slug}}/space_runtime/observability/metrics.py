"""Prometheus metrics; the README lists them.

No label contains a host, a user or the value of a path parameter. With several workers, each
answer shows only the process that gave it.
"""

import functools
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

_REQUESTS = Counter("http_requests", "Requests answered.", ["method", "route", "status"])
_DURATION = Histogram(
    "http_request_duration_seconds",
    "Seconds from a request to its answer.",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
IN_PROGRESS = Gauge("http_requests_in_progress", "Requests being answered.")

STATUS = Gauge("database_status", "1 for the status that /health reports, else 0.", ["status"])
BACKEND = Gauge("database_backend", "1 for the database that serves, else 0.", ["backend"])
PERSISTENT = Gauge("database_persistent", "1 if the rows outlive a restart of the container.")
CHECK_DURATION = Gauge("database_check_duration_seconds", "Seconds that the last check took.")
PENDING_ROWS = Gauge("database_pending_rows", "Rows on SQLite that PostgreSQL should have.")
FALLBACKS = Counter("database_fallbacks", "Times that SQLite took over from PostgreSQL.")
FAILBACKS = Counter("database_failbacks", "SQLite files whose rows were moved to PostgreSQL.")
FAILBACK_ROWS = Counter("database_failback_rows", "Rows of failbacks: moved, refused.", ["outcome"])

THREADS = Gauge("database_threads", "Database threads; loop: the event loop itself.", ["pool"])
THREADS_BUSY = Gauge("database_threads_busy", "Database threads at work.", ["pool"])
WAITING = Gauge("database_requests_waiting", "Requests waiting for a thread.", ["pool"])
REFUSED = Counter(
    "database_requests_refused",
    "Requests refused for lack of room; why.",
    ["reason"],
)

SNAPSHOTS = Counter("database_snapshots", "Snapshots: taken, failed.", ["outcome"])
SNAPSHOT_AGE = Gauge("database_snapshot_age_seconds", "Age of the newest snapshot; NaN: none.")
LOST_LINES = Counter("log_lines_lost", "Log lines that nobody read in time.")
BUILD = Gauge("app_build_info", "1, with the version of the application.", ["version"])

SNAPSHOT_AGE.set(float("nan"))
for _label in ("moved", "refused"):
    FAILBACK_ROWS.labels(_label)
for _label in ("full", "waited"):
    REFUSED.labels(_label)
for _label in ("taken", "failed"):
    SNAPSHOTS.labels(_label)


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request that was answered."""
    increment, observe = _counters_of(method, route, status)
    increment()
    observe(seconds)


@functools.cache
def _counters_of(
    method: str, route: str, status: int
) -> tuple[Callable[[], None], Callable[[float], None]]:
    # To look these up for each request would take longer than to count it.
    return _REQUESTS.labels(method, route, status).inc, _DURATION.labels(method, route).observe
