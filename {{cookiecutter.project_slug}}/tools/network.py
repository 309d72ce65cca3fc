"""How `make deploy` reaches the Hub from here: proxies, certificates, time limits."""

import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

REQUEST_TIMEOUT = 60.0
PROXIES = ("https_proxy", "http_proxy", "all_proxy")
# In the order in which they count: the first two are what curl and requests read.
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


def problems(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield a line for each variable about the network with which nothing can be reached."""
    for name, value in environ.items():
        if name.lower() in PROXIES and value and not _is_usable_proxy(value):
            yield (
                f"{name}: not a proxy that can be used here: it must be http://host:port or"
                " https://host:port; or unset it for this command"
            )
    if variable := _certificates(environ):
        try:
            _context(environ[variable])
        except OSError:
            yield f"{variable}: the certificates that it names cannot be read"


def share_certificates() -> None:
    """Let the client of the Hub's storage, which knows SSL_CERT_FILE alone, trust the same."""
    if name := _certificates(os.environ):
        path = os.environ[name]
        os.environ["SSL_CERT_DIR" if Path(path).is_dir() else "SSL_CERT_FILE"] = path


def client(headers: Mapping[str, str] | None = None) -> httpx2.Client:
    """Return a client that trusts the authorities of this machine's environment."""
    name = _certificates(os.environ)
    return httpx2.Client(
        headers=headers,
        verify=_context(os.environ[name]) if name else True,
        follow_redirects=True,
        # By default, huggingface_hub waits for an answer forever.
        timeout=REQUEST_TIMEOUT,
    )


def explain(error: httpx2.HTTPError) -> str:
    """Return why the Hub cannot be reached and what to do, in one sentence."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        name = _certificates(os.environ)
        found = f"those in {name} do not" if name else "set SSL_CERT_FILE to a file that does"
        return (
            "The certificate of the Hub's address is not trusted here. If a company's proxy reads"
            f" along, its authority must vouch for it: {found}."
        )
    if isinstance(error, httpx2.ProxyError):
        return "The proxy refuses the connection to the Hub: check HTTPS_PROXY or ALL_PROXY."
    return "The Hub cannot be reached: check the network (and HF_ENDPOINT, if set)."


def _is_usable_proxy(value: str) -> bool:
    url = value if "://" in value else f"http://{value}"
    try:
        # Only here is a host that cannot be one refused.
        urlsplit(url)
        httpx2.Client(proxy=url).close()
    except (ImportError, ValueError, httpx2.InvalidURL):
        return False
    return True


def _certificates(environ: Mapping[str, str]) -> str | None:
    """Return the name of the variable that says which authorities to trust, if one does."""
    return next((name for name in CERTIFICATES if environ.get(name)), None)


def _context(path: str) -> ssl.SSLContext:
    if Path(path).is_dir():
        return ssl.create_default_context(capath=path)
    return ssl.create_default_context(cafile=path)
