"""The page at /status: what this Space is, which database serves, and whether its data are safe.

It is shown at / too, as long as the owner has no page there (pages.py). A 404 looks like it.
"""

import base64
import hashlib
import html
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from string import Template
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from space_runtime.http.health import Health, RuntimeDep, health
from space_runtime.http.policy import content_security_policy
from space_runtime.http.routes import routes_of
from space_runtime.project import About
from space_runtime.reasons import REASONS
from space_runtime.runtime import Runtime
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
    theme = request.query_params.get("__theme")  # Set by the Hub when it embeds the page.
    values = (
        _values(report, runtime.project.read_about())
        | _about_hooks(runtime)
        | {
            "color_scheme": theme if theme in ("light", "dark") else "light dark",
            "hide_metrics": "" if runtime.settings.metrics == "on" else "hidden",
            "first_url": _address(request) + _first_route(request.app),
        }
    )
    return _page("status_page.html", values)


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


def not_found_page(request: Request) -> Response:
    """Return the page for a browser that opens an address where nothing is."""
    about = request.app.state.runtime.project.read_about()
    root = request.scope.get("root_path", "")
    values = {"title": about.title, "emoji": about.emoji, "root": root}
    return _page("not_found.html", values, 404)


def _values(report: Health, about: About) -> dict[str, str]:
    """Return what the page shows, as plain text."""
    database = report.database
    latency = database.latency_ms
    loses_data = database.backend is not None and not database.persistent
    return {
        "title": about.title,
        "emoji": about.emoji,
        "icon": quote(html.escape(about.emoji)),
        "description": about.description,
        "color_from": about.color_from,
        "color_to": about.color_to,
        "status": report.status,
        "word": report.status.capitalize() if report.status != "ok" else "OK",
        "headline": _headline(report),
        "detail": database.detail,
        "remedy": _remedy(database.reason),
        "hide_remedy": "" if report.status in ("degraded", "unavailable") else "hidden",
        "where": _where(),
        "hide_warning": "" if loses_data else "hidden",
        "backend": BACKENDS[database.backend],
        "persistent": ("Yes" if database.persistent else "No") if database.backend else "Not known",
        "latency": "Not measured" if latency is None else f"{latency:g} ms",
        "uptime": _duration(report.uptime_seconds),
        "checked": f"{_duration((datetime.now(UTC) - database.checked_at).total_seconds())} ago",
        "version": report.version,
        "pending_rows": str(database.pending_rows),
        "hide_pending": "" if database.pending_rows else "hidden",
        "repairs": ", ".join(map(_repair, database.repairs)),
        "hide_repairs": "" if database.repairs else "hidden",
    }


def _about_hooks(runtime: Runtime) -> dict[str, str]:
    """Return what the page says instead because of a hook that runs or has failed."""
    progress = runtime.hooks.progress
    if progress.failure:
        remedy = "Read the log, mend the cause, and restart the application."
        return {"headline": "A part of the application could not start", "remedy": remedy}
    if progress.running and runtime.status == "starting":
        return {"headline": "A part of the application is not ready yet"}
    return {}


def _headline(report: Health) -> str:
    if report.status == "ok" and report.database.pending_rows:
        return "PostgreSQL serves, but some rows of an outage need you."
    return HEADLINES[report.status]


def _remedy(reason: str | None) -> str:
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


def _page(name: str, values: dict[str, str], status: int = 200) -> Response:
    page, policy = _template(name)
    return HTMLResponse(
        page.substitute({name: html.escape(value) for name, value in values.items()}),
        status,
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
    )


@cache
def _template(name: str) -> tuple[Template, str]:
    """Return a page, and the policy that allows exactly the script and style in it."""
    (style,) = re.findall("<style>.*?</style>", _read("status_page.html"), re.DOTALL)
    text = _read(name).replace("<style></style>", style)
    directives = ""
    for tag in ("script", "style"):
        for block in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
            directives += f"{tag}-src 'self' 'sha256-{digest}'; "
    return Template(text), content_security_policy(extra=f"{directives}img-src 'self' data:")


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
