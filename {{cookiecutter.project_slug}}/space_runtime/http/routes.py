"""Lists the routes of an application and who may call each: `make routes`, and a test of yours."""

from collections.abc import Iterator
from dataclasses import dataclass

from starlette.applications import Starlette

from space_runtime.http.access import SAFE_METHODS, Access
from space_runtime.http.targets import Targets

ANYBODY = "anybody"
TOKEN = "API token"  # noqa: S105


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
    return sorted(_lines(Targets(app)), key=lambda line: (line.path, line.methods))


def _lines(targets: Targets) -> Iterator[Line]:
    for target in targets:
        path, access = target.path, target.access
        if target.kind == "mount":
            mount = _write("writes below", path or "/", access)
            yield mount
            # Gradio alone has 40, so only those are listed that say something of their own.
            lines = _lines(target.inner) if target.inner else ()
            yield from (line for line in lines if line.who not in (ANYBODY, mount.who))
        elif target.kind == "WebSocket" or not target.methods:
            yield _write("WebSocket" if target.kind == "WebSocket" else "any method", path, access)
        else:
            if safe := target.methods & SAFE_METHODS:
                who = _own_check(access) if access.is_protected else ANYBODY
                yield Line(", ".join(sorted(safe)), path, who)
            if unsafe := target.methods - SAFE_METHODS:
                yield _write(", ".join(sorted(unsafe)), path, access)


def _write(methods: str, path: str, access: Access) -> Line:
    if access.is_protected:
        who = _own_check(access) + (", limited" if access.is_public else "")
    elif access.is_public:
        who = f"{ANYBODY}, limited"
    elif access.schemes:
        who = f"{TOKEN}, or any credentials that {_own_check(access)} lets pass"
    else:
        who = TOKEN
    return Line(methods, path, who, is_open=who != TOKEN)


def _own_check(access: Access) -> str:
    return f"its own check ({', '.join(scheme.scheme_name for scheme in access.schemes)})"
