"""What browsers may do with an answer."""

from collections.abc import Callable
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from space_runtime.settings import Space, read_space


def security_headers(space: Space, *, of_data: bool = False) -> dict[str, str]:
    """Return the headers that a page, or data, gets unless it brings its own."""
    return {
        "Content-Security-Policy": content_security_policy(space, of_data=of_data),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }


def content_security_policy(
    space: Space | None = None, *, of_data: bool = False, extra: str = ""
) -> str:
    """Return a policy: nothing from other hosts, framed only by the Hub, which shows Spaces so.

    Data loads nothing at all. `extra` holds further directives for one page.
    """
    space = space or read_space()
    ancestors = ["'self'", "https://huggingface.co"]
    if space.host:
        ancestors.append(f"https://{space.host}")
    directives = (
        ["default-src 'none'"]
        if of_data
        else ["default-src 'self'", "base-uri 'none'", "form-action 'self'", "object-src 'none'"]
    )
    directives.append(f"frame-ancestors {' '.join(ancestors)}")
    return "; ".join(filter(None, [*directives, extra]))


def cross_origin_rules(origins: str | None) -> Callable[[ASGIApp], ASGIApp]:
    """Return what is put around an application so that pages of these origins may use it.

    `origins` holds them separated by commas; None allows no other origin.
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
