"""Is the process alive, can it work, and what is the state of its database?

Nothing here waits for a database: all answers come from the lifecycle's last report.
"""

import time
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from src import __version__
from src.database.lifecycle import DatabaseLifecycle

router = APIRouter(tags=["health"])


class DatabaseHealth(BaseModel):
    """Which database serves, why, and whether its data outlive a restart."""

    model_config = ConfigDict(from_attributes=True)

    backend: Literal["postgresql", "sqlite"] | None
    source: Literal["environment", "fallback"]
    reason: str | None
    detail: str
    persistent: bool
    repairs: list[str]
    pending_rows: int
    latency_ms: float | None
    checked_at: datetime


class Health(BaseModel):
    """The state of the application."""

    status: Literal["ok", "degraded", "unavailable", "starting"]
    database: DatabaseHealth
    version: str
    uptime_seconds: float


class State(BaseModel):
    """An answer in one word."""

    status: str


async def get_lifecycle(request: Request) -> DatabaseLifecycle:
    """Return the application's database lifecycle."""
    lifecycle: DatabaseLifecycle = request.app.state.lifecycle
    return lifecycle


LifecycleDep = Annotated[DatabaseLifecycle, Depends(get_lifecycle)]


@router.get("/health", responses={503: {"model": Health, "description": "No database serves"}})
async def health(request: Request, response: Response, lifecycle: LifecycleDep) -> Health:
    """Report the state of the application; 503 when no database serves."""
    report = lifecycle.report
    if report.status == "unavailable":
        response.status_code = 503
    response.headers["Cache-Control"] = "no-store"
    return Health(
        status=report.status,
        database=DatabaseHealth.model_validate(report),
        version=__version__,
        uptime_seconds=round(time.monotonic() - request.app.state.started, 1),
    )


@router.get("/health/live")
async def live() -> State:
    """Answer 200 while the process serves."""
    return State(status="alive")


@router.get("/health/ready", responses={503: {"model": State, "description": "They do not"}})
async def ready(response: Response, lifecycle: LifecycleDep) -> State:
    """Answer 200 when the data routes work, else 503."""
    if lifecycle.is_ready:
        return State(status="ready")
    response.status_code = 503
    response.headers["Retry-After"] = "2"
    return State(status=lifecycle.report.status)
