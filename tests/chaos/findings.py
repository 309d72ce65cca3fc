"""What was seen in each cell, and the table of it all."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from tests.chaos.faults import Told
from tests.chaos.writer import Writer

MOMENTS = {"start": "at start", "serving": "while serving", "stop": "at stop"}
NAME_WIDTH, CELL_WIDTH = 22, 42
LEGEND = "What /health said, and after how long; + is the time since the fault was healed."


@dataclass
class Finding:
    """One cell: what the app said and when, what it cost, how the process ended. None is not known."""

    fault: str
    moment: str
    seen: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    requests: int | None = None
    requests_lost: int | None = None
    rows: int | None = None
    rows_lost: int | None = None
    exit_code: int | None = None

    def saw(self, report: dict[str, Any], expected: Told, since: float, *, mark: str = " ") -> None:
        """Note a health report, how long it took to come, and whether it is the expected one."""
        serves = report["status"] in ("ok", "degraded")
        said = [report["status"], report["database"]["backend"] if serves else None, report["database"]["reason"]]
        self.seen.append(f"{mark}{time.monotonic() - since:4.1f} s {' '.join(word for word in said if word)}")
        if not expected.fits(report):
            self.wrong.append(f"{expected} was expected, not {report}")

    def saw_end(self, exit_code: int, since: float) -> None:
        """Note how the process ended, and how long it took."""
        self.exit_code = exit_code
        self.seen.append(f" {time.monotonic() - since:4.1f} s ended")

    def count(self, writer: Writer, earlier: list[str], stored: list[str]) -> None:
        """Compare what is stored with what clients were told; no row may be there twice or come from nowhere."""
        times = Counter(stored)
        assert max(times.values(), default=0) <= 1, times.most_common(3)
        assert set(times) <= {*writer.sent, *earlier}
        acknowledged = [*writer.acknowledged, *earlier]
        self.requests, self.requests_lost = len(writer.sent), len(writer.lost)
        self.wrong += writer.lost
        self.rows, self.rows_lost = len(acknowledged), len(set(acknowledged) - set(times))

    def lines(self, outcome: str) -> list[str]:
        """The cell as it is shown."""
        lost = [
            f"{'?' if lost is None else lost} of {'?' if number is None else number} {what}"
            for lost, number, what in (
                (self.requests_lost, self.requests, "requests"),
                (self.rows_lost, self.rows, "rows"),
            )
        ]
        failure = "" if outcome == "passed" else f", {outcome}"
        exit_code = "?" if self.exit_code is None else self.exit_code
        return [*self.seen, f"lost {', '.join(lost)}", f"exit code {exit_code}{failure}"]


def table(findings: list[tuple[Finding, str]], faults: list[str]) -> list[str]:
    """The lines of the table; each finding comes with the outcome of its test."""
    cells = {(finding.fault, finding.moment): finding.lines(outcome) for finding, outcome in findings}
    rule = "-" * NAME_WIDTH + ("+" + "-" * CELL_WIDTH) * len(MOMENTS)
    lines = [LEGEND, "", row(["fault", *MOMENTS.values()]), rule]
    for fault in faults:
        columns = [[fault], *(cells.get((fault, moment), ["-"]) for moment in MOMENTS)]
        lines += [row(texts) for texts in zip_longest(*columns, fillvalue="")]
        lines.append(rule)
    return lines


def row(texts: Sequence[str]) -> str:
    """One line of the table."""
    first, *others = texts
    return "|".join([f"{first:{NAME_WIDTH}}", *(f" {text:{CELL_WIDTH - 1}}" for text in others)]).rstrip()
