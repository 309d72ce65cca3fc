"""What FastAPI programmers write without thinking works as they expect, and stays green.

One overlay of an owner's code on a render, served by `fastapi dev`, which looks at it from many sides.
"""

import json
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.bakery import ROOT, BakedProject, Bakery
from tests.support.processes import free_port
from tests.support.recipes import run_verbs
from tests.support.server import Server

pytestmark = pytest.mark.slow

NO_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
PAGE = "https://pages.example"
SECONDS_TO_COUNT = 10
SAMPLE = b'--x\r\nContent-Disposition: form-data; name="sample"; filename="a.txt"\r\n\r\nno number\r\n--x--\r\n'
OVERLAY = {
    # a part of the owner's that uses other parts, packages without types, and whatever is at hand
    "src/voices/router.py": """
import logging
from typing import Optional

import fsspec
import structlog
from fastapi import APIRouter, Depends, File, Header, HTTPException, UploadFile
from prometheus_client import Counter
from pydantic import BaseModel
from training.fit import fit

from space_runtime.observability.logging import request_id
from src.config.settings import SettingsDep
from src.items.models import Item

router = APIRouter(prefix="/voices")
SPOKEN = Counter("voices_spoken", "Voices spoken.", ["voice"])
logger = logging.getLogger(__name__)
log = structlog.get_logger()


class Voice(BaseModel):
    voiceName: str
    tags: list[str] = []


def caller(x_caller: Optional[str] = Header(None)) -> str:
    return x_caller or "nobody"


@router.post("/{id}")
async def speak(id: int, voice: Voice, settings: SettingsDep, who: str = Depends(caller)) -> dict[str, object]:
    X = fit(["a matrix"])
    log.info("speaks, said structlog", voice=voice.voiceName, id=id)
    logger.info("speaks, said %s", "logging", extra={"voice": voice.voiceName})
    logger.debug("not told")
    SPOKEN.labels("anna").inc()
    return {"tokens": settings.max_tokens, "who": who, "X": X, "request": request_id.get(), "table": Item.__tablename__}


@router.post("/{id}/sample")
async def upload(id: int, sample: UploadFile = File(...)) -> int:
    try:
        return int(await sample.read())
    except ValueError:
        raise HTTPException(418, "That is no number.")


def path_of(url: str) -> str:
    return fsspec.core.strip_protocol(url)
""",
    # a package of the owner's beside src
    "training/fit.py": """
import logging

import structlog


def fit(rows: list[str]) -> list[str]:
    logging.getLogger("training.fit").info("fits")
    structlog.get_logger("training.fit").info("fits, said structlog")
    return rows
""",
    "src/pages.py": """
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as AnyHTTPException

Scope = MutableMapping[str, Any]
demo = FastAPI()


@demo.get("/queue/{event}")
async def queue(event: str) -> str:
    return event


@demo.get("/broken")
async def broken() -> None:
    raise RuntimeError("the demo is broken")


class Counting:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["counted"] = True
        await self.app(scope, receive, send)


def old() -> None:
    warnings.warn("old() will be gone", DeprecationWarning, stacklevel=1)


def add_pages(app: FastAPI) -> None:
    app.mount("/demo", demo)
    app.mount("/users/{user}/files", StaticFiles(directory="src"))
    app.add_middleware(Counting)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": [{"loc": problem["loc"]} for problem in error.errors()]}, 422)

    @app.get("/fails")
    async def fails(kind: str = "ours") -> None:
        if kind == "http":
            raise HTTPException(410, "gone")
        raise ZeroDivisionError(kind)

    @app.get("/model")
    async def model(request: Request) -> str:
        return f"{request.state.model} {request.state.counted}"


def add_more(app: FastAPI) -> None:
    @app.exception_handler(AnyHTTPException)
    def gone(request: Request, error: AnyHTTPException) -> PlainTextResponse:
        return PlainTextResponse(f"own {error.detail}", error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> PlainTextResponse:
        if "twice" in str(error):
            raise error
        return PlainTextResponse(f"own {type(error).__name__}", 500)

    @app.middleware("http")
    async def timed(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["X-Timed"] = "yes"
        return response
""",
    "tests/test_voices.py": """
import warnings

import pytest
from fastapi.testclient import TestClient
from training.fit import fit

from src.pages import old


def test_voices(client: TestClient) -> None:
    assert client.post("/voices/1", json={"voiceName": "anna"}).json()["tokens"] == 256
    assert client.get("/demo/queue/1").json() == "1"


def test_what_a_library_warns_of_is_its_own() -> None:
    warnings.warn_explicit("soon gone", DeprecationWarning, "gradio/routes.py", 1, "gradio.routes")
    assert fit([]) == []


def test_what_own_code_uses_that_will_be_gone() -> None:
    with pytest.raises(DeprecationWarning):
        old()
""",
}
CHANGES = {
    "src/config/settings.py": [(r'"""\n\n\ndef load', '"""\n\n    max_tokens: int = 256\n\n\ndef load')],
    "src/main.py": [
        (
            "(?m)^(from src.items.router .*)",
            r"\1\nfrom src.pages import add_more, add_pages\nfrom src.voices import router as voices",
        ),
        (
            r"(?m)^( +)attach\(app",
            r"\1app.include_router(voices.router)\n\1app.include_router(voices.router, prefix='/v2')\n"
            r"\1add_pages(app)\n\g<0>",
        ),
        (r"(?m)^( +)return app$", r"\1add_more(app)\n\g<0>"),
        (r"(?s)(def lifespan.*?)\[None\](.*?)yield\n", r'\1[dict[str, str]]\2yield {"model": "loaded"}\n'),
    ],
}


def write_own_code(project: BakedProject) -> BakedProject:
    """Put the overlay on a render."""
    for name, text in OVERLAY.items():
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).write_text(text.lstrip())
    for name, changes in CHANGES.items():
        text = project.read(name)
        for pattern, replacement in changes:
            text, count = re.subn(pattern, replacement, text, count=1)
            assert count == 1, (name, pattern)
        (project.path / name).write_text(text)
    # as `make fix` does
    for command in (["format"], ["check", "--fix"]):
        project.run("python", "-m", "ruff", *command, "--quiet", ".", check=False)
    return project


@dataclass(frozen=True)
class Seen:
    """What a client and an operator saw of the application while it ran."""

    answers: dict[str, httpx2.Response]
    metrics: dict[str, float]
    exit_code: int
    log: list[str]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The application's own lines; the command that started it prints others."""
        return [json.loads(line) for line in self.log if line.startswith("{")]

    def lines_of(self, name: str) -> list[dict[str, Any]]:
        """What was logged during this request."""
        request_id = self.answers[name].headers["X-Request-ID"]
        return [line for line in self.lines if line.get("request_id") == request_id]


REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "speak": ("POST", "/voices/3", {"json": {"voiceName": "anna"}, "headers": {"Origin": PAGE, "X-Caller": "me"}}),
    "speak again": ("POST", "/v2/voices/4", {"json": {"voiceName": "bert"}}),
    "invalid": ("POST", "/voices/x", {"json": {}}),
    "upload": (
        "POST",
        "/voices/3/sample",
        {"content": SAMPLE, "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    ),
    "fails": ("GET", "/fails", {}),
    "fails twice": ("GET", "/fails?kind=twice", {}),
    "gone": ("GET", "/fails?kind=http", {}),
    "no such method": ("DELETE", "/fails", {}),
    "no such path": ("GET", "/nowhere", {}),
    "refused": ("GET", "/api/items/no-uuid", {}),
    "model": ("GET", "/model", {}),
    "demo": ("GET", "/demo/queue/77?token=hidden-part", {}),
    "demo fails": ("GET", "/demo/broken", {}),
    "demo without": ("GET", "/demo/without", {}),
    "file": ("GET", "/users/77/files/main.py", {}),
    "stranger": ("GET", "/model", {"headers": {"Origin": "https://elsewhere.example"}}),
}


def read_metrics(server: Server) -> dict[str, float]:
    """All samples by their names and labels."""
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def seen(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Serve the overlay with `fastapi dev`, ask it everything once, and stop it."""
    project = write_own_code(bake().copy_to(tmp_path_factory.mktemp("own code")))
    port = free_port()
    command = [sys.executable, "-m", "fastapi", "dev", "--port", str(port)]
    environ = {
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "INFO",
        "CORS_ORIGINS": PAGE,
        "CORS_CREDENTIALS": "on",
        "MAX_TOKENS": "7",
    }
    with project.boot(environ, in_place=True, command=command, port=port) as server:
        server.settled()
        answers = {name: server.client.request(how, path, **more) for name, (how, path, more) in REQUESTS.items()}
        metrics = read_metrics(server)
        deadline = time.monotonic() + SECONDS_TO_COUNT
        # an answer that is a file is counted when the file is closed, and the client may have it before
        while metrics["http_requests_in_progress"] > 1 and time.monotonic() < deadline:
            metrics = read_metrics(server)
        exit_code = server.stop()
        return Seen(answers, metrics, exit_code, server.log().splitlines())


def test_own_settings_parts_dependencies_and_a_lifespan_that_passes_something_on(seen: Seen) -> None:
    spoken = seen.answers["speak"].json()
    assert spoken == {
        "tokens": 7,
        "who": "me",
        "X": ["a matrix"],
        "request": seen.answers["speak"].headers["X-Request-ID"],
        "table": "items",
    }
    assert seen.answers["speak again"].json()["who"] == "nobody"
    assert seen.answers["model"].json() == "loaded True"


def test_own_handlers_of_errors_are_called_whether_added_before_or_after_ours(seen: Seen) -> None:
    told = {name: (answer.status_code, answer.text) for name, answer in seen.answers.items()}
    assert told["invalid"] == (422, '{"detail":[{"loc":["path","id"]},{"loc":["body","voiceName"]}]}')
    assert told["refused"] == (422, '{"detail":[{"loc":["path","item_id"]}]}')
    assert told["fails"] == (500, "own ZeroDivisionError")
    assert told["gone"] == (410, "own gone")
    assert told["upload"] == (418, "own That is no number.")
    assert told["no such path"] == (404, "own Not Found")
    assert told["no such method"] == (405, "own Method Not Allowed")
    assert seen.answers["no such method"].headers["Allow"] == "GET, HEAD"
    # a handler that fails itself
    status, text = told["fails twice"]
    assert status == 500
    assert json.loads(text)["detail"].startswith("Internal error.")
    assert told["demo fails"] == (500, "Internal Server Error")
    for name, times, error in (
        ("fails", 1, "Zero"),
        ("fails twice", 2, "Zero"),
        ("demo fails", 1, "the demo is broken"),
    ):
        logged = [line["exception"] for line in seen.lines_of(name) if line["level"] == "error"]
        assert len(logged) == times
        assert error in logged[0]


def test_own_middleware_works_beside_ours(seen: Seen) -> None:
    for name, answer in seen.answers.items():
        assert answer.headers["X-Timed"] == "yes", name
        assert answer.headers["X-Content-Type-Options"] == "nosniff", name


def test_every_own_logger_is_heard_in_one_format_with_the_id_of_the_request(seen: Seen) -> None:
    told = {line["event"]: line for line in seen.lines_of("speak") if line["logger"] != "access"}
    assert {event: line["logger"] for event, line in told.items()} == {
        "speaks, said structlog": "src.voices.router",
        "speaks, said logging": "src.voices.router",
        "fits": "training.fit",
        "fits, said structlog": "training.fit",
    }
    assert told["speaks, said structlog"]["id"] == 3
    assert {line["voice"] for line in told.values() if "speaks" in line["event"]} == {"anna"}
    assert {line["level"] for line in told.values()} == {"info"}
    assert all(line["timestamp"].endswith("Z") for line in told.values())


def test_own_metrics_are_shown(seen: Seen) -> None:
    assert seen.metrics["voices_spoken_total anna"] == 2


def test_routes_are_told_with_prefixes_and_mounts_and_without_values(seen: Seen) -> None:
    expected = {
        "speak": "/voices/{id}",
        "speak again": "/v2/voices/{id}",
        "demo": "/demo/queue/{event}",
        "demo fails": "/demo/broken",
        "demo without": "/demo",
        "file": "/users/{user}/files",
        "no such path": "none",
        "refused": "/api/items/{item_id}",
    }
    routes = {name: [line["route"] for line in seen.lines_of(name) if line["logger"] == "access"] for name in expected}
    assert routes == {name: [route] for name, route in expected.items()}
    for name, route in expected.items():
        assert seen.metrics[f"http_requests_total {REQUESTS[name][0]} {route} {seen.answers[name].status_code}"] >= 1
    assert not any("77" in name or "main.py" in name for name in seen.metrics)


def test_a_named_page_may_send_cookies_and_no_other(seen: Seen) -> None:
    headers = seen.answers["speak"].headers
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert "Access-Control-Allow-Origin" not in seen.answers["stranger"].headers


def test_fastapi_dev_finds_the_application_and_logs_each_event_once(seen: Seen) -> None:
    assert any("src.main:app" in line for line in seen.log)
    events = [line["event"] for line in seen.lines]
    for once in ("Application startup complete.", "stopped: the database is closed"):
        assert events.count(once) == 1
    access = [
        line for line in seen.lines if line["logger"] == "access" and line["route"] not in ("/health", "/metrics")
    ]
    assert len(access) == len(REQUESTS)
    # what uvicorn and the command would have printed of a request
    assert not any("HTTP/1.1" in line or "hidden-part" in line for line in seen.log)
    assert not any(line.startswith("Traceback") for line in seen.log)
    assert seen.exit_code in (0, -signal.SIGTERM)


def test_own_code_is_clean_for_the_tools_of_the_project(project: BakedProject) -> None:
    write_own_code(project)
    project.run("python", "-m", "ruff", "check", ".")
    tests = ["tests/test_voices.py", "tests/test_architecture.py"]
    # PostgreSQL and the runtime's own imports are looked at elsewhere
    only = ["-k", "not postgresql and not runtime"]
    done = project.run("python", "-m", "pytest", "-q", *only, *tests, environ=NO_PLUGINS, check=False)
    assert "1 failed" in done.stdout
    assert "add MAX_TOKENS to .env.example" in done.stdout


@pytest.mark.thorough
def test_own_code_is_green_in_make_check_and_make_test(project: BakedProject) -> None:
    write_own_code(project)
    with (project.path / ".env.example").open("a") as example:
        example.write("\n#MAX_TOKENS=256\n")
    environ = NO_PLUGINS | {"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "with-own-code")}
    run_verbs(project, "make check test", environ)


@pytest.mark.thorough
def test_fastapi_run_serves_it_too(project: BakedProject) -> None:
    port = free_port()
    command = [sys.executable, "-m", "fastapi", "run", "--port", str(port)]
    with project.boot({"LOG_FORMAT": "json"}, command=command, port=port) as server:
        assert server.settled()["status"] == "ok"
        assert server.get("/api/items").json() == {"items": [], "next_cursor": None}
        assert server.stop() in (0, -signal.SIGTERM)
        log = server.log()
    assert "HTTP/1.1" not in log
    assert "Traceback" not in log


@pytest.mark.thorough
def test_pyright_finds_nothing_in_a_render(project: BakedProject) -> None:
    pyright = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("basedpyright is not installed (.tools/bin/uv pip install --python .venv basedpyright): types")
    # as Pyright itself, and editors that use it, have it
    (project.path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    done = project.run(pyright, "--pythonpath", sys.executable)
    assert "0 errors" in done.stdout
