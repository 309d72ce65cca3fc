"""A Hugging Face Hub on loopback: repositories and buckets that the real `huggingface_hub` talks to.

It answers the calls it knows in the shapes that `huggingface_hub` 2.4 expects, refuses what the Hub refuses, and
records every call. Start it with `running_hub()`, give its `environ` to a program, and look into `repositories`,
`buckets` and `calls` afterwards.

To teach it another call, add a method to `Hub` under `@route(...)`: it gets the request and the named groups of the
pattern, and returns what becomes the JSON answer, or an `Answer`; `raise Refused(...)` for an error.
"""

import base64
import binascii
import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx2
import yaml

TOKEN = "hf_loopbackTokenThatMayWrite"  # noqa: S105
READ_ONLY_TOKEN = "hf_loopbackTokenThatMayRead"  # noqa: S105
GITHUB_TOKEN = "loopback-token-of-a-job"  # noqa: S105
OWNER = "example"
"""The only namespace in which the tokens may make Spaces."""
COLORS = ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
_XET_TOKEN = "loopback-xet-token"  # noqa: S105
_MOMENT = "2026-01-01T00:00:00.000Z"
_LARGEST_REGULAR_FILE = 10 * 1024 * 1024


@dataclass(frozen=True)
class XetFile:
    """A file whose content is in Xet storage, which is where the Hub wants everything that is not text."""

    size: int
    xet_hash: str
    sha256: str | None = None


File = bytes | XetFile


@dataclass
class Space:
    """What a Space is beside its files. The test that plays the builder says what runs, and where."""

    private: bool = False
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=lambda: [("NO_APP_FILE", "")])
    """Stage and the commit that runs (`new` for the newest): one for each question, the last one for all further."""
    logs: dict[str, list[str]] = field(default_factory=lambda: {"build": [], "run": []})
    problem: str = ""
    """What the Hub says is wrong."""
    address: str | None = None
    """Where its app really answers."""


@dataclass
class Repository:
    """A model, dataset or Space at its newest commit; `settings` is what it was created with."""

    files: dict[str, File] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """The id of the newest commit."""
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()  # noqa: S324


@dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, which must be JSON and say so."""
        if "application/json" not in self.headers.get("content-type", ""):
            raise Refused(400, "the body must be application/json")
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        """The body, which must be one JSON value a line and say so."""
        if "application/x-ndjson" not in self.headers.get("content-type", ""):
            raise Refused(400, "the body must be application/x-ndjson")
        return [json.loads(line) for line in self.body.splitlines()]

    def flag(self, name: str) -> bool:
        """Whether a parameter of the query is true."""
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request and how it was answered."""

    method: str
    path: str
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818
    """The Hub's way to say no: a status, a message for people, and at times a code for programs."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        """`code` is one of RepoNotFound, RevisionNotFound, EntryNotFound."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


Method = Callable[..., Any]
_ROUTES: list[tuple[str, re.Pattern[str], Method]] = []
_REPOSITORY = r"(?P<kind>models|datasets|spaces)/(?P<name>[\w.-]+/[\w.-]+)"
_SPACE = r"spaces/(?P<name>[\w.-]+/[\w.-]+)"
_BUCKET = r"buckets/(?P<name>[\w.-]+/[\w.-]+)"


def route(method: str, pattern: str) -> Callable[[Method], Method]:
    """Make a method of `Hub` answer these requests; HEAD is answered by what answers GET."""

    def register(function: Method) -> Method:
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Hub:
    """All that the Hub knows. The tests change and read it while the server runs."""

    def __init__(self, url: str) -> None:
        """`url` is where it is reached."""
        self.url = url
        self.repositories: dict[str, Repository] = {}
        """By kind and name: `datasets/example/backups`."""
        self.buckets: dict[str, dict[str, XetFile]] = {}
        """By name: `example/backups`."""
        self.spaces: dict[str, Space] = {}
        """By name: `example/my-space`."""
        self.sdk = "docker"
        """What kind all Spaces are."""
        self.warnings: list[str] = []
        """What it warns of whenever it judges what opens a README."""
        self.calls: list[Call] = []
        self.refusals: dict[str, Refused] = {}
        """What is refused whatever is right, by a pattern of method and path: `POST /api/repos/create`."""
        self.after_change: Callable[[str], None] | None = None
        """Called with a Space's name after a commit to it, and after a change that restarts it."""
        self.storage = XetStorage(f"{url}/cas")
        self._lock = threading.Lock()

    @property
    def environ(self) -> dict[str, str]:
        """What makes `huggingface_hub` in another process use this Hub, with a token that may write."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}

    @property
    def refused(self) -> list[str]:
        """The changes that were refused or unknown. A GET may be a question; so are the ways of a newer Xet storage."""
        questions = re.compile(r"/v1/telemetry|.*/v1/xorb-grants/.*|.*/v2/.*")
        return [
            f"{call.method} {call.path}: {call.status}"
            for call in self.calls
            if call.status >= 400 and call.method not in ("GET", "HEAD") and not questions.fullmatch(call.path)
        ]

    def handle(self, request: Request) -> Answer:
        """Answer one request and record it."""
        with self._lock:
            try:
                answer = self._dispatch(request)
            except Refused as refusal:
                headers = {"X-Error-Message": refusal.message}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                answer = Answer(json.dumps({"error": refusal.message}).encode(), refusal.status, headers)
            self.calls.append(Call(request.method, request.path, answer.status, request.body, request.headers))
            return answer

    def _dispatch(self, request: Request) -> Answer:
        for pattern_of_refusal, refusal in self.refusals.items():
            if re.fullmatch(pattern_of_refusal, f"{request.method} {request.path}"):
                raise refusal
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, function in _ROUTES:
            match = pattern.fullmatch(request.path)
            if wanted == method and match:
                groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                result = function(self, request, **groups)
                return result if isinstance(result, Answer) else Answer(json.dumps(result).encode())
        raise Refused(404, "Not found")

    def _may_read(self, request: Request) -> None:
        if request.headers.get("authorization") not in (f"Bearer {TOKEN}", f"Bearer {READ_ONLY_TOKEN}"):
            raise Refused(401, "Invalid credentials in Authorization header")

    def _may_write(self, request: Request) -> None:
        self._may_read(request)
        if request.headers["authorization"] != f"Bearer {TOKEN}":
            raise Refused(403, "Forbidden: you don't have the required permissions")

    # repositories

    def _repository(self, kind: str, name: str, revision: str = "main") -> Repository:
        repository = self.repositories.get(f"{kind}/{name}")
        if repository is None:
            raise Refused(404, "Repository not found", "RepoNotFound")
        if revision not in ("main", repository.sha):
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository

    @route("POST", "/api/repos/create")
    def create_repository(self, request: Request) -> Any:
        """Create a model, dataset or Space."""
        self._may_write(request)
        settings = request.json()
        kind = f"{settings.get('type', 'model')}s"
        name = f"{settings['organization']}/{settings['name']}"
        if kind == "spaces" and settings.get("sdk") not in ("docker", "gradio", "static"):
            raise Refused(400, "a Space needs an sdk")
        if kind == "spaces" and settings["organization"] != OWNER:
            raise Refused(403, f"You don't have the rights to create a space under the namespace {name}")
        if f"{kind}/{name}" in self.repositories:
            raise Refused(409, "You already created this repo")
        self.repositories[f"{kind}/{name}"] = Repository({".gitattributes": b""}, ["initial commit"], settings)
        if kind == "spaces":
            self.spaces[name] = Space(private=settings.get("visibility") == "private")
        return {"url": f"{self.url}/{'' if kind == 'models' else kind + '/'}{name}"}

    @route("GET", rf"/api/{_REPOSITORY}(?:/revision/(?P<revision>[^/]+))?")
    def repository_info(self, request: Request, kind: str, name: str, revision: str) -> Any:
        """Say what a repository is and what it holds."""
        self._may_read(request)
        repository = self._repository(kind, name, revision or "main")
        siblings = [{"rfilename": path} for path in repository.files]
        info = {"id": name, "sha": repository.sha, "private": True, "siblings": siblings}
        if kind == "spaces":
            info |= {"private": self.spaces[name].private, "sdk": self.sdk, "host": f"{self.url}/served/{name}"}
        return info

    @route("GET", rf"/api/{_REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
    def list_repository(self, request: Request, kind: str, name: str, revision: str, folder: str) -> Any:
        """List a folder."""
        self._may_read(request)
        repository = self._repository(kind, name, revision)
        prefix = f"{folder}/" if folder else ""
        entries = _entries(repository.files, prefix, recursive=request.flag("recursive"))
        if folder and not entries:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return entries

    @route("POST", rf"/api/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)")
    def describe_paths(self, request: Request, kind: str, name: str, revision: str) -> Any:
        """Describe single files; those that do not exist are left out."""
        self._may_read(request)
        files = self._repository(kind, name, revision).files
        wanted = parse_qs(request.body.decode()).get("paths", [])
        return [_entry(path, files[path]) for path in wanted if path in files]

    @route("POST", rf"/api/{_REPOSITORY}/preupload/(?P<revision>[^/]+)")
    def preupload(self, request: Request, kind: str, name: str, revision: str) -> Any:
        """Say how each file must be sent: small texts in the commit itself, everything else to Xet storage.

        The `oid` of a file that is there tells whether it has changed: git's hash, or that of the stored content.
        """
        self._may_write(request)
        files = self._repository(kind, name, revision).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "regular" if _is_regular(base64.b64decode(file["sample"]), file["size"]) else "lfs",
                    "shouldIgnore": False,
                    **({"oid": _content_id(files[file["path"]])} if file["path"] in files else {}),
                }
                for file in request.json()["files"]
            ]
        }

    @route("POST", rf"/api/{_REPOSITORY}/commit/(?P<revision>[^/]+)")
    def commit(self, request: Request, kind: str, name: str, revision: str) -> Any:
        """Apply all operations, or none."""
        self._may_write(request)
        repository = self._repository(kind, name, revision)
        header, *operations = request.lines()
        if header["key"] != "header" or not header["value"].get("summary"):
            raise Refused(400, "a commit begins with a header that has a summary")
        if not operations:
            raise Refused(400, "a commit needs an operation")
        files = dict(repository.files)
        for operation in operations:
            self._apply(files, operation["key"], operation["value"])
        repository.files = files
        repository.commits.append(f"{len(repository.commits)} {header['value']['summary']}")
        if kind == "spaces" and self.after_change:
            self.after_change(name)
        url = f"{self.url}/{kind}/{name}/commit/{repository.sha}"
        return {"success": True, "commitOid": repository.sha, "commitUrl": url, "hookOutput": ""}

    def _apply(self, files: dict[str, File], kind: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if not path or path.startswith("/") or {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
            raise Refused(400, f"invalid path: {path}")
        match kind:
            case "file":
                try:
                    content = base64.b64decode(value["content"], validate=True)
                except binascii.Error:
                    raise Refused(400, "the content is not base64") from None
                if value["encoding"] != "base64" or not _is_regular(content, len(content)):
                    raise Refused(400, "binary and large files go to Xet storage")
                files[path] = content
            case "lfsFile":
                uploaded = self.storage.by_sha256.get(value["oid"])
                if uploaded is None or value["algo"] != "sha256":
                    raise Refused(400, f"the content of {path} was not uploaded")
                files[path] = uploaded
            case "deletedFile":
                if path not in files:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[path]
            case "deletedFolder":
                inside = [one for one in files if one.startswith(f"{path.rstrip('/')}/")]
                if not inside:
                    raise Refused(404, "A folder with this name doesn't exist", "EntryNotFound")
                for one in inside:
                    del files[one]
            case _:
                raise Refused(400, f"unknown operation: {kind}")

    @route("GET", r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def download(self, request: Request, kind: str, name: str, revision: str, path: str) -> Any:
        """Send a file that is no Xet file; clients of today fetch those from Xet storage."""
        self._may_read(request)
        repository = self._repository(kind or "models", name, revision)
        content = repository.files.get(path)
        if not isinstance(content, bytes):
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": repository.sha}
        return _ranged(request, content, headers)

    # Spaces

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Any:
        """Judge what opens a README."""
        self._may_read(request)
        asked = request.json()
        block = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        if asked["repoType"] != "space" or block is None:
            raise Refused(400, "no metadata of a space")
        fields = yaml.safe_load(block[1])
        errors = []
        if len(fields.get("short_description", "").encode("utf-16-le")) > 2 * 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
        if fields.get("app_port", 7860) < 1025:
            errors.append('"app_port" must be greater than or equal to 1025')
        for key in ("colorFrom", "colorTo"):
            if fields.get(key, "red") not in COLORS:
                errors.append(f'"{key}" must be one of [{", ".join(COLORS)}]')
        warnings = [{"message": warning} for warning in self.warnings]
        body = {"errors": [{"message": error} for error in errors], "warnings": warnings}
        return Answer(json.dumps(body).encode(), 400 if errors else 200)

    def _space(self, name: str) -> Space:
        self._repository("spaces", name)
        return self.spaces[name]

    @route("GET", rf"/api/{_SPACE}/runtime")
    def runtime(self, request: Request, name: str) -> Any:
        """Say what runs."""
        self._may_read(request)
        space = self._space(name)
        states = space.states
        stage, sha = states.pop(0) if len(states) > 1 else states[0]
        hardware = {"current": "cpu-basic", "requested": "cpu-basic"}
        runtime = {"stage": stage, "hardware": hardware, "gcTimeout": 172800, "storage": None}
        runtime |= {"errorMessage": space.problem} if space.problem else {}
        return runtime | ({"sha": self.repositories[f"spaces/{name}"].sha if sha == "new" else sha} if sha else {})

    @route("GET", rf"/api/{_SPACE}/logs/(?P<kind>build|run)")
    def logs(self, request: Request, name: str, kind: str) -> Any:
        """Send a log as events."""
        self._may_read(request)
        events = [{"data": f"{line}\n", "timestamp": _MOMENT} for line in self._space(name).logs[kind]]
        body = "".join(f"data: {json.dumps(event)}\n\ndata:\n\n" for event in events)
        return Answer(body.encode(), headers={"Content-Type": "text/event-stream"})

    @route("GET", rf"/api/{_SPACE}/(?P<kind>secrets|variables)")
    def list_settings(self, request: Request, name: str, kind: str) -> Any:
        """Name the secrets, whose values nobody can read; show the variables."""
        self._may_write(request)
        space = self._space(name)
        if kind == "secrets":
            return {key: {"description": "", "updatedAt": _MOMENT} for key in space.secrets}
        return {key: {"value": value, "updatedAt": _MOMENT} for key, value in space.variables.items()}

    @route("POST", rf"/api/{_SPACE}/(?P<kind>secrets|variables)")
    def set_setting(self, request: Request, name: str, kind: str) -> Any:
        """Set a secret or a variable, which restarts the Space."""
        self._may_write(request)
        setting = request.json()
        if not re.fullmatch(r"[A-Za-z]\w*", setting["key"]) or not setting["value"]:
            raise Refused(400, "a key is letters, digits and underscores, and has a value")
        space = self._space(name)
        (space.secrets if kind == "secrets" else space.variables)[setting["key"]] = setting["value"]
        if self.after_change and space.address:
            self.after_change(name)
        return {}

    @route("GET", r"/served/(?P<name>[\w.-]+/[\w.-]+)(?P<path>/.*)")
    def serve(self, request: Request, name: str, path: str) -> Any:
        """Pass a request on to the app of a Space, if the one who asks may see it."""
        space = self.spaces.get(name)
        if space is None or (space.private and request.headers.get("authorization") != f"Bearer {TOKEN}"):
            raise Refused(404, "Sorry, we can't find the page you are looking for")
        if space.address is None:
            raise Refused(503, "the Space is not running")
        # without TLS: the certificates that it would check take longer to load than the app to answer
        answer = httpx2.get(space.address + path, timeout=10, trust_env=False, verify=False)
        return Answer(answer.content, answer.status_code)

    # identities of workflows

    @route("GET", "/github/identity")
    def identity(self, request: Request) -> Any:
        """Do what GitHub does for a job that may ask for its identity: hand it out for one audience."""
        if request.headers.get("authorization") != f"Bearer {GITHUB_TOKEN}":
            raise Refused(401, "no right to an identity")
        return {"value": f"identity for {request.query['audience'][0]}"}

    @route("POST", "/oauth/token")
    def exchange(self, request: Request) -> Any:
        """Give a token for the identity of a workflow that the Space trusts."""
        asked = request.json()
        if asked != {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
            "subject_token": f"identity for {self.url}",
            "resource": f"spaces/{OWNER}/my-space",
        }:
            raise Refused(400, "invalid_grant")
        return {"access_token": TOKEN, "token_type": "bearer", "expires_in": 3600}

    # buckets

    def _bucket(self, name: str) -> dict[str, XetFile]:
        if name not in self.buckets:
            raise Refused(404, "Bucket not found", "RepoNotFound")
        return self.buckets[name]

    @route("POST", rf"/api/{_BUCKET}")
    def create_bucket(self, request: Request, name: str) -> Any:
        """Create a bucket."""
        self._may_write(request)
        if name in self.buckets:
            raise Refused(409, "You already created this bucket")
        self.buckets[name] = {}
        return {"url": f"{self.url}/buckets/{name}"}

    @route("GET", rf"/api/{_BUCKET}")
    def bucket_info(self, request: Request, name: str) -> Any:
        """Say how much a bucket holds."""
        self._may_read(request)
        files = self._bucket(name)
        size = sum(file.size for file in files.values())
        return {"id": name, "private": True, "createdAt": _MOMENT, "size": size, "totalFiles": len(files)}

    @route("GET", rf"/api/{_BUCKET}/tree(?:/(?P<prefix>.+))?")
    def list_bucket(self, request: Request, name: str, prefix: str) -> Any:
        """List what begins with a prefix, which is a mere string: `logs` also finds `logs-of-others/a`."""
        self._may_read(request)
        return [
            {**entry, "uploadedAt": _MOMENT, "mtime": _MOMENT}
            for entry in _entries(self._bucket(name), prefix, recursive=request.flag("recursive"))
        ]

    @route("POST", rf"/api/{_BUCKET}/batch")
    def change_bucket(self, request: Request, name: str) -> Any:
        """Add and delete files; each operation stands for itself."""
        self._may_write(request)
        bucket = self._bucket(name)
        failed = []
        operations = request.lines()
        for operation in operations:
            path, kind = operation["path"], operation["type"]
            if kind == "addFile" and operation["xetHash"] in self.storage.files:
                bucket[path] = self.storage.files[operation["xetHash"]]
            elif kind == "deleteFile" and path in bucket:
                del bucket[path]
            else:
                failed.append({"path": path, "error": "not found"})
        succeeded = len(operations) - len(failed)
        body = {"success": not failed, "processed": len(operations), "succeeded": succeeded, "failed": failed}
        return Answer(json.dumps(body).encode(), 200 if succeeded else 422)

    # Xet storage

    @route("GET", rf"/api/(?:{_REPOSITORY}|buckets/[\w.-]+/[\w.-]+)/xet-(?P<right>read|write)-token(?:/[^/]+)?")
    def xet_token(self, request: Request, right: str, **_: str) -> Any:
        """Hand out the key to Xet storage."""
        (self._may_write if right == "write" else self._may_read)(request)
        expires = 4_000_000_000
        headers = {
            "X-Xet-Cas-Url": self.storage.url,
            "X-Xet-Access-Token": _XET_TOKEN,
            "X-Xet-Token-Expiration": str(expires),
        }
        body = {"casUrl": self.storage.url, "accessToken": _XET_TOKEN, "exp": expires}
        return Answer(json.dumps(body).encode(), headers=headers)

    def _has_xet_token(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {_XET_TOKEN}":
            raise Refused(401, "no access to Xet storage")

    @route("POST", r"/cas/v1/xorbs/default/(?P<xorb_hash>[0-9a-f]{64})")
    def upload_xorb(self, request: Request, xorb_hash: str) -> Any:
        """Take a block of chunks."""
        self._has_xet_token(request)
        is_new = xorb_hash not in self.storage.xorbs
        self.storage.xorbs[xorb_hash] = request.body
        return {"was_inserted": is_new}

    @route("POST", "/cas/v1/shards")
    def upload_shard(self, request: Request) -> Any:
        """Take the description of files: which chunks of which blocks they are made of."""
        self._has_xet_token(request)
        self.storage.register(request.body)
        return {"result": 1}

    @route("GET", r"/cas/v1/reconstructions/(?P<file_hash>[0-9a-f]{64})")
    def reconstruction(self, request: Request, file_hash: str) -> Any:
        """Say what a file is made of, and where that is."""
        self._has_xet_token(request)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if file_hash not in self.storage.files or (asked and int(asked[1]) >= self.storage.files[file_hash].size):
            raise Refused(416 if asked else 404, "nothing there")
        return self.storage.describe(file_hash)

    @route("GET", r"/cas/content/(?P<xorb_hash>[0-9a-f]{64})")
    def xorb_content(self, request: Request, xorb_hash: str) -> Any:
        """Send a part of a block, as the signed URLs of the real storage do."""
        return _ranged(request, self.storage.xorbs[xorb_hash], {})


class XetStorage:
    """Content-addressed storage: files are ranges of chunks in blocks ("xorbs"), told by shards.

    https://huggingface.co/docs/xet describes the formats; what is compressed stays so.
    """

    def __init__(self, url: str) -> None:
        """`url` is where clients reach it."""
        self.url = url
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, XetFile] = {}
        self.by_sha256: dict[str, XetFile] = {}
        self._terms: dict[str, list[dict[str, Any]]] = {}

    def register(self, shard: bytes) -> None:
        """Remember the files of a shard; the blocks they are made of must be here."""
        entries = [shard[offset : offset + 48] for offset in range(48, len(shard), 48)]
        if not shard.startswith(b"HFRepoMetaData\0"):
            raise Refused(400, "this is no shard")
        while entries[0][:32] != b"\xff" * 32:
            file_hash = _hex(entries[0][:32])
            flags, count = struct.unpack("<II", entries[0][32:40])
            has_verification, has_metadata = flags >> 31 & 1, flags >> 30 & 1
            terms = []
            for entry in entries[1 : 1 + count]:
                length, start, end = struct.unpack("<III", entry[36:48])
                term = {"hash": _hex(entry[:32]), "unpacked_length": length, "range": {"start": start, "end": end}}
                if term["hash"] not in self.xorbs:
                    raise Refused(400, "a file refers to a block that was not uploaded")
                terms.append(term)
            rest = entries[1 + count * (1 + has_verification) :]
            sha256 = _hex(rest[0][:32]) if has_metadata else None
            file = XetFile(sum(term["unpacked_length"] for term in terms), file_hash, sha256)
            self.files[file_hash], self._terms[file_hash] = file, terms
            if sha256:
                self.by_sha256[sha256] = file
            entries = rest[has_metadata:]

    def describe(self, file_hash: str) -> dict[str, Any]:
        """The terms of a file and the byte ranges of their chunks."""
        fetch: dict[str, list[dict[str, Any]]] = {}
        for term in self._terms[file_hash]:
            start, end = term["range"]["start"], term["range"]["end"]
            edges = self._chunk_edges(term["hash"])
            url_range = {"start": edges[start], "end": edges[end] - 1}
            url = f"{self.url}/content/{term['hash']}"
            fetch.setdefault(term["hash"], []).append({"range": term["range"], "url": url, "url_range": url_range})
        return {"offset_into_first_range": 0, "terms": self._terms[file_hash], "fetch_info": fetch}

    def _chunk_edges(self, xorb_hash: str) -> list[int]:
        xorb, edges = self.xorbs[xorb_hash], [0]
        while edges[-1] < len(xorb) and xorb[edges[-1]] == 0:
            edges.append(edges[-1] + 8 + int.from_bytes(xorb[edges[-1] + 1 : edges[-1] + 4], "little"))
        return edges


def _hex(digest: bytes) -> str:
    """Xet writes a hash as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _is_regular(beginning: bytes, size: int) -> bool:
    """Whether the Hub takes a file as a part of the commit: it is text, and not large."""
    try:
        beginning.decode()
    except UnicodeDecodeError as error:
        # the sample may end in the middle of a character
        if error.start < len(beginning) - 3:
            return False
    return b"\0" not in beginning and size <= _LARGEST_REGULAR_FILE


def _blob_id(file: File) -> str:
    if isinstance(file, XetFile):
        file = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(file) + file).hexdigest()  # noqa: S324


def _content_id(file: File) -> str | None:
    return file.sha256 if isinstance(file, XetFile) else _blob_id(file)


def _entry(path: str, file: File) -> dict[str, Any]:
    if isinstance(file, bytes):
        return {"type": "file", "path": path, "size": len(file), "oid": _blob_id(file)}
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return {
        "type": "file", "path": path, "size": file.size, "oid": _blob_id(file), "xetHash": file.xet_hash, "lfs": lfs,
    }  # fmt: skip


def _entries(files: dict[str, Any], prefix: str, *, recursive: bool) -> list[dict[str, Any]]:
    """The files under a prefix, and the folders where files are not listed below them."""
    depth = prefix.rstrip("/").count("/") + 1 if prefix else 0
    entries: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        if not path.startswith(prefix):
            continue
        parts = path.split("/")
        if recursive or len(parts) == depth + 1:
            entries[path] = _entry(path, file)
        elif len(parts) > depth:
            folder = "/".join(parts[: depth + 1])
            entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40}
    return list(entries.values())


def _ranged(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Answer(content, headers=headers)
    first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    if first > last:
        raise Refused(416, "no such range")
    headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Answer(content[first : last + 1], 206, headers)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run an empty Hub on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body leave together: a body sent after its head waits until the client has acknowledged that.
        wbufsize = -1

        def answer(self) -> None:
            url = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            # the path stays quoted: a quoted slash is part of a name
            request = Request(self.command, url.path, parse_qs(url.query), headers, self.read_body(headers))
            answer = hub.handle(request)
            self.send_response(answer.status)
            for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def read_body(self, headers: dict[str, str]) -> bytes:
            if headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(headers.get("content-length", 0)))
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Say nothing: `calls` has it all."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        # how long its end may take
        seconds = 0.02
        thread = threading.Thread(target=server.serve_forever, args=(seconds,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
