"""The resolver reads DATABASE_URL as people paste it, and shows nothing of it."""

from random import Random

import pytest
from space_runtime.url.resolution import Resolution
from sqlalchemy import event
from src.database.resolver import DatabaseURLResolver
from src.database.session import build_engine

PASTED = "postgresql://app:Vt7mQz29LkRw@db.example.com:5432/shop"
MEANT = ("app", "Vt7mQz29LkRw", "db.example.com", 5432, "shop")


def resolve(value: str | None, **environ: str) -> Resolution:
    """Resolve one value of DATABASE_URL."""
    if value is not None:
        environ["DATABASE_URL"] = value
    return DatabaseURLResolver(environ).resolve()


def received(resolution: Resolution) -> dict[str, object]:
    """Return what the driver would be given, without what is always added."""
    assert resolution.url is not None, resolution.reason
    parameters: dict[str, object] = {}
    engine = build_engine(resolution)

    @event.listens_for(engine, "do_connect")
    def capture(dialect: object, record: object, arguments: object, received: dict[str, object]) -> None:
        parameters.update(received)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        engine.connect()
    return {
        name: value
        for name, value in parameters.items()
        if not name.startswith(("keepalives", "context"))
        and (name, value) not in {("connect_timeout", "5"), ("tcp_user_timeout", "10000")}
    }


@pytest.mark.parametrize(
    "value",
    [
        PASTED,
        f"  {PASTED}\r\n",
        f'"{PASTED}"',
        f"\u201c{PASTED}\u201d",
        f"`{PASTED}`;",
        f"\ufeff{PASTED}\u200b",
        f"DATABASE_URL={PASTED}",
        f"export DATABASE_URL='{PASTED}'  # production",
        f"DATABASE_URL: {PASTED}",
        '{"DATABASE_URL": "' + PASTED + '"}',
        f"psql '{PASTED}' -c 'select 1'",
        f"```\n{PASTED}\n```",
        f"# pooled\nDATABASE_URL={PASTED}\n\n# direct\nDIRECT_URL=other",
        PASTED.replace("example", "exam\n  ple"),
        PASTED.replace("postgresql:", "postgres:"),
        PASTED.replace("postgresql:", "jdbc:postgresql:"),
        PASTED.replace("postgresql:", "postgresql+asyncpg:"),
        PASTED.replace(":5432", " : 5432"),
        "host=db.example.com port=5432 dbname=shop user=app password=Vt7mQz29LkRw",
        "jdbc:postgresql://db.example.com:5432/shop?user=app&password=Vt7mQz29LkRw",
    ],
)
def test_what_was_pasted_is_understood(value: str) -> None:
    """However the same URL was pasted, the same five things come out."""
    url = resolve(value).url
    assert url is not None
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.host, url.port, url.database) == MEANT


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("p@ss", "p@ss"),
        ("p:a/s?s#w%d", "p:a/s?s#w%d"),
        ("a%40b", "a@b"),
        ("a%2540b", "a%40b"),
        ("a+b", "a+b"),
        ("<i>x", "<i>x"),
        ("p\u00e4ss", "p\u00e4ss"),
    ],
)
def test_a_password_arrives_as_it_was_meant(written: str, meant: str) -> None:
    """Raw separators survive, and percent-encoding is undone exactly once."""
    url = resolve(f"postgresql://app:{written}@db.example.com/shop?application_name=me@home").url
    assert url is not None
    assert (url.password, url.host, url.database) == (meant, "db.example.com", "shop")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("u@[::1]:5433/d", {"host": "::1", "port": 5433}),
        ("u@%2Fvar%2Frun/d", {"host": "/var/run"}),
        ("u@/d?host=/cloudsql/p:r:i", {"host": "/cloudsql/p:r:i"}),
        ("u@a:1,b:2/d", {"host": "a,b", "port": "1,2", "connect_timeout": "2"}),
        ("u@a/d?ssl=true&pgbouncer=true&x=y", {"host": "a", "sslmode": "require"}),
        ("u@a/d?connect_timeout=9&tcp_user_timeout=huh", {"host": "a", "connect_timeout": "9"}),
    ],
)
def test_the_driver_receives_only_what_it_knows(address: str, expected: dict[str, object]) -> None:
    """Hosts, sockets and parameters reach psycopg in the form that libpq understands."""
    resolution = resolve(f"postgresql://{address}")
    assert received(resolution) == {"user": "u", "dbname": "d", **expected}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("sqlite://", ":memory:"),
        ("sqlite:///shop.db", "shop.db"),
        ("sqlite+aiosqlite:////data/my%20shop.db?timeout=5", "/data/my shop.db"),
    ],
)
def test_sqlite_is_read_as_written(value: str, path: str) -> None:
    """The driver is folded, the query dropped, the path kept."""
    resolution = resolve(value)
    assert (resolution.backend, resolution.source) == ("sqlite", "environment")
    assert resolution.url is not None
    assert (resolution.url.drivername, resolution.url.database) == ("sqlite", path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "unset"),
        (" '' ", "empty"),
        ("DATABASE_URL=", "empty"),
        ("None", "placeholder"),
        ("postgresql://postgres:[YOUR-PASSWORD]@db.abc.supabase.co/postgres", "placeholder"),
        ("postgresql://app:********@db.example.com/shop", "placeholder"),
        ("${DATABASE_URL}", "unexpanded_variable"),
        ("postgresql://app:$DB_PASSWORD@db.example.com/shop", "unexpanded_variable"),
        ("napi_q8x7w6e5", "unparseable"),
        ("mysql://app:pw@db.example.com/shop", "unsupported_scheme"),
        ("https://abc.supabase.co", "unsupported_scheme"),
        ("postgresql://app:pw@/shop", "missing_host"),
        ("postgresql://db.example.com", "missing_database"),
        ("postgresql://app:pw@tcp(db)/shop", "invalid_host"),
        ("postgresql://app:pw@db.example.com:99999/shop", "invalid_port"),
        ("postgresql://app:pw@db.example.com/shop\0", "control_characters"),
        ("postgresql://app:pw@db.example.com/" + "x" * 20_000, "too_long"),
    ],
)
def test_what_cannot_be_used_is_named(value: str | None, reason: str) -> None:
    """SQLite takes the place of what is no URL, and the reason says why."""
    resolution = resolve(value)
    assert resolution.reason == reason
    assert (resolution.backend, resolution.source) == ("sqlite", "fallback")
    assert resolution.url is None


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("sslmode=verify-identity", "sslmode"),
        ("sslmode=", "sslmode"),
        ("sslmode=require&sslmode=disable", "sslmode"),
        ("channel_binding=requird", "channel_binding"),
        ("ssl_verify=true", "ssl_verify"),
        ("slsmode=verify-full", "sslmode"),
        ("application_name=me,sslmode=verify-full", "sslmode"),
    ],
)
def test_nothing_about_security_is_dropped(parameter: str, named: str) -> None:
    """Without it the connection would be made all the same, only unencrypted or to anybody."""
    resolution = resolve(f"{PASTED}?{parameter}")
    assert (resolution.reason, resolution.url) == ("tls", None)
    assert named in resolution.message


def test_a_secret_in_the_query_reaches_the_driver_and_no_repr() -> None:
    """SQLAlchemy shows the query of a URL wherever it shows the URL."""
    resolution = resolve(f"{PASTED}?sslpassword=Kw9Jx4&options=-c%20app.token%3DKw9Jx4")
    assert "Kw9Jx4" not in f"{resolution!r} {resolution.url!r} {build_engine(resolution)!r}"
    given = received(resolution)
    assert (given["sslpassword"], given["options"]) == ("Kw9Jx4", "-c app.token=Kw9Jx4")


def test_repairs_are_named_but_what_may_be_a_secret_is_not() -> None:
    """A '?' or '&' in a password makes a parameter's name out of its end."""
    repairs = resolve(f"'{PASTED}?Kw9Jx4&pgbouncer=true'").repairs
    assert repairs == ("quotes", "dropped_parameter:unknown", "dropped_parameter:pgbouncer")


@pytest.mark.parametrize(
    ("value", "pooled"),
    [
        (PASTED, False),
        (PASTED.replace(":5432", ":6543"), True),
        (PASTED.replace("db.", "ep-x-pooler."), True),
        (PASTED.replace("db.", "aws-0.pooler."), False),
        (f"{PASTED}?pgbouncer=true", True),
    ],
)
def test_transaction_poolers_are_recognised(value: str, pooled: bool) -> None:
    """By port, by host or because the URL says so."""
    assert resolve(value).transaction_pooler is pooled


def test_advice_for_a_space_is_given_on_a_space_only() -> None:
    """Supabase's direct host has no IPv4 address, and a Space has no IPv6."""
    direct = PASTED.replace("db.example.com", "db.abcdefgh.supabase.co")
    assert "pooler" in resolve(direct, SPACE_ID="me/shop").message
    assert "pooler" not in resolve(direct).message
    assert "port" in resolve(PASTED.replace(":5432", ":35123"), SPACE_ID="me/shop").message
    for port in ("", ":80", ":443", ":8080", ":5432", ":6543"):
        assert "port" not in resolve(PASTED.replace(":5432", port), SPACE_ID="me/shop").message


def test_no_value_raises_or_is_shown() -> None:
    """Any change to a URL gives a Resolution in which none of its secrets can be read."""
    chance = Random(7)  # noqa: S311
    noise = ["@", ":", "/", "?", "#", "%", "&", "=", "[", "]", "'", " ", "\n", "\0", "\udcff", "${"]
    for _ in range(2_000):
        at = chance.randrange(len(PASTED))
        value = PASTED[:at] + chance.choice(noise) + PASTED[at + chance.randrange(2) :]
        resolution = resolve(value, SPACE_ID="me/shop")
        shown = f"{resolution} {resolution!r} {resolution.message}"
        assert not [part for part in ("Vt7", "LkRw", "example", "shop") if part in shown]
