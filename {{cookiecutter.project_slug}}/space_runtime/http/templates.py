"""Our own pages: the HTML files beside this one, each with a policy of its own."""

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template

from fastapi.responses import HTMLResponse

from space_runtime.http.policy import policy_of_our_pages


def page(
    name: str, values: Mapping[str, str], *, markup: str = "", status: int = 200
) -> HTMLResponse:
    """Return the page with these values, which are plain text, and with `markup` for $markup."""
    template, policy = _template(name)
    escaped = {key: html.escape(value) for key, value in values.items()}
    return HTMLResponse(
        template.substitute(escaped, markup=markup),
        status,
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
    )


@cache
def _template(name: str) -> tuple[Template, str]:
    """Return a page, and the policy that allows exactly the script and style in it."""
    (style,) = re.findall("<style>.*?</style>", _read("status_page.html"), re.DOTALL)
    text = _read(name).replace("<style></style>", style)
    directives = ""
    for tag in ("script", "style"):
        for block in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
            directives += f"{tag}-src 'self' 'sha256-{digest}'; "
    return Template(text), policy_of_our_pages(f"{directives}img-src 'self' data:")


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
