"""Each recipe of RECIPES.md works as printed, followed to the letter: in a fresh project, and all of them together."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qsl, quote, urlsplit
from zipfile import ZipFile

import httpx2
import pytest
from playwright.sync_api import Route, expect
from websockets.sync.client import connect

from tests.support.bakery import ROOT, BakedProject, Bakery
from tests.support.hub import running_hub
from tests.support.openid import OpenIDProvider, running_provider
from tests.support.postgres import Postgres
from tests.support.recipes import follow, programs_with, recipes_of, run_verbs
from tests.support.server import Server
from tests.test_deploy import PATIENT, Builder, deploy
from tests.test_generated_project import NO_PLUGINS
from tests.test_pages_in_a_frame import HUB, SPACE, Browsing, browsing, gradio_packages, visit_space
from tests.test_sign_in import Visitor, claims

__all__ = ["browsing"]
pytestmark = pytest.mark.slow

TOKEN = "the-token-of-this-space"  # noqa: S105
WITH_TOKEN = {"X-API-Token": TOKEN}
# Beside the recipes: a stand-in for a large library, a page that uses all of them, and tests as an owner has them.
REFERENCE = ROOT / "tests" / "data" / "reference"
STAND_IN = "transformers"
MODEL, PAGE, GRADIO, SIGN_IN = (
    "A public endpoint with a model",
    "A page of your own",
    "Gradio",
    "Sign in, and rows of one's own",
)
REMOVED = "Remove the sample"


@pytest.fixture(scope="module")
def hub() -> Iterator[OpenIDProvider]:
    """The Hub, where browsers are signed in as whom a test says."""
    with running_provider("https://huggingface.co") as hub:
        yield hub


def on_a_space(hub: OpenIDProvider) -> dict[str, str]:
    """What the Hub tells a Space."""
    return {"SPACE_ID": "example/my-space", "SPACE_HOST": SPACE, "API_TOKEN": TOKEN} | hub.environ


# What each recipe promises.


def check_model(server: Server, hub: OpenIDProvider) -> None:
    server.health_when(lambda report: server.get("/health/ready").status_code == 200)
    answer = server.post("/predict", params={"text": "I like it"})
    assert answer.json() == {"label": "POSITIVE", "score": 1.0}


def check_page(server: Server, hub: OpenIDProvider) -> None:
    assert "<title>Predict</title>" in server.get("/").text
    assert "<title>Predict</title>" not in server.get("/status").text


def check_gradio(server: Server, hub: OpenIDProvider) -> None:
    config = server.get("/ui/config").json()
    assert [part["props"]["label"] for part in config["components"] if part["type"] == "textbox"] == ["Name", "Answer"]
    event = server.post("/ui/gradio_api/call/greet", json={"data": ["you"]}).json()["event_id"]
    assert "Hello you" in server.get(f"/ui/gradio_api/call/greet/{event}").text
    photo = {"files": ("photo.jpg", b"x" * 5 * 1024**2)}
    uploaded = server.post("/ui/gradio_api/upload", files=photo)
    assert uploaded.status_code == 200, uploaded.text


def check_upload(server: Server, hub: OpenIDProvider) -> None:
    content = b"0123456789abcde\n" * 1024**2
    assert server.post("/files", content=content).status_code == 401
    answer = server.post("/files", files={"file": ("a.bin", content)}, headers=WITH_TOKEN)
    assert answer.json() == {"name": "a.bin", "bytes": len(content), "lines": 1024**2}


def check_events(server: Server, hub: OpenIDProvider) -> None:
    with server.client.stream("GET", "/time") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        event = next(line for line in answer.iter_lines() if line.startswith("data: "))
    assert "now" in json.loads(event.removeprefix("data: "))


def check_talk(server: Server, hub: OpenIDProvider) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/talk") as socket:
        socket.send("hello")
        assert socket.recv() == "You said hello"


def check_jobs(server: Server, hub: OpenIDProvider) -> None:
    answer = server.post("/jobs", params={"text": "done"}, headers=WITH_TOKEN)
    assert answer.status_code == 202
    server.health_when(lambda report: server.get(f"/jobs/{answer.json()}").json() == "DONE")


def check_notes(server: Server, hub: OpenIDProvider) -> None:
    add = partial(server.post, headers=WITH_TOKEN)
    item = add("/api/items", json={"title": "an item"}).json()
    answer = add("/api/notes", json={"title": "a note", "item_id": item["id"]})
    assert answer.status_code == 201, answer.text
    note = answer.json()
    assert server.get(f"/api/notes/{note['id']}").json()["item_id"] == item["id"]
    assert add("/api/notes", json={"title": "of nothing", "item_id": note["id"]}).status_code == 409
    assert note["id"] in [listed["id"] for listed in server.get("/api/notes").json()["items"]]


def check_diary(server: Server, hub: OpenIDProvider) -> None:
    assert server.get("/api/diary").status_code == 401
    read = {}
    for name in ("ada", "bob"):
        hub.user = claims(name)
        visitor = Visitor(server, f"https://{SPACE}")
        visitor.sign_in(hub, target="/")
        assert visitor.ask("POST", f"/api/diary?text=of+{name}").status_code == 201
        read[name] = visitor.ask("GET", "/api/diary").json()
    assert read == {"ada": ["of ada"], "bob": ["of bob"]}
    server.client.cookies.clear()


def check_words(server: Server, hub: OpenIDProvider) -> None:
    assert server.get("/words", params={"text": "one two"}).json() == 2
    assert server.get("/words", params={"text": "word " * 101}).json() == 100
    assert "words_counted_total 102.0" in server.get("/metrics").text


def check_removed(server: Server, hub: OpenIDProvider) -> None:
    assert server.get("/api/items").status_code == 404


CHECKS: dict[str, Callable[[Server, OpenIDProvider], None]] = {
    MODEL: check_model,
    PAGE: check_page,
    GRADIO: check_gradio,
    "Upload": check_upload,
    "Event stream": check_events,
    "WebSocket": check_talk,
    "A job that takes longer than a minute": check_jobs,
    "A table of your own, with a reference": check_notes,
    SIGN_IN: check_diary,
    "A setting and a metric of your own": check_words,
    REMOVED: check_removed,
}
# What can be combined, without a library of a quarter of a gigabyte.
COMBINED = [title for title in CHECKS if title not in (GRADIO, REMOVED)]


def test_each_recipe_has_at_most_fifteen_lines_and_a_test(bake: Bakery) -> None:
    recipes = recipes_of(bake())
    assert [title for title in recipes if title] == list(CHECKS)
    lines = {title: sum(block.lines_that_count for block in blocks) for title, blocks in recipes.items()}
    assert {title: count for title, count in lines.items() if count > 15} == {}
    beside = [
        path.read_text().splitlines() for path in REFERENCE.rglob("*") if path.is_file() and path.suffix != ".pyc"
    ]
    assert sum(lines.values()) + sum(map(len, beside)) < 300


@pytest.fixture(scope="module")
def reference(bake: Bakery, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """A project that does everything but Gradio: all recipes, one after the other, and a page for visitors."""
    project = bake(hf_username="example").copy_to(tmp_path_factory.mktemp("reference"))
    follow(project, *COMBINED)
    shutil.copytree(REFERENCE, project.path, dirs_exist_ok=True)
    return project


@pytest.fixture(scope="module")
def space(reference: BakedProject, hub: OpenIDProvider) -> Iterator[Server]:
    """The reference application on a Space."""
    with reference.boot(on_a_space(hub)) as server:
        assert server.settled()["status"] == "ok"
        yield server


@pytest.mark.parametrize("title", COMBINED)
def test_each_recipe_works_among_the_others_on_a_space(space: Server, hub: OpenIDProvider, title: str) -> None:
    CHECKS[title](space, hub)


def test_the_reference_application_works_in_the_frame_of_the_hub(space: Server, browsing: Browsing) -> None:
    with visit_space(browsing, space, headers={}) as opened:
        page = opened.page.frame_locator("iframe")
        opened.page.goto(f"https://{HUB}/spaces/example/my-space?")
        page.get_by_label("Text").fill("I like it")
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_text('"POSITIVE"')).to_be_visible()
        opened.page.goto(f"https://{HUB}/spaces/example/my-space?all.html")
        page.get_by_label("Text").fill("I like it")
        page.get_by_role("button", name="Try").click()
        expect(page.get_by_label("Prediction")).to_contain_text("POSITIVE")
        expect(page.get_by_label("Echo")).to_have_text("You said I like it")
        expect(page.get_by_label("Words")).to_have_text("3")
        expect(page.get_by_label("Time")).to_contain_text("20")
        expect(page.get_by_role("link", name="Sign in")).to_be_visible()
        opened.photograph("reference-application-in-a-frame")
        # of the question whether somebody is signed in
        assert [problem for problem in opened.problems if "401" not in problem] == []


@pytest.mark.thorough
def test_a_visitor_signs_in_uploads_and_starts_a_job_in_the_browser(
    space: Server, browsing: Browsing, hub: OpenIDProvider
) -> None:
    def agree(route: Route) -> None:
        query = dict(parse_qsl(urlsplit(route.request.url).query))
        route.fulfill(status=302, headers={"Location": hub.authorize(query)})

    hub.user = claims("eve")
    with visit_space(browsing, space, headers=WITH_TOKEN) as opened:
        page = opened.page
        page.context.route(f"https://{HUB}/oauth/authorize?**", agree)
        page.goto(f"https://{SPACE}/all.html")
        expect(page.get_by_label("Diary")).to_have_text("Nobody is signed in.")
        page.get_by_role("link", name="Sign in").click()
        expect(page.get_by_label("Diary")).to_have_text("[]")
        page.get_by_label("Text").fill("I like it")
        page.get_by_role("button", name="Write it down").click()
        expect(page.get_by_label("Diary")).to_have_text('["I like it"]')
        page.get_by_label("File").set_input_files({"name": "a.txt", "mimeType": "", "buffer": b"a line\n" * 300_000})
        expect(page.get_by_label("Lines")).to_have_text("300000")
        page.get_by_role("button", name="Start a job").click()
        expect(page.get_by_label("Result")).to_have_text("I LIKE IT")
        assert [problem for problem in opened.problems if "401" not in problem] == []


# Loads for as long as the test wants.
SLOW_LIBRARY = """
import time
from pathlib import Path

def pipeline(task):
    while not Path("loaded").exists():
        time.sleep(0.01)
    return lambda text: [{"label": "POSITIVE", "score": 1.0}]
"""


def test_who_comes_before_the_model_is_there_is_asked_to_come_again(project: BakedProject, hub: OpenIDProvider) -> None:
    follow(project, MODEL)
    (project.path / STAND_IN).with_suffix(".py").write_text(SLOW_LIBRARY)
    with project.boot(in_place=True) as server:
        server.health_when(lambda report: "Loading load_model" in report["database"]["detail"])
        early = server.post("/predict", params={"text": "I like it"})
        assert (early.status_code, early.json()) == (503, {"detail": "The model is being loaded."})
        assert early.headers["retry-after"] == "5"
        (project.path / "loaded").touch()
        check_model(server, hub)


def test_its_owner_is_told_of_no_route_that_the_recipes_do_not_name(reference: BakedProject) -> None:
    reference.run("python", "-m", "ruff", "check", ".")
    reference.run("python", "-m", "pytest", "-q", "tests/test_routes.py", environ=NO_PLUGINS)


def test_a_stop_waits_for_no_stream(reference: BakedProject, hub: OpenIDProvider) -> None:
    with reference.boot(on_a_space(hub)) as server, ExitStack() as stack:
        server.settled()
        stream = stack.enter_context(server.client.stream("GET", "/time"))
        next(stream.iter_lines())
        stack.enter_context(connect(f"ws://127.0.0.1:{server.port}/talk"))
        begun = monotonic()
        assert server.stop() in (0, -signal.SIGTERM)
        assert monotonic() - begun < 10
        assert "Traceback" not in server.log()


# Everything once more, each by itself.


# As a project's own plugins and cache are.
GREEN = NO_PLUGINS | {"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "with-recipes")}


def with_gradio() -> dict[str, str]:
    """What lets a server find Gradio, and Gradio ask nobody."""
    return {"PYTHONPATH": str(gradio_packages()), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}


@pytest.fixture(scope="module")
def gradio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an interpreter for which Gradio is installed."""
    return programs_with(tmp_path_factory.mktemp("programs"), gradio_packages())


@pytest.mark.thorough
@pytest.mark.parametrize("title", [title for title in CHECKS if title != REMOVED])
def test_each_recipe_works_in_a_fresh_project(project: BakedProject, hub: OpenIDProvider, title: str) -> None:
    shutil.copytree(REFERENCE / STAND_IN, project.path / STAND_IN)
    packages = with_gradio() if title == GRADIO else {}
    follow(project, *([MODEL] if title == PAGE else []), title)
    project.run("python", "-m", "pytest", "-q", "tests/test_routes.py", environ=NO_PLUGINS | packages)
    with project.boot(on_a_space(hub) | packages, in_place=True) as server:
        assert server.settled()["status"] == "ok"
        CHECKS[title](server, hub)
        assert "Traceback" not in server.log()


@pytest.mark.thorough
def test_without_the_sample_the_project_is_green_and_serves(project: BakedProject, hub: OpenIDProvider) -> None:
    follow(project, REMOVED)
    (migration,) = (project.path / "migrations" / "versions").glob("*_drop_items.py")
    assert 'op.drop_table("items")' in migration.read_text()
    assert "SKIPPED" not in run_verbs(project, "make check test", GREEN)
    with project.boot(on_a_space(hub), in_place=True) as server:
        assert server.settled()["status"] == "ok"
        check_removed(server, hub)


@pytest.mark.thorough
def test_the_reference_application_is_green_and_small(bake: Bakery, project: BakedProject, gradio: Path) -> None:
    everything(project, gradio)
    assert "SKIPPED" not in run_verbs(project, "make check test", GREEN, gradio)
    fresh = bake()
    assert {name for name in fresh.files() if project.read(name) != fresh.read(name)} == {
        ".env.example", "README.md", "requirements.txt", "src/config/settings.py", "src/main.py", "tests/test_routes.py"
    }  # fmt: skip


def everything(project: BakedProject, programs: Path) -> None:
    """Follow all recipes at once, and add the rest of the reference application."""
    follow(project, *COMBINED, GRADIO, programs=programs)
    shutil.copytree(REFERENCE, project.path, dirs_exist_ok=True)


@pytest.mark.thorough
def test_the_reference_application_works_on_postgresql(
    project: BakedProject, hub: OpenIDProvider, postgres: Postgres, gradio: Path
) -> None:
    everything(project, gradio)
    environ = on_a_space(hub) | with_gradio() | {"DATABASE_URL": postgres.create_database()}
    with project.boot(environ) as server:
        assert server.settled()["database"]["backend"] == "postgresql"
        for title in [*COMBINED, GRADIO]:
            CHECKS[title](server, hub)
        assert server.stop() in (0, -signal.SIGTERM)
        assert "Traceback" not in server.log()


@pytest.mark.thorough
def test_the_reference_application_is_deployed(reference: BakedProject, tmp_path: Path) -> None:
    project = reference.copy_to(tmp_path)
    # on a Space, as a package that is installed
    shutil.rmtree(project.path / STAND_IN)
    (project.path / ".env.space").write_text(f"API_TOKEN={TOKEN}\n")
    with running_hub() as there:
        builder = Builder(there, tmp_path)
        builder.installed = {"PYTHONPATH": str(REFERENCE)}
        try:
            assert "has no torch, transformers such as" in deploy(project, there).stdout
            # as `make lock` does, where there is an index
            with (project.path / "requirements.lock").open("a") as lock:
                lock.write("torch==9.0+cpu\ntransformers==5.0\n")
            done = deploy(project, there, *PATIENT)
            assert done.returncode == 0, done.stdout
            address = there.spaces["example/my-space"].address
            assert httpx2.post(f"{address}/predict?text=fine").json() == {"label": "POSITIVE", "score": 1.0}
            assert "<title>Everything</title>" in httpx2.get(f"{address}/all.html").text
        finally:
            builder.stop()


def test_make_lock_pins_what_the_indexes_of_the_recipe_have_and_names_them(
    project: BakedProject, tmp_path: Path
) -> None:
    # an index of PyTorch's kind: its own packages, and old versions of those that they need
    write_wheel(tmp_path / "pypi", "helper", "2.0")
    write_wheel(tmp_path / "pypi", "transformers", "5.0")
    write_wheel(tmp_path / "pypi", "torch", "9.0", "with-cuda")
    write_wheel(tmp_path / "cpu", "torch", "9.0+cpu", "helper")
    write_wheel(tmp_path / "cpu", "helper", "1.0")
    (packages,) = [block for block in recipes_of(project)[MODEL] if "torch" in block.text]
    index = (tmp_path / "cpu").as_uri()
    write_wheel(tmp_path, "found", "1.0")
    links = (tmp_path / "found" / "index.html").as_uri()
    lines = ["helper>=2", f"-f {links}", "-r more/base.txt"]
    (project.path / "requirements.txt").write_text("\n".join(lines))
    (project.path / "more").mkdir()
    (project.path / "more" / "base.txt").write_text(
        "found\n" + packages.text.replace("https://download.pytorch.org/whl/cpu", index)
    )
    (project.path / "requirements.lock").write_text("helper==2.0\n")
    # an index of this machine, whose address may hold a password
    environ = {"UV_DEFAULT_INDEX": (tmp_path / "pypi").as_uri()}
    for _ in range(2):
        run_verbs(project, "make lock", environ)
    lock = project.read("requirements.lock")
    assert lock.splitlines()[:2] == [f"-f {links}", f"--extra-index-url {index}"]
    assert lock.count("--extra-index-url") == lock.count("-f ") == 1
    assert str(tmp_path / "pypi") not in lock
    assert re.findall(r"^\w+==\S+", lock, re.MULTILINE) == [
        "found==1.0", "helper==2.0", "torch==9.0+cpu", "transformers==5.0"
    ]  # fmt: skip
    assert lock.count("--hash=sha256:") == 4


def write_wheel(index: Path, name: str, version: str, *needs: str) -> None:
    """Put an empty package into an index, which is a folder."""
    folder = index / name
    folder.mkdir(parents=True, exist_ok=True)
    file, about = f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with ZipFile(folder / file, "w") as wheel:
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        wheel.writestr(f"{about}/METADATA", "\n".join([*metadata, *(f"Requires-Dist: {need}" for need in needs), ""]))
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    with (folder / "index.html").open("a") as page:
        page.write(f'<a href="{quote(file)}">{file}</a>\n')
