"""Who may write: each kind of route, asked by strangers and others, on a laptop and on a Space."""

import asyncio
import functools
import gc
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import HTTPBearer
from space_runtime.http.access import anybody, public
from space_runtime.http.guard import WriteGuard, refuse_websocket
from space_runtime.http.openid import User, read_provider
from space_runtime.http.rate_limit import MAX_CLIENTS, RateLimit
from space_runtime.http.sign_in import SignInService
from starlette.responses import JSONResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.bakery import BakedProject, Bakery
from tests.support.browser import ARTIFACTS
from tests.support.processes import free_port
from tests.support.server import Server

pytestmark = pytest.mark.slow

TOKEN = "secret-token-of-mine"  # noqa: S105
SPACE = {"SPACE_ID": "example/my-space", "SPACE_HOST": "example-my-space.hf.space"}

APP = '''
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose

from space_runtime.http.access import anybody, public, public_mount
from space_runtime.http.sign_in import CurrentUser, SpaceOwner
from space_runtime.http.sign_in_pages import attach_sign_in
from src.main import app

Credentials = HTTPAuthorizationCredentials


async def check(given: Annotated[Credentials, Depends(HTTPBearer())]) -> None:
    if given.credentials != "own":
        raise HTTPException(403, "not mine")


async def check_if_given(
    given: Annotated[Credentials | None, Depends(HTTPBearer(auto_error=False))],
) -> None:
    if given and given.credentials != "own":
        raise HTTPException(403, "not mine")


async def user_or_nobody(
    given: Annotated[Credentials | None, Depends(HTTPBearer(auto_error=False))],
) -> str | None:
    return "me" if given and given.credentials == "own" else None


async def check_by_hand(request: Request) -> None:
    if request.cookies.get("session") != "own":
        raise HTTPException(403, "not mine")


class Session(SecurityBase):
    """A scheme that also works for WebSockets."""

    model, scheme_name = BearerModel(), "Session"

    async def __call__(self, connection: HTTPConnection) -> None:
        if connection.headers.get("authorization") != "Bearer own":
            raise HTTPException(403, "not mine")


own = [Depends(check)]
router = APIRouter(prefix="/api")
inner = FastAPI()
nested = FastAPI()
rooted = FastAPI(root_path="/elsewhere")
login = APIRouter(prefix="/login", dependencies=[anybody])


@app.get("/read")
@app.post("/write")
@app.post("/public", **public)
@app.post("/plain", openapi_extra={"security": []})
@app.api_route("/both", methods=["GET", "PUT"])
@app.post("/slash/")
@app.post("/slash/public/", **public)
@app.post("/own", dependencies=own)
@app.post("/own-and-public", dependencies=own, **public)
@app.post("/if-given", dependencies=[Depends(check_if_given)])
@app.post("/nobody-too", dependencies=[Depends(user_or_nobody)])
@app.post("/by-hand", dependencies=[Depends(check_by_hand)])
@app.post("/by-hand-and-public", dependencies=[Depends(check_by_hand)], **public)
@app.post("/by-cookie", dependencies=[Depends(APIKeyCookie(name="session", auto_error=False))])
@router.post("/models/{name}/never-reached", **public)
@router.post("/models/{name}/{verb}")
@router.post("/models/{name}/predict", **public)
@inner.post("/write")
@inner.post("/public", **public)
@inner.post("/own", dependencies=own)
@rooted.post("/write", **public)  # not found there, because of its root_path
@rooted.post("/rooted/write")
@nested.post("/write")
@nested.post("/public", **public)
@login.post("")
async def answer() -> str:
    return "done"


@app.get("/user")
@app.post("/user")
async def answer_user(user: CurrentUser) -> str:
    return user.username


@app.post("/owner")
async def answer_owner(user: SpaceOwner) -> str:
    return user.username


@app.websocket("/ws/user")
async def talk_to_user(websocket: WebSocket, user: CurrentUser) -> None:
    await talk(websocket)


async def answer_plainly(request: Request) -> PlainTextResponse:
    return PlainTextResponse("done")


@app.websocket("/ws")
@app.websocket("/ws/public", dependencies=[anybody])
@app.websocket("/ws/own", dependencies=[Depends(Session())])
@inner.websocket("/ws")
@login.websocket("/ws")
async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


async def opaque(scope, receive, send) -> None:
    if scope["type"] == "websocket":
        await WebSocketClose()(scope, receive, send)
    else:
        await PlainTextResponse("done")(scope, receive, send)


app.add_route("/plainly", answer_plainly, methods=["POST"])
app.include_router(router, prefix="/v1")
app.include_router(login)
inner.mount("/nested", nested)
inner.mount("/opaque", opaque)
public_mount(app, "/open")
app.mount("/closed", opaque)
app.mount("/open", opaque)
app.mount("/inner", inner)
app.mount("/rooted", rooted)
app.mount("/inner-open", inner)
public_mount(app, "/inner-open/")
attach_sign_in(app, app.state.runtime)
'''

# What a request brings along.
CREDENTIALS: dict[str, dict[str, str]] = {
    "nothing": {},
    "wrong": {"X-API-Token": "wrong"},
    "token": {"X-API-Token": TOKEN},
    "bearer": {"Authorization": f"Bearer {TOKEN}"},
    "own": {"Authorization": "Bearer own"},
    "both": {"Authorization": "Bearer own", "X-API-Token": TOKEN},
    "basic": {"Authorization": "Basic own"},
    "cookie": {"Cookie": "session=own"},
}
# As the Hub sets them for a Space whose users may sign in. It is not asked here.
OAUTH = {"OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "a-secret-of-the-hub", "OPENID_PROVIDER_URL": "http://hub"}
PLACES: dict[str, dict[str, str]] = {
    "laptop": {},
    "laptop, token": OAUTH | {"API_TOKEN": TOKEN},
    "Space": OAUTH | SPACE,
    "Space, token": OAUTH | SPACE | {"API_TOKEN": TOKEN},
}
THOROUGH = {"laptop, token": pytest.mark.thorough}
# The status in each of these places; what the route itself answers is "ok".
WORDS = {
    "closed": ["ok", "401", "403", "401"],
    "opened": ["ok", "ok", "403", "ok"],
    "asked": ["ok", "401", "401", "401"],
    "shut": ["403", "401", "403", "401"],
    "given": ["ok", "ok", "401", "ok"],
}
RIGHTS = """
              nothing wrong   token   bearer  own     both    basic   cookie  user    owner
anybody       ok      ok      ok      ok      ok      ok      ok      ok      ok      ok
token         closed  closed  opened  opened  closed  opened  closed  closed  closed  closed
own           401     401     401     403     ok      ok      401     401     401     401
own-if-given  asked   asked   given   403     ok      ok      asked   asked   asked   asked
own-or-any    asked   asked   given   ok      ok      ok      asked   asked   asked   asked
own-cookie    asked   asked   given   given   asked   given   asked   ok      asked   asked
by-hand       shut    shut    403     403     shut    403     shut    closed  shut    shut
public-hand   403     403     403     403     403     403     403     ok      403     403
own-ws        403     403     403     403     ok      ok      403     403     403     403
user          401     401     401     401     401     401     401     401     ok      ok
owner         401     401     401     401     401     401     401     401     403     ok
"""
# Each route, who has a right to it, and what it answers to those; 101 is a WebSocket that opens.
ROUTES = """
GET /read                           anybody       200
GET /user                           user          200
POST /user                          user          200
POST /owner                         owner         200
GET /both                           anybody       200
OPTIONS /write                      anybody       405
POST /write                         token         200
PUT /both                           token         200
POST /api/items                     token         422
POST /plainly                       token         200
POST /public                        anybody       200
POST /plain                         anybody       200
POST /v1/api/models/a/predict       anybody       200
POST /v1/api/models/a/train         token         200
POST /v1/api/models/a/never-reached token         200
POST /login                         anybody       200
POST /slash                         token         307
POST /slash/public                  anybody       307
POST /own                           own           200
POST /own-and-public                own           200
POST /if-given                      own-if-given  200
POST /nobody-too                    own-or-any    200
POST /by-hand                       by-hand       200
POST /by-hand-and-public            public-hand   200
POST /by-cookie                     own-cookie    200
POST /unknown                       token         404
DELETE /public                      token         405
GET /closed/x                       anybody       200
POST /closed/x                      token         200
POST /open/x                        anybody       200
POST /inner/write                   token         200
POST /inner/public                  anybody       200
POST /inner/own                     own           200
POST /inner/nested/write            token         200
POST /inner/nested/public           anybody       200
POST /inner/opaque/x                token         200
POST /rooted/write                  token         200
POST /inner-open/write              anybody       200
POST /inner-open/own                own           200
WS /ws                              token         101
WS /ws/public                       anybody       101
WS /ws/own                          own-ws        101
WS /ws/user                         user          101
WS /login/ws                        anybody       101
WS /inner/ws                        token         101
WS /unknown                         token         403
WS /open/x                          anybody       403
"""

# What the answer to a stranger tells the owner.
MARK = "its route is marked with **public, as in @router.post(..., **public)"
REMEDIES = {
    "/write": f"{MARK}.",
    "/unknown": "its route is marked with **public.",
    "/plainly": "it is added with add_api_route(..., **public).",
    "/closed/x": 'the application opens it with public_mount(app, "/closed").',
    "/inner/write": f'{MARK}, or all below /inner with public_mount(app, "/inner").',
    "/inner/unknown": 'the application opens it with public_mount(app, "/inner").',
    "/ws": "its route is marked with dependencies=[anybody].",
}


LINK = """

from starlette.requests import Request


@app.get("/link")
async def link(request: Request) -> str:
    return str(request.url_for("link"))
"""


@pytest.fixture(scope="module")
def kinds(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """A project with a route of each kind."""
    project = bake().copy_to(tmp_path_factory.mktemp("kinds"))
    (project.path / "kinds.py").write_text(APP)
    return project


@pytest.fixture(scope="module", params=[pytest.param(place, marks=THOROUGH.get(place, ())) for place in PLACES])
def place(request: pytest.FixtureRequest) -> str:
    """One of PLACES."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(kinds: BakedProject, place: str) -> Iterator[Server]:
    """The app in that place."""
    with kinds.boot({"PUBLIC_LIMIT": "1000000/hour"} | PLACES[place], app="kinds:app") as server:
        server.settled()
        yield server
        assert "Traceback" not in server.log()


def credentials(server: Server, place: str) -> dict[str, dict[str, str]]:
    """CREDENTIALS, and the cookies of those who have signed in, sent by a page of the app itself."""
    scheme, cookie = ("https", "__Host-user") if place.startswith("Space") else ("http", "user")
    service = SignInService(read_provider(PLACES[place]), "", RateLimit("off"), "")

    def signed_in(name: str) -> dict[str, str]:
        user = User(id=name, username=name, name=name, picture=None, is_owner=name == "owner")
        return {"Origin": f"{scheme}://127.0.0.1:{server.port}", "Cookie": f"{cookie}={service.session(user, 3600)}"}

    return CREDENTIALS | {name: signed_in(name) for name in ("user", "owner")}


def ask(server: Server, method: str, path: str, headers: dict[str, str]) -> int:
    """Return the status of the answer; 101 is that of a WebSocket that was opened."""
    if method != "WS":
        return server.client.request(method, path, headers=headers).status_code
    try:
        with connect(f"ws://127.0.0.1:{server.port}{path}", additional_headers=headers):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def rows(table: str) -> list[list[str]]:
    """Return the words of each line."""
    return [line.split() for line in table.strip().splitlines()]


def expected(place: int) -> dict[str, list[int]]:
    """Return what each route answers to each of CREDENTIALS in one place."""
    _, *lines = rows(RIGHTS)
    rights = {name: [WORDS.get(word, [word] * 4)[place] for word in words] for name, *words in lines}
    return {
        f"{method} {path}": [int(ok if status == "ok" else status) for status in rights[right]]
        for method, path, right, ok in rows(ROUTES)
    }


def test_every_kind_of_route_lets_in_whom_it_says_and_nobody_else(server: Server, place: str) -> None:
    who = credentials(server, place)
    assert rows(RIGHTS)[0] == list(who)
    table = expected(list(PLACES).index(place))
    answers = {}
    for route in table:
        method, path = route.split()
        answers[route] = [ask(server, method, path, headers) for headers in who.values()]
    lines = [f"{place:36}" + "".join(f"{name:>8}" for name in who)]
    lines += [f"{route:36}" + "".join(f"{status:8}" for status in statuses) for route, statuses in answers.items()]
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / f"who-may-write-{place.replace(', ', '-')}.txt").write_text("\n".join(lines) + "\n")
    assert answers == table


# What begins the rows of the README's table, and the routes of which each tells.
README_ROWS = {
    "without a mark": ("POST /write", "POST /closed/x"),
    "that is public": ("POST /public", "POST /login", "POST /open/x"),
    "with `HTTPBearer()`": ("POST /own",),
    "the same with `auto_error=False`, and no": ("POST /if-given",),
    "the same with `auto_error=False`, and any": ("POST /if-given",),
    "with `CurrentUser`": ("POST /user", "POST /owner"),
}


def means(cell: str, route: str, asks: str, answers: dict[str, int]) -> bool:
    """Whether these are the answers of which a cell of the README's table tells."""
    if cell.startswith("open"):
        return answers[asks] == 200
    if cell == "its own check":
        return (answers["bearer"], answers["own"]) == (403, 200)
    if cell == "who signed in (as the owner)":
        owner_only = route.endswith("owner")
        return (answers[asks], answers["user"], answers["owner"]) == (401, 403 if owner_only else 200, 200)
    return answers[asks] == int(cell)


def test_the_readme_says_who_may_write(bake: Bakery) -> None:
    table = bake().read("README.md").partition("## Who may write")[2].partition("\n| --- |")[2].partition("\n\n")[0]
    lines = table.splitlines()[1:]
    assert len(lines) >= 5
    for line in lines:
        what, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        (beginning,) = (beginning for beginning in README_ROWS if what.startswith(beginning))
        local, space, without, with_it = (cells[0] if cell == "the same" else cell for cell in cells)
        for place, cell, asks in (
            ("laptop", local, "nothing"),
            ("Space", space, "nothing"),
            ("laptop, token", without, "nothing"),
            ("Space, token", without, "wrong"),
            ("laptop, token", with_it, "token"),
            ("Space, token", with_it, "token"),
        ):
            answered = expected(list(PLACES).index(place))
            for route in README_ROWS[beginning]:
                answers = dict(zip(rows(RIGHTS)[0], answered[route], strict=True))
                assert means(cell, route, asks, answers), (line, place, route, answers)


def test_the_schema_says_who_may_call(server: Server, place: str) -> None:
    schema = server.get("/openapi.json").json()
    token: list[dict[str, list[str]]] = [] if place == "laptop" else [{"APIToken": []}, {"APITokenBearer": []}]
    said: dict[str, tuple[list[dict[str, list[str]]], str]] = {
        "/write": (token, "401 403"),
        "/api/items": (token, "401 403"),
        "/public": ([], "429"),
        "/plain": ([], "429"),
        "/login": ([], "429"),
        "/own": ([{"HTTPBearer": []}], "401 403"),
        "/own-and-public": ([{"HTTPBearer": []}], "401 403 429"),
        "/if-given": ([{"HTTPBearer": []}, *token], "401 403"),
        "/owner": ([{"SpaceOwner": []}], "401 403"),
    }
    for path, (security, statuses) in said.items():
        operation = schema["paths"][path]["post"]
        assert operation["security"] == security, path
        told = {status for status in operation["responses"] if status in ("401", "403", "429")}
        assert " ".join(sorted(told)) == statuses, path
    assert "security" not in schema["paths"]["/read"]["get"]
    assert "Retry-After" in schema["paths"]["/public"]["post"]["responses"]["429"]["headers"]
    own = {"HTTPBearer", "APIKeyCookie", "HuggingFace", "SpaceOwner"}
    assert set(schema["components"]["securitySchemes"]) == own | {name for way in token for name in way}


def test_who_is_refused_learns_how_the_owner_opens_it(server: Server, place: str) -> None:
    if place == "laptop":
        return
    secret = "set the secret API_TOKEN in this Space's settings"  # noqa: S105
    assert (secret in server.post("/write").json()["detail"]) is (place == "Space")
    assert "credentials (HTTPBearer)" in server.post("/if-given").json()["detail"]
    for path, remedy in REMEDIES.items():
        if path.startswith("/ws"):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"ws://127.0.0.1:{server.port}{path}")
            detail = json.loads(refused.value.response.body)["detail"]
        else:
            detail = server.post(path).json()["detail"]
        assert detail.partition("Anybody may call it if ")[2] == remedy, path


def test_each_client_may_call_what_is_public_so_often_and_no_more(kinds: BakedProject) -> None:
    with kinds.boot(SPACE | {"API_TOKEN": TOKEN, "PUBLIC_LIMIT": "3/hour"}, app="kinds:app") as space:

        def call(client: str, path: str = "/public", method: str = "POST", **headers: str) -> httpx2.Response:
            return space.client.request(method, path, headers={"X-Forwarded-For": client, **headers})

        paths = ("/public", "/login", "/open/x", "/inner/public")
        assert [call("192.0.2.1", path).status_code for path in paths] == [200, 200, 200, 429]
        refused = call("192.0.2.1")
        assert 3500 < int(refused.headers["Retry-After"]) <= 3600
        assert "3/hour" in refused.json()["detail"]
        # what the client itself says stands before what the Hub's proxy adds
        assert call("192.0.2.9, 192.0.2.1").status_code == 429
        assert ask(space, "WS", "/ws/public", {"X-Forwarded-For": "192.0.2.1"}) == 429
        assert call("192.0.2.2").status_code == 200
        assert call("192.0.2.1", method="GET", path="/read").status_code == 200
        assert call("192.0.2.1", **CREDENTIALS["token"]).status_code == 200
        assert call("192.0.2.1", "/own", Authorization="Bearer own").status_code == 200
        # somebody with an IPv6 connection has 2^64 addresses
        customer = [f"2001:db8::{number}" for number in range(4)]
        assert [call(address).status_code for address in customer] == [200, 200, 200, 429]
        assert call("2001:db8:0:1::1").status_code == 200


def test_make_routes_lists_who_may_call_what(kinds: BakedProject) -> None:
    printed = kinds.run("python", "-m", "space_runtime.http", "kinds:app").stdout
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    assert {
        "GET /read anybody",
        "POST /write API token",
        "GET /both anybody",
        "PUT /both API token",
        "POST /public anybody, limited",
        "POST /v1/api/models/{name}/predict anybody, limited",
        "POST /own its own check (HTTPBearer)",
        "POST /user its own check (HuggingFace)",
        "GET /user its own check (HuggingFace)",
        "POST /own-and-public its own check (HTTPBearer), limited",
        "POST /if-given API token, or any credentials that its own check (HTTPBearer) lets pass",
        "its own check: that of the route alone decides, about right and wrong credentials.",
        "WebSocket /ws API token",
        "WebSocket /login/ws anybody, limited",
        "writes below /closed API token",
        "writes below /open anybody, limited",
        "writes below /inner API token",
        "POST /inner/public anybody, limited",
        "POST /inner/nested/public anybody, limited",
        "POST /inner/own its own check (HTTPBearer)",
        "POST /inner-open/own its own check (HTTPBearer), limited",
        "limited: 120/minute for each client (PUBLIC_LIMIT).",
    } <= lines
    assert "POST /inner/write API token" not in lines


def test_make_dev_can_behave_as_a_space_that_the_hub_does_not_know(project: BakedProject) -> None:
    (project.path / ".venv").mkdir()
    (project.path / ".venv" / "ready").touch()
    port = free_port()
    main = project.path / "src" / "main.py"
    main.write_text(main.read_text() + LINK)
    command = ["make", "dev", "SPACE=1", f"PORT={port}", f"BIN={Path(sys.executable).parent}"]
    with project.boot(in_place=True, command=command, port=port) as server:
        assert server.settled()["database"]["persistent"] is False
        assert server.post("/api/items", json={"title": "x"}).status_code == 403
        # a browser on this machine could not follow a link to https
        assert server.get("/link").json() == f"{server.url}/link"
        assert server.log().startswith("As on a Space, but over http: ")


def scope(path: str, kind: str = "http") -> dict[str, Any]:
    """A POST, or the opening of a WebSocket."""
    return {"type": kind, "method": "POST", "path": path, "headers": [], "query_string": b"", "client": None}


def test_routes_that_come_later_are_found_and_those_before_them_still_win() -> None:
    app = FastAPI()
    guard = WriteGuard(app, token=None, on_space=True, public_limit="off")

    def is_open() -> bool:
        return guard.refusal(scope("/later")) is None

    app.post("/other", **public)(lambda: None)
    assert not is_open()
    app.post("/later", **public)(lambda: None)
    assert is_open()
    app.post("/{anything}")(lambda: None)
    assert is_open()
    app.router.routes.insert(0, app.router.routes.pop())
    assert not is_open()


def test_a_router_that_takes_the_place_of_a_public_one_is_not_public() -> None:
    app = FastAPI()
    guard = WriteGuard(app, token=None, on_space=True, public_limit="off")
    for marks in (public, {}) * 20:
        router = APIRouter()
        router.post("/later", **marks)(lambda: None)
        # The old one is freed, and the new one may get its place in memory.
        app.router.routes.clear()
        gc.collect()
        app.include_router(router)
        assert (guard.refusal(scope("/later")) is None) is bool(marks)


def test_a_dependency_may_be_wrapped() -> None:
    app = FastAPI()
    guard = WriteGuard(app, token=None, on_space=True, public_limit="off")

    @functools.wraps(anybody.dependency)
    async def wrapped() -> None: ...

    app.post("/wrapped", dependencies=[Depends(wrapped)])(lambda: None)
    app.post("/partial", dependencies=[Depends(partial(HTTPBearer()))])(lambda: None)
    assert guard.refusal(scope("/wrapped")) is None
    assert guard.refusal(scope("/partial")) is None


def test_a_server_that_cannot_answer_a_websocket_closes_it() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any: ...

    supported: list[dict[str, Any]] = [{}, {"websocket.http.response": {}}]
    for extensions in supported:
        refusal = JSONResponse({"detail": "no"}, 403)
        asyncio.run(refuse_websocket(refusal, scope("/", "websocket") | {"extensions": extensions}, receive, send))
    assert [message["type"] for message in sent] == [
        "websocket.close", "websocket.http.response.start", "websocket.http.response.body",
    ]  # fmt: skip
    assert (sent[0]["code"], sent[1]["status"]) == (1008, 403)


def test_a_flood_from_many_addresses_fills_no_memory() -> None:
    limit = RateLimit("1/hour")
    assert limit.seconds_to_wait("first") == 0
    assert 3590 < limit.seconds_to_wait("first") <= 3600
    for number in range(MAX_CLIENTS):
        limit.seconds_to_wait(str(number))
    assert limit.seconds_to_wait(str(number)) > 0
    # whose window began first was forgotten
    assert limit.seconds_to_wait("first") == 0
    assert len(limit._windows) == MAX_CLIENTS


def test_a_client_may_call_again_when_its_window_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    limit = RateLimit("2/minute")
    waits = []
    for seconds[0] in (10, 40, 69.5, 69.9, 70, 90, 100):
        waits.append(limit.seconds_to_wait("somebody"))
    assert waits == [0, 0, 1, 1, 0, 0, 30]
