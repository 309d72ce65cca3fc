"""Errors of the application, and how they become HTTP answers.

An answer never contains a driver's text, which may name hosts, users and rows.
"""

import json
import logging
from inspect import isawaitable
from typing import Any, cast

from fastapi import FastAPI, Request, WebSocket
from fastapi.exception_handlers import request_validation_exception_handler as _standard
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.orm.exc import DetachedInstanceError, StaleDataError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match

from space_runtime.backends.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    broken_rule,
    refused_value,
    unavailable,
)

logger = logging.getLogger(__name__)


class NotFound(Exception):
    """What a client asked for does not exist; the message is sent to the client."""


class BrokenRule(Exception):
    """The application's own code made a row that the database refuses; no value is in its text."""


class Problem(BaseModel):
    """Why a request was not carried out."""

    detail: str


DESCRIPTIONS = {
    400: "The body cannot be read",
    401: "The token or other credentials are missing or wrong",
    403: "Not allowed, or writes are off: no token is set on this Space",
    404: "There is no such thing",
    409: "The change conflicts with stored data",
    413: "The body is too large",
    429: "Too many requests from one client",
    500: "Something went wrong; the log has the details under the X-Request-ID",
    503: "No database serves now",
}
RETRY_AFTER = {"description": "Seconds to wait", "schema": {"type": "integer"}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for these statuses.

    FastAPI documents a 422 itself, and docs.py what any route or any write can return.
    """
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": DESCRIPTIONS[status]} for status in statuses
    }
    if 503 in responses:
        responses[503]["headers"] = {"Retry-After": RETRY_AFTER}
    return responses


CREATED: dict[int | str, dict[str, Any]] = {
    201: {"headers": {"Location": {"description": "Where it is", "schema": {"type": "string"}}}}
}
"""The `responses` of a route that creates something and sets the header Location."""


def add_error_handlers(app: FastAPI) -> None:
    """Map errors to 404, 409, 422 and 503; the middleware turns any other one into a 500.

    Where the application has a handler of its own, or gets one later, that is used instead.
    """
    for kind, handler in _HANDLERS.items():
        if app.exception_handlers.get(kind, _standard) is _standard:
            app.exception_handlers[kind] = handler


async def answer_of_own_handler(
    app: FastAPI, request: Request, error: Exception
) -> Response | None:
    """Return what the application's handler for any Exception answers; None if it has none.

    If the handler itself fails, that is logged, and None is returned.
    """
    handlers = app.exception_handlers
    handler = handlers.get(Exception) or handlers.get(500)
    if handler is None:
        return None
    try:
        return await _call(handler, request, error)
    except Exception:
        logger.exception("the handler of an error failed")
        return None


async def _call(handler: Any, request: Request, error: Exception) -> Response:
    # In a thread, because it may be a plain function, which may wait for something.
    answer = await run_in_threadpool(handler, request, error)
    if isawaitable(answer):
        answer = await answer
    return cast(Response, answer)


async def _wrong_method(request: Request, error: HTTPException) -> Response:
    """List all methods of the path (RFC 9110, 15.5.6); FastAPI lists those of its first route."""

    def is_known(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    known = filter(is_known, ("GET", "POST", "PUT", "PATCH", "DELETE"))
    # Every GET route also answers HEAD. Pages are no routes, and only know GET.
    allow = (", ".join(known) or "GET").replace("GET", "GET, HEAD")
    error.headers = {**(error.headers or {}), "Allow": allow}
    return await _call(request.app.exception_handlers[HTTPException], request, error)


async def _unreadable_body(request: Request, error: HTTPException) -> Response:
    # FastAPI calls it the client's fault, too, if an upload finds no room on the disk.
    if isinstance(error.__cause__, OSError):
        raise error.__cause__
    return await _call(request.app.exception_handlers[HTTPException], request, error)


async def _not_found(request: Request, error: NotFound) -> Response:
    return JSONResponse({"detail": str(error)}, 404)


async def _conflict(request: Request, error: IntegrityError | StaleDataError) -> Response:
    if isinstance(error, IntegrityError) and (rule := broken_rule(error)) is not None:
        # The driver's own text may contain the row.
        raise BrokenRule(rule).with_traceback(error.__traceback__) from None
    logger.info("conflict: %s", type(error).__name__)
    return JSONResponse({"detail": "The change conflicts with data that is stored."}, 409)


async def _failed(request: Request, error: SQLAlchemyError) -> Response | None:
    if (refusal := unavailable(error)) is not None:
        request.app.state.runtime.database.on_trouble(refusal.reason)
        detail = "The database failed: a change may or may not be there. Look before you try again."
        return await _database_unavailable(request, OutcomeUnknown(detail))
    message = refused_value(error) if isinstance(error, StatementError) else None
    if message is None:
        raise error
    logger.info("refused: %s", message)
    problem = {"type": "value_error", "loc": ["body"], "msg": message}
    return JSONResponse({"detail": [problem]}, 422)


async def _not_loaded(request: Request, error: DetachedInstanceError) -> Response:
    raise RuntimeError(
        "a value was not loaded before database.read() or write() returned: load it inside, for"
        " related rows with selectinload()"
    ) from error


async def _database_unavailable(
    request: Request | WebSocket, error: DatabaseUnavailable
) -> Response | None:
    if isinstance(request, WebSocket):
        await request.close(1013, error.detail)  # "try again later"
        return None
    return JSONResponse(
        {"detail": error.detail}, 503, headers={"Retry-After": str(error.retry_after)}
    )


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    # The values are left out, and the JSON is ASCII: not all that clients send can be encoded
    # as UTF-8.
    keys = ("type", "loc", "msg")
    problems = [{key: problem[key] for key in keys} for problem in error.errors()]
    return Response(json.dumps({"detail": problems}), 422, media_type="application/json")


_HANDLERS: dict[int | type[Exception], Any] = {
    400: _unreadable_body,
    405: _wrong_method,
    NotFound: _not_found,
    IntegrityError: _conflict,
    StaleDataError: _conflict,
    SQLAlchemyError: _failed,
    DetachedInstanceError: _not_loaded,
    DatabaseUnavailable: _database_unavailable,
    RequestValidationError: _invalid,
}
