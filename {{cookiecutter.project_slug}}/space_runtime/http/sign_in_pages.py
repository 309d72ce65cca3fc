"""The way to the Hub and back, and out again.

Everything happens in a window of its own. The Hub shows a Space in a frame, and many browsers keep
no cookie for a page in there: the sign-in would begin again and again. Where a browser does keep
it, the page in the frame is signed in, too.
"""

import hmac
import html
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import iter_route_contexts
from itsdangerous import BadSignature

from space_runtime.http import templates
from space_runtime.http.access import access_to, public
from space_runtime.http.openid import (
    DEFAULT_LIFETIME,
    Claims,
    ProviderFailed,
    read_provider,
    user_from,
)
from space_runtime.http.rate_limit import RateLimit
from space_runtime.http.sign_in import (
    COOKIE,
    LOGIN,
    SignIn,
    SignInService,
    cookie,
    refuse_other_pages,
    service_of,
)
from space_runtime.runtime import Runtime

logger = logging.getLogger(__name__)

CALLBACK = "/oauth/huggingface/callback"
LOGOUT = "/oauth/huggingface/logout"
ATTEMPT_COOKIE = "__Host-sign-in"
ATTEMPT_SECONDS = 600
MOCKED = (
    "Sign-in is mocked: this is not a Space, so nobody is asked for an account, and whoever signs"
    " in chooses who they are."
)
OFF_ON_A_SPACE = (
    "Sign-in is off: add the line hf_oauth: true to the block that opens README.md, and deploy."
)
OFF_ELSEWHERE = (
    "Sign-in is off: set OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET of an OAuth application at Hugging"
    " Face; on your own machine, leave API_TOKEN unset."
)
# No second slash or backslash, which would lead to another host, and nothing that browsers skip.
_OWN_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*")


def attach_sign_in(app: FastAPI, runtime: Runtime) -> None:
    """Add the routes through which users sign in and out, if an endpoint asks who they are."""
    routes = iter_route_contexts(app.routes)
    if not any(isinstance(one, SignIn) for route in routes for one in access_to(route).schemes):
        return
    space, settings = runtime.space, runtime.settings
    provider = read_provider(os.environ)
    # Without a token, whoever reaches the server may write, so they may also choose who they are.
    is_open = settings.api_token is None and not space.is_running_here
    is_rehearsal = space.is_running_here and not space.is_behind_edge
    why_off = OFF_ON_A_SPACE if space.is_running_here else OFF_ELSEWHERE
    # Elsewhere, no user of the Hub is the owner, not even one with that name.
    nobody = "" if provider else "owner"
    app.state.sign_in = SignInService(
        provider,
        space_owner=space.id.partition("/")[0] if space.id else nobody,
        limit=RateLimit(settings.user_limit),
        why_off="" if provider or is_open or is_rehearsal else why_off,
    )
    app.include_router(router)


@asynccontextmanager
async def _say_what_is_missing(app: FastAPI) -> AsyncIterator[None]:
    service: SignInService = app.state.sign_in
    if service.provider is None:
        logger.warning(service.why_off or MOCKED)
    yield


router = APIRouter(include_in_schema=False, lifespan=_say_what_is_missing)


@router.get(LOGIN)
async def login(request: Request, next: str = "/") -> Response:  # noqa: A002
    """Send the browser to the Hub, or show a page if that has to wait for a click."""
    service, target = service_of(request), own_path(next)
    if service.why_off:
        return _page("Sign-in is off", service.why_off, {"Back": target}, status=403)
    if service.provider is None:
        links = {
            f"Continue as {who}": _address(request, CALLBACK, user=who, next=target)
            for who in ("owner", "visitor")
        }
        return _page("Sign in", MOCKED, links)
    if request.headers.get("sec-fetch-dest") in ("frame", "iframe"):
        text = (
            "This opens a new window, since your browser may keep no cookies here. Go on in there."
        )
        links = {"Sign in with Hugging Face": _address(request, LOGIN, next=target), "Back": target}
        return _page("Sign in", text, links)
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    try:
        address = await service.provider.sign_in_address(_redirect_uri(request), state, verifier)
    except ProviderFailed as error:
        return _hub_failed(request, target, error)
    attempt = {"state": state, "verifier": verifier, "next": target}
    value = service.signed("attempt").dumps(attempt)
    response = RedirectResponse(address, 303, {"Cache-Control": "no-store"})
    _set_cookie(request, response, ATTEMPT_COOKIE, str(value), ATTEMPT_SECONDS)
    return response


@router.get(CALLBACK)
async def callback(
    request: Request,
    code: str = "",
    state: str = "",
    user: str = "",
    next: str = "/",  # noqa: A002
) -> Response:
    """Sign in whoever comes back from the Hub in the browser that went there."""
    service = service_of(request)
    if service.why_off:
        raise HTTPException(403, service.why_off)
    if service.provider is None:
        name = service.space_owner if user == "owner" else "visitor"
        claims = Claims(sub=f"mocked-{name}", preferred_username=name, name=name.capitalize())
        target, seconds = own_path(next), DEFAULT_LIFETIME
    else:
        value = request.cookies.get(cookie(request, ATTEMPT_COOKIE), "")
        try:
            attempt = service.signed("attempt").loads(value, ATTEMPT_SECONDS)
        except BadSignature:
            attempt = {"state": "", "next": "/"}
        target = attempt["next"]
        if not code or not hmac.compare_digest(state.encode(), attempt["state"].encode()):
            again = {"Try again": _address(request, LOGIN, next=target)}
            text = "It was refused, took too long, or began in another browser."
            return _page("You are not signed in", text, again, status=400)
        try:
            claims, seconds = await service.provider.redeem(
                code, _redirect_uri(request), attempt["verifier"]
            )
        except ProviderFailed as error:
            return _hub_failed(request, target, error)
    session = service.session(user_from(claims, service.space_owner), seconds)
    response = RedirectResponse(target, 303, {"Cache-Control": "no-store"})
    _set_cookie(request, response, COOKIE, session, seconds)
    _set_cookie(request, response, ATTEMPT_COOKIE, "", 0)
    return response


@router.post(LOGOUT, **public)
async def logout(request: Request, next: str = "/") -> Response:  # noqa: A002
    """Sign out."""
    refuse_other_pages(request)
    response = RedirectResponse(own_path(next), 303)
    _set_cookie(request, response, COOKIE, "", 0)
    return response


def own_path(path: str) -> str:
    """Return the path if a browser stays on this host with it, else "/"."""
    return path if _OWN_PATH.fullmatch(path) else "/"


def _address(request: Request, path: str, **query: str) -> str:
    return f"{request.scope.get('root_path', '')}{path}?{urlencode(query)}"


def _redirect_uri(request: Request) -> str:
    return f"{str(request.base_url).rstrip('/')}{CALLBACK}"


def _set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    is_https = request.url.scheme == "https"
    # With "none" it is also sent for a page in the Hub's frame, which browsers only do over https.
    # An attempt begins and ends in a window of its own.
    same_site: Literal["none", "lax"] = "none" if is_https and name == COOKIE else "lax"
    response.set_cookie(
        cookie(request, name), value, seconds, secure=is_https, httponly=True, samesite=same_site
    )


def _hub_failed(request: Request, target: str, error: ProviderFailed) -> Response:
    logger.warning("sign-in failed at the Hub: %s", error)
    again = {"Try again": _address(request, LOGIN, next=target)}
    text = "Hugging Face does not say who you are at the moment."
    return _page("You are not signed in", text, again, status=503)


def _page(title: str, text: str, links: Mapping[str, str], *, status: int = 200) -> Response:
    """Return a page with links, of which the one that signs in opens a window of its own."""
    # Without an opener, so that the page in the frame and the window know nothing of each other.
    new_window = ' target="_blank" rel="noopener"'
    markup = "\n".join(
        f'<p><a href="{html.escape(address)}"{new_window if LOGIN in address else ""}>'
        f"{html.escape(label)}</a></p>"
        for label, address in links.items()
    )
    values = {"title": title, "text": text}
    return templates.page("sign_in.html", values, markup=markup, status=status)
