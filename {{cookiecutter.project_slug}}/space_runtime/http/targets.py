"""Which routes an application has, who may write to each, and which of them answers a request.

The routes themselves are asked whether they match, in their order, as FastAPI will ask them: what
is judged here and what answers cannot be two different routes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import is_
from typing import Literal

from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Router, WebSocketRoute
from starlette.types import Scope

from space_runtime.http.access import Access, access_to, is_mount, public_mounts_of

# A plain route is one of Starlette's, which cannot be marked.
Kind = Literal["nothing", "route", "plain route", "WebSocket", "mount"]


@dataclass(frozen=True)
class Target:
    """A route or a mount, and who may write to it; where nothing answers, nobody may."""

    kind: Kind
    path: str
    access: Access
    methods: frozenset[str] = frozenset()
    """Empty if it takes any method."""
    mount: str = ""
    """The path of the mounted application that it belongs to."""
    matches: Callable[[Scope], tuple[Match, Scope]] = lambda scope: (Match.NONE, scope)
    inner: "Targets | None" = None
    """What is below a mount, if it has routes that can say who may call them."""


class Targets:
    """The targets of an application, read anew when its routes or public mounts have changed."""

    def __init__(
        self,
        app: Starlette | Router,
        outermost: Starlette | Router | None = None,
        prefix: str = "",
        *,
        is_public: bool = False,
    ) -> None:
        """`prefix` is the path at which it is mounted, `is_public` whether that mount is public."""
        self._app = app
        self._outermost = outermost or app
        self._prefix = prefix
        self._nothing = Target("nothing", "", Access(is_public))
        self._routes: list[BaseRoute] = []
        self._public_mounts: object = None
        self._targets: list[Target] = []

    def __iter__(self) -> Iterator[Target]:
        routes, public_mounts = list(self._app.routes), public_mounts_of(self._outermost)
        # Routes are equal if their paths are, whatever they depend on.
        is_same = len(routes) == len(self._routes) and all(map(is_, routes, self._routes))
        if not is_same or public_mounts != self._public_mounts:
            self._targets = [self._read(route) for route in iter_route_contexts(routes)]
            self._routes, self._public_mounts = routes, public_mounts
        return iter(self._targets)

    def find(self, scope: Scope) -> Target:
        """Return what answers this request: below a mount, the route there, else the mount."""
        if root_path := getattr(self._app, "root_path", ""):
            # As FastAPI does when it is called.
            scope = {**scope, "root_path": root_path}
        for target in self:
            match, child_scope = target.matches(scope)
            if match is Match.FULL:
                if target.inner is None:
                    return target
                found = target.inner.find({**scope, **child_scope})
                is_nothing = found.kind == "nothing"
                return replace(target, access=found.access) if is_nothing else found
        return self._nothing

    def _read(self, route: RouteContext) -> Target:
        path, access = f"{self._prefix}{route.path or ''}", access_to(route)
        is_public, inner = access.is_public or self._nothing.access.is_public, None
        original = route.original_route
        kind: Kind = "route" if isinstance(original, APIRoute) else "plain route"
        if is_mount(route):
            kind = "mount"
            is_public = is_public or path in public_mounts_of(self._outermost)
            if isinstance(app := getattr(route, "app", None), Starlette | Router):
                inner = Targets(app, self._outermost, path, is_public=is_public)
        elif isinstance(original, WebSocketRoute):
            kind = "WebSocket"
        access, methods = replace(access, is_public=is_public), frozenset(route.methods or ())
        return Target(kind, path, access, methods, self._prefix, route.matches, inner)
