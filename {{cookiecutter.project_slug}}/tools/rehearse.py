"""`make rehearse`: see on this machine what a Space goes through when its PostgreSQL fails.

While clients write, a PostgreSQL that was started for this alone is killed, the application is
started again without it, and PostgreSQL comes back. Then every acknowledged row is looked for.
"""

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import httpx2

from tools.throwaway_postgresql import PostgreSQLFailed, throwaway_postgresql

FOLDER = Path(__file__).resolve().parents[1]
CLIENTS = 4
ROWS = 200
SECONDS_BETWEEN_REQUESTS = 0.02
# The longest change is a start without PostgreSQL, for which the application waits 10 s.
MAX_SECONDS = 60
IMAGE = "rehearsal"

Answer = Literal["acknowledged on PostgreSQL", "acknowledged on SQLite", "refused", "no answer"]


class Stopped(Exception):
    """The rehearsal cannot go on; the message says why."""


class Ledger:
    """What each client sent, and what it was answered."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}

    def count(self, answer: Answer) -> int:
        """Return how many requests were answered in this way."""
        return sum(given == answer for given in list(self.answers.values()))

    def settle(self, stored: list[str]) -> tuple[int, int, int]:
        """Return how many acknowledged rows are found, how many lost, and how many doubled."""
        times = Counter(stored)
        acknowledged = [
            text for text, answer in self.answers.items() if answer.startswith("acknowledged")
        ]
        found = sum(times[text] > 0 for text in acknowledged)
        doubled = sum(times[text] > 1 for text in self.answers)
        return found, len(acknowledged) - found, doubled

    def table(self, stored: list[str]) -> str:
        """Return what became of all rows, as text for a terminal."""
        found, lost, doubled = self.settle(stored)
        on_postgresql = self.count("acknowledged on PostgreSQL")
        on_sqlite = self.count("acknowledged on SQLite")
        lines = {
            "sent": f"{len(self.answers)}",
            "acknowledged": f"{on_postgresql + on_sqlite}"
            f" ({on_postgresql} by PostgreSQL, {on_sqlite} by SQLite while PostgreSQL was away)",
            "refused": f"{self.count('refused')} (503: not stored, to be sent again)",
            "no answer": f"{self.count('no answer')} (the application was being started again)",
            "found": f"{found} of the acknowledged, all of them now in PostgreSQL",
            "lost": f"{lost}",
            "doubled": f"{doubled}",
        }
        return "\n".join(f"{name:>14}  {value}" for name, value in lines.items())


class Application:
    """The application as on a Space: in its image where there is one, else as a process."""

    def __init__(self, engine: str | None, folder: Path, database_url: str) -> None:
        """`engine` is docker or podman, or None for a process; logs and data go to `folder`."""
        self._engine = engine
        self._log = folder / "log"
        self.token = secrets.token_urlsafe()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._environment = {
            "API_TOKEN": self.token,
            "DATABASE_URL": database_url,
            "SPACE_ID": "rehearsal/rehearsal",
            # Those of an .env file belong to the real application.
            "DATABASE_FALLBACK": "auto",
            "SNAPSHOT_URL": "",
            "SQLITE_DIR": "" if engine else str(folder),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers a little later."""
        command = ["uvicorn", "src.main:app", "--host", "127.0.0.1", "--port", str(self._port)]
        env_file = [f"--env-file={file}" for file in [FOLDER / ".env"] if file.exists()]
        if self._engine:
            names = [part for name in self._environment for part in ("--env", name)]
            options = ["--rm", "--network=host", f"--name={IMAGE}-{self._port}", *names, *env_file]
            command = [self._engine, "run", *options, IMAGE, *command]
        else:
            command = [sys.executable, "-m", *command, *env_file]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=FOLDER, env=os.environ | self._environment, stdout=log, stderr=log
            )

    def stop(self) -> None:
        """Stop it as the Hub does, and return when it has ended."""
        if self._process:
            # docker and podman pass this on to what they run.
            self._process.terminate()
            try:
                self._process.wait(MAX_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process = None

    def last_lines(self) -> str:
        """Return the end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def health(self) -> dict[str, Any]:
        """Return what /health says, of the database too, or nothing while nobody answers."""
        try:
            # Over plain HTTP: to verify, each call would load the certificates of all authorities.
            report = httpx2.get(
                f"{self.url}/health", timeout=5, trust_env=False, verify=False
            ).json()
        except httpx2.TransportError:
            return {}
        return {**report, **report["database"]}


class Clients:
    """Write rows until they are told to stop, and note what they are answered."""

    def __init__(self, application: Application, route: str, text_field: str) -> None:
        self.ledger = Ledger()
        self.refusal = ""
        self._url = application.url + route
        self._field = text_field
        self._headers = {"X-API-Token": application.token}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write) for _ in range(CLIENTS)]

    def __enter__(self) -> "Clients":
        """Start to write."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End after the requests that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        with httpx2.Client(headers=self._headers, timeout=30, trust_env=False) as client:
            while not self._stop.wait(SECONDS_BETWEEN_REQUESTS):
                text = f"Rehearsal {uuid.uuid4()}"
                self.ledger.answers[text] = "no answer"
                try:
                    answer = client.post(self._url, json={self._field: text})
                except httpx2.TransportError:
                    continue
                if answer.is_success:
                    is_fallback = answer.headers.get("X-Database") == "fallback"
                    self.ledger.answers[text] = (
                        "acknowledged on SQLite" if is_fallback else "acknowledged on PostgreSQL"
                    )
                else:
                    self.ledger.answers[text] = "refused"
                    if answer.status_code != 503:
                        self.refusal = f"{answer.status_code}: {answer.text[:200]}"


class Rehearsal:
    """Tells what happens while it happens."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.url = ""
        """Where the application answers, once it runs."""
        self._say = say
        self._started = time.monotonic()

    def tell(self, text: str) -> None:
        """Print a line with the time that has gone by."""
        self._say(f"{time.monotonic() - self._started:6.1f} s  {text}")

    def run(self, engine: str | None, route: str, text_field: str) -> bool:
        """Play the whole story, print the ledger, and return whether nothing was lost or doubled.

        Raise Stopped or PostgreSQLFailed if it cannot be played.
        """
        with ExitStack() as stack:
            postgresql = stack.enter_context(throwaway_postgresql())
            self.tell("PostgreSQL runs, for this rehearsal alone")
            if engine:
                self.tell(f"building the image with {engine} ...")
                build_image(engine)
            folder = stack.enter_context(TemporaryDirectory(prefix="rehearsal-"))
            application = Application(engine, Path(folder), postgresql.url())
            stack.callback(application.stop)
            application.start()
            self.url = application.url
            self._wait(application, "PostgreSQL serves", status="ok", pending_rows=0)
            clients = stack.enter_context(Clients(application, route, text_field))
            self._wait_for_rows(application, clients, "acknowledged on PostgreSQL")

            postgresql.stop()
            self.tell("PostgreSQL is killed")
            self._wait(application, "/health says so", status="unavailable")
            application.stop()
            self.tell("the application is stopped, and started again without PostgreSQL")
            application.start()
            self._wait(
                application, "SQLite serves in its place", status="degraded", backend="sqlite"
            )
            self._wait_for_rows(application, clients, "acknowledged on SQLite")

            postgresql.start()
            self.tell("PostgreSQL is back")
            with_all_rows = "PostgreSQL serves, and has the rows of SQLite"
            self._wait(application, with_all_rows, status="ok", pending_rows=0)
            self._wait_for_rows(application, clients, "acknowledged on PostgreSQL")
            clients.__exit__()
            stored = list(stored_texts(application, route, text_field))
        self._say(f"\n{clients.ledger.table(stored)}\n")
        _, lost, doubled = clients.ledger.settle(stored)
        return lost == doubled == 0

    def _wait(self, application: Application, text: str, **expected: object) -> None:
        """Wait until /health says this, and tell how long that took."""
        started = time.monotonic()
        self._until(application, text, lambda: expected.items() <= application.health().items())
        self.tell(f"{text} (after {time.monotonic() - started:.1f} s)")

    def _wait_for_rows(self, application: Application, clients: Clients, answer: Answer) -> None:
        """Wait until ROWS more rows were acknowledged."""
        goal = clients.ledger.count(answer) + ROWS

        def is_enough() -> bool:
            if clients.refusal:
                raise Stopped(
                    f"The application answered a write with {clients.refusal}\nName a route that"
                    " takes a text and lists pages as the sample does, and its field:"
                    " make rehearse ROUTE=/api/notes FIELD=title"
                )
            return clients.ledger.count(answer) >= goal

        self._until(application, f"{ROWS} rows {answer}", is_enough)
        self.tell(f"{clients.ledger.count(answer)} rows {answer}")

    @staticmethod
    def _until(application: Application, text: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + MAX_SECONDS
        while not condition():
            if application.has_ended or time.monotonic() > deadline:
                raise Stopped(
                    f"{application.last_lines()}\n\nWaited in vain for: {text}."
                    " The lines above are the end of the application's log."
                )
            time.sleep(0.05)


def stored_texts(application: Application, route: str, text_field: str) -> Iterator[str]:
    """Yield the text of each stored row, page by page."""
    cursor = ""
    while cursor is not None:
        parameters = {"limit": "100", "cursor": cursor} if cursor else {"limit": "100"}
        answer = httpx2.get(application.url + route, params=parameters, timeout=30, trust_env=False)
        page = answer.raise_for_status().json()
        yield from (item[text_field] for item in page["items"])
        cursor = page["next_cursor"]


def container_engine() -> str | None:
    """Return docker or podman if one works here and reaches this machine's loopback address."""
    if sys.platform != "linux":  # Elsewhere, containers run in a virtual machine.
        return None
    for engine in ("docker", "podman"):
        if shutil.which(engine):
            done = subprocess.run([engine, "info"], capture_output=True)
            if done.returncode == 0:
                return engine
    return None


def build_image(engine: str) -> None:
    """Build the application's image; raise Stopped with the end of the output if that fails."""
    done = subprocess.run(
        [engine, "build", "--quiet", f"--tag={IMAGE}", "."],
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        lines = "\n".join(done.stdout.splitlines()[-15:])
        raise Stopped(f"{lines}\n\nThe image cannot be built. Without it: make rehearse IMAGE=off")


def main() -> int:
    """Play the rehearsal; return 1 if a row was lost or doubled."""
    parser = argparse.ArgumentParser(prog="make rehearse", description=__doc__)
    parser.add_argument("--image", choices=("auto", "off"), default="auto")
    parser.add_argument("--route", default="/api/items")
    parser.add_argument("--field", default="title")
    arguments = parser.parse_args()
    engine = container_engine() if arguments.image == "auto" else None
    rehearsal = Rehearsal(lambda text: print(text, flush=True))
    try:
        is_whole = rehearsal.run(engine, arguments.route, arguments.field)
    except (Stopped, PostgreSQLFailed) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    print("Nothing was lost." if is_whole else "Rows were lost or doubled.")
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
