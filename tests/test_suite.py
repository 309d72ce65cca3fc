"""The suite itself: a failure is told at once and blamed on the right test, and a skip says what to install."""

import ast
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pytest
import yaml

from tests.support.bakery import ROOT
from tests.support.machine import need
from tests.support.processes import bare_environment
from tools import flaky

CONFTEST = "from tests.conftest import pytest_configure, pytest_runtest_teardown\n"
OPTIONS = [
    "-q",
    "-rfE",
    "-o",
    "console_output_style=classic",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:schemathesis",
    "-p",
    "no:randomly",
    "-W",
    "error",
]


def run_suite(folder: Path, tests: str, *options: str) -> str:
    """What somebody reads who runs these tests with the hooks of ours."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_example.py").write_text(tests)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pytest", *OPTIONS, *options, "test_example.py"],
        cwd=folder,
        env=bare_environment(folder) | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize(
    "processes",
    [[], pytest.param(["-n", "2"], marks=pytest.mark.slow)],
    ids=["one process", "two processes"],
)
def test_a_failure_is_named_at_once_and_again_at_the_end(tmp_path: Path, processes: list[str]) -> None:
    test = f"test_{'sum' * 30}"
    shown = run_suite(tmp_path, f"def {test}():\n    assert 1 + 1 == 3\n", *processes)
    at_once, _, later = shown.partition("= FAILURES =")
    assert f"FAILED test_example.py::{test} (call): assert (1 + 1) == 3" in at_once
    assert "[  0%]" not in at_once
    *_, failure, last = later.strip().splitlines()
    # whole, although longer than a line of a terminal
    assert failure == f"FAILED test_example.py::{test} - assert (1 + 1) == 3"
    assert last.startswith("1 failed in ")


def test_on_a_terminal_one_line_says_what_runs(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_example.py").write_text("def test_one():\n    pass\n\ndef test_two():\n    pass\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "pytest", *OPTIONS, "test_example.py"],
        cwd=tmp_path,
        env=bare_environment(tmp_path) | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    # reading a terminal whose program has ended is an error on Linux
    with suppress(OSError):
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(30) == 0
    assert re.search(rb"\r\d:\d\d 0 of 2 \(none ended\); since \d+ s: test_example\.py::test_one", shown), shown
    # written over before pytest says how it ended
    assert b"test_one" not in shown.splitlines()[-1]


def test_each_skip_says_what_to_do_about_it() -> None:
    found = 0
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.skip":
                parts = getattr(node.args[0], "values", [node.args[0]])
                reason = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
                # of which one line for all tests is made
                lack = reason.partition(": ")[0]
                assert re.search(r"\(.+\)$", lack), f"{file.name}:{node.lineno}: {reason}"
                found += 1
    assert found > 10


def test_make_test_holds_each_promise_and_runs_each_file_that_is_said_to_hold_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| promise | held by |\n| --- | --- |\n")[2].partition("\n\n")[0]
    for row in table.splitlines():
        files = [ROOT / "tests" / name for name in re.findall(r"`(test_\w+\.py)`", row)]
        kept = [marks_in_make_test(file) for file in files]
        assert all(kept), row
        assert any("slow" in marks for marks in chain(*kept)), row
    assert len(table.splitlines()) >= 8


def marks_in_make_test(file: Path) -> list[set[str]]:
    """The marks of each test in this file that `make test` runs. What is slow has processes of its own."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    of_all = {"slow" for node in body if ast.unparse(node) == "pytestmark = pytest.mark.slow"}
    tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    marks = [{ast.unparse(mark).rpartition(".")[2].lower() for mark in test.decorator_list} | of_all for test in tests]
    return [of_test for of_test in marks if not of_test & {"thorough", "alone"}]


def test_each_python_that_is_offered_and_the_oldest_are_tested_once_a_week() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["pythons"]["strategy"]["matrix"]["python"]
    assert set(tested) == {"3.11", *questions["python_version"]}


def test_all_tests_are_run_although_some_fail(tmp_path: Path) -> None:
    make = need("make", "it runs the tests")
    for file in ("requirements-dev.lock", ".tools/bin/uv", ".venv/bin/python", ".venv/ready"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('#!/bin/sh\necho "$@" >> asked\nexit 1\n')
        (tmp_path / file).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run([make, "test-all"], cwd=tmp_path, capture_output=True, check=False)  # noqa: S603
    asked = (tmp_path / "asked").read_text()
    assert [line.rpartition("-m ")[2] for line in asked.splitlines()] == [
        "not thorough and not alone",
        "thorough and not alone",
        "alone",
    ]
    assert done.returncode != 0


def test_what_many_tests_lack_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    tests = """
import pytest
from tests.support.machine import need

@pytest.mark.parametrize("purpose", ["one thing", "another"])
def test_that_needs(purpose, monkeypatch):
    monkeypatch.setenv("PATH", "")
    need("node", purpose)
"""
    shown = run_suite(tmp_path, tests)
    assert "   2 tests: node is not installed (apt install nodejs)\n" in shown
    assert shown.count("nodejs") == 1


@pytest.mark.slow
def test_what_a_test_leaves_open_fails_this_test_and_no_later_one(tmp_path: Path) -> None:
    # a cycle keeps the file until the collector comes, which may be while any test runs
    tests = """
def test_that_leaves_a_file_open(tmp_path):
    cycle = [open(tmp_path / "file", "w")]
    cycle.append(cycle)

def test_that_comes_later():
    import gc
    gc.collect()
"""
    shown = run_suite(tmp_path, tests)
    assert "test_example.py::test_that_leaves_a_file_open left something open: [" in shown
    assert "1 error" in shown
    assert "2 passed" in shown


@pytest.mark.slow
def test_a_run_of_make_flaky_that_does_not_end_is_red_and_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_example.py").write_text("""
import pathlib
import time

import pytest

@pytest.fixture
def folder():
    folder = pathlib.Path("something-started")
    folder.mkdir()
    yield folder
    folder.rmdir()

def test_that_never_ends(folder):
    time.sleep(300)
""")
    command = [sys.executable, "-m", "pytest", *OPTIONS, "-n", "1"]
    environ = bare_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "output").open("wb") as output:
        run = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
    deadline = time.monotonic() + 60
    while not (tmp_path / "something-started").exists():
        assert time.monotonic() < deadline, (tmp_path / "output").read_text()
        time.sleep(0.02)
    flaky.end(run)
    assert not (tmp_path / "something-started").exists()
    for name, value in {"ROOT": tmp_path, "FOLDER": tmp_path, "SECONDS_FOR_A_RUN": 0.0}.items():
        monkeypatch.setattr(flaky, name, value)
    assert not flaky.run(1, [], beside_load=False)
