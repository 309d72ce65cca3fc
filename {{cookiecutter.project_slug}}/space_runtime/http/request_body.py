"""The body of a request: how large and how slow it may be, and what if nobody reads it."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

# Even a phone with a poor connection is faster. A sender may pause, or lag behind this rate, for
# PATIENCE_SECONDS.
BYTES_PER_SECOND = 500
PATIENCE_SECONDS = 30.0
# If a connection is closed while the client still sends, the client may never see the answer.
LINGER_SECONDS = 30.0
LINGER_SILENT_SECONDS = 5.0


def patience(left: float, waited: float, received: int) -> float:
    """Return how many more seconds the sender may be silent after it sent `received` bytes."""
    return min(left - waited + received / BYTES_PER_SECOND, PATIENCE_SECONDS)


class RequestBody:
    """Receives a body, and raises a 413 if it is too large, a 408 if it comes too slowly.

    FastAPI puts the limit of a route or a mounted application, `max_body_size`, into the scope when
    it has found it.
    """

    is_complete = False
    _received = 0
    _explanation = b""

    def __init__(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], limit: int):
        self._scope = scope
        self._receive = receive
        self._limit = limit
        self._length = headers.get(b"content-length", b"").lstrip(b"0")
        self._may_come = headers.get(b"expect", b"").lower() != b"100-continue"
        self._patience = PATIENCE_SECONDS

    async def receive(self) -> Message:
        """Return the next message, or raise an HTTPException."""
        if self.is_complete:
            return await self._receive()
        if refusal := self._refusal():
            raise HTTPException(413, refusal)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                message = await self._take()
        except TimeoutError:
            self._may_come = False
            raise HTTPException(408, "The body came too slowly.") from None
        received = len(message.get("body", b""))
        self._received += received
        self._patience = patience(self._patience, time.monotonic() - started, received)
        # FastAPI turns any exception but HTTPException into a 400 while it reads the body.
        if refusal := self._refusal():
            raise HTTPException(413, refusal)
        return message

    def explained(self, message: Message) -> Message:
        """Return the message to send; FastAPI's own 413, a bare text, gets our words."""
        if message["type"] != "http.response.start":
            return {**message, "body": self._explanation} if self._explanation else message
        is_ours = self._received or MAX_BODY_SIZE_SCOPE_KEY not in self._scope
        if message["status"] != 413 or is_ours or not (refusal := self._refusal()):
            return message
        response = JSONResponse({"detail": refusal}, 413)
        self._explanation = bytes(response.body)
        return {**message, "headers": response.raw_headers}

    async def end_answer(self, send: Send, message: Message) -> None:
        """Send the last part of an answer; what still comes of the body is ignored."""
        if self._may_come:
            await send({**message, "more_body": True})
            message = {"type": "http.response.body"}
            await self._ignore_rest()
        await send(message)

    def _refusal(self) -> str | None:
        """Return what to say of a body that is larger than it may be, or is going to be."""
        own = self._scope.get(MAX_BODY_SIZE_SCOPE_KEY)
        limit = self._limit if own is None else own
        digits = b"%d" % limit
        # Compared as text, because int() refuses thousands of digits.
        is_declared = (len(self._length), self._length) > (len(digits), digits)
        if self._received <= limit and not (self._length.isdigit() and is_declared):
            return None
        if own is not None:
            return f"The body is larger than {limit} bytes, which this route allows."
        return (
            f"The body is larger than {limit} bytes: MAX_BODY_BYTES sets the limit, "
            "and a route or a mounted application may have its own (max_body_size)."
        )

    async def _ignore_rest(self) -> None:
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.is_complete:
                    async with asyncio.timeout(LINGER_SILENT_SECONDS):
                        await self._take()
        except TimeoutError:
            return

    async def _take(self) -> Message:
        self._may_come = True
        message = await self._receive()
        self.is_complete = not message.get("more_body", False)
        return message
