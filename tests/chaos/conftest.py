"""Shows the matrix when all its cells were played."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.findings import Finding, table
from tests.chaos.scene import Scene
from tests.support.bakery import Bakery


@pytest.fixture
def scene(bake: Bakery, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A fresh project, with a database of its own."""
    scene = Scene(bake().copy_to(tmp_path), tmp_path, request)
    yield scene
    scene.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    found = [
        (Finding(**value), outcome)
        for outcome in ("passed", "failed", "xfailed", "xpassed", "error")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", [])
        if name == "finding" and report.when == "call"
    ]
    if found:
        played = {finding.fault for finding, _ in found}
        terminalreporter.section("faults")
        for line in table(found, [fault.name for fault in FAULTS if fault.name in played]):
            terminalreporter.write_line(line)
