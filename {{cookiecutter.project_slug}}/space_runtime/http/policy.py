"""What browsers may do with an answer."""

from collections.abc import Callable
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from space_runtime.settings import Space, read_space


def security_headers(space: Space, *, of_data: bool = False) -> list[tuple[bytes, bytes]]:
    """Return the default security headers of pages or of data, in ASGI's form."""
    policy = content_security_policy(space, of_data=of_data)
    return [
        (b"content-security-policy", policy.encode("latin-1")),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
    ]


def content_security_policy(
    space: Space | None = None, *, of_data: bool = False, extra: str = ""
) -> str:
    """Return a policy: nothing from other hosts, and framing only by the Hub, which embeds Spaces.

    Data may not load anything at all. `extra` holds further directives for one page.
    """
    space = space or read_space()
    directives = (
        "default-src 'none'"
        if of_data
        else "default-src 'self'; base-uri 'none'; form-action 'self'; object-src 'none'"
    )
    directives += "; frame-ancestors 'self' https://huggingface.co"
    if space.host:
        directives += f" https://{space.host}"
    return f"{directives}; {extra}" if extra else directives


def cross_origin_rules(origins: str, *, credentials: bool) -> Callable[[ASGIApp], ASGIApp]:
    """Return a wrapper for an application that lets pages of these origins use it.

    `origins` is separated by commas; "" allows no other origin. With `credentials`, browsers send
    cookies along.
    """
    if not origins:
        return lambda app: app
    return partial(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_credentials=credentials,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Location", "Retry-After", "X-Database", "X-Request-ID"],
    )
