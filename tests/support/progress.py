"""What a person sees of the suite: what runs now, each failure as it happens, and at the end what skips would need."""

import math
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from heapq import nlargest
from operator import itemgetter

import pytest

SECONDS_BETWEEN_LINES = 15.0
SLOWEST = 10


class Progress:
    """Takes the place of pytest's dots, which name nothing until all is over."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        """`terminal` is where pytest itself reports."""
        self._terminal = terminal
        # Its lines about failures would be cut off at the terminal's edge, often before they give a reason.
        terminal.reportchars = terminal.reportchars.translate({ord("f"): None, ord("E"): None})
        self._begun, self._shown = time.monotonic(), -math.inf
        self._running: dict[str, float] = {}
        self._total = self._ended = 0
        self._outcomes: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the tests of this process."""
        self._total = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Count the tests of all processes, each of which collects the same."""
        self._total = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note what runs."""
        self._running[nodeid] = time.monotonic()
        self._show()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Name a failure when it happens."""
        self._seconds[report.nodeid] += report.duration
        if report.failed:
            self._outcomes["failed"] += 1
            self._say(f"FAILED {report.nodeid} ({report.when}): {reason_of(report)}")
        elif report.skipped or report.when == "call":
            self._outcomes[report.outcome] += 1

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note what has ended."""
        self._running.pop(nodeid, None)
        self._ended += 1
        self._show()
        if self._ended == self._total:
            self._clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Let pytest count, and print nothing now."""
        if report.failed:
            return ("failed", "", "") if report.when == "call" else ("error", "", "")
        return (report.outcome, "", "") if report.skipped or report.when == "call" else None

    def pytest_terminal_summary(self) -> None:
        """Name what took longest, what this machine lacks, and last what failed, and why: all in one screen."""
        if len(self._seconds) > 10 * SLOWEST:
            self._terminal.write_sep("=", f"slowest {SLOWEST}")
            for test, seconds in nlargest(SLOWEST, self._seconds.items(), key=itemgetter(1)):
                self._terminal.write_line(f"{seconds:4.0f} s: {test}")
        skipped = Counter(lack_of(report) for report in self._terminal.stats.get("skipped", []))
        if skipped:
            self._terminal.write_sep("=", "skipped, for what this machine lacks")
        for lack, count in skipped.most_common():
            self._terminal.write_line(f"{count:4} {'test' if count == 1 else 'tests'}: {lack}")
        for kind, word in (("failed", "FAILED"), ("error", "ERROR")):
            for report in self._terminal.stats.get(kind, []):
                self._terminal.write_line(f"{word} {report.nodeid} - {reason_of(report)}", red=True)

    def _show(self) -> None:
        now = time.monotonic()
        pause = 0.2 if self._terminal.isatty else SECONDS_BETWEEN_LINES
        if now < self._shown + pause or not self._running:
            return
        self._shown = now
        minutes, seconds = divmod(int(now - self._begun), 60)
        longest = min(self._running, key=self._running.__getitem__)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._outcomes.items()))
        line = (
            f"{minutes}:{seconds:02} {self._ended} of {self._total} ({counts or 'none ended'}); "
            f"since {now - self._running[longest]:.0f} s: {longest}"
        )
        if self._terminal.isatty:
            self._terminal.rewrite(line[: shutil.get_terminal_size().columns - 1], erase=True)
        else:
            self._terminal.write_line(line)
        self._terminal.flush()

    def _say(self, line: str) -> None:
        self._clear()
        self._terminal.write_line(line, red=True)
        self._terminal.flush()

    def _clear(self) -> None:
        """Take back the line that is written over and over."""
        if self._terminal.isatty:
            self._terminal.rewrite("", erase=True)


def reason_of(report: pytest.TestReport) -> str:
    """The line of a failure that says most."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr)
    return text.strip().partition("\n")[0][:200]


def lack_of(report: pytest.TestReport) -> str:
    """What a skipped test names before its colon: the thing that is missing. After it comes what that is for."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ").partition(": ")[0]
