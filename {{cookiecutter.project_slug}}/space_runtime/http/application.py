"""Add the runtime's middleware, error handlers and routes to a FastAPI application."""

import sys
from typing import Any

from fastapi import FastAPI

from space_runtime.http.docs import describe
from space_runtime.http.docs import router as docs
from space_runtime.http.errors import add_error_handlers
from space_runtime.http.guard import WriteGuard
from space_runtime.http.health import router as health
from space_runtime.http.metrics import router as metrics
from space_runtime.http.middleware import RequestMiddleware
from space_runtime.http.pages import add_pages
from space_runtime.http.policy import SecurityHeaders, cross_origin_rules
from space_runtime.http.status_page import router as status_page
from space_runtime.observability.logging import configure_logging
from space_runtime.observability.metrics import BUILD
from space_runtime.runtime import Runtime

FASTAPI_OPTIONS: dict[str, Any] = {
    # docs.py serves its own page, which does not need a CDN.
    "docs_url": None,
    "redoc_url": None,
    # pages.py adds a missing slash itself.
    "redirect_slashes": False,
    # Generated clients name their methods after the operation IDs, so use the function names.
    "generate_unique_id_function": lambda route: route.name,
}


def attach(app: FastAPI, runtime: Runtime) -> None:
    """Add middleware, error handlers, routes and logging; call this after adding your routes."""
    settings, space = runtime.settings, runtime.space
    token = settings.api_token.get_secret_value() if settings.api_token else None
    BUILD.labels(runtime.project.version).set(1)

    app.state.runtime = runtime
    for router in (health, status_page, docs):
        app.include_router(router)
    if settings.metrics == "on":
        app.include_router(metrics)
    # Its libraries take 100 ms, so only code that asks who is signed in has imported it.
    if "space_runtime.http.sign_in" in sys.modules:
        from space_runtime.http.sign_in_pages import attach_sign_in

        attach_sign_in(app, runtime)
    add_pages(app, runtime.project.folder)
    add_error_handlers(app)
    describe(
        app,
        writes_are_open=token is None and not space.is_running_here,
        is_limited=settings.public_limit != "off",
    )
    app.add_middleware(
        RequestMiddleware,
        headers=SecurityHeaders(space, settings.page_policy),
        behind_edge=space.is_behind_edge,
        max_body_bytes=settings.max_body_bytes,
        guard=WriteGuard(
            app,
            token=token,
            on_space=space.is_running_here,
            public_limit=settings.public_limit,
        ),
        cors=cross_origin_rules(
            settings.cors_origins, credentials=settings.cors_credentials == "on"
        ),
        is_fallback=lambda: runtime.database.admission.is_fallback,
        log=configure_logging(settings, on_space=space.is_running_here),
    )
