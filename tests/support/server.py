"""A real uvicorn process that serves a baked project, spoken to over HTTP."""

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.support.leaks import check_no_secret_in, secrets_in_headers, secrets_of
from tests.support.processes import Process, bare_environment, end, free_port, is_listening
from tests.support.warm import can_be_forked, fork

# What is promised, whatever the database does; tests of a start hold `seconds_to_listen` against it. All others wait
# longer, because what they look at is something else.
SECONDS_TO_LISTEN = 15
PATIENCE = 60
# Most tests wait for what the app finds out by looking at its database: let it look often.
LOOKING_OFTEN = {"DATABASE_CHECK_SECONDS": "0.2"}
# For tests whose PostgreSQL is away and stays away: SQLite serves after a second, not after ten.
IMPATIENT = {"DATABASE_CONNECT_SECONDS": "1"}


@dataclass(frozen=True)
class Server:
    """A running app. `client` knows its address; `get`, `post` and the others are its methods."""

    process: Process
    port: int
    client: httpx2.Client
    log_file: Path
    seconds_to_listen: float

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """Send a GET request."""
        return self.client.get(path, **options)

    def head(self, path: str, **options: Any) -> httpx2.Response:
        """Send a HEAD request."""
        return self.client.head(path, **options)

    def post(self, path: str, **options: Any) -> httpx2.Response:
        """Send a POST request."""
        return self.client.post(path, **options)

    def patch(self, path: str, **options: Any) -> httpx2.Response:
        """Send a PATCH request."""
        return self.client.patch(path, **options)

    def delete(self, path: str, **options: Any) -> httpx2.Response:
        """Send a DELETE request."""
        return self.client.delete(path, **options)

    def health(self) -> dict[str, Any]:
        """The health report as it is now."""
        report: dict[str, Any] = self.get("/health").json()
        return report

    def settled(self, within: float = 20) -> dict[str, Any]:
        """The first health report that is no longer `starting`."""
        return self.health_when(lambda report: report["status"] != "starting", within)

    def health_when(self, holds: Any, within: float = 20) -> dict[str, Any]:
        """The first health report of which `holds(report)` is true."""
        deadline = time.monotonic() + within
        while not holds(report := self.health()):
            if time.monotonic() > deadline:
                raise AssertionError(f"After {within} s the report was still {report}:\n{self.log()}")
            time.sleep(0.05)
        return report

    def titles(self) -> list[str]:
        """The titles of all items, newest first, page by page."""
        titles: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = self.get("/api/items", params={"limit": 100, "cursor": cursor}).json()
            titles += [item["title"] for item in page["items"]]
            cursor = page["next_cursor"]
        return titles

    def log(self) -> str:
        """What the process has printed by now: a line follows, sometimes much later, what it tells of."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def log_at_the_end(self) -> str:
        """Stop the process, and return everything that it printed."""
        self.stop()
        return self.log()

    def log_when_it_tells(self, text: str, within: float = 20, *, since: int = 0) -> str:
        """The log, as soon as this is in it, or in what follows so many characters."""
        deadline = time.monotonic() + within
        while text not in (log := self.log()[since:]):
            assert time.monotonic() < deadline, f"After {within} s the log did not tell {text!r}, but:\n{log}"
            time.sleep(0.02)
        return log

    def stop(self, patience: float = 30) -> int:
        """Send SIGTERM and return the exit code, which is negative where a signal ended the process."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience)

    def kill(self) -> None:
        """Kill it without any warning."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def serve(
    folder: Path,
    environ: Mapping[str, str] | None = None,
    *,
    app: str = "src.main:app",
    command: Sequence[str] | None = None,
    prefix: Sequence[str] = (),
    port: int | None = None,
) -> Iterator[Server]:
    """Start the app in `folder` with a bare environment, wait until it listens, and end it afterwards.

    `command` replaces uvicorn's command line; it must serve on the given `port`. `prefix` is put before it, such as
    `unshare` or `setpriv` with their arguments. It looks at its database often, unless `environ` says how often. At
    the end no secret that the app was given, or that `client` sent, may be anywhere in its log.
    """
    environ = environ or {}
    secrets = secrets_of(environ)

    def note_tokens(request: httpx2.Request) -> None:
        secrets.update(secrets_in_headers(request.headers))

    port = port or free_port()
    command = command or ["python", "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="served-") as private:
        home, log_file = Path(private, "home"), Path(private, "log")
        home.mkdir()
        full_environ = bare_environment(home) | LOOKING_OFTEN | dict(environ)
        process: Process
        with log_file.open("wb") as log:
            if not prefix and can_be_forked(command, environ):
                process = fork(command, folder, full_environ, log.fileno())
            else:
                process = subprocess.Popen(  # noqa: S603
                    [*prefix, *command],
                    cwd=folder,
                    env=full_environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        # the first fork waits for what it is forked from
        begun = time.monotonic()
        try:
            wait_until_listening(process, port, log_file)
            seconds_to_listen = time.monotonic() - begun
            with httpx2.Client(
                base_url=f"http://127.0.0.1:{port}",
                timeout=30,
                trust_env=False,
                # of no use without TLS, and it would load the certificates of all authorities
                verify=False,
                event_hooks={"request": [note_tokens]},
            ) as client:
                yield Server(process, port, client, log_file, seconds_to_listen)
        finally:
            end(process)
        check_no_secret_in(log_file.read_bytes(), secrets)


def wait_until_listening(process: Process, port: int, log_file: Path, patience: float = PATIENCE) -> None:
    """Return when the process accepts connections; fail with its log when it does not in time."""
    deadline = time.monotonic() + patience
    while not is_listening(port):
        if process.poll() is not None:
            problem = f"The server ended with {process.returncode} before it listened"
        elif time.monotonic() > deadline:
            problem = f"The server did not listen within {patience} s"
        else:
            time.sleep(0.02)
            continue
        raise AssertionError(f"{problem}:\n{log_file.read_text(encoding='utf-8', errors='replace')}")


def one_client_for_each_process(server: Server, processes: int) -> Iterator[httpx2.Client]:
    """Connect until each process of the server has answered; yield one connection to each.

    Each begins the ids of its requests in its own way.
    """
    met: set[str] = set()
    deadline = time.monotonic() + 60
    while len(met) < processes:
        assert time.monotonic() < deadline, f"only {len(met)} of {processes} processes answer:\n{server.log()}"
        with httpx2.Client(base_url=server.url, timeout=30, trust_env=False, verify=False) as client:
            process = client.get("/health").headers["X-Request-ID"].partition("-")[0]
            if process not in met:
                met.add(process)
                yield client


def wait_until_ready(client: httpx2.Client) -> None:
    """Return when the process at the other end serves a database; fail if it ever says that it cannot."""
    deadline = time.monotonic() + 60
    while (report := client.get("/health").json())["status"] != "ok":
        assert report["status"] == "starting", report
        assert time.monotonic() < deadline
        time.sleep(0.05)
