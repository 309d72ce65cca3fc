"""Whatever goes wrong with its database, the app stays up, tells the truth and loses nothing."""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pytest

from tests.chaos.faults import FAULTS, Fault, Told
from tests.chaos.findings import Finding
from tests.chaos.scene import Scene
from tests.chaos.writer import Writer
from tests.support.faults import SOON
from tests.support.server import Server

pytestmark = pytest.mark.slow

SECONDS_TO_COME_UP = 15
# the contract says 5, and a machine may be busy
SECONDS_TO_TELL = 10
# the contract says 10
SECONDS_TO_RETURN = 15
SECONDS_TO_STOP = 25
# before the fault and after it
ITEMS = 5
# while it lasts; some take long
ANSWERS = 2
# what uvicorn leaves to the shell, because it raises the signal again when it has finished
SIGTERM = -15

CELLS = [
    pytest.param(
        fault,
        moment,
        id=f"{fault.name}-{moment}".replace(" ", "-"),
        marks=[] if moment in fault.telling else [pytest.mark.thorough],
    )
    for fault in FAULTS
    for moment in ("start", "serving", "stop")
    if moment != "serving" or fault.while_serving
]


@pytest.mark.parametrize(("fault", "moment"), CELLS)
def test_it_stays_up_tells_the_truth_and_loses_nothing(
    fault: Fault, moment: str, scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    scene.moment = moment
    finding = Finding(fault.name, moment)
    play = {"start": play_at_start, "serving": play_while_serving, "stop": play_at_stop}[moment]
    fault.prepare(scene)
    try:
        with ExitStack() as healing:
            play(fault, scene, healing, finding)
    finally:
        record_property("finding", asdict(finding))
    assert not finding.wrong
    assert (finding.requests_lost, finding.rows_lost, finding.exit_code) == (0, 0, SIGTERM)


def play_at_start(fault: Fault, scene: Scene, healing: ExitStack, finding: Finding) -> None:
    """The fault is there when the app starts, and is healed while it serves."""
    if fault.falls_back:
        scene.environ |= SOON
    fault.inject(scene, healing)
    began = time.monotonic()
    with scene.app() as server:
        assert server.get("/").status_code == 200
        with Writer(server.url).at_work() as writer:
            report = first_report(server, lambda report: report["status"] != "starting" or fault.at_start.fits(report))
            finding.saw(report, fault.at_start, began)
            heal(fault, fault.stays or fault.healed, began, server, writer, healing, finding, scene)
        end(fault, scene, server, writer, finding)


def play_while_serving(fault: Fault, scene: Scene, healing: ExitStack, finding: Finding) -> None:
    """The fault comes while the app serves, and is healed."""
    assert fault.while_serving is not None
    with scene.app() as server:
        with Writer(server.url).at_work() as writer:
            serve_a_while(fault, server, writer)
            began = time.monotonic()
            fault.inject(scene, healing)
            report = first_report(server, fault.while_serving.fits, SECONDS_TO_TELL)
            finding.saw(report, fault.while_serving, began)
            heal(fault, fault.healed, began, server, writer, healing, finding, scene)
        end(fault, scene, server, writer, finding)


def play_at_stop(fault: Fault, scene: Scene, healing: ExitStack, finding: Finding) -> None:
    """The fault is there when the app is told to stop, and is healed afterwards."""
    if fault.while_serving is None:
        fault.inject(scene, healing)
    with scene.app() as server:
        with Writer(server.url).at_work() as writer:
            if fault.while_serving is None:
                server.health_when(fault.at_start.fits, SECONDS_TO_COME_UP)
            else:
                serve_a_while(fault, server, writer)
                fault.inject(scene, healing)
                writer.send_more()
            writer.server_stops(lambda: requests_in_hand(server))
            began = time.monotonic()
            finding.saw_end(server.stop(SECONDS_TO_STOP), began)
        healing.close()
        finding.count(writer, scene.earlier, scene.titles())


def requests_in_hand(server: Server) -> int:
    """How many requests the app is about to answer, but for the one that asks this."""
    (number,) = re.findall(r"^http_requests_in_progress (\S+)$", server.get("/metrics").text, re.MULTILINE)
    return int(float(number)) - 1


def first_report(
    server: Server, holds: Callable[[dict[str, Any]], bool], within: float = SECONDS_TO_COME_UP
) -> dict[str, Any]:
    """The first report of which `holds` is true, or the last one in this time."""
    deadline = time.monotonic() + within
    while not holds(report := server.health()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return report


def serve_a_while(fault: Fault, server: Server, writer: Writer) -> None:
    """Let the app serve as if nothing would ever happen."""
    server.health_when(fault.healed.fits, SECONDS_TO_COME_UP)
    writer.expect_items(ITEMS, SECONDS_TO_COME_UP)


def heal(
    fault: Fault,
    healed: Told,
    began: float,
    server: Server,
    writer: Writer,
    healing: ExitStack,
    finding: Finding,
    scene: Scene,
) -> None:
    """Let the fault last, heal it, and expect to be told so and to be served again."""
    writer.expect_answers(ANSWERS, SECONDS_TO_RETURN)
    time.sleep(max(0.0, began + fault.lasts - time.monotonic()))
    healing.close()
    at = time.monotonic()
    if scene.is_damaged_for_good and fault.while_serving is not None:
        finding.saw(server.health(), fault.while_serving, at, mark="+")
        return
    finding.saw(first_report(server, healed.fits, SECONDS_TO_RETURN), healed, at, mark="+")
    writer.expect_items(ITEMS, SECONDS_TO_RETURN)


def end(fault: Fault, scene: Scene, server: Server, writer: Writer, finding: Finding) -> None:
    """Stop the app, and compare what it shows, and what is in the database, with what the clients were told."""
    shown = server.titles()
    finding.exit_code = server.stop(SECONDS_TO_STOP)
    stored = shown if scene.is_in_memory else scene.titles()
    finding.count(writer, scene.earlier, stored)
    assert sorted(shown) == sorted(stored)
    # SQLite serves instead of PostgreSQL from the start, or never
    may_fall_back = scene.moment == "start" and fault.falls_back
    assert may_fall_back or not list(scene.project.path.rglob("*-*.db"))
