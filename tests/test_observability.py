"""What an operator sees: metrics that move, a log line for each request, and who asked, behind the edge or not."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Login, Postgres
from tests.support.processes import bare_environment, end, free_port
from tests.support.server import Server, wait_until_listening

pytestmark = pytest.mark.slow

ON_A_SPACE = {"SPACE_ID": "someone/example", "SPACE_HOST": "someone-example.hf.space"}
MORE_ROUTES = """
from fastapi import Request
from src.main import app

@app.get("/who")
async def who(request: Request) -> dict[str, object]:
    return {"client": request.client.host, "url": str(request.url), "made": str(request.url_for("who"))}

@app.get("/broken/{name}")
async def broken(name: str) -> None:
    raise RuntimeError("broken\\nforged é")
"""
MARKER = "marker-7f3a"
TALKATIVE = f"""
import logging
import httpx2
from fastapi import Request
from src.database.session import DatabaseDep
from src.main import app

logger = logging.getLogger("src.mine")

@app.get("/told")
async def told(request: Request, database: DatabaseDep) -> int:
    async with httpx2.AsyncClient() as client:
        await client.get(str(request.base_url) + "health/live?key={MARKER}")
    logging.getLogger("uvicorn.error").debug("< X-API-Token: {MARKER}")
    await database.read(lambda session: logger.debug("told"))
    return 1
"""


@pytest.fixture(scope="module")
def served(bake: Bakery) -> Iterator[Server]:
    """The app with its default settings, for tests that only ask."""
    with bake().boot() as server:
        server.settled()
        yield server


@pytest.fixture
def probed(project: BakedProject) -> BakedProject:
    """The project with routes that tell who asked, and that break."""
    (project.path / "probe.py").write_text(MORE_ROUTES)
    return project


def measure(server: Server) -> dict[str, float]:
    """Every sample of /metrics by its name and labels."""
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
    }


def documented(project: BakedProject) -> set[str]:
    section = (project.path / "space_runtime" / "README.md").read_text().split("### Metrics")[1].split("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def access_lines(log: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in log.splitlines()]
    return [line for line in lines if line.get("logger") == "access"]


def test_the_readme_lists_every_metric_and_no_other(bake: Bakery, served: Server) -> None:
    families = list(text_string_to_metric_families(served.get("/metrics").text))
    ours = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
        if not family.name.startswith(("process_", "python_")) and not family.name.endswith("_created")
    }
    assert ours == documented(bake())
    assert all(family.documentation for family in families)


def test_metrics_follow_a_fallback_and_its_failback(project: BakedProject, login: Login) -> None:
    with project.boot({"DATABASE_URL": login.url}) as server:
        server.settled()
        before = measure(server)
        assert before["database_status degraded"] == before["database_backend sqlite"] == 1
        assert before["database_fallbacks_total"] == 1
        assert before["database_status ok"] == before["database_failbacks_total"] == 0
        assert server.post("/api/items", json={"title": "waits"}).status_code == 201
        server.health_when(lambda report: report["database"]["pending_rows"] == 1)
        assert measure(server)["database_pending_rows"] == 1
        login.allow()
        server.health_when(lambda report: report["status"] == "ok")
        after = measure(server)
        assert after["database_status ok"] == after["database_backend postgresql"] == after["database_persistent"] == 1
        assert after["database_failbacks_total"] == after["database_failback_rows_total moved"] == 1
        assert after["database_backend sqlite"] == after["database_pending_rows"] == 0
        assert after["database_check_duration_seconds"] > 0
        assert after["database_threads work"] == 6
        assert after["database_threads read"] == 0


def test_metrics_follow_a_database_that_is_killed(project: BakedProject, postgres: Postgres) -> None:
    with project.boot({"DATABASE_URL": postgres.create_database()}) as server:
        assert server.settled()["status"] == "ok"
        postgres.kill()
        server.health_when(lambda report: report["status"] == "unavailable")
        assert measure(server)["database_status unavailable"] == 1
        postgres.start()
        server.health_when(lambda report: report["status"] == "ok")
        after = measure(server)
        assert (after["database_status unavailable"], after["database_fallbacks_total"]) == (0, 0)


def test_metrics_count_a_burst_of_which_some_are_refused(project: BakedProject, postgres: Postgres) -> None:
    with project.boot({"DATABASE_URL": postgres.create_database(), "POOL_SIZE": "1"}) as server:
        server.settled()
        with ThreadPoolExecutor(10) as clients:
            postgres.pause()
            try:
                answers = [clients.submit(server.get, "/api/items") for _ in range(10)]
                busy = waiting = 0.0
                while not all(answer.done() for answer in answers) and not (busy and waiting):
                    now = measure(server)
                    busy = max(busy, now["database_threads_busy work"])
                    waiting = max(waiting, now["database_requests_waiting work"])
                statuses = [answer.result().status_code for answer in answers]
            finally:
                postgres.resume()
        assert set(statuses) == {503}
        assert (busy, waiting > 0) == (1, True)
        after = measure(server)
        assert after["http_requests_total GET /api/items 503"] == 10
        assert after["http_request_duration_seconds_count GET /api/items"] == 10
        assert after["database_requests_refused_total waited"] > 0
        assert after["http_requests_in_progress"] == 1


def test_metrics_count_snapshots_and_their_age(project: BakedProject, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with project.boot({"SNAPSHOT_URL": str(store), "SNAPSHOT_INTERVAL": "1"}) as server:
        server.settled()
        begun = measure(server)
        # on a busy machine a second, and with it the first snapshot, may have passed
        assert math.isnan(begun["database_snapshot_age_seconds"]) or begun["database_snapshots_total taken"]
        server.health_when(lambda report: "newest snapshot is" in report["database"]["detail"])
        taken = measure(server)
        assert taken["database_snapshots_total taken"] >= 1
        assert 0 <= taken["database_snapshot_age_seconds"] < 10
        store.rename(tmp_path / "away")
        store.write_text("in the way")
        server.post("/api/items", json={"title": "not kept"})
        server.health_when(lambda report: "Snapshots fail" in report["database"]["detail"])
        assert measure(server)["database_snapshots_total failed"] >= 1


def test_paths_and_methods_of_strangers_make_no_new_labels(served: Server) -> None:
    def count() -> tuple[float, float]:
        samples = measure(served)
        others = (value for name, value in samples.items() if name.startswith("http_requests_total other"))
        return samples.get("http_requests_total GET none 404", 0), sum(others)

    before = count()
    for number in range(20):
        served.get(f"/{MARKER}/{number}")
        served.client.request(("PROPFIND", "PURGE")[number % 2], f"/{MARKER}")
    assert count() == (before[0] + 20, before[1] + 20)
    text = served.get("/metrics").text
    assert MARKER not in text
    assert "PROPFIND" not in text


def test_metrics_can_be_closed(bake: Bakery) -> None:
    with bake().boot({"METRICS": "off"}) as server:
        assert '<li hidden><a href="metrics">' in server.get("/").text
        assert server.get("/metrics").status_code == 404


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.thorough)])
def test_each_request_gives_one_line_without_secrets(probed: BakedProject, count: int) -> None:
    paths = ["/health/live", "/api/items", f"/broken/{MARKER}", f"/{MARKER}", "/api/items/no-uuid"]
    secrets = {"X-API-Token": MARKER, "Authorization": f"Bearer {MARKER}", "Cookie": f"session={MARKER}"}
    with probed.boot({"LOG_FORMAT": "json"}, app="probe:app") as server:
        server.settled()

        def ask(number: int) -> httpx2.Response:
            return server.get(f"{paths[number % len(paths)]}?token={MARKER}", headers=secrets)

        answers = [ask(number) for number in range(count // 2)]
        with ThreadPoolExecutor(8) as clients:
            answers += clients.map(ask, range(count // 2, count))
        server.stop()
        log = server.log()
    # but for those of settled()
    lines = [line for line in access_lines(log) if line["route"] != "/health"]
    assert len(lines) == count
    assert sorted((str(line["request_id"]), line["status"]) for line in lines) == sorted(
        (answer.headers["X-Request-ID"], answer.status_code) for answer in answers
    )
    assert all({"method", "route", "milliseconds"} <= set(line) for line in lines)
    assert MARKER not in log
    told = [json.loads(line).get("exception", "") for line in log.splitlines()]
    assert sum("Traceback" in exception and "broken\nforged é" in exception for exception in told) == count / len(paths)


def test_libraries_tell_no_url_or_header_however_much_is_logged(project: BakedProject) -> None:
    (project.path / "talkative.py").write_text(TALKATIVE)
    with project.boot({"LOG_FORMAT": "json", "LOG_LEVEL": "debug"}, app="talkative:app") as server:
        server.settled()
        answer = server.get("/told")
        assert answer.status_code == 200
        server.stop()
        log = server.log()
    assert MARKER not in log
    (told,) = [line for line in map(json.loads, log.splitlines()) if line["logger"] == "src.mine"]
    # also in the thread that works on the database
    assert (told["event"], told["request_id"]) == ("told", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("reads", [False, True], ids=["nobody-reads", "a-late-reader"])
def test_the_end_waits_a_moment_for_a_slow_reader_of_the_log(project: BakedProject, *, reads: bool) -> None:
    # where somebody reads, nothing shall depend on how long this machine lets the test wait for its turn
    patience = 30 if reads else "logging.SECONDS_FOR_LAST_LINES"
    code = f"""
from space_runtime.observability import logging
print(logging.SECONDS_FOR_LAST_LINES)
logging.SECONDS_FOR_LAST_LINES = {patience}
stderr = logging.Stderr()
for number in range(40):
    stderr.write("x" * 3900 + "\\n")
stderr.write("the last line\\n")
print("done", flush=True)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=project.path, stdout=pipe, stderr=pipe) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert float(process.stdout.readline()) >= 1
            assert process.stdout.readline() == b"done\n"
            if reads:
                time.sleep(0.3)
                assert process.stderr.read().endswith(b"the last line\n")
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_without_a_stderr_the_app_starts(project: BakedProject) -> None:
    command = [sys.executable, "-c", "import os; os.close(2); os.execvp('python', ['python', '-c', 'import src.main'])"]
    environ = bare_environment(project.path) | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=project.path, env=environ, stdout=subprocess.PIPE, check=False)  # noqa: S603
    assert done.returncode == 0


@pytest.fixture
def unread(project: BakedProject) -> Iterator[tuple[subprocess.Popen[bytes], httpx2.Client]]:
    """An app whose stderr is a pipe that the test reads or not."""
    port = free_port()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "uvicorn", "src.main:app", "--port", str(port)],
        cwd=project.path,
        env=bare_environment(project.path) | {"LOG_FORMAT": "json"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_until_listening(process, port, Path(os.devnull))
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, verify=False) as client:
            yield process, client
    finally:
        end(process)
        if process.stderr is not None:
            process.stderr.close()


def lost_lines(client: httpx2.Client) -> float:
    (lost,) = re.findall(r"^log_lines_lost_total (\S+)", client.get("/metrics").text, re.MULTILINE)
    return float(lost)


def ask_in_one_go(client: httpx2.Client, request_ids: list[str]) -> None:
    """Send a request with each of these ids on one connection, many before their answers: all of them are a success."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=30) as connection:
        for start in range(0, len(request_ids), 50):
            some = request_ids[start : start + 50]
            head = "GET /health/live HTTP/1.1\r\nHost: x\r\nX-Request-ID: {}\r\n\r\n"
            connection.sendall("".join(map(head.format, some)).encode())
            answers = b""
            while answers.count(b"HTTP/1.1 200 OK\r\n") < len(some):
                received = connection.recv(65536)
                assert received, answers
                answers += received
            assert answers.count(b"HTTP/1.1") == len(some)


def test_a_log_that_nobody_reads_stops_no_request(unread: tuple[subprocess.Popen[bytes], httpx2.Client]) -> None:
    process, client = unread
    assert process.stderr is not None
    # several times what fits into a pipe, and all of it is there for a reader who comes late
    ids = [f"request-{number}" for number in range(1000)]
    ask_in_one_go(client, ids)
    read: set[str] = set()
    while not set(ids) <= read:
        line = json.loads(process.stderr.readline())
        read.add(line.get("request_id", ""))
    # more than is kept
    ask_in_one_go(client, ["x" * 64] * 3500)
    assert lost_lines(client) > 0


def test_a_log_that_was_closed_stops_no_request(unread: tuple[subprocess.Popen[bytes], httpx2.Client]) -> None:
    process, client = unread
    assert process.stderr is not None
    process.stderr.close()
    assert {client.get("/health/live").status_code for _ in range(50)} == {200}
    deadline = time.monotonic() + 30
    while lost_lines(client) < 50:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_start_and_stop_are_one_line_each(bake: Bakery) -> None:
    with bake().boot({"LOG_FORMAT": "json"}) as server:
        version = server.settled()["status"] and server.health()["version"]
        server.stop()
        lines = [json.loads(line) for line in server.log().splitlines()]
    (started,) = [line for line in lines if line["event"].startswith("database ")]
    assert started["event"].startswith("database ok: SQLite serves.")
    assert started["version"] == version
    assert 0 <= started["seconds"] < 10
    (stopped,) = [line for line in lines if line["event"].startswith("stopped")]
    assert (stopped["pending_rows"], stopped["snapshot_taken"]) == (0, False)


FORGED = {
    "X-Forwarded-For": "6.6.6.6, 203.0.113.7",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "http",
    "X-Real-IP": "6.6.6.6",
    "Forwarded": "for=6.6.6.6;host=evil.example;proto=http",
}


def test_on_a_space_the_edge_tells_who_asked_and_nobody_else(probed: BakedProject) -> None:
    with probed.boot(ON_A_SPACE, app="probe:app") as server:
        host = f"127.0.0.1:{server.port}"
        expected = {"client": "203.0.113.7", "url": f"https://{host}/who", "made": f"https://{host}/who"}
        assert server.get("/who", headers=FORGED).json() == expected
        assert server.get("/who").json() == expected | {"client": "127.0.0.1"}
        junk = server.get("/who", headers={"X-Forwarded-For": "203.0.113.7, no address"}).json()
        assert junk["client"] != "203.0.113.7"


def test_elsewhere_no_header_tells_who_asked(probed: BakedProject) -> None:
    # uvicorn itself believes a proxy on the same machine unless told otherwise
    with probed.boot({"FORWARDED_ALLOW_IPS": ""}, app="probe:app") as server:
        url = f"http://127.0.0.1:{server.port}/who"
        told = server.get("/who", headers=FORGED | {"X-Forwarded-Proto": "https"}).json()
        assert told == {"client": "127.0.0.1", "url": url, "made": url}
