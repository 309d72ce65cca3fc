"""Who may call a route, and how the route says so.

A write needs the API token, unless its route says otherwise:

    @router.post("/predict", **public)                   # in the words of OpenAPI: security: []
    @router.websocket("/talk", dependencies=[anybody])   # WebSockets, routers and applications
    app.include_router(login, dependencies=[anybody])    # have no openapi_extra
    public_mount(app, "/ui")                             # an application mounted at /ui

or it has a security dependency of its own (HTTPBearer, OAuth2PasswordBearer, ...), which then
decides. One with auto_error=False only decides about requests that have credentials, and what
depends on it has to refuse wrong ones. A check that FastAPI knows nothing of (`request.session`, a
header read by hand) is not seen here: mark its route as public, and the check alone decides.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import APIKey
from fastapi.routing import RouteContext
from fastapi.security.base import SecurityBase
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Host, Mount, Router
from starlette.types import Scope

SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "TRACE"])

public: dict[str, Any] = {"openapi_extra": {"security": []}}
"""Marks a route as one that anybody may call: `@router.post("/predict", **public)`."""


async def _anybody() -> None:
    """Do nothing: what counts is that a route depends on it."""


anybody: Any = Depends(_anybody)
"""The same as a dependency, for what has no openapi_extra: `dependencies=[anybody]`."""


def public_mount(app: FastAPI, path: str) -> None:
    """Let anybody write to the application that is mounted at `path`, now or later."""
    app.state.public_mounts = public_mounts_of(app) | {path.rstrip("/")}


def public_mounts_of(app: Starlette | Router) -> frozenset[str]:
    """Return the paths that public_mount() was called with."""
    paths: frozenset[str] = getattr(getattr(app, "state", None), "public_mounts", frozenset())
    return paths


@dataclass(frozen=True)
class Access:
    """Who may write to a route, besides the holder of the API token."""

    is_public: bool = False
    schemes: tuple[SecurityBase, ...] = ()

    @property
    def is_protected(self) -> bool:
        """Whether one of its own security dependencies refuses a request without credentials."""
        return any(getattr(scheme, "auto_error", True) for scheme in self.schemes)

    def is_left_to_its_own_check(self, scope: Scope) -> bool:
        """Whether a security dependency of the route's own decides about this request.

        One with auto_error=False refuses nobody, and nobody knows what the endpoint then does. So
        it only decides about requests that have credentials. Whether they are right is left to
        what depends on it: the checks of fastapi-users are of this kind.
        """
        return self.is_protected or any(_has_credentials(scheme, scope) for scheme in self.schemes)


def access_to(route: RouteContext) -> Access:
    """Return who may write to a route, as it and the routers around it say."""
    calls = list(_calls(getattr(route, "dependant", None)))
    extra = getattr(route, "openapi_extra", None) or {}
    return Access(
        is_public=extra.get("security") == [] or _anybody in calls,
        schemes=tuple(call for call in calls if isinstance(call, SecurityBase)),
    )


def is_mount(route: RouteContext) -> bool:
    """Whether another application answers here."""
    return isinstance(route.original_route, Mount | Host)


def _calls(dependant: Dependant | None) -> Iterator[Any]:
    """Yield the functions and objects that FastAPI calls before the endpoint."""
    for inner in dependant.dependencies if dependant else ():
        call: Any = inner.call
        while isinstance(call, partial):
            call = call.func
        if call is not None:
            yield inspect.unwrap(call)
        yield from _calls(inner)


def _has_credentials(scheme: SecurityBase, scope: Scope) -> bool:
    connection, model = HTTPConnection(scope), scheme.model
    if isinstance(model, APIKey):
        places = {
            "header": connection.headers,
            "cookie": connection.cookies,
            "query": connection.query_params,
        }
        return bool(places[model.in_.value].get(model.name))
    name, _, credentials = connection.headers.get("authorization", "").partition(" ")
    wanted: str = getattr(model, "scheme", "bearer")
    return name.lower() == wanted.lower() and bool(credentials.strip())
