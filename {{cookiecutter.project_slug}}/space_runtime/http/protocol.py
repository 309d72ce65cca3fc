"""HTTP/1.1 as uvicorn speaks it with httptools, but with bounded heads and no lost bodies."""

import httptools
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024


class Protocol(HttpToolsProtocol):
    """Bounds what httptools would keep without end: the target, the fields, the trailers.

    httptools also believes that a request which offers another protocol, as Java's client does, has
    no body. h11 knows better, but takes twice the time for a trivial request, so it only takes over
    such connections.
    """

    _unused = 0
    """How many bytes have come since a head or a part of a body was complete."""
    _is_refused = False
    url = b""
    parser: httptools.HttpRequestParser

    def data_received(self, data: bytes) -> None:
        """Parse what has come, which may be any part of any number of requests."""
        self._unset_keepalive_if_required()
        if self._is_refused:
            return
        self._unused += len(data)
        try:
            self.parser.feed_data(data)
            if self._unused > HEAD_BYTES:
                self._refuse()
        except httptools.HttpParserUpgrade as upgrade:
            if self._get_upgrade() == b"websocket" and self._should_upgrade_to_ws():
                self.handle_websocket_upgrade()
            else:
                self._go_on_with_h11(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._unused = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._unused = 0
        super().on_body(body)

    def _should_upgrade(self) -> bool:
        # Whatever is offered: httptools has to stop there.
        return True

    def _go_on_with_h11(self, rest: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        self.connections.discard(self)
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        protocol = H11Protocol(self.config, self.server_state, self.app_state)
        protocol.connection_made(self.transport)
        protocol.data_received(b"".join([*head, b"\r\n", rest]))
        self.transport.set_protocol(protocol)

    def _refuse(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or not self.url:
            self.transport.close()
            return
        # Let the application answer that the head is too long. It then waits a moment for the body:
        # a client whose connection is closed while it sends may never see the answer.
        self._is_refused = True
        self.url = self.url[: HEAD_BYTES // 2]
        self.headers += [(b"content-length", b"1"), (b"rest", b"x" * HEAD_BYTES)]
        self.on_headers_complete()
