"""The resolver holds every row of the corpus, and survives what nobody wrote down."""

import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event

PROJECT = Path(__file__).parents[1] / "{{cookiecutter.project_slug}}"
sys.path.insert(0, str(PROJECT))

from space_runtime.url.resolution import Resolution  # noqa: E402
from space_runtime.url.vocabulary import UnusableURLError  # noqa: E402
from src.database.resolver import DatabaseURLResolver  # noqa: E402
from src.database.session import build_engine  # noqa: E402

CORPUS = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "database-urls.jsonl").read_text().splitlines()
]
HARD = [row for row in CORPUS if not row["debatable"]]
DEBATABLE = [row for row in CORPUS if row["debatable"]]
VALUES = [row["value"] for row in CORPUS if row["value"] and len(row["value"]) < 2_000]
MAY_BE_ADDED = {
    "connect_timeout",
    "application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "gssencmode",
}
# A password that cannot occur in a code, a sentence or a keyword.
MARKER = "Zq7\u00e9Kw9Jx4"
# Seconds of the processor's, so that nothing that runs beside it counts.
SLOWEST = 0.050
REPEATABLE = settings(deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def resolve(value: str | None, **environ: str) -> Resolution:
    """Resolve one value of DATABASE_URL."""
    return DatabaseURLResolver(environ if value is None else {"DATABASE_URL": value, **environ}).resolve()


class _CapturedError(Exception):
    """Stops a connection attempt before it leaves the process."""


def what_the_driver_receives(resolution: Resolution) -> dict[str, Any]:
    """Return the arguments with which psycopg would connect."""
    received: dict[str, Any] = {}
    engine = build_engine(resolution)

    @event.listens_for(engine, "do_connect")
    def capture(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        received.update(parameters, arguments=tuple(arguments))
        raise _CapturedError

    with pytest.raises(_CapturedError):
        engine.connect()
    assert "psycopg2" not in sys.modules
    return received


def differences(resolution: Resolution, expected: dict[str, Any]) -> list[str]:
    """Return what is not as expected, in the corpus' own terms."""
    if expected["expect"] == "fallback":
        if resolution.source != "fallback" or resolution.url is not None:
            return ["a fallback was expected"]
        wanted = expected.get("reason_any") or [expected["reason"]]
        return [] if resolution.reason in wanted else [f"reason {resolution.reason}"]
    if resolution.source != "environment" or resolution.backend != expected["expect"]:
        return [f"{resolution.backend} from {resolution.source}, {resolution.reason}"]
    assert resolution.url is not None
    if expected["expect"] == "sqlite":
        wanted = expected["database"] or ":memory:"
        return [] if (resolution.url.database or ":memory:") == wanted else ["path"]
    return _driver_differences(what_the_driver_receives(resolution), expected)


def _driver_differences(received: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    assert not any(received.pop("arguments"))
    received.pop("context", None)  # psycopg's adapters, which SQLAlchemy always passes
    host, port = received.pop("host", None) or "", received.pop("port", None)
    found = {
        "host": host if host.startswith("/") else host.lower(),
        "port": None if str(port).strip(",") in {"None", "5432", ""} else str(port),
        "database": received.pop("dbname", None) or "",
        "username": received.pop("user", None) or "",
        "password": received.pop("password", None) or "",
    }
    host, port = expected.get("host") or "", expected.get("port")
    wanted = {
        "host": host if host.startswith("/") else host.lower(),
        "port": None if str(port).strip(",") in {"None", "5432", ""} else str(port),
        "database": expected.get("database") or "",
        "username": expected.get("username") or "",
        "password": expected.get("password") or "",
    }
    query = expected.get("query") or {}
    left = {name: text for name, text in received.items() if name not in MAY_BE_ADDED - set(query)}
    return [name for name in wanted if found[name] != wanted[name]] + (
        [] if left == query else [f"query {sorted(left)}"]
    )


def shown(resolution: Resolution) -> str:
    """Return everything that the rest of the project prints of a resolution."""
    return " ".join([repr(resolution), str(resolution), f"{resolution}", resolution.message])


@pytest.mark.parametrize("row", HARD, ids=[row["id"] for row in HARD])
def test_every_row_that_is_not_debatable_holds(row: dict[str, Any]) -> None:
    """The driver receives what the corpus says, or the reason is one that it names."""
    assert differences(resolve(row["value"]), row) == []


@pytest.mark.parametrize("row", DEBATABLE, ids=[row["id"] for row in DEBATABLE])
def test_debatable_rows_come_out_one_of_the_reasonable_ways(row: dict[str, Any]) -> None:
    """Either what the corpus prefers, or an alternative that it accepts."""
    resolution = resolve(row["value"])
    outcomes = [row, *row["alternatives"]]
    assert any(differences(resolution, outcome) == [] for outcome in outcomes)


@pytest.mark.parametrize("row", CORPUS, ids=[row["id"] for row in CORPUS])
def test_nothing_forbidden_is_shown(row: dict[str, Any]) -> None:
    """No secret of the corpus reaches a repr, a message or a repair."""
    resolution = resolve(row["value"], SPACE_ID="someone/something")
    assert not [text for text in row["forbidden"] if text in shown(resolution)]


def _mutated(chance: Random, value: str) -> str:
    """Return a corpus value with a few characters changed."""
    text = value
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(text))
        noise = chance.choice(NOISE)
        text = text[:at] + noise + text[at + chance.choice([0, 0, 1, 3]) :]
    return text


NOISE = [
    *"@:/?#%&=[]{}<>$'\"`\\;, \t\n\r\0\x1b\x85\u200b\u00a0\ufeff\udcff\u00e9\u2028",
    "://",
    "%00",
    "%ff",
    "${X}",
    "postgresql://",
    "?sslmode=require",
    "&host=",
    "&port=",
    "[::1]",
    "@@@@",
    "a" * 300,
    ",h2:1",
    "&service=x",
    "&ssl=1&schema=x",
]
PIECE = st.text(min_size=1, max_size=12)
URLS = st.builds(
    "{}://{}:{}@{}:{}/{}?{}={}".format,
    st.sampled_from(["postgres", "postgresql", "jdbc:postgresql", "postgresql+asyncpg", "sqlite"]),
    PIECE,
    PIECE,
    st.one_of(PIECE, st.sampled_from(["h", "db.example.com", "[::1]", "%2Ftmp", "a,b:1"])),
    st.one_of(PIECE, st.integers(-1, 70_000)),
    PIECE,
    st.one_of(PIECE, st.sampled_from(["host", "port", "user", "options", "plugin", "hostaddr"])),
    PIECE,
)
MUTATIONS = st.builds(_mutated, st.randoms(use_true_random=False), st.sampled_from(VALUES))
ANYTHING = st.one_of(st.text(max_size=200), MUTATIONS, URLS)


LONG = [
    "'" * 8_000,
    "postgresql://" + "@" * 8_000,
    "postgresql://" + "a@" * 4_000 + "/",
    "postgresql://u:p@h/d?" + "a=b&" * 2_000,
    "postgresql://u:" + "?a=b" * 2_000 + "@h/d",
    "postgresql://u:p@" + "h," * 4_000 + "/d",
    "postgresql://u:p@h/d" + " " * 8_000 + "#",
    "postgresql://u:p@h/d" + "\n" * 8_000 + "x",
    "sqlite:///" + ":" * 8_000,
    "postgresql://u:p@h/" + "%" * 8_000,
    "postgresql://u:p@h:" + "9" * 8_000 + "/d",
    "x" * 100_000,
    " " * 100_000,
    "host=" + "a=b " * 2_000,
    "${" * 4_000,
    "a." * 4_000,
]


@pytest.mark.parametrize("value", LONG, ids=[value[:24] for value in LONG])
def test_a_long_value_gives_a_resolution_at_once(value: str) -> None:
    check_that_it_is_resolved(value)


@pytest.mark.slow
@settings(REPEATABLE, max_examples=2_000)
@given(value=ANYTHING)
def test_any_string_at_all_gives_a_resolution(value: str) -> None:
    check_that_it_is_resolved(value)


@pytest.mark.slow
@pytest.mark.thorough
@settings(REPEATABLE, max_examples=12_000)
@given(value=ANYTHING)
def test_any_string_of_thousands_gives_a_resolution(value: str) -> None:
    check_that_it_is_resolved(value)


def check_that_it_is_resolved(value: str) -> None:
    """No exception, not even one that `resolve` would catch; no delay; a URL that works."""
    begin = time.thread_time()
    resolution = resolve(value)
    elapsed = time.thread_time() - begin
    assert elapsed < SLOWEST or _best_of_three(value) < SLOWEST
    assert _reason_without_safety_net(value) == resolution.reason
    assert (resolution.url is None) == (resolution.source == "fallback")
    assert (resolution.reason is None) == (resolution.source == "environment")
    if resolution.url is not None:
        create_engine(resolution.url)


def _reason_without_safety_net(value: str) -> str | None:
    """Return the reason, letting through whatever exception `resolve` would have caught."""
    try:
        return DatabaseURLResolver({"DATABASE_URL": value})._read().reason
    except UnusableURLError as problem:
        return problem.reason


def _best_of_three(value: str) -> float:
    """Return the time without the collector's pauses, which are not the resolver's."""
    times = []
    for _ in range(3):
        begin = time.thread_time()
        resolve(value)
        times.append(time.thread_time() - begin)
    return min(times)


@pytest.mark.slow
@settings(REPEATABLE, max_examples=3_000)
@given(
    value=st.builds(
        lambda template, before, after: template.replace("{}", before + MARKER + after),
        st.sampled_from(
            [
                "postgresql://app:{}@db.example.com/appdb",
                "postgresql://{}:x@db.example.com/appdb",
                "postgresql://app:x@{}/appdb",
                "postgresql://app:x@db.example.com/{}",
                "postgresql://app:x@db.example.com/appdb?{}",
                "postgresql://app:x@db.example.com/appdb?{}=1",
                "postgresql://app:x@db.example.com/appdb?sslmode={}",
                "postgresql://app:x@db.example.com:{}/appdb",
                "mysql://app:{}@db.example.com/appdb",
                "{}://app:x@db.example.com/appdb",
                "sqlite:///{}?{}",
                "host=db.example.com user=app password={} dbname=x",
                "{}",
            ]
        ),
        st.text(max_size=8),
        st.text(max_size=8),
    )
)
def test_no_part_of_a_value_is_ever_shown(value: str) -> None:
    """Wherever the secret stands and whatever stands around it, nothing shows it."""
    resolution = resolve(value, SPACE_ID="someone/something")
    assert not [part for part in (MARKER, "Zq7", "Kw9Jx4", "kw9jx4") if part in shown(resolution)]


@pytest.mark.slow
@settings(REPEATABLE, max_examples=2_000)
@given(password=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cs"]), min_size=1))
def test_an_encoded_password_arrives_as_it_is(password: str) -> None:
    """Whatever a password holds, percent-encoding carries it unless it is a known placeholder."""
    resolution = resolve(f"postgresql://app:{quote(password, safe='')}@db.example.com:5432/appdb")
    if resolution.url is None:
        assert resolution.reason in {"placeholder", "unexpanded_variable"}
    else:
        assert what_the_driver_receives(resolution)["password"] == password
