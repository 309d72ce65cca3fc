"""Which route answers a write, and who may call it.

The routes themselves are asked, in their order, as FastAPI will ask them: so what is judged here
and what answers cannot be two different routes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Router, WebSocketRoute
from starlette.types import Scope

from space_runtime.http.access import (
    SAFE_METHODS,
    Access,
    access_to,
    is_mount,
    mounted_in,
    public_mounts_of,
)

Matches = Callable[[Scope], tuple[Match, Scope]]


@dataclass(frozen=True)
class Target:
    """What answers a write, and who may call it; where nothing answers, nobody may."""

    access: Access
    kind: Literal["nothing", "route", "WebSocket", "mount"]
    path: str


_NOTHING = Target(Access(), "nothing", "")


class Targets:
    """The routes of an application that may write; read anew when routes were added."""

    def __init__(
        self, app: Starlette | Router, prefix: str = "", outermost: Starlette | Router | None = None
    ) -> None:
        """`prefix` is where the application is mounted in the outermost one."""
        self._app = app
        self._prefix = prefix
        self._outermost = outermost or app
        self._seen: list[BaseRoute] = []
        self._routes: list[tuple[Matches, Target, Targets | None]] = []

    def find(self, scope: Scope) -> Target:
        """Return what answers this request, whose method is not a safe one."""
        routes = self._app.routes
        if len(routes) != len(self._seen) or any(
            new is not old for new, old in zip(routes, self._seen, strict=True)
        ):
            self._read()
        if root_path := getattr(self._app, "root_path", ""):
            # As FastAPI does when it is called.
            scope = {**scope, "root_path": root_path}
        for matches, target, mounted in self._routes:
            match, child_scope = matches(scope)
            if match is not Match.FULL:
                continue
            if mounted:
                target = replace(target, access=mounted.find({**scope, **child_scope}).access)
            if target.kind == "mount" and target.path in public_mounts_of(self._outermost):
                target = replace(target, access=replace(target.access, is_public=True))
            return target
        return _NOTHING

    def _read(self) -> None:
        self._seen = list(self._app.routes)
        self._routes = []
        for route in iter_route_contexts(self._seen):
            if route.methods and route.methods <= SAFE_METHODS:
                continue
            path = f"{self._prefix}{route.path or ''}"
            is_websocket = isinstance(route.original_route, WebSocketRoute)
            kind: Any = "mount" if is_mount(route) else "WebSocket" if is_websocket else "route"
            app = mounted_in(route)
            mounted = Targets(app, path, self._outermost) if app else None
            self._routes.append((route.matches, Target(access_to(route), kind, path), mounted))
