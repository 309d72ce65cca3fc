"""The composition root: create_app() wires the parts together and decides nothing."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from src import __version__
from src.api_docs.router import describe
from src.api_docs.router import router as api_docs
from src.config.settings import Settings, load_settings, read_about, read_space
from src.database.lifecycle import DatabaseLifecycle
from src.database.session import Database
from src.errors import add_error_handlers
from src.health.router import router as health
from src.items.router import router as items
from src.middleware import RequestMiddleware
from src.observability.logging import AccessLog, Stderr, configure_logging, uses_json
from src.observability.metrics import router as metrics
from src.security.policy import WriteGuard, cross_origin_rules, security_headers
from src.status_page.router import router as status_page

GC_THRESHOLD = 10_000


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; no file, socket or database is opened before it starts."""
    settings = settings or load_settings()
    space = read_space()
    use_json = uses_json(settings, on_space=space.is_running_here)
    stderr = Stderr()
    configure_logging(settings, stderr, use_json=use_json)
    database = Database()

    app = FastAPI(
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.started = time.monotonic()
    app.state.shows_metrics = settings.metrics == "on"
    app.state.database = database
    app.state.lifecycle = DatabaseLifecycle(database, settings)

    for router in (items, health, status_page, api_docs):
        app.include_router(router)
    if app.state.shows_metrics:
        app.include_router(metrics)
    add_error_handlers(app)
    describe(app, needs_token=settings.api_token is not None)

    app.add_middleware(
        RequestMiddleware,
        headers=security_headers(space),
        headers_of_data=security_headers(space, of_data=True),
        behind_edge=space.is_running_here,
        max_body_bytes=settings.max_body_bytes,
        guard=WriteGuard(
            token=settings.api_token.get_secret_value() if settings.api_token else None,
            on_space=space.is_running_here,
        ),
        cors=cross_origin_rules(settings.cors_origins),
        serves_instead_of_postgresql=lambda: database.serves_instead_of_postgresql,
        log=AccessLog(settings, stderr, use_json=use_json),
    )
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Choose the database in the background while the application already answers."""
    # what is loaded by now stays, so that the garbage collector need not look at it ever again
    gc.freeze()
    # Python's own 700 or 2,000 are reached over and over by some dozen requests at a time
    gc.set_threshold(GC_THRESHOLD)
    about = read_about()
    app.title, app.description = about.title, about.description
    app.state.lifecycle.start()
    try:
        yield
    finally:
        await asyncio.to_thread(app.state.lifecycle.stop)


app = create_app()

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        app,
        host="0.0.0.0",  # noqa: S104
        port=load_settings().port,
        log_config=None,
        access_log=False,
    )
