"""Lets a crowd in a few at a time, so that / and /health answer quickly in the middle of it."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

PLACES = 16
HOLD_SECONDS = 0.1


class Entrance:
    """A pure ASGI middleware: first come, first served; / and /health pass without waiting.

    Hundreds of requests at once would each be parsed, routed and validated before the event loop
    came round to anything else. A place is given back when the request is answered, or after
    HOLD_SECONDS: an endpoint that waits for a slow model does not keep the others out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = asyncio.Semaphore(PLACES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when there is a place."""
        if scope["type"] != "http" or scope["path"] == "/" or scope["path"].startswith("/health"):
            await self._app(scope, receive, send)
            return
        await self._places.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._places.release()

        timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, give_back)
        try:
            await self._app(scope, receive, send)
        finally:
            timer.cancel()
            give_back()
