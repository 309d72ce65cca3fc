"""The health routes. They never wait for a database: their answers come from the last report."""

import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from starlette.requests import HTTPConnection

from space_runtime.lifecycle.report import DatabaseReport, Status
from space_runtime.runtime import Runtime

router = APIRouter(tags=["health"])


@dataclass(frozen=True)
class Health:
    """The state of the application."""

    status: Status
    database: DatabaseReport
    version: str
    uptime_seconds: float


@dataclass(frozen=True)
class OneWord:
    """An answer in one word."""

    status: str


async def get_runtime(connection: HTTPConnection) -> Runtime:
    """Return the application's runtime."""
    runtime: Runtime = connection.app.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]


@router.get("/health", responses={503: {"model": Health, "description": "No database serves"}})
async def health(response: Response, runtime: RuntimeDep) -> Health:
    """Report the state of the application; 503 when no database serves."""
    status = runtime.status
    if status == "unavailable":
        response.status_code = 503
    response.headers["Cache-Control"] = "no-store"
    return Health(
        status=status,
        database=runtime.report,
        version=runtime.project.version,
        uptime_seconds=round(time.monotonic() - runtime.started, 1),
    )


@router.get("/health/live")
async def live() -> OneWord:
    """Answer 200 while the process serves."""
    return OneWord("alive")


@router.get("/health/ready", responses={503: {"model": OneWord, "description": "Not ready"}})
async def ready(response: Response, runtime: RuntimeDep) -> OneWord:
    """Answer 200 when the data routes work and the hooks have ended, else 503."""
    if runtime.is_ready:
        return OneWord("ready")
    response.status_code = 503
    response.headers["Retry-After"] = "2"
    return OneWord(runtime.status)
