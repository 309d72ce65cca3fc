"""Lists the routes of an application and who may call each: `make routes`, and a test of yours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette
from starlette.routing import BaseRoute, WebSocketRoute

from space_runtime.http.access import (
    SAFE_METHODS,
    Access,
    access_to,
    is_mount,
    mounted_in,
    public_mounts_of,
)

ANYBODY = "anybody"
TOKEN = "API token"  # noqa: S105
MOUNTED = "writes below"


@dataclass(frozen=True)
class Line:
    """Who may call some methods of a path; `is_open` if they write without the API token."""

    methods: str
    path: str
    who: str
    is_open: bool = False

    def __str__(self) -> str:
        return f"{self.methods:<20} {self.path:<32} {self.who}"


def routes_of(app: Starlette) -> list[Line]:
    """Return a line or two for each route, WebSocket and mounted application, ordered by path."""
    lines = _lines(app.routes, public_mounts_of(app), "", is_public=False)
    return sorted(lines, key=lambda line: (line.path, line.methods))


def _lines(
    routes: Sequence[BaseRoute], public_mounts: frozenset[str], prefix: str, *, is_public: bool
) -> Iterator[Line]:
    for route in iter_route_contexts(routes):
        path, access = f"{prefix}{route.path or ''}", access_to(route)
        access = replace(access, is_public=access.is_public or is_public)
        methods = frozenset(route.methods or ())
        if is_mount(route):
            access = replace(access, is_public=access.is_public or path in public_mounts)
            mount = _write(MOUNTED, path or "/", access)
            yield mount
            inner = mounted_in(route)
            if inner is not None:
                # Gradio alone has 40, so only those are listed that say something of their own.
                lines = _lines(inner.routes, public_mounts, path, is_public=access.is_public)
                yield from (line for line in lines if line.who not in (ANYBODY, mount.who))
        elif isinstance(route.original_route, WebSocketRoute):
            yield _write("WebSocket", path, access)
        elif not methods:
            yield _write("any method", path, access)
        else:
            safe, unsafe = methods & SAFE_METHODS, methods - SAFE_METHODS
            if safe:
                who = _own_check(access) if access.is_protected else ANYBODY
                yield Line(", ".join(sorted(safe)), path, who)
            if unsafe:
                yield _write(", ".join(sorted(unsafe)), path, access)


def _write(methods: str, path: str, access: Access) -> Line:
    if access.is_protected:
        who = _own_check(access) + (", limited" if access.is_public else "")
    elif access.is_public:
        who = f"{ANYBODY}, limited"
    elif access.schemes:
        who = f"{TOKEN}, or {_own_check(access)}"
    else:
        who = TOKEN
    return Line(methods, path, who, is_open=who != TOKEN)


def _own_check(access: Access) -> str:
    return f"its own check ({', '.join(scheme.scheme_name for scheme in access.schemes)})"
