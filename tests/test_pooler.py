"""Behind a real transaction pooler everything works, and no session setting reaches other clients."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.machine import need
from tests.support.postgres import PASSWORD, USER, Postgres
from tests.support.processes import end, free_port
from tests.support.server import wait_until_listening
from tests.test_states import use_items

pytestmark = pytest.mark.slow

SESSION = """
from sqlalchemy import select
from src.database.session import SessionDep
from src.items.models import Item
from src.main import app


@app.post("/by-session")
def by_session(session: SessionDep) -> list[str]:
    before = session.scalars(select(Item.title)).all()
    session.add(Item(title="by a session"))
    session.commit()
    return [*before, *session.scalars(select(Item.title))]
"""


@pytest.fixture
def pooler_port(postgres: Postgres) -> Iterator[int]:
    """The port of a pgbouncer in front of PostgreSQL, with one server connection for all clients."""
    program = need("pgbouncer", "a transaction pooler in front of PostgreSQL")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pooler-") as folder:
        users, settings, log = Path(folder, "users"), Path(folder, "settings"), Path(folder, "log")
        users.write_text(f'"{USER}" "{PASSWORD}"\n')
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = 1\n"
        )
        account = "nobody" if os.geteuid() == 0 else None
        for path in (Path(folder), users, settings):
            path.chmod(0o755)
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                [program, str(settings)], stdout=output, stderr=output, user=account, start_new_session=True
            )
        try:
            wait_until_listening(process, port, log)
            yield port
        finally:
            end(process)


def test_a_transaction_pooler_is_noticed_though_nothing_in_the_url_tells(
    project: BakedProject, postgres: Postgres, pooler_port: int
) -> None:
    (project.path / "extra.py").write_text(SESSION)
    direct = postgres.create_database()
    pooled = direct.replace(f":{postgres.port}/", f":{pooler_port}/")
    with project.boot({"DATABASE_URL": pooled}, in_place=True, app="extra:app") as server:
        assert server.settled()["status"] == "ok"
        for _ in range(3):
            use_items(server)
            assert server.post("/by-session").json() == ["kept", "kept", "by a session"]
            for item in server.get("/api/items").json()["items"]:
                server.delete(f"/api/items/{item['id']}")
        # the one server connection that the app has used all along, now in a stranger's hands
        with postgres.connect(pooled) as stranger:
            stranger.prepare_threshold = None
            assert stranger.execute("SHOW default_transaction_read_only").fetchone() == ("off",)
            assert stranger.execute("SHOW statement_timeout").fetchone() == ("0",)
        assert "Traceback" not in server.log_at_the_end()


@pytest.mark.thorough
def test_a_standby_behind_the_pooler_is_read_only_until_it_is_promoted(
    bake: Bakery, postgres: Postgres, pooler_port: int
) -> None:
    pooled = postgres.create_database().replace(f":{postgres.port}/", f":{pooler_port}/")
    # no look at the database comes between, so the app's connections to the pooler stay the same
    with bake().boot({"DATABASE_URL": pooled, "DATABASE_CHECK_SECONDS": "60"}) as server:
        assert server.settled()["status"] == "ok"
        use_items(server)
        with postgres.read_only():
            assert server.post("/api/items", json={"title": "first"}).status_code == 503
            report = server.health_when(lambda report: report["status"] == "unavailable")
            assert report["database"]["reason"] == "read_only"
        server.health_when(lambda report: report["status"] == "ok")
        assert server.post("/api/items", json={"title": "second"}).status_code == 201
        assert "Traceback" not in server.log_at_the_end()
