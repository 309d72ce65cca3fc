"""An S3 on loopback that keeps buckets in memory, and is as strict as those of other makers than Amazon.

In all buckets but `lenient` it refuses what many of them do not know: checksums in headers or trailers.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

UNKNOWN = ("HTTP_X_AMZ_CHECKSUM_", "HTTP_X_AMZ_SDK_CHECKSUM_", "HTTP_X_AMZ_TRAILER")
REFUSAL = b"<?xml version='1.0'?><Error><Code>InvalidArgument</Code><Message>Unsupported header</Message></Error>"


def strict(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Let through only requests without checksums."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if any(name.startswith(UNKNOWN) for name in environ) and not environ["PATH_INFO"].startswith("/lenient"):
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [REFUSAL]
        return application(environ, start_response)

    return answer


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), strict(DomainDispatcherApplication(create_backend_app)), threaded=True)
