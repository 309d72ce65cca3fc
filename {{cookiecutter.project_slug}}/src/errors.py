"""Errors of the application, and the one place where they become HTTP answers.

An answer never holds the text of a driver: it may name hosts, users and rows.
"""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from src.database.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)


class NotFound(Exception):
    """What was asked for does not exist; the message is fit for a client."""


class Problem(BaseModel):
    """Why a request was not carried out."""

    detail: str


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The token is missing or wrong (writes only)"},
    403: {"model": Problem, "description": "Writes are switched off (writes only)"},
    404: {"model": Problem, "description": "There is no such thing"},
    409: {"model": Problem, "description": "The change conflicts with stored data"},
    413: {"model": Problem, "description": "The body is too large"},
    503: {"model": Problem, "description": "No database serves now; Retry-After says when to ask"},
}


def add_error_handlers(app: FastAPI) -> None:
    """Answer 404, 409, 422 and 503 for the errors that mean so; any other one is a 500."""

    @app.exception_handler(NotFound)
    async def not_found(request: Request, error: NotFound) -> Response:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(IntegrityError)
    @app.exception_handler(StaleDataError)
    async def conflict(request: Request, error: IntegrityError | StaleDataError) -> Response:
        logger.info("conflict: %s", type(error).__name__)
        return JSONResponse({"detail": "The change conflicts with data that is stored."}, 409)

    @app.exception_handler(DatabaseUnavailable)
    async def database_unavailable(request: Request, error: DatabaseUnavailable) -> Response:
        return JSONResponse(
            {"detail": error.detail}, 503, headers={"Retry-After": str(error.retry_after)}
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # what the client sent is not sent back: no encoding need be able to carry it
        problems = [
            {key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()
        ]
        body = json.dumps({"detail": problems})
        return Response(body, 422, media_type="application/json")
