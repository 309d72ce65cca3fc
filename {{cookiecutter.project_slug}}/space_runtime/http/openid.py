"""Asks the Hub who signs in: OpenID Connect, by an authorization code with PKCE.

`huggingface_hub` has a helper for this, but it redirects to wherever a link says, keeps the access
token and all organizations in the cookie (4 kB hold ten or so), stops the start where OAuth is not
set up, and needs authlib, cryptography and the Hub itself, also on a laptop.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx2
from pydantic import BaseModel, Field, ValidationError

SECONDS = 10.0
# The Hub's own maximum and default.
MAX_LIFETIME = 30 * 24 * 3600
DEFAULT_LIFETIME = 8 * 3600
# The roles in an organization that may change all of its Spaces.
_ROLES_OF_OWNERS = ("admin", "write")


class ProviderFailed(Exception):
    """The Hub could not be asked, or its answer makes no sense."""


@dataclass(frozen=True)
class User:
    """Who is signed in."""

    id: str
    """Stays the same when they take another name: what to store in rows."""
    username: str
    name: str
    picture: str | None
    is_owner: bool
    """Whether the Space is theirs, or they may change it as members of its organization."""


class _Organization(BaseModel):
    preferred_username: str
    role: str | None = Field(None, alias="roleInOrg")
    restrictions: list[str] | None = Field(None, alias="securityRestrictions")
    """What the organization asks for and this sign-in lacks, such as a second factor."""


class Claims(BaseModel):
    """What the Hub says about a user."""

    sub: str = Field(min_length=1)
    preferred_username: str = Field(min_length=1)
    name: str | None = None
    picture: str | None = None
    orgs: list[_Organization] | None = None


def user_from(claims: Claims, space_owner: str) -> User:
    """Return the user; `space_owner` is the user or organization that the Space belongs to."""
    return User(
        id=claims.sub,
        username=claims.preferred_username,
        name=(claims.name or claims.preferred_username)[:100],
        # A cookie holds 4 kB, and browsers drop a larger one without a word.
        picture=claims.picture if len(claims.picture or "") <= 1000 else None,
        is_owner=bool(space_owner) and space_owner.lower() in _owners_of(claims),
    )


def _owners_of(claims: Claims) -> set[str]:
    """Return the names under which this user may change Spaces, in lower case as the Hub's."""
    names = [claims.preferred_username] + [
        organization.preferred_username
        for organization in claims.orgs or ()
        if organization.role in _ROLES_OF_OWNERS and not organization.restrictions
    ]
    return {name.lower() for name in names}


@dataclass(eq=False, repr=False)
class Provider:
    """The Hub, for the OAuth application that belongs to this Space."""

    client_id: str
    secret: str
    scopes: str
    url: str
    _endpoints: dict[str, str] = field(default_factory=dict)

    async def sign_in_address(self, redirect_uri: str, state: str, verifier: str) -> str:
        """Return where the user is sent to; raise ProviderFailed if that cannot be learnt."""
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": self.scopes,
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        async with httpx2.AsyncClient(timeout=SECONDS) as client:
            address = await self._endpoint(client, "authorization_endpoint")
        return f"{address}?{urlencode(query)}"

    async def redeem(self, code: str, redirect_uri: str, verifier: str) -> tuple[Claims, int]:
        """Return what the code tells about the user, and for how many seconds they are signed in.

        The token is used once and forgotten. It comes from the Hub itself over TLS, for a code that
        only this browser's verifier redeems, so there is no signature to be checked.
        Raise ProviderFailed if the Hub does not take the code.
        """
        form = {
            "grant_type": "authorization_code",
            "client_id": self.client_id,
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        async with httpx2.AsyncClient(timeout=SECONDS) as client:
            token_endpoint = await self._endpoint(client, "token_endpoint")
            credentials = (self.client_id, self.secret)
            token = await _json(client, "POST", token_endpoint, data=form, auth=credentials)
            userinfo_endpoint = await self._endpoint(client, "userinfo_endpoint")
            headers = {"Authorization": f"Bearer {token.get('access_token')}"}
            answer = await _json(client, "GET", userinfo_endpoint, headers=headers)
        try:
            claims = Claims.model_validate(answer)
        except ValidationError as error:
            raise ProviderFailed("its answer names no user") from error
        seconds = token.get("expires_in")
        lifetime = seconds if isinstance(seconds, int) and seconds > 0 else DEFAULT_LIFETIME
        return claims, min(lifetime, MAX_LIFETIME)

    async def _endpoint(self, client: httpx2.AsyncClient, name: str) -> str:
        if not self._endpoints:
            address = f"{self.url}/.well-known/openid-configuration"
            self._endpoints = await _json(client, "GET", address)
        if name not in self._endpoints:
            raise ProviderFailed(f"its configuration names no {name}")
        return str(self._endpoints[name])


def read_provider(environ: Mapping[str, str]) -> Provider | None:
    """Return the Hub, if `hf_oauth: true` has put an OAuth application into the environment."""
    client_id, secret = environ.get("OAUTH_CLIENT_ID"), environ.get("OAUTH_CLIENT_SECRET")
    if not (client_id and secret):
        return None
    scopes = environ.get("OAUTH_SCOPES") or "openid profile"
    url = environ.get("OPENID_PROVIDER_URL") or "https://huggingface.co"
    return Provider(client_id, secret, scopes, url.rstrip("/"))


async def _json(
    client: httpx2.AsyncClient, method: str, url: str, **options: Any
) -> dict[str, Any]:
    try:
        response = await client.request(method, url, **options)
        answer = response.json() if response.is_success else None
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise ProviderFailed(type(error).__name__) from error
    if not isinstance(answer, dict):
        raise ProviderFailed(f"it answered {response.status_code} at {response.url.path}")
    return answer
