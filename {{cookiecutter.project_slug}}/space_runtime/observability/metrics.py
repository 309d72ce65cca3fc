"""Prometheus metrics; the README lists them.

No label contains a host, a user or the value of a path parameter. With several workers, each
answer shows only the process that gave it.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class RequestStatistics(Collector):
    """Counts requests in plain numbers, which become metrics when they are collected.

    The counters and histograms of prometheus_client, even if they are looked up once, would add a
    tenth to the time of the middleware.
    """

    BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
    """The upper bounds of the histogram's buckets, in seconds."""

    def __init__(self) -> None:
        # The number of requests in each bucket, then the seconds that all of them took together.
        self._rows: dict[tuple[str, str, int], list[float]] = {}

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        row = self._rows.get((method, route, status))
        if row is None:
            row = self._rows[method, route, status] = [0] * (len(self.BOUNDS) + 2)
        row[bisect_left(self.BOUNDS, seconds)] += 1
        row[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield both metrics as they are now."""
        requests = CounterMetricFamily(
            "http_requests", "Requests answered.", labels=["method", "route", "status"]
        )
        durations: dict[tuple[str, str], list[float]] = {}
        for (method, route, status), row in list(self._rows.items()):
            requests.add_metric([method, route, str(status)], sum(row[:-1]))
            others = durations.get((method, route), [0] * len(row))
            durations[method, route] = list(map(sum, zip(row, others, strict=True)))
        yield requests
        duration = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Seconds from a request to its answer.",
            labels=["method", "route"],
        )
        bounds = [*map(str, self.BOUNDS), "+Inf"]
        for where, (*buckets, seconds) in durations.items():
            duration.add_metric(where, list(zip(bounds, accumulate(buckets), strict=True)), seconds)
        yield duration


REQUESTS = RequestStatistics()
REGISTRY.register(REQUESTS)
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
