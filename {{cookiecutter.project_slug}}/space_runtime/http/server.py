"""What uvicorn has to do for the application, and ASGI cannot ask for.

The server is found through its handler of SIGTERM, however it was started: by command, by `fastapi
run`, by a reloader, or as one of several workers. Any other server is left as it is.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn import Config, Server

# Proxies keep idle connections for a minute. If the server closed first, a request could get lost.
KEEP_ALIVE_SECONDS = 75
GRACEFUL_SECONDS = 15
HEAD_SECONDS = 30.0
# Fewer than the 1,024 files that many systems let a process open.
MAX_WITHOUT_REQUEST = 500
LOOK_SECONDS = 0.25


@asynccontextmanager
async def attended(stop: Callable[[], None]) -> AsyncIterator[Callable[[], bool]]:
    """Configure the server, and call `stop` when it stops; yield a function: does it stop?

    ASGI announces a stop only after all connections have ended, but streams only end if told so.
    """
    server = _find_server()
    if server is None:
        yield lambda: False
        return
    complete(server.config)
    attending = asyncio.create_task(_attend(server, stop))
    try:
        yield lambda: server.should_exit
    finally:
        attending.cancel()


def _find_server() -> Server | None:
    """Return the server that handles SIGTERM in this process if it is uvicorn."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if owner is None:
        return None
    from uvicorn import Server

    return owner if isinstance(owner, Server) else None


def complete(config: Config) -> None:
    """Set what neither a flag nor the environment has set, for all new connections."""
    from space_runtime.http.protocol import HEAD_BYTES, Protocol

    if config.http == "auto":
        config.http_protocol_class = Protocol
    if config.h11_max_incomplete_event_size is None:
        config.h11_max_incomplete_event_size = HEAD_BYTES
    if config.timeout_keep_alive == 5:
        config.timeout_keep_alive = KEEP_ALIVE_SECONDS
    if config.timeout_graceful_shutdown is None:
        config.timeout_graceful_shutdown = GRACEFUL_SECONDS


async def _attend(server: Server, stop: Callable[[], None]) -> None:
    silence, loop = Silence(), asyncio.get_running_loop()
    while not server.should_exit:
        for connection in silence.overdue(server.server_state.connections, loop.time()):
            connection.transport.close()
        await asyncio.sleep(LOOK_SECONDS)
    stop()


class Silence:
    """Knows how long each connection has had no request."""

    def __init__(self) -> None:
        self._heads: dict[Any, tuple[object, float]] = {}

    def overdue(self, connections: set[Any], now: float) -> list[Any]:
        """Return the connections to close: late with a head, or idle and too many."""
        heads: dict[Any, tuple[object, float]] = {}
        since: dict[Any, float] = {}
        for connection in connections:
            # A WebSocket has no cycle, and a request that is being answered is not silent.
            cycle = getattr(connection, "cycle", connection)
            if cycle is connection or (cycle is not None and not cycle.response_complete):
                continue
            if (timer := connection.timeout_keep_alive_task) is not None:
                since[connection] = timer.when() - connection.timeout_keep_alive
                continue
            # uvicorn's timer only runs between an answer and the first byte of the next head.
            before, begun = self._heads.get(connection, (cycle, now))
            since[connection] = begun if before is cycle else now
            heads[connection] = cycle, since[connection]
        self._heads = heads
        late = {connection for connection in heads if now - since[connection] > HEAD_SECONDS}
        by_age = sorted(since, key=lambda connection: since[connection])
        return list(late.union(by_age[: max(len(by_age) - MAX_WITHOUT_REQUEST, 0)]))
