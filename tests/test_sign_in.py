"""Who signs in with Hugging Face is known to the app, on a Space and on a laptop, and nobody else passes for them."""

import html
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_connection
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from playwright.sync_api import expect
from space_runtime.http.openid import Claims, Provider, User, read_provider, user_from
from space_runtime.http.rate_limit import RateLimit
from space_runtime.http.sign_in import SignInService
from space_runtime.http.sign_in_pages import MOCKED, OFF_ELSEWHERE, OFF_ON_A_SPACE, own_path
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.bakery import ROOT, BakedProject, Bakery
from tests.support.browser import browser_with_cookies
from tests.support.edge import edge
from tests.support.openid import OpenIDProvider, running_provider
from tests.support.server import Server

pytestmark = pytest.mark.slow

OWNER, HOST = "example", "example-my-space.hf.space"
TOKEN = "the-token-of-this-space"  # noqa: S105
ON_A_SPACE = {"SPACE_ID": f"{OWNER}/my-space", "SPACE_HOST": HOST, "API_TOKEN": TOKEN, "USER_LIMIT": "4/day"}
LOGIN, CALLBACK, LOGOUT = (f"/oauth/huggingface/{name}" for name in ("login", "callback", "logout"))


# With what the Hub allows it.
FRAME = f"""<!doctype html><title>The Hub</title><iframe title="Space" src="https://{HOST}/board"
  sandbox="allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-same-origin
  allow-scripts"></iframe>"""


@pytest.fixture(scope="module")
def project(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """A project with routes that ask who is signed in."""
    project = bake().copy_to(tmp_path_factory.mktemp("project"))
    add_part(project, "board")
    return project


def add_part(project: BakedProject, name: str) -> None:
    """Add a router of tests/data/sign_in to the project."""
    shutil.copy(ROOT / "tests" / "data" / "sign_in" / f"{name}.py", project.path / "src")
    main = project.path / "src" / "main.py"
    text = main.read_text(encoding="utf-8").replace(
        "\nPROJECT =", f"\nfrom src.{name} import router as {name}\n\nPROJECT ="
    )
    main.write_text(text.replace("    attach(app", f"    app.include_router({name})\n    attach(app"), encoding="utf-8")


@pytest.fixture(scope="module")
def running_hub() -> Iterator[OpenIDProvider]:
    """The Hub, which browsers find at its real address."""
    with running_provider("https://huggingface.co", FRAME) as hub:
        yield hub


@pytest.fixture
def hub(running_hub: OpenIDProvider) -> OpenIDProvider:
    """The same, where a stranger's browser is signed in as `ada`."""
    running_hub.user = claims("ada")
    running_hub.expires_in, running_hub.is_refused, running_hub.is_broken = 28_800, False, False
    return running_hub


@pytest.fixture(scope="module")
def space(project: BakedProject, running_hub: OpenIDProvider) -> Iterator[Server]:
    """The app on a Space whose front matter says hf_oauth."""
    with project.boot(ON_A_SPACE | running_hub.environ) as server:
        yield server


@pytest.fixture(scope="module")
def laptop(project: BakedProject) -> Iterator[Server]:
    """The app on a laptop."""
    with project.boot() as server:
        yield server


def claims(username: str, **more: Any) -> dict[str, Any]:
    """What the Hub says of a user."""
    return {
        "sub": f"id-of-{username}",
        "name": username.capitalize(),
        "preferred_username": username,
        "picture": f"https://huggingface.co/avatars/{username}.svg",
        "profile": f"https://huggingface.co/{username}",
        "isPro": False,
        "orgs": [],
    } | more


@dataclass
class Visitor:
    """A browser without a screen: it knows where it is, keeps cookies and says which page sends."""

    server: Server
    origin: str
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> httpx2.Response:
        """Send a request and keep the cookies of the answer."""
        self.server.client.cookies.clear()
        given = {"Host": urlsplit(self.origin).netloc, "Origin": self.origin, **self.cookie} | (headers or {})
        response = self.server.client.request(method, path, headers=given)
        for line in response.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        self.cookies = {name: value for name, value in self.cookies.items() if value}
        return response

    @property
    def cookie(self) -> dict[str, str]:
        """What it sends with each request."""
        pairs = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {"Cookie": pairs} if pairs else {}

    def sign_in(
        self, hub: OpenIDProvider | None = None, *, user: str = "visitor", target: str = "/me"
    ) -> httpx2.Response:
        """Go to the Hub and back, or choose who to be on a laptop; return what the app answers at the end."""
        if hub is None:
            return self.ask("GET", f"{CALLBACK}?{urlencode({'user': user, 'next': target})}")
        return self.ask("GET", self.come_back(hub, target))

    def come_back(self, hub: OpenIDProvider, target: str = "/me") -> str:
        """Go to the Hub, and return the path where it sends the browser afterwards."""
        address = self.ask("GET", f"{LOGIN}?{urlencode({'next': target})}").headers["location"]
        assert address.startswith("https://huggingface.co/oauth/authorize?")
        there = httpx2.get(f"http://127.0.0.1:{hub.port}{address.removeprefix('https://huggingface.co')}", verify=False)
        back = there.headers["location"]
        assert back.startswith(f"{self.origin}{CALLBACK}?"), "the app is told where browsers find it"
        return back.removeprefix(self.origin)

    def talk(self, origin: str | None) -> str | int:
        """Open a WebSocket from a page; return what it says first, or the status with which it is refused."""
        address = f"ws://{urlsplit(self.origin).netloc}/talk"
        headers = self.cookie | ({} if origin is None else {"Origin": origin})
        with create_connection(("127.0.0.1", self.server.port)) as line:
            try:
                with connect(address, sock=line, additional_headers=headers) as socket:
                    return str(socket.recv())
            except InvalidStatus as refusal:
                return refusal.response.status_code


@pytest.fixture
def visitor(space: Server) -> Visitor:
    """A stranger on the Space."""
    return Visitor(space, f"https://{HOST}")


@pytest.fixture
def myself(laptop: Server) -> Visitor:
    """Who runs the app on a laptop."""
    return Visitor(laptop, laptop.url)


ROUTES = [("GET", "/me"), ("POST", "/notes"), ("POST", "/settings"), ("POST", "/unmarked"), ("POST", "/public")]
# The answers to ROUTES on a Space with a token, then on a laptop without one.
MATRIX: dict[str, tuple[list[int], list[int]]] = {
    "no token": ([401, 401, 401, 401, 200], [401, 401, 401, 200, 200]),
    "wrong token": ([401, 401, 401, 401, 200], [401, 401, 401, 200, 200]),
    "token": ([401, 401, 401, 200, 200], [401, 401, 401, 200, 200]),
    "own bearer": ([401, 401, 401, 401, 200], [401, 401, 401, 200, 200]),
    "signed in": ([200, 200, 403, 401, 200], [200, 200, 403, 200, 200]),
    "signed in as owner": ([200, 200, 200, 401, 200], [200, 200, 200, 200, 200]),
}
HEADERS = {
    "wrong token": {"X-API-Token": "another-token"},
    "token": {"X-API-Token": TOKEN},
    "own bearer": {"Authorization": "Bearer of-my-own"},
}


@pytest.mark.parametrize("credentials", MATRIX)
def test_on_a_space_each_route_asks_for_what_it_says(hub: OpenIDProvider, visitor: Visitor, credentials: str) -> None:
    if credentials.startswith("signed in"):
        hub.user = claims(OWNER if credentials.endswith("owner") else "somebody")
        assert visitor.sign_in(hub).headers["location"] == "/me"
    answers = [visitor.ask(*route, HEADERS.get(credentials)).status_code for route in ROUTES]
    assert dict(zip(ROUTES, answers, strict=True)) == dict(zip(ROUTES, MATRIX[credentials][0], strict=True))


@pytest.mark.parametrize("credentials", MATRIX)
def test_on_a_laptop_the_same_code_runs_with_a_made_up_user(myself: Visitor, credentials: str) -> None:
    if credentials.startswith("signed in"):
        assert myself.sign_in(user=credentials.split()[-1].replace("in", "visitor")).headers["location"] == "/me"
    answers = [myself.ask(*route, HEADERS.get(credentials)).status_code for route in ROUTES]
    assert dict(zip(ROUTES, answers, strict=True)) == dict(zip(ROUTES, MATRIX[credentials][1], strict=True))


def test_endpoints_learn_who_asks(hub: OpenIDProvider, visitor: Visitor, myself: Visitor) -> None:
    visitor.sign_in(hub)
    picture = "https://huggingface.co/avatars/ada.svg"
    ada = {"id": "id-of-ada", "username": "ada", "name": "Ada", "picture": picture, "is_owner": False}
    assert visitor.ask("GET", "/me").json() == ada
    assert visitor.ask("POST", "/notes").json() == "id-of-ada"
    assert visitor.talk(visitor.origin) == "ada"
    myself.sign_in(user="owner")
    assert myself.ask("GET", "/me").json()["is_owner"] is True


def test_a_stranger_is_told_where_to_sign_in(visitor: Visitor) -> None:
    refused = visitor.ask("POST", "/notes")
    assert refused.status_code == 401
    assert refused.json() == {"detail": f"Sign in first, at {LOGIN}."}
    assert refused.headers["www-authenticate"]
    assert visitor.talk(visitor.origin) == 401


def test_a_browser_that_opens_a_page_is_sent_to_sign_in_and_back(hub: OpenIDProvider, visitor: Visitor) -> None:
    sent = visitor.ask("GET", "/me?a=1&b=2", {"Sec-Fetch-Mode": "navigate"})
    assert (sent.status_code, sent.headers["location"]) == (303, f"{LOGIN}?next=%2Fme%3Fa%3D1%26b%3D2")
    assert visitor.sign_in(hub, target="/me?a=1&b=2").headers["location"] == "/me?a=1&b=2"


def test_the_cookie_works_in_the_hubs_frame_and_for_as_long_as_the_hub_says(
    hub: OpenIDProvider, visitor: Visitor, myself: Visitor
) -> None:
    hub.expires_in = 4711
    session, attempt = visitor.sign_in(hub).headers.get_list("set-cookie")
    assert session.startswith("__Host-user=")
    assert session.partition("; ")[2] == "HttpOnly; Max-Age=4711; Path=/; SameSite=none; Secure"
    assert attempt == '__Host-sign-in=""; HttpOnly; Max-Age=0; Path=/; SameSite=lax; Secure'
    local = myself.sign_in().headers.get_list("set-cookie")[0]
    assert local.startswith("user=")
    assert local.partition("; ")[2] == "HttpOnly; Max-Age=28800; Path=/; SameSite=lax"


def test_the_cookie_is_small_whatever_the_hub_says(hub: OpenIDProvider, visitor: Visitor) -> None:
    organization = {"name": "x" * 200, "preferred_username": "x" * 90, "sub": "1", "picture": "https://" + "x" * 900}
    hub.user = claims("ada", name="é" * 5000, picture="https://" + "x" * 5000, orgs=[organization] * 50)
    visitor.sign_in(hub)
    assert visitor.ask("GET", "/me").json()["picture"] is None
    assert len(visitor.cookies["__Host-user"]) < 2000


NO_LIMIT = RateLimit("off")


def signed(hub: OpenIDProvider, user: User, seconds: int) -> str:
    """A session as another worker of the same Space would have made it."""
    return SignInService(read_provider(hub.environ), OWNER, NO_LIMIT, "").session(user, seconds)


ADA = User(id="id-of-ada", username="ada", name="Ada", picture=None, is_owner=False)


def test_workers_and_restarts_agree_on_who_is_signed_in(hub: OpenIDProvider, visitor: Visitor) -> None:
    visitor.cookies["__Host-user"] = signed(hub, ADA, 60)
    assert visitor.ask("GET", "/me").json()["username"] == "ada"


@pytest.mark.parametrize("what", ["expired", "changed", "of another Space", "unsigned", "of an attempt", "of a laptop"])
def test_a_cookie_that_the_app_did_not_give_is_none(hub: OpenIDProvider, visitor: Visitor, what: str) -> None:
    value = signed(hub, ADA, 60)
    if what == "expired":
        value = signed(hub, ADA, 0)
    elif what == "changed":
        value = f"{'f' if value[0] == 'e' else 'e'}{value[1:]}"
    elif what == "of another Space":
        other = SignInService(Provider("id", "another secret", "openid", "http://x"), OWNER, NO_LIMIT, "")
        value = other.session(ADA, 60)
    elif what == "unsigned":
        value = value.partition(".")[0]
    elif what == "of a laptop":
        value = SignInService(None, OWNER, NO_LIMIT, "").session(ADA, 60)
    else:
        visitor.ask("GET", LOGIN)
        value = visitor.cookies["__Host-sign-in"]
    visitor.cookies["__Host-user"] = value
    assert visitor.ask("GET", "/me").status_code == 401


OTHER_PAGES = [
    "https://evil.example",
    f"http://{HOST}",
    f"https://{HOST}.evil.example",
    "https://huggingface.co",
    "null",
    "",
]


@pytest.mark.parametrize("origin", OTHER_PAGES)
def test_another_page_cannot_write_for_who_is_signed_in(hub: OpenIDProvider, visitor: Visitor, origin: str) -> None:
    visitor.cookies["__Host-user"] = signed(hub, ADA, 60)
    for path in ("/notes", "/settings", LOGOUT):
        refused = visitor.ask("POST", path, {"Origin": origin})
        assert (refused.status_code, refused.headers.get("set-cookie")) == (403, None), path
    assert visitor.talk(origin) == 403
    assert visitor.ask("GET", "/me", {"Origin": origin}).status_code == 200


def test_nothing_but_a_browser_has_a_cookie(hub: OpenIDProvider, visitor: Visitor) -> None:
    """Who sends no Origin is no browser, or an old one that cannot be trusted with this cookie."""
    visitor.cookies["__Host-user"] = signed(hub, ADA, 60)
    assert visitor.talk(None) == 403


ELSEWHERE = [
    "https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example",
    " //evil.example", "javascript:alert(1)", "evil.example", "", "/%0d%0aSet-Cookie: a=b\r\nx", "/ü",
]  # fmt: skip


@pytest.mark.parametrize("path", ELSEWHERE)
def test_no_link_leads_elsewhere_after_the_sign_in(
    hub: OpenIDProvider, visitor: Visitor, myself: Visitor, path: str
) -> None:
    assert own_path(path) == "/"
    assert visitor.sign_in(hub, target=path).headers["location"] == "/"
    assert myself.sign_in(target=path).headers["location"] == "/"
    assert visitor.ask("POST", f"{LOGOUT}?{urlencode({'next': path})}").headers["location"] == "/"


@pytest.mark.parametrize("path", ["/", "/board", "/a/b?c=d&e=%2F%2F#f", "/@me", "/a//b"])
def test_every_path_of_the_app_may_come_next(path: str) -> None:
    assert own_path(path) == path


def test_only_the_browser_that_went_to_the_hub_is_signed_in(hub: OpenIDProvider, visitor: Visitor) -> None:
    """An attacker's link would else sign a victim in as the attacker, whose notes they would go on to write."""
    attacker = Visitor(visitor.server, visitor.origin)
    link = attacker.come_back(hub)
    assert visitor.ask("GET", link).status_code == 400
    visitor.come_back(hub)
    assert visitor.ask("GET", link).status_code == 400
    assert "__Host-user" not in visitor.cookies


def test_a_code_is_redeemed_once_and_only_with_what_the_browser_keeps(hub: OpenIDProvider, visitor: Visitor) -> None:
    link = visitor.come_back(hub)
    attempt = dict(visitor.cookies)
    assert visitor.ask("GET", link).status_code == 303
    visitor.cookies = attempt
    again = visitor.ask("GET", link)
    assert (again.status_code, "set-cookie" in again.headers) == (503, False)
    mine, other = Visitor(visitor.server, visitor.origin), Visitor(visitor.server, visitor.origin)
    code = parse_qs(urlsplit(mine.come_back(hub)).query)["code"][0]
    state = parse_qs(urlsplit(other.come_back(hub)).query)["state"][0]
    assert other.ask("GET", f"{CALLBACK}?{urlencode({'code': code, 'state': state})}").status_code == 503


def test_who_refuses_at_the_hub_stays_a_stranger_and_may_try_again(hub: OpenIDProvider, visitor: Visitor) -> None:
    hub.is_refused = True
    answer = visitor.sign_in(hub, target="/board")
    assert answer.status_code == 400
    assert f"{LOGIN}?next=%2Fboard" in answer.text
    assert "__Host-user" not in visitor.cookies


@pytest.mark.parametrize("answer", [{}, {"sub": "1"}, {"sub": "", "preferred_username": "ada"}, {"sub": ["1"]}, []])
def test_what_the_hub_says_is_not_believed_blindly(hub: OpenIDProvider, visitor: Visitor, answer: Any) -> None:
    hub.user = answer
    assert visitor.sign_in(hub).status_code == 503
    assert "__Host-user" not in visitor.cookies


def test_a_hub_that_is_away_is_told_in_a_sentence(hub: OpenIDProvider, visitor: Visitor) -> None:
    link = visitor.come_back(hub)
    hub.is_broken = True
    answer = visitor.ask("GET", link)
    assert (answer.status_code, "Hugging Face does not say" in answer.text) == (503, True)
    visitor.server.log_when_it_tells("sign-in failed at the Hub: it answered 502 at /oauth/token")
    hub.is_broken = False
    assert visitor.sign_in(hub).status_code == 303


ORGANIZATION = {"preferred_username": "Our-Org", "roleInOrg": "write"}


@pytest.mark.parametrize(
    ("owner", "more", "is_owner"),
    [
        ("ada", {}, True),
        ("Ada", {}, True),
        ("bob", {}, False),
        ("", {"preferred_username": "x"}, False),
        ("our-org", {"orgs": [ORGANIZATION]}, True),
        ("our-org", {"orgs": [ORGANIZATION | {"roleInOrg": "admin"}]}, True),
        ("our-org", {"orgs": [ORGANIZATION | {"roleInOrg": "contributor"}]}, False),
        ("our-org", {"orgs": [ORGANIZATION | {"roleInOrg": "read"}]}, False),
        ("our-org", {"orgs": [{"preferred_username": "our-org"}]}, False),
        ("our-org", {"orgs": [ORGANIZATION | {"securityRestrictions": ["mfa"]}]}, False),
        ("our-org", {"orgs": [ORGANIZATION | {"preferred_username": "another"}]}, False),
        ("our-org", {"orgs": [ORGANIZATION | {"roleInOrg": None, "securityRestrictions": None}]}, False),
        ("our-org", {"orgs": None}, False),
    ],
)
def test_the_owner_is_who_may_change_the_space(owner: str, more: dict[str, Any], is_owner: bool) -> None:
    user = user_from(Claims.model_validate(claims("ada", **more)), owner)
    assert user.is_owner is is_owner


def test_each_user_has_a_quota_of_writes(hub: OpenIDProvider, visitor: Visitor) -> None:
    hub.user = claims("greedy")
    visitor.sign_in(hub)
    assert [visitor.ask("POST", "/notes").status_code for _ in range(5)] == [200, 200, 200, 200, 429]
    refused = visitor.ask("POST", "/notes")
    assert refused.json()["detail"].startswith("More than 4/day by one user; try again in ")
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert visitor.ask("GET", "/me").status_code == 200
    hub.user = claims("modest")
    visitor.sign_in(hub)
    assert visitor.ask("POST", "/notes").status_code == 200


@pytest.mark.thorough
def test_each_user_sees_the_rows_that_are_theirs(bake: Bakery, tmp_path: Path) -> None:
    project = bake().copy_to(tmp_path)
    add_part(project, "notes")
    project.run("alembic", "upgrade", "head")
    project.run("alembic", "revision", "--autogenerate", "-m", "notes")
    with project.boot() as server:
        server.settled()
        for name in ("owner", "visitor"):
            someone = Visitor(server, server.url)
            someone.sign_in(user=name)
            assert someone.ask("POST", f"/api/notes?text=of+the+{name}").status_code == 201
            assert someone.ask("GET", "/api/notes").json() == [f"of the {name}"]
        assert Visitor(server, server.url).ask("GET", "/api/notes").status_code == 401


def test_signing_out_ends_it(hub: OpenIDProvider, visitor: Visitor) -> None:
    visitor.sign_in(hub)
    out = visitor.ask("POST", f"{LOGOUT}?next=/board")
    assert (out.status_code, out.headers["location"]) == (303, "/board")
    assert visitor.ask("GET", "/me").status_code == 401


def test_the_schema_says_which_routes_are_for_users(laptop: Server) -> None:
    schema = laptop.get("/openapi.json").json()
    scheme = schema["components"]["securitySchemes"]["HuggingFace"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "cookie", "__Host-user")
    for method, path, name in (("get", "/me", "HuggingFace"), ("post", "/settings", "SpaceOwner")):
        assert schema["paths"][path][method]["security"] == [{name: []}], path
    assert not [path for path in schema["paths"] if "oauth" in path]


REHEARSAL = {"SPACE_ID": "local/rehearsal", "SPACE_HOST": "127.0.0.1:7860", "API_TOKEN": TOKEN}
PLACES: dict[str, tuple[dict[str, str], str]] = {
    "a Space without hf_oauth": ({name: ON_A_SPACE[name] for name in ("SPACE_ID", "SPACE_HOST")}, OFF_ON_A_SPACE),
    "a server elsewhere": ({"API_TOKEN": TOKEN}, OFF_ELSEWHERE),
    "a rehearsal of a Space": (REHEARSAL, MOCKED),
}


@pytest.mark.parametrize(
    "place", [*list(PLACES)[:2], pytest.param("a rehearsal of a Space", marks=pytest.mark.thorough)]
)
def test_where_nobody_can_sign_in_the_app_says_what_to_do(project: BakedProject, place: str) -> None:
    environ, sentence = PLACES[place]
    with project.boot(environ) as server:
        page = server.get(LOGIN)
        assert sentence in html.unescape(page.text)
        assert (page.status_code == 403) is (sentence != MOCKED)
        refused = server.get("/me")
        assert refused.status_code == (401 if sentence == MOCKED else 403)
        assert sentence == MOCKED or refused.json() == {"detail": sentence}
        signed_in = server.get(f"{CALLBACK}?user=owner&next=/me", follow_redirects=True)
        assert signed_in.status_code == (200 if sentence == MOCKED else 403)
        forged = SignInService(None, OWNER, NO_LIMIT, "").session(ADA, 60)
        greeting = server.get("/board", headers={"Cookie": f"user={forged}; __Host-user={forged}"})
        assert ("ada" in greeting.text) is (sentence == MOCKED)
        server.stop()
        assert server.log().count(sentence) == 1


def test_away_from_the_hub_users_sign_in_there_too_and_none_of_them_is_the_owner(
    project: BakedProject, hub: OpenIDProvider
) -> None:
    hub.user = claims("owner")
    with project.boot({"API_TOKEN": TOKEN} | hub.environ) as server:
        someone = Visitor(server, server.url)
        assert someone.sign_in(hub).headers["location"] == "/me"
        assert someone.ask("GET", "/me").json()["is_owner"] is False
        assert someone.ask("POST", "/settings").status_code == 403


def test_a_deploy_asks_for_what_the_sign_in_needs(project: BakedProject) -> None:
    code = """
from pathlib import Path
from socket import create_connection
from tools.checks import file_problems
from tools.selection import select
files = {path: file.read_bytes() for path, file in select(Path()).files.items()}
print(list(file_problems(files)))
print(list(file_problems({name: content for name, content in files.items() if name != "src/board.py"})))
files["README.md"] = files["README.md"].replace(b"sdk: ", b"hf_oauth: true\\nsdk: ")
print(list(file_problems(files)))
"""
    said = "['README.md, front matter: hf_oauth: true is required, since the code asks who is signed in']"
    assert project.run("python", "-c", code).stdout == f"{said}\n[]\n[]\n"


def test_an_app_that_asks_nobody_has_no_sign_in(bake: Bakery) -> None:
    """Neither routes nor imports: what signing in needs takes 100 ms."""
    code = """
import sys
from src.main import app
print(sorted({"authlib", "httpx2", "itsdangerous", "limits"} & set(sys.modules)))
from fastapi.testclient import TestClient
assert TestClient(app).get("/oauth/huggingface/login").status_code == 404
assert "HuggingFace" not in str(app.openapi())
"""
    assert bake().run(sys.executable, "-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("in_frames", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_in_the_hubs_frame_the_sign_in_ends_whether_or_not_browsers_keep_cookies_there(
    space: Server, hub: OpenIDProvider, tmp_path: Path, in_frames: bool
) -> None:
    with ExitStack() as stack:
        ports = {HOST: space.port, "huggingface.co": hub.port}
        fronts = {host: stack.enter_context(edge(port, host)) for host, port in ports.items()}
        profile = tmp_path / "profile"
        profile.mkdir()
        context = stack.enter_context(browser_with_cookies(profile, fronts, in_frames=in_frames))
        page = context.new_page()
        page.goto("https://huggingface.co/spaces/example/my-space")
        frame = page.frame_locator("iframe")
        expect(frame.get_by_text("Hello stranger.")).to_be_visible()
        frame.get_by_role("link", name="Sign in").click()
        with context.expect_page() as opened:
            frame.get_by_role("link", name="Sign in with Hugging Face").click()
        window = opened.value
        expect(window.get_by_text("Hello ada.")).to_be_visible()
        assert window.url == f"https://{HOST}/board"
        frame.get_by_role("link", name="Back").click()
        expect(frame.get_by_text("Hello ada." if in_frames else "Hello stranger.")).to_be_visible()
        writer = frame if in_frames else window
        writer.get_by_role("button", name="Add a note").click()
        expect(writer.get_by_text("id-of-ada")).to_be_visible()
        window.goto(f"https://{HOST}/board")
        window.get_by_role("button", name="Sign out").click()
        expect(window.get_by_text("Hello stranger.")).to_be_visible()
