"""How `make deploy` reaches the Hub from here: its address, proxies, certificates, time limits."""

import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

REQUEST_TIMEOUT = 60.0
ADDRESS = "HF_ENDPOINT"
PROXIES = ("https_proxy", "http_proxy", "all_proxy")
# As OpenSSL says it, and the client of the Hub's storage.
UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "invalid peer certificate")
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
    if ADDRESS in environ and not _is_address(environ[ADDRESS]):
        yield f"{ADDRESS}: not the address of a Hub: it must be https://host; or unset it"
    if variable := _certificates(environ):
        try:
            _context(environ[variable])
        except OSError:
            yield f"{variable}: the certificates that it names cannot be read"


def unusable_variables(environ: Mapping[str, str] = os.environ) -> str:
    """Return what to say if huggingface_hub cannot be imported because of a variable."""
    names = ", ".join(sorted(name for name in environ if name.startswith("HF_")))
    return f"huggingface_hub cannot use one of these variables; correct or unset it: {names}"


def share_certificates() -> None:
    """Let all clients, which know SSL_CERT_FILE and SSL_CERT_DIR alone, trust the same."""
    if name := _certificates(os.environ):
        path = os.environ[name]
        for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            os.environ.pop(variable, None)
        os.environ["SSL_CERT_DIR" if Path(path).is_dir() else "SSL_CERT_FILE"] = path


def client(headers: Mapping[str, str] | None = None) -> httpx2.Client:
    """Return a client that waits for an answer, but not forever as huggingface_hub's own does."""
    return httpx2.Client(headers=headers, follow_redirects=True, timeout=REQUEST_TIMEOUT)


def explain(error: Exception) -> str:
    """Return why the Hub cannot be reached and what to do, in one sentence."""
    if any(words in str(error) for words in UNTRUSTED):
        name = _certificates(os.environ)
        found = f"those in {name} do not" if name else "set SSL_CERT_FILE to a file that does"
        return (
            "The certificate of the Hub's address is not trusted here. If a company's proxy reads"
            f" along, its authority must vouch for it: {found}."
        )
    if isinstance(error, httpx2.TimeoutException):
        return "The Hub did not answer in time: make deploy goes on from here."
    if isinstance(error, httpx2.ProxyError):
        return "The proxy refuses the connection to the Hub: check HTTPS_PROXY or ALL_PROXY."
    if isinstance(error, OSError):
        return "The Hub's storage of files that are not text fails: check the network, then make deploy."
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


def _is_address(value: str) -> bool:
    try:
        url, port = httpx2.URL(value), urlsplit(value).port
        url.host.encode("idna")
    except (ValueError, httpx2.InvalidURL):
        return False
    return url.scheme in ("http", "https") and url.host != "" and port != 0


def _certificates(environ: Mapping[str, str]) -> str | None:
    """Return the name of the variable that says which authorities to trust, if one does."""
    return next((name for name in CERTIFICATES if environ.get(name)), None)


def _context(path: str) -> ssl.SSLContext:
    if Path(path).is_dir():
        return ssl.create_default_context(capath=path)
    return ssl.create_default_context(cafile=path)
