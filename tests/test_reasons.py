"""Each reason stands in one table, and a mistake of our own is called one."""

from space_runtime.reasons import BY_SQLITE_CODE, BY_SQLSTATE, REASONS

from tests.support.bakery import BakedProject

MISTAKEN_APP = """
from space_runtime.lifecycle.runner import Lifecycle


def look_after(lifecycle, *arguments):
    value = "a-secret-value"
    raise ValueError(value)


Lifecycle._open_sqlite = look_after
from src.main import app
"""

FORGETFUL_APP = """
from pathlib import Path
from space_runtime.lifecycle.runner import Lifecycle
from src.main import app

publish, published = Lifecycle._publish, []


def forget(lifecycle):
    publish(lifecycle)
    published.append(lifecycle)
    if 3 < len(published) and len(published) % 2 == 0 and not Path("mended").exists():
        raise KeyError


Lifecycle._publish = forget
"""


def test_no_two_reasons_claim_the_same_code() -> None:
    assert len(BY_SQLSTATE) == sum(len(reason.sqlstates) for reason in REASONS.values())
    assert len(BY_SQLITE_CODE) == sum(len(reason.sqlite_codes) for reason in REASONS.values())


def test_a_bug_between_the_steps_is_told_and_ends_no_report(project: BakedProject) -> None:
    (project.path / "mistaken.py").write_text(FORGETFUL_APP)
    with project.boot(in_place=True, app="mistaken:app") as server:
        server.health_when(lambda report: report["database"]["reason"] == "internal")
        assert server.get("/health/ready").status_code == 503
        (project.path / "mended").touch()
        server.health_when(lambda report: report["status"] == "ok")
        assert server.post("/api/items", json={"title": "stored"}).status_code == 201


def test_a_mistake_of_our_own_is_internal_and_the_log_says_where_but_no_value(project: BakedProject) -> None:
    (project.path / "mistaken.py").write_text(MISTAKEN_APP)
    with project.boot(in_place=True, app="mistaken:app") as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("unavailable", "internal")
        assert "the application made a mistake of its own; the log says where" in report["database"]["detail"]
        assert server.get("/api/items").status_code == 503
        log = server.log_at_the_end()
    assert "in look_after" in log
    assert "ValueError" in log
    assert "a-secret-value" not in log
