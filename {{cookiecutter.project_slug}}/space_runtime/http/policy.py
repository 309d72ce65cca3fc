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
Headers = list[tuple[bytes, bytes]]

_OF_ALL: Headers = [
    (b"x-content-type-options", b"nosniff"),
    # What browsers do anyway: no path leaves the Space, but embedded players and maps need to know
    # which site they are on.
    (b"referrer-policy", b"strict-origin-when-cross-origin"),
]


class SecurityHeaders:
    """What answers get unless they say it themselves: pages what PAGE_POLICY says, data nothing."""

    def __init__(self, space: Space, page_policy: str) -> None:
        """`page_policy` is a value of PAGE_POLICY."""
        directives = {"default": _ORDINARY, "strict": _OURS}.get(page_policy, page_policy)
        self.of_pages = _OF_ALL if page_policy == "off" else _headers(space, directives)
        self.of_data = _headers(space, "default-src 'none'")

    def missing_from(self, present: dict[bytes, bytes]) -> Headers:
        """Return the headers to add to those that an answer has."""
        is_data = present.get(b"content-type") == b"application/json"
        headers = self.of_data if is_data else self.of_pages
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
