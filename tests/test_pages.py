"""A page of the owner's own: what `/` shows, what browsers may do with it, and what stays out of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, Route, expect
from space_runtime.http.pages import own_page
from space_runtime.http.policy import SecurityHeaders
from space_runtime.settings import RuntimeSettings, Space, problems

from tests.support.bakery import ROOT, BakedProject, Bakery
from tests.support.browser import HOST, WIDTHS, Visit, axe_source, chromium, new_context, visit
from tests.support.javascript import installed_packages
from tests.support.raw import request
from tests.support.server import Server

PAGE = ROOT / "tests" / "data" / "page"
CDN = "cdn.example"
ELSEWHERE = "elsewhere.example"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FRAMING = "frame-ancestors 'self' https://huggingface.co"
STRICT = "default-src 'self'; base-uri 'none'; form-action 'self'; object-src 'none'"
MOUNTING = """
from src.main import app
from starlette.responses import PlainTextResponse

app.mount("/ui", PlainTextResponse("mounted"))


@app.get("/numbers/")
@app.post("/numbers/")
async def numbers() -> list[int]:
    return [1, 2]


@app.get("/add.{ending}/")
async def added(ending: str) -> str:
    return ending
"""
BY_HAND = """\
    from fastapi.staticfiles import StaticFiles
    from starlette.responses import PlainTextResponse

    app.mount("/", StaticFiles(directory=PROJECT_ROOT / "web", html=True))

    @app.exception_handler(404)
    async def missing(request, error):
        return PlainTextResponse(f"mine: {request.url.path}", 404)

"""
BUILT = {
    "index.html": "<!doctype html><title>Built</title>",
    "assets/index-B2cD4fGh.js": "window.built = 1",
    "assets/plain.css": "a {}",
    "add.wasm": "\0asm",
    "inner/index.html": "inner",
    "health": "not the report",
    "docs/index.html": "not the docs",
    ".env": "SECRET=1",
    ".git/config": "secret",
    "api/items.json": "never reached",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def built(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An app with a page as a build writes it, beside its sources, and with an application below /ui."""
    project = bake().copy_to(tmp_path_factory.mktemp("built"))
    for name, text in BUILT.items():
        file = project.path / "web" / "dist" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (project.path / "web" / "index.html").write_text("the source")
    (project.path / "web" / "dist" / "outside").symlink_to(project.path / "alembic.ini")
    (project.path / "mounting.py").write_text(MOUNTING)
    with project.boot(in_place=True, app="mounting:app") as server:
        server.settled()
        yield server


@pytest.fixture(scope="module")
def plain(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An app with one file that does what ordinary pages do."""
    project = bake().copy_to(tmp_path_factory.mktemp("plain"))
    shutil.copytree(PAGE, project.path / "web", dirs_exist_ok=True)
    with project.boot(in_place=True) as server:
        server.settled()
        yield server


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        ([], None),
        (["web/README.md"], None),
        (["web/index.html"], "web"),
        (["web/index.html", "web/dist/assets/a.js"], "web"),
        (["web/index.html", "web/dist/index.html"], "web/dist"),
    ],
)
def test_what_is_built_is_shown_rather_than_its_source(tmp_path: Path, files: list[str], folder: str | None) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert own_page(tmp_path) == (tmp_path / folder if folder else None)


@pytest.mark.slow
def test_a_page_is_shown_as_soon_as_it_is_there(project: BakedProject) -> None:
    with project.boot(in_place=True) as server:
        assert 'id="state"' in server.get("/").text
        (project.path / "web" / "index.html").write_text("mine")
        assert server.get("/").text == "mine"
        assert 'id="state"' in server.get("/status").text
        assert server.get("/README.md").status_code == 200
        missing = project.path / "web" / "404.html"
        missing.write_text("nothing of mine")
        for path, text in (("/some/where", "nothing of mine"), ("/api/nothing", '{"detail":"Not Found"}')):
            answer = server.get(path, headers={"Accept": "*/*"})
            assert (answer.status_code, answer.text) == (404, text)
        assert server.get("/some/where", headers=BROWSER).text == "nothing of mine"
        missing.unlink()
        (project.path / "web" / "index.html").unlink()
        assert 'id="state"' in server.get("/").text
        assert server.get("/README.md").status_code == 404


@pytest.mark.parametrize("path", ["/", "/?__theme=dark&logs=container", "/index.html", "/some/where?x=1", "/to.do"])
def test_a_browser_gets_the_page_at_each_of_its_addresses(built: Server, path: str) -> None:
    for answer in (built.get(path, headers=BROWSER), built.head(path, headers=BROWSER)):
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["Content-Length"] == str(len(BUILT["index.html"]))
    assert built.get(path, headers=BROWSER).text == BUILT["index.html"]


@pytest.mark.parametrize(
    "path", ["/some/where", "/assets/gone-B2cD4fGh.js", "/api/items.json", "/api/nothing", "/inner/nothing"]
)
def test_a_program_gets_a_404_where_nothing_is(built: Server, path: str) -> None:
    answer = built.get(path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert "Cache-Control" not in answer.headers


def test_no_file_hides_a_route(built: Server) -> None:
    assert built.get("/health", headers=BROWSER).json()["status"] == "ok"
    assert "Swagger" in built.get("/docs/swagger-ui-bundle.js").text
    assert "swagger-ui" in built.get("/docs", headers=BROWSER).text
    assert 'id="state"' in built.get("/status", headers=BROWSER).text
    assert built.get("/metrics", headers=BROWSER).text.startswith("# HELP")
    assert "paths" in built.get("/openapi.json", headers=BROWSER).json()
    assert built.get("/api/items", headers=BROWSER).json()["items"] == []
    assert built.get("/api/nothing", headers=BROWSER).status_code == 404


@pytest.mark.parametrize(
    ("path", "kind", "caching"),
    [
        ("/assets/index-B2cD4fGh.js", "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"),
        ("/assets/plain.css", "text/css; charset=utf-8", "no-cache"),
        ("/add.wasm", "application/wasm", "no-cache"),
        ("/inner/", "text/html; charset=utf-8", "no-cache"),
    ],
)
def test_a_file_says_what_it_is_and_how_long_it_may_be_kept(built: Server, path: str, kind: str, caching: str) -> None:
    answer = built.get(path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, kind)
    assert answer.headers["Cache-Control"] == caching
    for condition, header in (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified")):
        again = built.get(path, headers={condition: answer.headers[header]})
        assert (again.status_code, again.content, again.headers["Cache-Control"]) == (304, b"", caching)
    assert built.head(path).headers["Content-Length"] == str(len(answer.content))


def test_a_browser_that_opens_a_lost_asset_does_not_keep_the_page_in_its_place(built: Server) -> None:
    answer = built.get("/assets/gone-B2cD4fGh.js", headers=BROWSER)
    assert (answer.text, answer.headers["Cache-Control"]) == (BUILT["index.html"], "no-cache")


@pytest.mark.parametrize(
    "target",
    [
        b"/.env", b"/.git/config", b"/%2eenv", b"/assets/../.env", b"/assets/%2e%2e/.env", b"/../index.html",
        b"/..%2f..%2falembic.ini", b"/%2e%2e/%2e%2e/alembic.ini", b"/..%5c..%5calembic.ini", b"//etc/passwd",
        b"/%2fetc/passwd", b"/outside", b"/assets", b"/a%00", b"/" + b"x" * 5000, b"/%ff",
    ],
)  # fmt: skip
def test_nothing_else_of_the_disk_is_served(built: Server, target: bytes) -> None:
    answer = request(built.port, b"GET " + target)
    assert (answer.status, answer.rest) == (404, b'{"detail":"Not Found"}')


def test_nothing_can_be_written_to_a_page(built: Server) -> None:
    for path, status in (("/", 405), ("/add.wasm", 405), ("/some/where", 404)):
        answer = built.post(path, headers=BROWSER)
        assert (answer.status_code, answer.headers.get("Allow")) == (status, "GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (b"/ui", "./ui/"),
        (b"/ui?__theme=dark&x=%0d%0ay", "./ui/?__theme=dark&x=%0d%0ay"),
        (b"/inner", "./inner/"),
    ],
)
def test_an_address_without_its_slash_leads_to_the_one_with_it(built: Server, target: bytes, location: str) -> None:
    # relative, so that it is right behind every proxy, and no forged host is repeated
    for accept in (b"*/*", BROWSER["Accept"].encode()):
        answer = request(built.port, b"GET " + target, b"Accept: " + accept, b"X-Forwarded-Proto: ftp")
        assert (answer.status, answer.headers["location"]) == (307, location)
    assert built.get("/ui/").text == built.get("/ui/x").text == "mounted"


def test_a_program_that_forgets_a_slash_is_led_to_the_route_and_a_browser_to_the_page(built: Server) -> None:
    for method in (b"GET", b"POST", b"HEAD"):
        answer = request(built.port, method + b" /numbers?x=1")
        assert (answer.status, answer.headers["location"]) == (307, "./numbers/?x=1")
    assert request(built.port, b"DELETE /numbers").status == 404
    assert "<title>Built</title>" in built.get("/numbers", headers=BROWSER).text
    # a file of the page is served, whatever route would answer with a slash
    assert built.get("/add.wasm").status_code == 200


@pytest.mark.slow
def test_what_an_owner_does_without_us_is_theirs(project: BakedProject) -> None:
    (project.path / "web" / "own.html").write_text("by hand")
    main = project.path / "src" / "main.py"
    main.write_text(main.read_text().replace("    attach(app", BY_HAND + "    attach(app"))
    with project.boot(in_place=True) as server:
        server.settled()
        assert server.get("/own.html", headers=BROWSER).text == "by hand"
        assert server.get("/docs").status_code == 200
        missing = server.get("/nothing", headers=BROWSER)
        assert (missing.status_code, missing.text) == (404, "mine: /nothing")


def test_files_are_counted_without_their_names(built: Server) -> None:
    built.get("/assets/plain.css")
    # once its file is closed, which may be after the client has it
    built.health_when(lambda _: 'route="/{page}"' in built.get("/metrics").text)
    assert "plain" not in built.get("/metrics").text


# ---- what browsers may do ----


@pytest.mark.parametrize(
    ("setting", "policy"),
    [
        ("default", f"base-uri 'self'; object-src 'self' blob: data:; {FRAMING} https://a-b.hf.space"),
        ("strict", f"{STRICT}; {FRAMING} https://a-b.hf.space"),
        ("off", None),
        ("frame-ancestors *", "frame-ancestors *"),
        ("img-src *; ", f"img-src *; {FRAMING} https://a-b.hf.space"),
    ],
)
def test_one_setting_says_what_pages_may_do(setting: str, policy: str | None) -> None:
    headers = dict(SecurityHeaders(Space("a/b", "a-b.hf.space"), setting).missing_from({}))
    assert headers.get(b"content-security-policy") == (policy.encode() if policy else None)
    assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    ("value", "understood"),
    [
        ("strict", True),
        ("img-src", True),
        ("script-src 'self' https://cdn.example:8 'sha256-a+b/c='; upgrade-insecure-requests;", True),
        ("lax", False),
        ("Off", False),
        ("*", False),
        ("defualt-src 'self'", False),
        ("default-src 'self', img-src *", False),
        ("img-src *;; font-src *", False),
        ("img-src é", False),
        ("img-src a\r\nSet-Cookie: b", False),
    ],
)
def test_a_policy_that_browsers_would_not_understand_stops_the_start(value: str, understood: bool) -> None:
    sentences = problems(RuntimeSettings, {"PAGE_POLICY": value})
    assert [sentence.split(" must be ")[0] for sentence in sentences] == ([] if understood else ["PAGE_POLICY"])


@pytest.mark.slow
def test_a_policy_of_ones_own_reaches_pages_and_neither_data_nor_our_pages(project: BakedProject) -> None:
    (project.path / "web" / "index.html").write_text("mine")
    with project.boot({"PAGE_POLICY": "off"}, in_place=True) as server:
        assert "Content-Security-Policy" not in server.get("/").headers
        for path in ("/health", "/nothing"):
            assert server.get(path).headers["Content-Security-Policy"].startswith("default-src 'none'; frame-ancestors")
        for path in ("/status", "/docs", "/api/x"):
            policy = server.get(path, headers=BROWSER).headers["Content-Security-Policy"]
            assert policy.startswith(f"{STRICT}; {FRAMING}")
            assert "unsafe" not in policy


def works(page: Page | FrameLocator) -> None:
    """Wait until everything that ordinary pages do was tried, and see that it worked."""
    expect(page.locator("#works li")).to_have_count(11)
    assert sorted(page.locator("#works li").all_inner_texts()) == [
        "WebAssembly", "blob preview", "data image", "generated code", "injected style", "inline style",
        "library of a CDN", "own API", "web font", "worker", "worker from a blob",
    ]  # fmt: skip


def library(route: Route) -> None:
    """What a CDN sends."""
    route.fulfill(body="window.fromElsewhere = 42", content_type="text/javascript")


@pytest.mark.slow
def test_an_ordinary_page_works(plain: Server, browser: Browser) -> None:
    with new_context(browser, (HOST, CDN)) as (context, wrong):
        context.route(f"https://{CDN}/**", library)
        page = context.new_page()
        page.goto(f"http://{HOST}:{plain.port}/")
        works(page)
        Visit(page, wrong).photograph("own-page")
        assert wrong == []


@pytest.mark.slow
def test_where_nothing_is_a_browser_is_shown_where_to_go(bake: Bakery, browser: Browser) -> None:
    with bake().boot() as server, visit(browser, server, "/a/mistyped/address?x=<b>") as opened:
        page = opened.page
        expect(page.get_by_role("heading", level=2)).to_have_text("There is nothing at this address")
        axe = axe_source(installed_packages())
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
            for size, width in WIDTHS.items():
                opened.resize(width)
                assert not opened.needs_sideways_scrolling
                assert opened.barriers(axe) == []
                opened.photograph(f"not-found-{theme}-{size}")
        # what the browser says about the status is no defect of the page
        assert [problem for problem in opened.problems if "404" not in problem] == []
        page.get_by_role("link", name="Start").click()
        expect(page.get_by_role("status")).to_contain_text("Everything works")
        answer = server.get("/a/mistyped/address")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
