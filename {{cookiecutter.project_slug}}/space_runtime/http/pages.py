"""Answers what no route does: with the owner's page, the status page at /, or a 404.

The page is in the project's folder `web/`. Since it comes after all routes, also after those that
are added once the application is complete, no file in it can hide a route.
"""

import os
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from space_runtime.http.access import is_mount
from space_runtime.http.route_names import path_of
from space_runtime.http.status_page import not_found_page, status_page

# Bundlers put a hash of the content into the name, so such a file never changes.
_HASHED = re.compile(r"/assets/.*[.-](?=\w*[A-Z\d])(?=\w*[A-Za-z])\w{8,}\.[\w.]+")
# All files are counted together.
_AS_LOGGED = SimpleNamespace(path="/{page}")
_FOR_A_YEAR = "public, max-age=31536000, immutable"


def add_pages(app: FastAPI, project: Path) -> None:
    """Let the owner's page and the status page answer what no route of the application does.

    A mount at / answers everything, so it comes after all routes, wherever it was added.
    """
    app.router.routes.sort(key=lambda route: isinstance(route, Mount) and not route.path)
    app.router.default = Remainder(app.router.default, project)


def own_page(project: Path) -> Path | None:
    """Return the folder of the owner's page: `web/dist` if it is built, else `web`, else None."""
    for folder in (project / "web" / "dist", project / "web"):
        if (folder / "index.html").is_file():
            return folder
    return None


class Remainder:
    """The end of the application's router, in place of its own 404."""

    def __init__(self, otherwise: ASGIApp, project: Path) -> None:
        self._otherwise = otherwise
        self._project = project
        self._status = APIRouter(default=otherwise, redirect_slashes=False)
        self._status.add_api_route("/", status_page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._otherwise(scope, receive, send)
            return
        # Looked for each time, so that a page which is built while the server runs is shown.
        folder = own_page(self._project)
        # A page that routes by itself may have an address of that name, or there is such a file.
        is_of_page = folder is not None and (
            _wants_a_page(scope) or os.path.isfile(f"{folder}{path_of(scope)}")
        )
        if _lacks_a_slash(scope, of_mounts_alone=is_of_page):
            raise _slash_added(scope)
        if folder:
            scope["route"] = _AS_LOGGED
        try:
            await (_files(folder) if folder else self._status)(scope, receive, send)
        except HTTPException as error:
            if error.status_code != 404 or not _wants_a_page(scope) or _has_own_404(scope["app"]):
                raise
            await not_found_page(Request(scope))(scope, receive, send)


@cache
def _files(folder: Path) -> ASGIApp:
    """Return what serves these files, and index.html to browsers where there is none."""

    async def rules(request: Request, response: Response) -> None:
        path = path_of(request.scope)
        if path.startswith("/api/") or "/." in path:
            raise HTTPException(404)
        if not path.endswith("/") and os.path.isfile(f"{folder}{path}/index.html"):
            raise _slash_added(request.scope)
        is_built = folder.name == "dist" and _HASHED.fullmatch(path)
        # A browser that opens a missing asset by its address is shown index.html.
        keeps = is_built and not _wants_a_page(request.scope)
        response.headers["Cache-Control"] = _FOR_A_YEAR if keeps else "no-cache"

    router = APIRouter(dependencies=[Depends(rules)], redirect_slashes=False)
    router.frontend("/", directory=folder, check_dir=False)
    return router


def _lacks_a_slash(scope: Scope, *, of_mounts_alone: bool) -> bool:
    with_slash = {**scope, "path": f"{scope['path']}/"}
    return any(
        (is_mount(route) or not of_mounts_alone) and route.matches(with_slash)[0] is Match.FULL
        for route in iter_route_contexts(scope["app"].routes)
    )


def _slash_added(scope: Scope) -> HTTPException:
    """Return a redirect from `/ui` to `/ui/`, which is right whatever host and path lead here.

    FastAPI would redirect to an absolute URL, made of whatever the client sent as its host.
    """
    location = f"./{quote(scope['path'].rpartition('/')[2])}/"
    if query := scope["query_string"].decode("latin-1"):
        location += f"?{query}"
    return HTTPException(307, headers={"Location": location})


def _has_own_404(app: FastAPI) -> bool:
    handlers = app.exception_handlers
    return 404 in handlers or handlers[HTTPException] is not http_exception_handler


def _wants_a_page(scope: Scope) -> bool:
    """Return whether a browser opens an address, rather than a program asking for data."""
    return scope["method"] == "GET" and b"text/html" in dict(scope["headers"]).get(b"accept", b"")
