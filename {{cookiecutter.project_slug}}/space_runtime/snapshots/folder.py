"""The folder at SNAPSHOT_URL, which fsspec opens, and sentences about what goes wrong there."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

_S3_ENDPOINTS = ("FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_PROXIES = ("https_proxy", "http_proxy", "all_proxy")
# Where its client looks for authorities besides those that everybody trusts.
_CERTIFICATES = {"hf": "SSL_CERT_FILE", "s3": "AWS_CA_BUNDLE"}
# As OpenSSL says it, and the client of the Hub's storage.
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "invalid peer certificate")
_CREDENTIALS = {
    "hf": "HF_TOKEN must be a token with write access there",
    "s3": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "file": f"let user {os.getuid()} write to that folder",
}
_FORMS = {
    "hf": "write hf://buckets/USER/BUCKET/FOLDER or hf://datasets/USER/DATASET/FOLDER",
    "s3": "write s3://BUCKET/FOLDER",
}


class SnapshotError(Exception):
    """Why a snapshot failed: one sentence without URLs, users or secrets."""


class Misconfigured(SnapshotError):
    """The configuration has to be changed, so another attempt would fail as well."""


class Folder:
    """Opened for one operation: a file system that is reused would return old listings."""

    def __init__(self, url: str) -> None:
        # By default, huggingface_hub draws progress bars in the log and needs a writable home.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_XET_CACHE", f"{tempfile.gettempdir()}/xet-{os.getuid()}")
        self._protocol = _protocol_of(url)
        with self._errors_named("opened"):
            # Imported here because it is slow, and only applications with snapshots need it.
            from fsspec import get_filesystem_class  # type: ignore[import-untyped]
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            try:
                get_filesystem_class(self._protocol)
            except ValueError:
                raise Misconfigured(
                    "SNAPSHOT_URL begins with a protocol that nothing here knows: use hf://, s3://"
                    " or another one of fsspec's, or the path of a folder."
                ) from None
            variable = _CERTIFICATES.get(self._protocol, "")
            if (path := os.environ.get(variable)) and not os.access(path, os.R_OK):
                # A client's own error looks as if the folder were not there.
                raise Misconfigured(
                    f"SNAPSHOT_URL cannot be used: {variable} names a file that cannot be read."
                )
            if self._protocol == "s3":
                _prepare_s3()
            self._files, path = url_to_fs(url, skip_instance_cache=True)
            if self._protocol in _FORMS and not path:
                raise Misconfigured(f"SNAPSHOT_URL names no place: {_FORMS[self._protocol]}.")
        self._path = path.rstrip("/")

    def listing(self) -> dict[str, int]:
        """Return the names of the objects, and their sizes in bytes."""
        with self._errors_named("listed"):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._path, detail=True)
            except FileNotFoundError as error:
                # A cause means that the whole bucket or repository is missing, not just the folder.
                if error.__cause__ is not None:
                    raise
                entries = []
        return {os.path.basename(entry["name"]): entry["size"] for entry in entries}

    def put(self, name: str, content: BinaryIO) -> dict[str, int]:
        """Store the content, check that it is complete, and return the listing that shows it."""
        with self._errors_named("written to"):
            path = f"{self._path}/{name}"
            try:
                stored = self._files.open(path, "wb")
            except FileNotFoundError:
                # Not done up front, because on S3 it may need the right to create buckets.
                self._files.makedirs(self._path, exist_ok=True)
                stored = self._files.open(path, "wb")
            try:
                with stored:
                    shutil.copyfileobj(content, stored)
            finally:
                # When an upload fails, huggingface_hub leaves its own copy behind.
                if temporary := getattr(stored, "temp_file", None):
                    Path(temporary.name).unlink(missing_ok=True)
        listed = self.listing()
        if listed.get(name) != content.tell():
            raise SnapshotError("SNAPSHOT_URL did not keep the whole of what was written to it.")
        return listed

    def fetch(self, name: str, target: Path) -> None:
        """Write the content of an object to a file."""
        with self._errors_named("read"):
            self._files.get_file(f"{self._path}/{name}", str(target))

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._errors_named("pruned"):
            self._files.rm_file(f"{self._path}/{name}")

    @contextmanager
    def _errors_named(self, done: str) -> Iterator[None]:
        """Turn errors into SnapshotError: their own texts may contain URLs and secrets."""
        try:
            yield
        except SnapshotError:
            raise
        except Exception as error:  # A file system is a plug-in and may raise anything.
            kind = Misconfigured if isinstance(error, ImportError) else SnapshotError
            cause = _cause(error, self._protocol)
            raise kind(f"SNAPSHOT_URL could not be {done}: {cause}.") from None


def resolve(written: str, folder: Path) -> str:
    """Return the URL, or the absolute path of a folder; a relative one starts at `folder`.

    Raise Misconfigured if it is a word that is no folder: most likely, it was to be a URL.
    """
    if "://" in written or "::" in written:
        return written
    path = (folder / os.path.expanduser(written)).absolute()
    if written.startswith(("/", "~", ".")) or path.is_dir():
        return str(path)
    raise Misconfigured(
        "SNAPSHOT_URL is neither a URL with :// in it nor a folder that exists:"
        " for a new folder in the project write ./NAME."
    )


def _protocol_of(url: str) -> str:
    """Return the protocol of a URL, of the innermost one if several are chained."""
    innermost = url.rpartition("::")[2]
    protocol = innermost.partition("://")[0] if "://" in innermost else "file"
    return "s3" if protocol == "s3a" else protocol


def _prepare_s3() -> None:
    """Make botocore work with other stores than Amazon's, too.

    Many of them refuse the checksums that it adds by default, and snapshots have their own.
    """
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(name, "when_required")


def _cause(error: Exception, protocol: str) -> str:
    name, code = type(error).__name__, _code_of_s3(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    # The errors of hf_xet have the status only in their text.
    refused = status in (401, 403) or "403 Forbidden" in str(error) or "Credentials" in name
    is_about_reaching = "Connect" in name or "Timeout" in name
    endpoint = next(filter(os.environ.get, _S3_ENDPOINTS), None) if protocol == "s3" else None
    if proxy := _proxy_at_fault(error):
        return f"the proxy in {proxy} cannot be used, or refuses; it must be http://HOST:PORT"
    if isinstance(error, ImportError):
        return f"a package is missing; add it to requirements.txt, then run `make lock` ({error})"
    if any(words in str(error) for words in _UNTRUSTED):
        variable = _CERTIFICATES.get(protocol, "SSL_CERT_FILE")
        return f"its certificate is not trusted; let {variable} name a file with its authority"
    if refused or isinstance(error, PermissionError):
        return f"access is refused; {_CREDENTIALS.get(protocol, 'check the credentials')}"
    if isinstance(error, FileNotFoundError):
        told = "it cannot be made" if protocol == "file" else "these credentials may not see it"
        return f"it does not exist, or {told}"
    if is_about_reaching:
        also = f", and {endpoint or 'AWS_ENDPOINT_URL'}" if protocol == "s3" else ""
        return f"its server cannot be reached; check the network{also}"
    if code:
        return f"the store answers {code}; check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
    is_address = isinstance(error, ValueError) and re.search("[Ee]ndpoint|URL", str(error))
    if endpoint and (is_address or "Endpoint" in name):
        return f"{endpoint} is no address; write http://HOST:PORT or https://HOST, no _ in HOST"
    if "Region" in name:
        return "AWS_DEFAULT_REGION is not a region"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if status is not None:
        return f"HTTP {status}"
    return f"{name}; {_FORMS.get(protocol, 'check how it is written')}"


def _proxy_at_fault(error: Exception) -> str:
    """Return the variables that name a proxy, or "" if this is not about one."""
    is_early = isinstance(error, ImportError | ValueError) and "proxy" in str(error).lower()
    if not is_early and "Proxy" not in type(error).__name__:
        return ""
    return ", ".join(name for name in os.environ if name.lower() in _PROXIES and os.environ[name])


def _code_of_s3(error: Exception) -> str:
    """Return the code with which an S3 refused a request, or ""."""
    response = getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return ""
    code = str(response.get("Error", {}).get("Code", ""))
    return code if re.fullmatch("[A-Za-z0-9]{1,60}", code) else ""
