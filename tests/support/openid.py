"""A Hub on loopback that signs people in: the OpenID Connect of huggingface.co, as far as a Space meets it.

It refuses what the Hub refuses: another client, a code that was used before, or that another verifier redeems.
"""

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT_ID = "00000000-0000-4000-8000-000000000001"
CLIENT_SECRET = "loopbackClientSecretOfThisSpace"  # noqa: S105
SCOPES = "openid profile read-memberships"


@dataclass
class OpenIDProvider:
    """Who is signed in at the Hub in the browser that comes, and what was asked."""

    port: int
    address: str
    """Where browsers find it."""
    user: dict[str, Any] = field(default_factory=dict)
    expires_in: int = 28_800
    is_refused: bool = False
    is_broken: bool = False
    grants: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[dict[str, str]] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        """What the Hub gives to a Space whose front matter says `hf_oauth: true`."""
        return {
            "OAUTH_CLIENT_ID": CLIENT_ID,
            "OAUTH_CLIENT_SECRET": CLIENT_SECRET,
            "OAUTH_SCOPES": SCOPES,
            "OPENID_PROVIDER_URL": f"http://127.0.0.1:{self.port}",
        }

    def authorize(self, query: dict[str, str]) -> str:
        """Return where the browser is sent after the user has agreed, or refused."""
        self.asked.append(query)
        assert query["client_id"] == CLIENT_ID
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        answer = {"state": query["state"]}
        if self.is_refused:
            answer["error"] = "access_denied"
        else:
            answer["code"] = secrets.token_urlsafe()
            self.grants[answer["code"]] = query
        return f"{query['redirect_uri']}?{urlencode(answer)}"

    def token(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """Return a token for a code, once, or None."""
        expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        query = self.grants.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if (
            query is None
            or authorization != f"Basic {expected}"
            or form["grant_type"] != "authorization_code"
            or form["redirect_uri"] != query["redirect_uri"]
            or base64.urlsafe_b64encode(digest).decode().rstrip("=") != query["code_challenge"]
        ):
            return None
        token = f"hf_oauth_{secrets.token_urlsafe()}"
        self.tokens.add(token)
        return {"access_token": token, "token_type": "bearer", "expires_in": self.expires_in, "scope": SCOPES}

    def metadata(self) -> dict[str, str]:
        """Return what /.well-known/openid-configuration says."""
        own = f"http://127.0.0.1:{self.port}"
        return {
            "issuer": self.address,
            "authorization_endpoint": f"{self.address}/oauth/authorize",
            "token_endpoint": f"{own}/oauth/token",
            "userinfo_endpoint": f"{own}/oauth/userinfo",
        }


@contextmanager
def running_provider(address: str = "", page: str = "") -> Iterator[OpenIDProvider]:
    """Serve it until the block ends. `page` is the HTML of all its other addresses, such as a Space's."""
    provider: OpenIDProvider

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/.well-known/openid-configuration":
                self.answer(provider.metadata())
            elif url.path == "/oauth/authorize":
                query = {name: value for name, (value,) in parse_qs(url.query).items()}
                self.answer(None, 302, location=provider.authorize(query))
            elif url.path == "/oauth/userinfo":
                token = self.headers["Authorization"].removeprefix("Bearer ")
                self.answer(provider.user, 200 if token in provider.tokens else 401)
            else:
                self.answer(page)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: value for name, (value,) in parse_qs(body).items()}
            token = provider.token(form, self.headers["Authorization"])
            self.answer(token or {"error": "invalid_grant"}, 200 if token else 400)

        def answer(self, content: Any, status: int = 200, *, location: str = "") -> None:
            is_page = isinstance(content, str)
            body = content.encode() if is_page else json.dumps(content).encode()
            if provider.is_broken:
                status, body = 502, b"Bad gateway"
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if is_page else "application/json")
            self.send_header("Content-Length", str(len(body)))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        port = server.server_address[1]
        provider = OpenIDProvider(port, address or f"http://127.0.0.1:{port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
