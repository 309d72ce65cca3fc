"""Prometheus metrics, and the route that shows them; the README lists them.

Nothing here names a host, a user or a value of a path. With several workers, each answer shows the
process that gave it.
"""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from src import __version__

router = APIRouter(tags=["metrics"])

REQUESTS = Counter("http_requests", "Requests answered.", ["method", "route", "status"])
DURATION = Histogram(
    "http_request_duration_seconds", "Seconds from a request to its answer.", ["method", "route"]
)
IN_PROGRESS = Gauge("http_requests_in_progress", "Requests being answered.")

STATUS = Gauge("database_status", "1 for the status that /health reports, else 0.", ["status"])
BACKEND = Gauge("database_backend", "1 for the database that serves, else 0.", ["backend"])
PERSISTENT = Gauge("database_persistent", "1 if the rows outlive a restart of the container.")
CHECK_DURATION = Gauge("database_check_duration_seconds", "Seconds that the last check took.")
PENDING_ROWS = Gauge("database_pending_rows", "Rows on SQLite that PostgreSQL should have.")
FALLBACKS = Counter("database_fallbacks", "Times that SQLite took over from PostgreSQL.")
PROMOTIONS = Counter("database_promotions", "Hand-overs of rows from SQLite to PostgreSQL.")
PROMOTED_ROWS = Counter("database_promoted_rows", "Rows handed over: moved, refused.", ["outcome"])

THREADS = Gauge("database_threads", "Database threads, a connection each.", ["lane"])
THREADS_BUSY = Gauge("database_threads_busy", "Database threads at work.", ["lane"])
WAITING = Gauge("database_requests_waiting", "Requests that wait for a thread.", ["lane"])
REFUSED = Counter(
    "database_requests_refused", "Requests refused for lack of room: full, waited.", ["reason"]
)

SNAPSHOTS = Counter("database_snapshots", "Snapshots: taken, failed.", ["outcome"])
SNAPSHOT_AGE = Gauge("database_snapshot_age_seconds", "Age of the newest snapshot; NaN: none.")
LOST_LINES = Counter("log_lines_lost", "Log lines that nobody read in time.")
BUILD = Gauge("app_build_info", "1, with the version of the application.", ["version"])

BUILD.labels(__version__).set(1)
SNAPSHOT_AGE.set(float("nan"))
for _outcome in ("moved", "refused"):
    PROMOTED_ROWS.labels(_outcome)
for _reason in ("full", "waited"):
    REFUSED.labels(_reason)
for _outcome in ("taken", "failed"):
    SNAPSHOTS.labels(_outcome)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> Response:
    """Return all metrics in Prometheus text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
