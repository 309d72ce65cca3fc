"""On disks that cannot be written to, or are full, data routes work or say 503, and no answer is a lie."""

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from space_runtime.backends import SQLITE, sqlite
from space_runtime.files import locations
from sqlalchemy import URL, text
from sqlalchemy.exc import DatabaseError, OperationalError

from tests.support import disks
from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Postgres
from tests.support.server import IMPATIENT, Server, one_client_for_each_process

pytestmark = pytest.mark.slow
# What is promised is held where the machine has time.
SECONDS_TO_TELL = pytest.mark.parametrize("most", [20, pytest.param(5, marks=pytest.mark.alone)])


def create(server: Server, title: str, description: str | None = None) -> int:
    return server.post("/api/items", json={"title": title, "description": description}).status_code


def test_with_no_writable_disk_it_works_in_memory_and_says_so(project: BakedProject) -> None:
    with project.boot(in_place=True, prefix=disks.read_only(writable="/dev/shm")) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("degraded", "no_writable_path")
        assert report["database"]["persistent"] is False
        assert "lost when the container restarts" in report["database"]["detail"]
        assert create(server, "in memory") == 201
        assert server.titles() == ["in memory"]
        assert server.stop() in (0, -15)


@pytest.mark.parametrize("url", [None, "postgresql://a:b@127.0.0.1:1/c"], ids=["unset", "away"])
def test_with_nothing_writable_at_all_it_answers_503_and_says_why(project: BakedProject, url: str | None) -> None:
    environ = IMPATIENT | ({"DATABASE_URL": url} if url else {})
    with project.boot(environ, in_place=True, prefix=disks.read_only()) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("unavailable", "no_writable_path")
        assert server.get("/").status_code == 200
        assert server.get("/health").status_code == 503
        assert create(server, "nowhere") == 503
        assert server.stop() in (0, -15)
        assert server.log().count("database unavailable") == 1


def test_with_only_the_temporary_directory_writable_it_works_there(project: BakedProject, tmp_path: Path) -> None:
    temporary = tmp_path / "only-here"
    temporary.mkdir()
    prefix = disks.read_only(writable=str(temporary))
    with project.boot({"TMPDIR": str(temporary)}, in_place=True, prefix=prefix) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("ok", "unset")
        # that directory is in memory here
        assert report["database"]["persistent"] is False
        assert create(server, "in the temporary directory") == 201


def test_a_directory_that_was_asked_for_and_cannot_be_written_is_named(project: BakedProject, tmp_path: Path) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0o500)
    environ = {"SQLITE_DIR": str(forbidden)}
    with project.boot(environ, in_place=True, prefix=disks.without_roots_rights()) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("degraded", "no_writable_path")
        assert create(server, "elsewhere") == 201
        server.stop()
        assert "SQLITE_DIR cannot be written to: SQLite is kept elsewhere" in server.log()


@pytest.mark.parametrize(
    ("link", "target", "named"),
    [
        pytest.param("data", "data", "data", id="a folder that leads to itself"),
        pytest.param("data", "/proc/nowhere", "data", id="a folder that is not there", marks=pytest.mark.thorough),
        pytest.param("data/app.db", "app.db", "data", id="a file that leads to itself"),
        pytest.param(
            "data/app.db", "/proc/nowhere/app.db", "data", id="a file that is not there", marks=pytest.mark.thorough
        ),
    ],
)
def test_a_link_that_leads_nowhere_is_named(project: BakedProject, link: str, target: str, named: str) -> None:
    (project.path / link).parent.mkdir(exist_ok=True)
    (project.path / link).symlink_to(target)
    with project.boot(in_place=True) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("degraded", "no_writable_path"), server.log()
        assert create(server, "elsewhere") == 201
        server.log_when_it_tells(f"{named} cannot be written to: SQLite is kept elsewhere")


IMAGE = {"container": "oci"}
ON_ALL = ["overlay", "fuse.fuse-overlayfs", "btrfs", "zfs", "xfs", "ext4", "9p"]
VOLUME = "30 22 8:1 {root} /home/user/app/data rw,relatime shared:1 master:2 - {kind} /dev/sda1 rw"
EMPTY_DIR = "/var/lib/kubelet/pods/3f/volumes/kubernetes.io~empty-dir/data"


@pytest.mark.parametrize(
    ("volume", "environ", "outlives"),
    [
        ("", {}, False),
        ("", IMAGE, False),
        ("", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        (VOLUME.format(root="/copies", kind="ext4"), IMAGE, True),
        (VOLUME.format(root="/", kind="btrfs"), {}, True),
        (VOLUME.format(root="/", kind="tmpfs"), IMAGE, False),
        (VOLUME.format(root=EMPTY_DIR, kind="ext4"), IMAGE, False),
    ],
    ids=["no image", "an image", "Kubernetes", "volume", "volume, no image", "in memory", "emptyDir"],
)
@pytest.mark.parametrize("kind", ON_ALL)
def test_in_a_container_only_what_a_volume_holds_outlives_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, volume: str, environ: Mapping[str, str], outlives: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 0:45 / / rw,relatime - {kind} none rw\n{volume}")
    monkeypatch.setattr(sqlite, "_MOUNTS", mounts)
    monkeypatch.setattr(locations, "_MARKS", ())
    for name in (*IMAGE, "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    is_on_a_disk = not volume and not environ and not kind.endswith(("overlay", "overlayfs"))
    assert locations.outlives_container(Path("/home/user/app/data/app.db")) is (outlives or is_on_a_disk)


def test_the_image_says_that_it_is_one(bake: Bakery) -> None:
    (told,) = re.findall(r"^ENV (?:.*\\\n)*.*", bake().read("Dockerfile"), re.MULTILINE)
    assert {f"{name}={value}" for name, value in IMAGE.items()} <= set(told.split())


@pytest.mark.parametrize(
    "url",
    [pytest.param("sqlite:////proc/app.db", marks=pytest.mark.thorough), "sqlite:////no-such-directory/app.db"],
)
def test_an_sqlite_path_that_cannot_be_written_is_replaced_and_reported(project: BakedProject, url: str) -> None:
    prefix = disks.read_only(writable=str(project.path / "data"))
    (project.path / "data").mkdir()
    with project.boot({"DATABASE_URL": url}, in_place=True, prefix=prefix) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("degraded", "no_writable_path")
        assert create(server, "elsewhere") == 201
        server.log_when_it_tells("the path in DATABASE_URL cannot be written to: SQLite is kept elsewhere")


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"SQLITE_DIR": "~nobody-at-all"}, marks=pytest.mark.thorough),
        {"DATABASE_URL": "sqlite:///~nobody-at-all/app.db"},
    ],
    ids=["SQLITE_DIR", "DATABASE_URL"],
)
def test_the_home_of_a_user_who_does_not_exist_is_a_folder_like_any_other(
    project: BakedProject, environ: dict[str, str]
) -> None:
    with project.boot(environ, in_place=True) as server:
        assert server.settled()["status"] == "ok"
        assert create(server, "stored") == 201


def test_a_directory_that_may_not_be_entered_is_passed_over(
    project: BakedProject, postgres: Postgres, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    environ = {"SQLITE_DIR": str(closed / "inside"), "DATABASE_URL": postgres.create_database()}
    prefix = disks.without_roots_rights()
    with project.boot(environ, prefix=prefix) as server:
        assert server.settled()["status"] == "ok"
    away = IMPATIENT | {"DATABASE_URL": "postgresql://a:b@127.0.0.1:1/c"}
    with project.boot(environ | away, prefix=prefix) as server:
        assert server.settled()["database"]["backend"] == "sqlite"


@SECONDS_TO_TELL
def test_on_a_full_disk_no_write_is_acknowledged_that_was_not_stored(
    project: BakedProject, tmp_path: Path, most: float
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    environ = {"SQLITE_DIR": str(folder)}
    with project.boot(environ, in_place=True, prefix=disks.small(str(folder), kilobytes=700)) as server:
        server.settled()
        # more than fit
        answers = [create(server, str(number), "x" * 2000) for number in range(400)]
        assert set(answers) == {201, 503}
        stored = set(server.titles())
        acknowledged = {str(number) for number, status in enumerate(answers) if status == 201}
        assert stored == acknowledged
        report = server.health_when(lambda report: report["status"] != "ok", within=most)
        assert report["database"]["reason"] == "disk_full"
        assert server.get("/health/ready").status_code == 503


def test_a_disk_that_is_full_from_the_start_is_passed_over(project: BakedProject, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    with project.boot({"SQLITE_DIR": str(folder)}, prefix=disks.small(str(folder), kilobytes=4)) as server:
        assert server.settled()["status"] in ("ok", "degraded")
        assert create(server, "elsewhere") == 201


@pytest.mark.parametrize("ended", ["killed", pytest.param("stopped", marks=pytest.mark.thorough)])
def test_rows_on_a_disk_over_its_quota_are_not_hidden_by_an_empty_database_elsewhere(
    project: BakedProject, tmp_path: Path, ended: str
) -> None:
    with project.boot(in_place=True) as server:
        server.settled()
        assert create(server, "within the quota") == 201
        server.kill() if ended == "killed" else server.stop()
    data = project.path / "data"
    used = sum(file.stat().st_size for file in data.iterdir())
    with project.boot(disks.with_quota(data, used, library_in=tmp_path), in_place=True) as server:
        server.settled()
        if ended == "killed":
            assert server.titles() == ["within the quota"]
        else:
            # a file that was closed can be read only if there is room for the index of its log
            assert server.get("/api/items").status_code == 503
        # the log has some room that was used before
        within = ["within the quota"]
        while create(server, title := f"row {len(within)}") == 201:
            within.insert(0, title)
            assert len(within) < 100
        report = server.health_when(lambda report: report["status"] == "unavailable")
        assert report["database"]["reason"] == "disk_full"
        if ended == "killed":
            assert server.titles() == within
    with project.boot(in_place=True) as server:
        assert server.settled()["status"] == "ok"
        assert create(server, "with a larger quota") == 201
        assert server.titles() == ["with a larger quota", *within]


@SECONDS_TO_TELL
def test_a_file_that_becomes_read_only_refuses_writes_and_still_shows_its_rows(
    project: BakedProject, most: float
) -> None:
    with project.boot(in_place=True) as server:
        assert server.settled()["status"] == "ok"
        assert create(server, "before") == 201
        # not app.db-shm, which is memory: the kernel ends a process that writes to an immutable mapping
        with disks.immutable([f"{project.path}/data/app.db", f"{project.path}/data/app.db-wal"]):
            assert create(server, "after") == 503
            report = server.health_when(lambda report: report["status"] == "unavailable", within=most)
            assert report["database"]["reason"] in ("read_only", "disk_full")
            assert server.titles() == ["before"]
        server.health_when(lambda report: report["status"] == "ok")
        answer = server.post("/api/items", json={"title": "writable again"})
        assert answer.status_code == 201, f"{answer.text}\n{server.log()}"


def test_a_connection_that_was_opened_while_its_file_was_read_only_is_replaced(tmp_path: Path) -> None:
    engine = SQLITE.create_engine(URL.create("sqlite", database=f"{tmp_path}/app.db"), {}, 1)
    SQLITE.prepare_to_serve(engine, transaction_pooler=False)
    with closing(sqlite3.connect(tmp_path / "app.db")) as other:
        # the journal stays there, as long as somebody has the file open
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE notes (number INTEGER)")
        files = [f"{tmp_path}/app.db", f"{tmp_path}/app.db-wal"]
        refused = pytest.raises(OperationalError, match="readonly")
        with disks.immutable(files), refused, engine.begin() as connection:
            connection.execute(text("INSERT INTO notes VALUES (1)"))
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO notes VALUES (2)"))
        assert other.execute("SELECT number FROM notes").fetchall() == [(2,)]
    engine.dispose()


def test_connections_that_read_a_damaged_file_are_replaced_when_it_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "app.db"
    engine = SQLITE.create_engine(URL.create("sqlite", database=str(file)), {}, 2)
    SQLITE.prepare_to_serve(engine, transaction_pooler=False)
    with engine.connect() as one, engine.connect() as another, closing(sqlite3.connect(file)) as other:
        one.execute(text("CREATE TABLE notes (number INTEGER)"))
        one.commit()
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for connection in (one, another):
            connection.execute(text("SELECT number FROM notes"))
            connection.rollback()
        # so that all of them read the first page again, from the file
        other.execute("CREATE TABLE others (number INTEGER)")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sound = file.read_bytes()
        file.write_bytes(b"garbage." * (len(sound) // 8))
        for connection in (one, another):
            with pytest.raises(DatabaseError, match="not a database"):
                connection.execute(text("SELECT number FROM notes"))
    file.write_bytes(sound)
    with engine.begin() as one, engine.connect().execution_options(reading=True) as another:
        one.execute(text("INSERT INTO notes VALUES (1)"))
        assert another.execute(text("SELECT number FROM notes")).all() == []
    engine.dispose()


def test_rows_on_a_disk_that_became_read_only_are_not_replaced_in_silence(
    project: BakedProject, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with project.boot(in_place=True) as server:
        server.settled()
        assert create(server, "on the first disk") == 201
        server.stop()
    prefix = disks.read_only(writable=str(temporary))
    with project.boot({"TMPDIR": str(temporary)}, in_place=True, prefix=prefix) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("degraded", "no_writable_path")
        assert create(server, "on the other disk") == 201


def test_a_damaged_file_is_set_aside_and_reported(project: BakedProject) -> None:
    (project.path / "data").mkdir()
    (project.path / "data" / "app.db").write_bytes(b"this is no database" * 1000)
    with project.boot(in_place=True) as server:
        report = server.settled()
        assert (report["status"], report["database"]["reason"]) == ("degraded", "corrupt")
        assert create(server, "in a new file") == 201
    kept = list((project.path / "data").glob("app.db.damaged-*"))
    assert [path.read_bytes()[:19] for path in kept] == [b"this is no database"]


def test_a_file_that_is_removed_while_it_serves_takes_no_more_rows_with_it(project: BakedProject) -> None:
    with project.boot(in_place=True) as server:
        server.settled()
        assert create(server, "in the file that goes") == 201
        for file in (project.path / "data").glob("app.db*"):
            file.unlink()
        server.health_when(lambda _: (project.path / "data" / "app.db").exists())
        server.health_when(lambda _: server.get("/health/ready").status_code == 200)
        assert create(server, "in the one that comes") == 201
        assert "was removed while it served" in server.log_at_the_end()
    with project.boot(in_place=True) as server:
        server.settled()
        assert server.titles() == ["in the one that comes"]


def test_a_file_locked_by_another_process_answers_503_until_it_is_free(project: BakedProject) -> None:
    with project.boot(in_place=True) as server:
        server.settled()
        with closing(sqlite3.connect(project.path / "data" / "app.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert create(server, "while locked") == 503
            other.execute("ROLLBACK")
        server.health_when(lambda report: report["status"] == "ok")
        assert create(server, "when free") == 201


def test_several_workers_share_one_memory_which_ends_with_them(project: BakedProject) -> None:
    environ = {"DATABASE_URL": "sqlite://", "WEB_CONCURRENCY": "2"}
    for _ in range(2):
        with project.boot(environ, in_place=True) as server:
            stored: set[str] = set()
            for worker, client in enumerate(one_client_for_each_process(server, 2)):
                report = replace(server, client=client).settled()
                assert (report["status"], report["database"]["persistent"]) == ("ok", False)
                assert "It lives in memory" in report["database"]["detail"]
                titles = {f"{worker}-{number}" for number in range(10)}
                assert {client.post("/api/items", json={"title": title}).status_code for title in titles} == {201}
                stored |= titles
            pages = [client.get("/api/items?limit=100") for client in one_client_for_each_process(server, 2)]
            listed = [{item["title"] for item in page.json()["items"]} for page in pages]
            assert listed == [stored] * 2
            # not those of other tests that run meanwhile
            files = f"{project.path.name}-*/memory-{server.process.pid}.db"
            assert list(Path("/dev/shm").glob(files))
            server.stop()
        assert not list(Path("/dev/shm").glob(files))
