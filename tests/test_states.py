"""Started as a real process in every state of DATABASE_URL, the project comes up, works and says what it does."""

import html
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.disks import is_in_a_layer
from tests.support.faults import SOON, listening, silence, web_page
from tests.support.postgres import PASSWORD, Postgres
from tests.support.server import SECONDS_TO_LISTEN, Server

pytestmark = pytest.mark.slow

SECRET = "Zq81secretKp"  # noqa: S105 - looked for in every output
thorough = pytest.mark.thorough

BROKEN = {
    "placeholder": ("postgresql://postgres:[YOUR-PASSWORD]@db.example.com:5432/postgres", "placeholder"),
    "variable": (f"postgresql://app:{SECRET}@${{DB_HOST}}:5432/app", "unexpanded_variable"),
    "no-url": (f"{SECRET}", "unparseable"),
    "mysql": (f"mysql://app:{SECRET}@db.example.com/app", "unsupported_scheme"),
    "no-host": (f"postgresql://app:{SECRET}@:5432/app", "missing_host"),
    "web-page": (f"https://console.example.com/project?key={SECRET}", "unsupported_scheme"),
    "bad-host": (f"postgresql://app:{SECRET}@db..example com:5432/app", "invalid_host"),
    "bad-port": (f"postgresql://app:{SECRET}@db.example.com:99999/app", "invalid_port"),
    "control": (f"postgresql://app:{SECRET}@db.example.com/app\x1b[31m", "control_characters"),
    "tls": (f"postgresql://app:{SECRET}@db.example.com/app?sslmode=verify-identity&sslpassword={SECRET}", "tls"),
    "too-long": (f"postgresql://app:{SECRET}@db.example.com/{'a' * 70_000}", "too_long"),
}
# In `make test`, too. The others go the same way, and the resolver's own tests try them all.
IN_SHORT = ("placeholder", "no-url", "control")


@pytest.fixture
def faulty_ports() -> Iterator[dict[str, int]]:
    """The ports of a server that is silent and of one that is no PostgreSQL."""
    with ExitStack() as stack:
        yield {
            "silent": stack.enter_context(listening(silence)),
            "web": stack.enter_context(listening(web_page)),
        }


def titles_in(path: Path) -> list[str]:
    """What a look into the SQLite file shows."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [row[0] for row in connection.execute("SELECT title FROM items ORDER BY created_at")]


def use_items(server: Server) -> None:
    """Create, list, read, change and delete, and leave one item titled `kept` behind."""
    created = server.post("/api/items", json={"title": "first"})
    assert created.status_code == 201, created.text
    kept = server.post("/api/items", json={"title": "second"}).json()
    assert server.get(created.headers["Location"]).json() == created.json()
    assert server.patch(f"/api/items/{kept['id']}", json={"title": "kept"}).json()["title"] == "kept"
    assert server.delete(created.headers["Location"]).status_code == 204
    assert server.titles() == ["kept"]


def check_report(report: dict[str, Any], **expected: object) -> None:
    """Compare a report with what is expected of its fields, wherever they are in it."""
    flat = {**report["database"], "status": report["status"]}
    assert {name: flat[name] for name in expected} == expected, report


def check_served_by_sqlite(
    server: Server, project: BakedProject, *, status: str, reason: str | None, file: str
) -> None:
    """The whole of what a client, the owner and a look into the file must see."""
    assert server.seconds_to_listen < SECONDS_TO_LISTEN
    assert server.get("/").status_code == 200
    assert server.get("/health").status_code == 200
    report = server.settled(30)
    # Where the tests run in a container, so does the app, whose disk goes with it.
    check_report(report, status=status, backend="sqlite", reason=reason, persistent=not is_in_a_layer(project.path))
    assert server.get("/health/ready").status_code == 200
    use_items(server)
    (serving,) = (project.path / "data").glob(file)
    assert titles_in(serving) == ["kept"]
    marker = server.get("/api/items").headers.get("X-Database")
    assert marker == (None if status == "ok" else "fallback")


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "unset"),
        pytest.param({"DATABASE_URL": ""}, "empty", marks=thorough),
        ({"DATABASE_URL": " \n"}, "empty"),
    ],
    ids=["unset", "empty", "blank"],
)
def test_without_a_url_sqlite_serves_and_keeps_its_rows(
    project: BakedProject, environ: dict[str, str], reason: str
) -> None:
    with project.boot(environ, in_place=True) as server:
        check_served_by_sqlite(server, project, status="ok", reason=reason, file="app.db")
        server.kill()
    with project.boot(environ, in_place=True) as server:
        server.settled()
        assert server.titles() == ["kept"]


@pytest.mark.parametrize("kind", [kind if kind in IN_SHORT else pytest.param(kind, marks=thorough) for kind in BROKEN])
def test_with_a_broken_url_sqlite_serves_and_says_why(project: BakedProject, kind: str) -> None:
    value, reason = BROKEN[kind]
    with project.boot({"DATABASE_URL": value}, in_place=True) as server:
        check_served_by_sqlite(server, project, status="degraded", reason=reason, file="fallback-*.db")
        told = server.get("/health").text + server.get("/").text + server.log_at_the_end()
        assert SECRET not in told
        if reason == "tls":
            assert "DATABASE_URL sets sslmode to something that is not understood" in told
            assert "could not be made" not in told


def test_with_an_sqlite_url_that_file_serves(project: BakedProject) -> None:
    with project.boot({"DATABASE_URL": "sqlite:///./data/mine.db"}, in_place=True) as server:
        check_served_by_sqlite(server, project, status="ok", reason=None, file="mine.db")


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        (
            "db.abcdefghijkl.supabase.co:1/app?hostaddr=127.0.0.1",
            "use the connection string of Supabase's session pooler",
        ),
        ("127.0.0.1:1/app", "names a port that Spaces may block"),
    ],
    ids=["supabase", "port"],
)
def test_a_space_that_cannot_reach_a_server_says_what_to_do(project: BakedProject, host: str, advice: str) -> None:
    environ = SOON | {"SPACE_ID": "me/my-space", "DATABASE_URL": f"postgresql://app:{SECRET}@{host}"}
    with project.boot(environ) as server:
        report = server.settled()
        check_report(report, status="degraded", reason="refused")
        page = server.get("/").text
        server.stop()  # the line follows the report
        for told in (report["database"]["detail"], page, server.log()):
            assert advice in html.unescape(told)


def test_a_server_that_lets_its_user_see_nothing_is_there_and_sqlite_does_not_stand_in(
    project: BakedProject, postgres: Postgres
) -> None:
    url = postgres.create_database()
    with project.boot({"DATABASE_URL": url}) as server:
        assert server.settled()["status"] == "ok"
    name = url.rpartition("/")[2]
    with postgres.connect() as connection:
        connection.execute(f"CREATE ROLE {name}_guest LOGIN PASSWORD '{SECRET}'")
    stranger = postgres.url(name, user=f"{name}_guest", password=SECRET)
    with project.boot({"DATABASE_URL": stranger}, in_place=True) as server:
        check_report(server.settled(), status="unavailable", backend=None, reason="migration_failed")
        server.stop()  # the line follows the report
        assert "permission denied" in server.log()


Away = Callable[[Postgres, dict[str, int]], str]
AWAY: dict[str, tuple[Away, str]] = {
    "refused": (lambda postgres, ports: f"postgresql://app:{SECRET}@127.0.0.1:1/app", "refused"),
    "silent": (lambda postgres, ports: f"postgresql://app:{SECRET}@127.0.0.1:{ports['silent']}/app", "timeout"),
    "unknown-host": (lambda postgres, ports: f"postgresql://app:{SECRET}@no-such-host.invalid/app", "dns"),
    "wrong-password": (lambda postgres, ports: postgres.url("postgres", password=SECRET), "auth_failed"),
    "missing-database": (lambda postgres, ports: postgres.url("no_such_database"), "database_missing"),
    "tls-not-offered": (lambda postgres, ports: postgres.url("postgres", query="?sslmode=require"), "tls"),
    "web-server": (lambda postgres, ports: f"postgresql://app:{SECRET}@127.0.0.1:{ports['web']}/app", "not_postgres"),
}


@pytest.mark.parametrize(
    "kind",
    [
        "refused",
        "silent",
        pytest.param("unknown-host", marks=thorough),
        "wrong-password",
        pytest.param("missing-database", marks=thorough),
        pytest.param("tls-not-offered", marks=thorough),
        "web-server",
    ],
)
def test_with_postgresql_away_sqlite_serves_and_says_why(
    project: BakedProject, postgres: Postgres, faulty_ports: dict[str, int], kind: str
) -> None:
    make_url, reason = AWAY[kind]
    environ = {"DATABASE_URL": make_url(postgres, faulty_ports)}
    if kind != "silent":  # that one has the time that it has where nobody says otherwise
        environ |= SOON
    with project.boot(environ, in_place=True) as server:
        starting = server.get("/health").json()
        assert starting["status"] in ("starting", "degraded")
        if starting["status"] == "starting":
            refused = server.post("/api/items", json={"title": "too early"})
            # SQLite may serve by now
            if refused.status_code == 201:
                server.delete(refused.headers["Location"])
            else:
                assert refused.status_code == 503
                assert refused.headers["Retry-After"]
        check_served_by_sqlite(server, project, status="degraded", reason=reason, file="fallback-*.db")
        told = server.get("/health").text + server.get("/").text + server.log_at_the_end()
    assert SECRET not in told
    assert PASSWORD not in told


@pytest.mark.parametrize("kind", [pytest.param("refused", marks=thorough), "missing-database"])
def test_strict_writes_nothing_to_sqlite(
    project: BakedProject, postgres: Postgres, faulty_ports: dict[str, int], kind: str
) -> None:
    make_url, reason = AWAY[kind]
    environ = {"DATABASE_URL": make_url(postgres, faulty_ports), "DATABASE_FALLBACK": "strict"}
    with project.boot(environ, in_place=True) as server:
        check_report(server.settled(), status="unavailable", backend=None, reason=reason)
        assert server.get("/health").status_code == 503
        assert server.get("/health/ready").status_code == 503
        assert server.get("/").status_code == 200
        refused = server.post("/api/items", json={"title": "nowhere to go"})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
    assert not list(project.path.rglob("*.db"))


def test_strict_with_a_url_of_no_use_answers_503_and_shows_nothing_of_it(project: BakedProject) -> None:
    environ = {"DATABASE_URL": f"postgresql://user:{SECRET}@127.0.0.1:nonsense/db", "DATABASE_FALLBACK": "strict"}
    with project.boot(environ, in_place=True) as server:
        check_report(server.settled(), status="unavailable", backend=None, reason="invalid_port")
        health, refused = server.get("/health"), server.post("/api/items", json={"title": "nowhere to go"})
        assert (health.status_code, server.get("/health/ready").status_code) == (503, 503)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert SECRET not in health.text + refused.text + server.get("/").text
    assert not list(project.path.rglob("*.db"))


def test_strict_recovers_when_the_database_appears(project: BakedProject, postgres: Postgres) -> None:
    environ = {"DATABASE_URL": postgres.url("appears_later"), "DATABASE_FALLBACK": "strict"}
    with project.boot(environ, in_place=True) as server:
        server.settled()
        with postgres.connect() as connection:
            connection.execute("CREATE DATABASE appears_later")
        server.health_when(lambda report: report["status"] == "ok")
        use_items(server)


def test_with_a_working_postgresql_it_serves(project: BakedProject, postgres: Postgres) -> None:
    url = postgres.create_database()
    with project.boot({"DATABASE_URL": url}, in_place=True) as server:
        check_report(
            server.settled(), status="ok", backend="postgresql", reason=None, persistent=True, source="environment"
        )
        use_items(server)
        assert "X-Database" not in server.get("/api/items").headers
        told = server.get("/health").text + server.log_at_the_end()
    with postgres.connect(url) as connection:
        rows = connection.execute(
            "SELECT pg_typeof(id)::text, pg_typeof(created_at)::text, title FROM items"
        ).fetchall()
    assert rows == [("uuid", "timestamp with time zone", "kept")]
    assert PASSWORD not in told
    assert not list(project.path.rglob("*.db"))


def test_url_parameters_reach_the_server(bake: Bakery, postgres: Postgres) -> None:
    query = "?sslmode=disable&application_name=my-demo&options=-c%20search_path%3Dextra%2Cpublic"
    url = postgres.create_database()
    with postgres.connect(url) as connection:
        connection.execute("CREATE SCHEMA extra")
    with bake().boot({"DATABASE_URL": url + query}) as server:
        assert server.settled()["status"] == "ok"
        use_items(server)
        with postgres.connect(url) as connection:
            assert connection.execute("SELECT title FROM extra.items").fetchall() == [("kept",)]
            names = connection.execute(
                "SELECT DISTINCT application_name FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchall()
    assert names == [("my-demo",)]


def test_a_read_only_postgresql_is_not_replaced_by_sqlite(project: BakedProject, postgres: Postgres) -> None:
    url = postgres.create_database()
    name = url.rpartition("/")[2]
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with project.boot({"DATABASE_URL": url}, in_place=True) as server:
        check_report(server.settled(), status="unavailable", reason="read_only", backend=None)
        assert server.post("/api/items", json={"title": "x"}).status_code == 503
        with postgres.connect() as connection:
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        server.health_when(lambda report: report["status"] == "ok")
        use_items(server)


def test_the_query_of_a_websocket_is_not_logged(bake: Bakery) -> None:
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    with bake().boot() as server:
        server.get(f"/anything?token={SECRET}")
        server.get(f"/anything?token={SECRET}", headers=upgrade)
        server.stop()  # what is logged follows the answer
        assert SECRET not in server.log()


@pytest.mark.parametrize(
    "host", [pytest.param("database", marks=thorough), pytest.param("role.invalid", marks=thorough), "tls.invalid"]
)
def test_the_reason_is_not_read_from_the_name_of_the_host(bake: Bakery, host: str) -> None:
    with bake().boot(SOON | {"DATABASE_URL": f"postgresql://app:{SECRET}@{host}:1/ssl"}) as server:
        check_report(server.settled(), status="degraded", reason="dns")


def test_on_a_space_strangers_read_only_and_the_log_is_json(bake: Bakery) -> None:
    environ = {"SPACE_ID": "example/my-space", "SPACE_HOST": "example-my-space.hf.space"}
    with bake().boot(environ) as server:
        check_report(server.settled(), status="ok", backend="sqlite", persistent=False)
        refused = server.post("/api/items", json={"title": "by a stranger"})
        assert refused.status_code == 403
        assert "API_TOKEN" in refused.json()["detail"]
        assert server.titles() == []
        assert "https://example-my-space.hf.space" in server.get("/").headers["Content-Security-Policy"]
        server.stop()
        events = [json.loads(line) for line in server.log().splitlines()]
    requests = [event for event in events if event["event"] == "request"]
    assert refused.headers["X-Request-ID"] in {event["request_id"] for event in requests}
