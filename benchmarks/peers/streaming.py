"""The trivial route, beside a stream that never says anything after its beginning."""

import asyncio
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from trivial import app as app


async def silence() -> AsyncIterator[str]:
    """Begin, and go on without an end."""
    yield "data: hello\n\n"
    await asyncio.Event().wait()


@app.get("/events")
async def events() -> StreamingResponse:
    """Answer with an event stream."""
    return StreamingResponse(silence(), media_type="text/event-stream")
