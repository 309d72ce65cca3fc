"""Finds secrets in what a program printed, in every form in which they tend to get there."""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote

SECRET_VARIABLES = ("API_TOKEN", "HF_TOKEN", "OAUTH_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
TOKEN_HEADERS = ("Authorization", "X-API-Token")
PASSWORD_BEFORE_HOST = re.compile(r"://[^:/@]*:(.*)@")
PASSWORD_IN_QUERY = re.compile(r"(?:password|token|key)=([^&\s]+)")
# A shorter one, such as `app`, is a word that a log may well hold.
SHORTEST = 6


def secrets_of(environ: Mapping[str, str]) -> set[str]:
    """The tokens of an environment, its DATABASE_URL, and the passwords in its URLs, as they stand and decoded."""
    secrets = {environ.get(name, "") for name in SECRET_VARIABLES}
    database_url, snapshot_url = (environ.get(name, "").strip() for name in ("DATABASE_URL", "SNAPSHOT_URL"))
    if not database_url.startswith("sqlite"):
        secrets.add(database_url)
    for url in (database_url, snapshot_url):
        for password in PASSWORD_BEFORE_HOST.findall(url) + PASSWORD_IN_QUERY.findall(url):
            secrets |= {password, unquote(password)}
    return {secret for secret in secrets if len(secret) >= SHORTEST}


def secrets_in_headers(headers: Mapping[str, str]) -> set[str]:
    """The tokens that a request carries, right or wrong: a wrong one may be right elsewhere."""
    values = (headers.get(name, "") for name in TOKEN_HEADERS)
    return {token for value in values for token in value.split(" ") if len(token) >= SHORTEST} - {"Bearer"}


def check_no_secret_in(printed: bytes, secrets: Iterable[str]) -> None:
    """Fail with the first line that holds a secret."""
    for secret in secrets:
        for form in forms(secret):
            position = printed.find(form)
            if position >= 0:
                line = printed[printed.rfind(b"\n", 0, position) + 1 :].partition(b"\n")[0]
                raise AssertionError(f"the secret {secret!r} was printed as {form!r} in {line!r}")


def forms(secret: str) -> Iterator[bytes]:
    """A secret plain, quoted, percent-encoded, and in base64 wherever it begins in what was encoded."""
    yield secret.encode()
    yield json.dumps(secret)[1:-1].encode()
    yield repr(secret)[1:-1].encode()
    yield from {quote(secret).encode(), quote(secret, safe="").encode(), quote_plus(secret).encode()}
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            encoded = encode(b"x" * offset + secret.encode()).rstrip(b"=")
            # what stands before and after shares the first and the last character or two
            yield encoded[offset and offset + 1 : -1 if (offset + len(secret.encode())) % 3 else None]
