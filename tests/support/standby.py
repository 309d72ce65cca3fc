"""A second PostgreSQL that follows another one, and takes its place when it is promoted."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.postgres import PASSWORD, SECONDS_TO_START, USER, Postgres, run_program


@contextmanager
def new_standby(primary: Postgres) -> Iterator[Postgres]:
    """Copy a server, let the copy follow it, and end with it.

    From now on the primary acknowledges only what the standby has applied.
    """
    folder = Path(tempfile.mkdtemp(prefix="standby-"))
    try:
        if primary.account:
            shutil.chown(folder, primary.account)
        standby = Postgres(primary.programs, folder, primary.account)
        copy_data(primary, standby)
        standby.start()
        try:
            wait_for_standby(primary)
            yield standby
        finally:
            standby.stop()
    finally:
        shutil.rmtree(folder)


def copy_data(primary: Postgres, standby: Postgres) -> None:
    """Copy the cluster, with what the copy needs to follow it through a replication slot."""
    source = f"host=127.0.0.1 port={primary.port} user={USER} password='{PASSWORD}'"
    run_program(
        standby,
        "pg_basebackup",
        f"--pgdata={standby.folder / 'data'}",
        f"--dbname={source}",
        "--write-recovery-conf",
        "--create-slot",
        "--slot=standby",
        "--checkpoint=fast",
        "--no-sync",
    )


def wait_for_standby(primary: Postgres) -> None:
    """Let the primary wait for its standby at each COMMIT, and return when it does."""
    with primary.connect() as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
        connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + SECONDS_TO_START
        state = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        while connection.execute(state).fetchone() is None:
            assert time.monotonic() < deadline, primary.log()
            time.sleep(0.05)


def promote(standby: Postgres) -> None:
    """Let the standby be a primary, and return when it is one."""
    with standby.connect() as connection:
        assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
