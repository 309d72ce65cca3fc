"""The security headers of every answer."""

from src.config.settings import Space, read_space


def security_headers(space: Space) -> dict[str, str]:
    """Return the headers that an answer gets unless it brings its own."""
    return {
        "Content-Security-Policy": content_security_policy(space),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "strict-origin-when-cross-origin",
    }


def content_security_policy(space: Space | None = None, *, extra: str = "") -> str:
    """Return a policy: nothing from other hosts, framed only by the Hub, which shows Spaces so.

    `extra` holds further directives for one page.
    """
    space = space or read_space()
    ancestors = ["'self'", "https://huggingface.co"]
    if space.host:
        ancestors.append(f"https://{space.host}")
    directives = [
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "object-src 'none'",
        f"frame-ancestors {' '.join(ancestors)}",
        extra,
    ]
    return "; ".join(filter(None, directives))
