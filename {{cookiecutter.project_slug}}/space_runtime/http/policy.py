"""What browsers may do with an answer."""

from collections.abc import Callable
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from space_runtime.settings import Space, read_space

# What ordinary pages do without: plugins of other hosts, though not previews of PDF files. Scripts,
# styles and all else may come from wherever the page takes them: most pages have scripts inside or
# from a CDN, and a policy that allows both stops no script that somebody got into the page.
_ORDINARY = "base-uri 'self'; object-src 'self' blob: data:"
_OURS = "default-src 'self'; base-uri 'none'; form-action 'self'; object-src 'none'"
_NOTHING = "default-src 'none'"


def security_headers(
    space: Space, *, page_policy: str = "strict", of_data: bool = False
) -> list[tuple[bytes, bytes]]:
    """Return the default security headers of pages or of data, in ASGI's form.

    `page_policy` is what the setting PAGE_POLICY says; data may not load anything in any case.
    """
    headers = [
        (b"x-content-type-options", b"nosniff"),
        # What browsers do anyway: no path leaves the Space, but embedded players and maps need
        # to know which site they are on.
        (b"referrer-policy", b"strict-origin-when-cross-origin"),
    ]
    directives = {"default": _ORDINARY, "strict": _OURS}.get(page_policy, page_policy)
    if of_data:
        directives = _NOTHING
    elif page_policy == "off":
        return headers
    policy = _framed_by_the_hub(space, directives)
    return [(b"content-security-policy", policy.encode("latin-1")), *headers]


def content_security_policy(space: Space | None = None, *, extra: str = "") -> str:
    """Return the policy of our own pages: nothing from other hosts, and no script inside.

    `extra` holds further directives for one page.
    """
    policy = _framed_by_the_hub(space or read_space(), _OURS)
    return f"{policy}; {extra}" if extra else policy


def _framed_by_the_hub(space: Space, directives: str) -> str:
    """Let only the Hub and the Space itself show the page in a frame, unless it says who may."""
    directives = directives.rstrip("; ")
    if "frame-ancestors" in directives.lower():
        return directives
    own_host = f" https://{space.host}" if space.host else ""
    return f"{directives}; frame-ancestors 'self' https://huggingface.co{own_host}"


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
