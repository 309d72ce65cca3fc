"""What browsers may do with an answer."""

from collections.abc import Callable
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from space_runtime.settings import Space, read_space

# Forbids plugins of other hosts, but not previews of PDF files. All else may come from anywhere:
# most pages have inline scripts or scripts of a CDN, and a policy that allows these would not stop
# an injected one.
_ORDINARY = "base-uri 'self'; object-src 'self' blob: data:"
_OURS = "default-src 'self'; base-uri 'none'; form-action 'self'; object-src 'none'"
Headers = list[tuple[bytes, bytes]]

_OF_ALL: Headers = [
    (b"x-content-type-options", b"nosniff"),
    # The default of browsers: other sites learn the host, which embedded players and maps need, but
    # no path.
    (b"referrer-policy", b"strict-origin-when-cross-origin"),
]

_NAMES = frozenset([b"content-security-policy", *(name for name, _ in _OF_ALL)])


class SecurityHeaders:
    """The security headers that an answer gets if it has none of its own. Data may load nothing."""

    def __init__(self, space: Space, page_policy: str) -> None:
        """`page_policy` is a value of PAGE_POLICY."""
        directives = {"default": _ORDINARY, "strict": _OURS}.get(page_policy, page_policy)
        self.of_pages = _OF_ALL if page_policy == "off" else _headers(space, directives)
        self.of_data = _headers(space, "default-src 'none'")

    def missing_from(self, present: dict[bytes, bytes]) -> Headers:
        """Return the headers to add to those that an answer has."""
        is_data = present.get(b"content-type") == b"application/json"
        headers = self.of_data if is_data else self.of_pages
        if _NAMES.isdisjoint(present):
            return headers
        return [header for header in headers if header[0] not in present]


def policy_of_our_pages(extra: str) -> str:
    """Return the policy of a page of ours: nothing from other hosts, and `extra` directives."""
    return f"{_framed_by_the_hub(read_space(), _OURS)}; {extra}"


def _headers(space: Space, directives: str) -> Headers:
    policy = _framed_by_the_hub(space, directives)
    return [(b"content-security-policy", policy.encode("latin-1")), *_OF_ALL]


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
