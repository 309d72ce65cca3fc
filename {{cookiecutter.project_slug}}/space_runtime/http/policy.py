"""What browsers may do with an answer."""

from collections.abc import Callable
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from space_runtime.settings import Space, read_space


def security_headers(space: Space, *, of_data: bool = False) -> list[tuple[bytes, bytes]]:
    """Return the headers, as ASGI has them, that a page or data gets unless it brings its own."""
    policy = content_security_policy(space, of_data=of_data)
    return [
        (b"content-security-policy", policy.encode("latin-1")),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
    ]


def content_security_policy(
    space: Space | None = None, *, of_data: bool = False, extra: str = ""
) -> str:
    """Return a policy: nothing from other hosts, and framed only by the Hub, which shows Spaces so.

    Data loads nothing at all. `extra` holds further directives for one page.
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


def cross_origin_rules(origins: str) -> Callable[[ASGIApp], ASGIApp]:
    """Return what is put around an application so that pages of these origins may use it.

    `origins` holds them separated by commas; "" allows no other origin.
    """
    if not origins:
        return lambda app: app
    return partial(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Location", "Retry-After", "X-Database", "X-Request-ID"],
    )
