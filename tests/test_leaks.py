"""Every log of every server that a test starts is searched for secrets; here is shown that they would be found."""

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.bakery import Bakery
from tests.support.leaks import check_no_secret_in, secrets_of
from tests.support.postgres import PASSWORD, USER

URL = f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:1/app"
FORMS = {
    "plain": PASSWORD,
    "json": json.dumps({"detail": f'"{PASSWORD}"'}),
    "percent-encoded": quote(PASSWORD),
    "the whole URL": URL,
    "base64": base64.b64encode(PASSWORD.encode()).decode(),
    "base64 with a name": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
    "base64 with a longer name": base64.urlsafe_b64encode(f"a{USER}:{PASSWORD}, and more".encode()).decode(),
    "base64 of the URL": base64.b64encode(f"({URL})".encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_password_is_found_in_every_form(form: str) -> None:
    with pytest.raises(AssertionError, match="was printed as"):
        check_no_secret_in(f"first line\nit is {FORMS[form]}!\n".encode(), secrets_of({"DATABASE_URL": URL}))


def test_what_is_secret_in_an_environment_is_known() -> None:
    environ = {
        "DATABASE_URL": f"postgresql://{USER}@127.0.0.1/app?sslmode=require&password=in%2Fa%2Fquery",
        "SNAPSHOT_URL": "s3://name:before-host@127.0.0.1/folder?token=in-another",
        "HF_TOKEN": "of-the-hub",
        "HOME": "no-secret",
    }
    assert secrets_of(environ) == {
        environ["DATABASE_URL"], "in%2Fa%2Fquery", "in/a/query", "before-host", "in-another", "of-the-hub"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "header"),
    [
        ("print(os.environ['DATABASE_URL'])", {}),
        pytest.param("print(repr(os.environ['API_TOKEN'].encode()))", {}, marks=pytest.mark.thorough),
        pytest.param("app.add_middleware(Talkative)", {"X-API-Token": "mistyped-token"}, marks=pytest.mark.thorough),
        ("app.add_middleware(Talkative)", {"Authorization": "Bearer another-token"}),
    ],
)
def test_a_server_that_prints_a_secret_fails_its_test(
    bake: Bakery, tmp_path: Path, statement: str, header: dict[str, str]
) -> None:
    project = bake().copy_to(tmp_path)
    (project.path / "extra.py").write_text(f"""
import os
from src.main import app


class Talkative:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        print(scope.get("headers"))
        await self.app(scope, receive, send)


{statement}
""")
    environ = {"DATABASE_URL": URL, "API_TOKEN": "given-token", "PYTHONUNBUFFERED": "1"}
    with (
        pytest.raises(AssertionError, match="was printed as"),
        project.boot(environ, in_place=True, app="extra:app") as server,
    ):
        server.post("/api/items", json={"title": "x"}, headers=header)
