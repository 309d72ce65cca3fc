"""Sign in with Hugging Face.

    from space_runtime.http.sign_in import CurrentUser, SpaceOwner

    @router.post("/notes")
    async def add_note(note: NoteCreate, user: CurrentUser, database: DatabaseDep) -> Note: ...

An endpoint with such a parameter is for those who are signed in, and needs no API token. A link to
/oauth/huggingface/login?next=/where/to signs in, a form posted to /oauth/huggingface/logout out.
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, HTTPException
from fastapi.security import APIKeyCookie
from fastapi.security.base import SecurityBase
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import HTTPConnection

from space_runtime.http.access import SAFE_METHODS
from space_runtime.http.openid import Provider, User
from space_runtime.http.rate_limit import RateLimit

__all__ = ["CurrentUser", "SpaceOwner", "User"]

LOGIN = "/oauth/huggingface/login"
COOKIE = "__Host-user"


@dataclass(frozen=True)
class SignInService:
    """Knows who is signed in, by a cookie that it has signed."""

    provider: Provider | None
    """The Hub; None if whoever signs in chooses who they are, or if nobody can."""
    space_owner: str
    """The user or organization that the Space belongs to."""
    limit: RateLimit
    """How often each user may write."""
    why_off: str
    """What must be done before anybody can sign in; "" if nothing."""

    def user_of(self, connection: HTTPConnection) -> User | None:
        """Return who is signed in, or None."""
        try:
            value = connection.cookies.get(cookie(connection, COOKIE), "")
            session = self.signed("session").loads(value)
        except BadSignature:
            return None
        if self.why_off or session.pop("expires") <= time.time():
            return None
        return User(**session)

    def session(self, user: User, seconds: int) -> str:
        """Return the value of the cookie that says who is signed in, for so long."""
        content = asdict(user) | {"expires": time.time() + seconds}
        return str(self.signed("session").dumps(content))

    def signed(self, purpose: str) -> URLSafeTimedSerializer:
        """Return what writes and reads cookies for this purpose."""
        # Known to all workers, also after a restart, and to nobody else. Where users choose who
        # they are, a signature protects nothing.
        secret = self.provider.secret if self.provider else "mocked"
        return URLSafeTimedSerializer(
            secret,
            # The number changes with what the cookies hold, so that no old one is misread.
            salt=f"{purpose} 1",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )


def service_of(connection: HTTPConnection) -> SignInService:
    """Return what knows who is signed in; raise RuntimeError where attach() saw no CurrentUser."""
    service: SignInService | None = getattr(connection.app.state, "sign_in", None)
    if service is None:
        raise RuntimeError(
            "CurrentUser works in routes that the application has when attach() is called, and not"
            " in applications that are mounted: include the router before attach()"
        )
    return service


class SignIn(SecurityBase):
    """The security scheme behind CurrentUser and SpaceOwner, and what OpenAPI knows of it."""

    def __init__(self, name: str, *, owner_only: bool = False) -> None:
        self.scheme_name = name
        self._owner_only = owner_only
        who = "the owner of this Space, who has" if owner_only else "those who have"
        description = f"The cookie of {who} signed in at {LOGIN}."
        self.model = APIKeyCookie(name=COOKIE, description=description).model

    async def __call__(self, connection: HTTPConnection) -> User:
        """Return who is signed in; raise HTTPException if nobody is, or they may not do this."""
        service = service_of(connection)
        if service.why_off:
            raise HTTPException(403, service.why_off)
        user = service.user_of(connection)
        if user is None:
            raise _please_sign_in(connection)
        if self._owner_only and not user.is_owner:
            raise HTTPException(403, "Only the owner of this Space may do this.")
        if connection.scope.get("method") not in SAFE_METHODS:
            refuse_other_pages(connection)
            if seconds := service.limit.seconds_to_wait(user.id):
                detail = f"More than {service.limit.rule} by one user; try again in {seconds} s."
                raise HTTPException(429, detail, {"Retry-After": str(seconds)})
        return user


CurrentUser = Annotated[User, Depends(SignIn("HuggingFace"))]
"""Who is signed in. Strangers get 401, or are sent to sign in if a browser opens a page."""

SpaceOwner = Annotated[User, Depends(SignIn("SpaceOwner", owner_only=True))]
"""The same for the owner of the Space: everybody else who is signed in gets 403.

A Space of an organization is owned by its members with the role write or admin. The Hub only tells
roles if the front matter asks for them: `hf_oauth_scopes: [read-memberships]`.
"""


def cookie(connection: HTTPConnection, name: str) -> str:
    """Return the cookie's name. The prefix keeps other hosts from setting it, but needs https."""
    return name if connection.url.scheme in ("https", "wss") else name.removeprefix("__Host-")


def refuse_other_pages(connection: HTTPConnection) -> None:
    """Raise HTTPException unless a page of this application sent this.

    Since the cookie works in the Hub's frame, browsers also send it with requests of any other
    page. Their header Origin says which page it was.
    """
    scheme = connection.url.scheme.replace("ws", "http")
    own = f"{scheme}://{connection.headers.get('host')}"
    if connection.headers.get("origin") != own:
        raise HTTPException(403, "Only a page of this application may send this.")


def _please_sign_in(connection: HTTPConnection) -> HTTPException:
    """Return the answer to a stranger: 401, or a redirect for a browser that opens a page."""
    path = f"{connection.scope.get('root_path', '')}{LOGIN}"
    is_a_page = connection.headers.get("sec-fetch-mode") == "navigate"
    if is_a_page and connection.scope.get("method") in SAFE_METHODS:
        url = connection.url
        query = urlencode({"next": f"{url.path}?{url.query}" if url.query else url.path})
        return HTTPException(303, headers={"Location": f"{path}?{query}"})
    # HTTP requires a scheme here, and has none for cookies; FastAPI uses this one.
    return HTTPException(401, f"Sign in first, at {path}.", {"WWW-Authenticate": "APIKey"})
