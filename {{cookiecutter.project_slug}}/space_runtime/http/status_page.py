"""The page at /status: what this Space is, which database serves, and whether its data are safe.

It is shown at / too, as long as the owner has no page there (pages.py). A 404 looks like it.
"""

import html
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response

from space_runtime.http.health import Health, RuntimeDep, health
from space_runtime.http.routes import routes_of
from space_runtime.http.templates import page
from space_runtime.lifecycle.hooks import Progress
from space_runtime.reasons import REASONS
from space_runtime.settings import read_space

router = APIRouter(include_in_schema=False)

HEADLINES = {
    "ok": "Everything works",
    "degraded": "Works, but with another database than configured",
    "unavailable": "Data can neither be read nor written",
    "starting": "The database is not ready yet",
}
BACKENDS = {"postgresql": "PostgreSQL", "sqlite": "SQLite", None: "None"}

REPAIRS = {
    "blanks": "blanks around it",
    "driver": "the driver's name",
    "dropped_parameter": "left out the parameter",
    "escapes": "escaped characters",
    "host": "the server's name",
    "invisible_characters": "invisible characters",
    "line_breaks": "line breaks",
    "other_lines": "other lines",
    "prefix": "words before it",
    "query": "the question mark",
    "quotes": "quotes around it",
    "scheme": "the part before ://",
    "slashes": "slashes",
    "trailing_characters": "words after it",
    "translated_parameter": "renamed the parameter",
}


@router.get("/status")
async def status_page(
    request: Request, runtime: RuntimeDep, report: Annotated[Health, Depends(health)]
) -> Response:
    """Return the page, which says in words what /health says in JSON."""
    about, database = runtime.project.read_about(), report.database
    theme = request.query_params.get("__theme")  # Set by the Hub when it embeds the page.
    latency, age = database.latency_ms, datetime.now(UTC) - database.checked_at
    shown = {
        "remedy": report.status in ("degraded", "unavailable"),
        "warning": database.backend is not None and not database.persistent,
        "pending": database.pending_rows > 0,
        "repairs": bool(database.repairs),
        "metrics": runtime.settings.metrics == "on",
    }
    values = {
        "color_scheme": theme if theme in ("light", "dark") else "light dark",
        "icon": quote(html.escape(about.emoji)),
        "status": report.status,
        "word": report.status.capitalize() if report.status != "ok" else "OK",
        "headline": _headline(report, runtime.hooks.progress),
        "detail": database.detail,
        "remedy": _remedy(database.reason, runtime.hooks.progress),
        "where": _where(),
        "backend": BACKENDS[database.backend],
        "persistent": ("Yes" if database.persistent else "No") if database.backend else "Not known",
        "latency": "Not measured" if latency is None else f"{latency:g} ms",
        "uptime": _duration(report.uptime_seconds),
        "checked": f"{_duration(age.total_seconds())} ago",
        "version": report.version,
        "pending_rows": str(database.pending_rows),
        "repairs": ", ".join(map(_repair, database.repairs)),
        "first_url": _address(request) + _first_route(request.app),
    }
    hiding = {f"hide_{part}": "" if is_shown else "hidden" for part, is_shown in shown.items()}
    return page("status_page.html", asdict(about) | values | hiding)


def not_found_page(request: Request) -> Response:
    """Return the page for a browser that opens an address where nothing is."""
    about = request.app.state.runtime.project.read_about()
    root = request.scope.get("root_path", "")
    return page("not_found.html", asdict(about) | {"root": root}, status=404)


def _address(request: Request) -> str:
    """Return where the application answers, without the Host header, which anybody can forge."""
    if host := read_space().host:
        return f"https://{host}"
    port = request.scope["server"][1]
    return f"http://localhost:{port}{request.scope.get('root_path', '')}"


@cache
def _first_route(app: FastAPI) -> str:
    """Return a path that everybody can read: the first of the API, else the health report."""
    paths = (line.path for line in routes_of(app) if "GET" in line.methods)
    return next((path for path in paths if path.startswith("/api/") and "{" not in path), "/health")


def _headline(report: Health, hooks: Progress) -> str:
    if hooks.failure:
        return "A part of the application could not start"
    if hooks.running and report.status == "starting":
        return "A part of the application is not ready yet"
    if report.status == "ok" and report.database.pending_rows:
        return "PostgreSQL serves, but some rows of an outage need you."
    return HEADLINES[report.status]


def _remedy(reason: str | None, hooks: Progress) -> str:
    if hooks.failure:
        return "Read the log, mend the cause, and restart the application."
    if reason in REASONS and REASONS[reason].remedy:
        return REASONS[reason].remedy
    compare = "Compare DATABASE_URL with the connection string on your provider's page"
    return f"{compare}, and correct it {_where()}."


def _where() -> str:
    if read_space().is_running_here:
        return "in this Space's settings, under Variables and secrets"
    return "in the environment of the server"


def _repair(code: str) -> str:
    kind, _, name = code.partition(":")
    return f"{REPAIRS.get(kind, kind)} {name}".rstrip()


def _duration(seconds: float) -> str:
    """Return the two largest units, such as "2 hours 3 minutes"."""
    rest = max(int(seconds), 0)
    parts: list[str] = []
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, rest = divmod(rest, size)
        if count or parts or unit == "second":
            parts.append(f"{count} {unit}" if count == 1 else f"{count} {unit}s")
    return " ".join(parts[:2])
