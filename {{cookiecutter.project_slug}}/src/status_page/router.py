"""The page at /: what this Space is, which database serves, and whether its data are safe."""

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from src import __version__
from src.config.settings import read_about
from src.health.router import LifecycleDep
from src.security.headers import content_security_policy

router = APIRouter(include_in_schema=False)

HEADLINES = {
    "ok": "Everything works",
    "degraded": "Works, but on another database than was asked for",
    "unavailable": "No database serves",
    "starting": "Starting",
}


@router.get("/")
@router.head("/")
async def status_page(request: Request, lifecycle: LifecycleDep) -> Response:
    """Return the page in its present state; its script keeps it up to date."""
    page, policy = _page()
    report = lifecycle.report
    about = read_about()
    values = {
        "title": about.title,
        "emoji": about.emoji,
        "description": about.description,
        "status": report.status,
        "headline": HEADLINES[report.status],
        "detail": report.detail,
        "backend": {"postgresql": "PostgreSQL", "sqlite": "SQLite"}.get(
            report.backend or "", "none"
        ),
        "persistent": "yes" if report.persistent else "no",
        "latency": "-" if report.latency_ms is None else f"{report.latency_ms} ms",
        "version": __version__,
    }
    return HTMLResponse(
        page.substitute({name: html.escape(value) for name, value in values.items()}),
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
    )


@cache
def _page() -> tuple[Template, str]:
    """Return the page, and the policy that allows exactly its own script and style."""
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    extra = "; ".join(
        f"{directive} 'self' {' '.join(_digests(tag, text))}"
        for directive, tag in (("script-src", "script"), ("style-src", "style"))
    )
    return Template(text), content_security_policy(extra=f"{extra}; img-src 'self' data:")


def _digests(tag: str, text: str) -> list[str]:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
