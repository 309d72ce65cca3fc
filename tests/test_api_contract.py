"""The OpenAPI schema is true, whatever schemathesis sends; and it is fit for generating clients."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.bakery import ROOT, Bakery
from tests.support.processes import bare_environment
from tests.support.server import Server

TOKEN = "an-api-token"  # noqa: S105
UNKNOWN = "/api/items/00000000-0000-0000-0000-000000000000"
OPERATIONS = {
    "create_item", "list_items", "get_item", "update_item", "delete_item", "health", "live", "ready", "metrics",
}  # fmt: skip


def fuzz(server: Server, folder: Path, examples: int, *options: str) -> int:
    """Let schemathesis try all its checks; fail with what it found, or return how many requests it made."""
    done = subprocess.run(  # noqa: S603
        [
            str(Path(sys.executable).parent / "schemathesis"), f"--config-file={ROOT}/tests/schemathesis.toml", "run",
            f"{server.url}/openapi.json", "--checks=all", "--seed=1", f"--max-examples={examples}",
            "--generation-database=none", "--no-color", *options,
        ],
        cwd=folder,
        env=bare_environment(folder),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )  # fmt: skip
    print(done.stdout[-1200:])
    assert done.returncode == 0, done.stdout + done.stderr + server.log()[-5000:]
    (generated,) = re.findall(r"^  (\d+) generated, ", done.stdout, re.MULTILINE)
    return int(generated)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "examples", "requests"),
    [
        ("postgresql", 6, 150),
        pytest.param("sqlite", 250, 2000, marks=pytest.mark.thorough),
        pytest.param("postgresql", 250, 2000, marks=pytest.mark.thorough),
    ],
    indirect=["database_url"],
)
def test_no_request_finds_an_answer_that_the_schema_does_not_tell_of(
    bake: Bakery, database_url: str, tmp_path: Path, examples: int, requests: int
) -> None:
    with bake().boot({"DATABASE_URL": database_url, "API_TOKEN": TOKEN}) as server:
        assert server.settled()["status"] == "ok"
        assert fuzz(server, tmp_path, examples, "--header", f"X-API-Token: {TOKEN}") >= requests
        assert "request failed" not in server.log_at_the_end()


@pytest.mark.slow
@pytest.mark.parametrize(
    "environ",
    [
        {"SPACE_ID": "example/my-space"},
        pytest.param({}, marks=pytest.mark.thorough),
        pytest.param({"API_TOKEN": TOKEN}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_the_schema_is_as_true_for_clients_without_a_token(
    bake: Bakery, tmp_path: Path, environ: dict[str, str]
) -> None:
    with bake().boot(environ) as server:
        server.settled()
        # who may not write is told so before anybody looks whether the path knows the method
        options = ["--exclude-checks=unsupported_method"] if environ else []
        assert fuzz(server, tmp_path, 6, "--phases=examples,coverage,fuzzing", *options) >= 150
        assert bool(server.titles()) is (environ == {})
        assert "request failed" not in server.log_at_the_end()


@pytest.fixture(scope="module")
def schema(bake: Bakery) -> dict[str, Any]:
    """The schema as a running app gives it."""
    with bake().boot() as server:
        schema: dict[str, Any] = server.get("/openapi.json").json()
        return schema


def test_a_generated_client_gets_short_names_and_examples(schema: dict[str, Any]) -> None:
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert {operation["operationId"] for operation in operations} == OPERATIONS
    assert all(operation["tags"] and operation["summary"] and operation["description"] for operation in operations)
    schemas = schema["components"]["schemas"]
    assert schemas["ItemCreate"]["properties"]["title"]["examples"]
    assert schemas["ItemRead"]["properties"]["title"]["examples"]
    assert schemas["ItemRead"]["properties"]["created_at"]["format"] == "date-time"
    assert [name for name in schemas if schemas[name].get("additionalProperties") is False] == [
        "ItemCreate",
        "ItemUpdate",
    ]
    # a client that sent defaults would clear what it did not mean to change
    assert not [field for field in schemas["ItemUpdate"]["properties"].values() if "default" in field]


def test_each_operation_tells_of_the_errors_that_it_can_answer_and_of_no_others(schema: dict[str, Any]) -> None:
    statuses = {
        operation["operationId"]: " ".join(sorted(operation["responses"]))
        for path in schema["paths"].values()
        for operation in path.values()
    }
    assert statuses == {
        "create_item": "201 400 401 403 409 413 422 500 503",
        "list_items": "200 422 500 503",
        "get_item": "200 404 422 500 503",
        "update_item": "200 400 401 403 404 409 413 422 500 503",
        "delete_item": "204 401 403 404 409 422 500 503",
        "health": "200 500 503",
        "live": "200 500",
        "ready": "200 500 503",
        "metrics": "200 500",
    }


@pytest.mark.slow
def test_without_a_database_every_answer_is_the_503_that_the_schema_tells_of(
    bake: Bakery,
) -> None:
    with bake().boot({"DATABASE_URL": "nonsense", "DATABASE_FALLBACK": "strict"}) as server:
        assert server.settled()["status"] == "unavailable"
        body = {"title": "x"}
        answers = [
            server.get("/api/items"), server.get(UNKNOWN), server.post("/api/items", json=body),
            server.patch(UNKNOWN, json=body), server.delete(UNKNOWN),
        ]  # fmt: skip
        assert [answer.status_code for answer in answers] == [503] * 5
        assert all(list(answer.json()) == ["detail"] and int(answer.headers["Retry-After"]) for answer in answers)
        assert server.get("/health/ready").json() == {"status": "unavailable"}
        assert set(server.health()) == set(
            server.get("/openapi.json").json()["components"]["schemas"]["Health"]["required"]
        )
