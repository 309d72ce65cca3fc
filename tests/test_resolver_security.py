"""A parameter about security is understood or refused, and no URL or repr that is handed out holds a secret."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Engine, event, text

PROJECT = Path(__file__).parents[1] / "{{cookiecutter.project_slug}}"
sys.path.insert(0, str(PROJECT))

from space_runtime.migrations import Migrations, opening  # noqa: E402
from space_runtime.url import building, security  # noqa: E402
from space_runtime.url.resolution import Resolution  # noqa: E402
from src.database.resolver import DatabaseURLResolver  # noqa: E402
from src.database.session import build_engine  # noqa: E402
from src.main import create_runtime  # noqa: E402

from tests.support.postgres import Postgres  # noqa: E402

SERVER = "postgresql://app:Vt7mQz29LkRw@db.example.com:5432/shop"
# Both cannot occur in a code, a sentence or a keyword.
VALUE = "Zq7wKv4Jx"
SECRET = "Kw9Jx4Zq7"  # noqa: S105
# What libpq itself has about encryption and login, in whichever version psycopg brings. One is dropped on purpose.
OF_LIBPQ = [
    name
    for option in psycopg.pq.Conninfo.get_defaults()
    if re.match(r"ssl(?!keylog)|gss|krb|oauth|scram|channel|require|passfile", name := option.keyword.decode())
]
ADDED = {
    *("connect_timeout", "tcp_user_timeout"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
}


def resolve(query: str) -> Resolution:
    """Resolve a URL with this query."""
    return DatabaseURLResolver({"DATABASE_URL": f"{SERVER}?{query}"}).resolve()


class _CapturedError(Exception):
    """Stops a connection attempt before it leaves the process."""


@pytest.fixture
def received() -> Iterator[list[dict[str, Any]]]:
    """What the driver was given at each attempt to connect, with any engine; nothing leaves the process."""
    attempts: list[dict[str, Any]] = []

    def capture(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        attempts.append(dict(parameters))
        raise _CapturedError

    event.listen(Engine, "do_connect", capture)
    yield attempts
    event.remove(Engine, "do_connect", capture)


def driver_receives(target: Any, received: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the driver is given beside the address, when an engine is built from this."""
    with pytest.raises(_CapturedError):
        build_engine(target).connect()
    address = {"user", "password", "host", "port", "dbname", "context"}
    return {name: value for name, value in received[-1].items() if name not in ADDED | address}


def check_refused(resolution: Resolution, *named: str) -> None:
    """The connection is refused, and the sentence says about which parameter and not with which value."""
    assert (resolution.source, resolution.reason, resolution.url) == ("fallback", "tls", None)
    assert resolution.backend == "sqlite"
    for name in named:
        assert name in resolution.message
    assert resolution.message.endswith(".")
    shown = f"{resolution!r} {resolution.message}".lower()
    assert VALUE.lower() not in shown
    assert "vt7mqz29lkrw" not in shown


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("sslmode=verify-identity", ("sslmode", "verify-full")),
        ("sslmode=strict", ("sslmode", "verify-full")),
        ("sslmode=verifyfull", ("sslmode", "verify-full")),
        ("sslmode=", ("sslmode", "verify-full")),
        ("sslmode", ("sslmode", "verify-full")),
        ("SSLMODE=yes-please", ("sslmode", "verify-full")),
        ("ssl-mode=VERIFY_IDENTITY", ("sslmode", "verify-full")),
        ("sslmode=require%20verify-full", ("sslmode", "verify-full")),
        ("sslmode=prefer%23sslmode=require", ("sslmode", "verify-full")),
        ("channel_binding=requird", ("channel_binding", "require")),
        ("channelBinding=must", ("channel_binding", "require")),
        ("require_auth=scram", ("require_auth", "scram-sha-256")),
        ("require_auth=!password,scram-sha-256", ("require_auth", "scram-sha-256")),
        ("gssencmode=always", ("gssencmode", "require")),
        ("ssl_min_protocol_version=1.3", ("ssl_min_protocol_version", "TLSv1.3")),
        ("sslnegotiation=directly", ("sslnegotiation", "direct")),
        ("sslcertmode=must", ("sslcertmode", "require")),
        ("sslrootcert=", ("sslrootcert",)),
        ("ssl=verify", ("ssl", "true", "verify-full")),
        ("useSSL=maybe", ("usessl", "sslmode")),
        ("tls=strict", ("tls", "sslmode")),
        ("tlsMode=3", ("tlsmode", "sslmode")),
        ("sslaccept=strictly", ("sslaccept", "strict")),
        ("trustServerCertificate=false", ("trustservercertificate", "sslmode")),
        ("usePrivateKey=true", ("useprivatekey",)),
        ("sslidentity=client.p12", ("sslidentity",)),
        ("ssl_verify=true", ("ssl_verify",)),
        ("sslfactory=org.postgresql.ssl.DefaultJavaSSLFactory", ("sslfactory",)),
        ("ssl_check_hostname=1", ("ssl_check_hostname",)),
        ("verifyServerCertificate=true", ("verifyservercertificate",)),
        ("encrypt=true", ("encrypt",)),
        ("cafile=/etc/ca.pem", ("cafile",)),
        # close to a name of libpq
        ("sslmod=require", ("sslmode", "verify-full")),
        ("slsmode=require", ("sslmode", "verify-full")),
        ("chanel_binding=require", ("channel_binding", "prefer")),
        ("requireauth_=scram-sha-256&require_outh=scram-sha-256", ("require_auth", "scram-sha-256")),
        # more than one answer
        ("sslmode=require&sslmode=verify-full", ("sslmode",)),
        ("sslmode=require&SSL-Mode=verify-ca", ("sslmode",)),
        ("sslrootcert=a.pem&sslrootcert=b.pem", ("sslrootcert",)),
        ("ssl=true&ssl=false", ("ssl",)),
        ("ssl=true&sslmode=disable", ("sslmode",)),
        ("direct_tls=true&sslnegotiation=postgres", ("sslnegotiation",)),
        # swallowed by another value
        ("connect_timeout=5,sslmode=verify-full", ("sslmode",)),
        ("connect_timeout=5,SSLMODE=verify-full", ("sslmode",)),
        ("application_name=me%23sslmode=verify-full", ("sslmode",)),
        ("application_name=me%26channelbinding%3Drequire", ("channelbinding",)),
        ("pool_size=5%20ssl_verify=1", ("ssl_verify",)),
    ],
)
def test_what_is_not_understood_about_security_refuses_the_connection(query: str, named: tuple[str, ...]) -> None:
    check_refused(resolve(query), *named)


@pytest.mark.parametrize("name", OF_LIBPQ)
def test_no_parameter_of_libpq_about_security_is_ever_dropped(name: str, received: list[dict[str, Any]]) -> None:
    """Of every one that this libpq has: a value arrives as it is, or the connection is refused."""
    resolution = resolve(f"{name}={VALUE}")
    if resolution.url is None:
        check_refused(resolution, name)
    else:
        assert driver_receives(resolution, received) == {name: VALUE}
    check_refused(resolve(f"{name}="), name)
    check_refused(resolve(f"{name}=a&{name}={VALUE}"), name)


def test_the_file_that_would_hold_the_keys_of_a_session_is_not_written(received: list[dict[str, Any]]) -> None:
    resolution = resolve(f"sslmode=require&sslkeylogfile={VALUE}")
    assert driver_receives(resolution, received) == {"sslmode": "require"}
    assert resolution.repairs == ("dropped_parameter:sslkeylogfile",)


@pytest.mark.parametrize("name", OF_LIBPQ)
def test_no_slip_of_a_finger_drops_a_parameter(name: str) -> None:
    """A letter missing, doubled, changed or swapped with its neighbour."""
    for at in range(len(name)):
        for slip in (
            name[:at] + name[at + 1 :],
            name[:at] + name[at] + name[at:],
            name[:at] + "x" + name[at + 1 :],
            name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
        ):
            resolution = resolve(f"{slip}={VALUE}")
            assert resolution.reason == "tls" or slip.replace("_", "") == name.replace("_", ""), slip


def test_a_keyword_string_is_held_to_the_same() -> None:
    string = "host=db.example.com user=app password=Vt7mQz29LkRw dbname=shop sslmode=verify-identity"
    check_refused(DatabaseURLResolver({"DATABASE_URL": string}).resolve(), "sslmode")


@pytest.mark.parametrize(
    "pasted",
    [
        f"PGSSLMODE=verify-full psql '{SERVER}'",
        f"PGSSLMODE=verify-full\nDATABASE_URL={SERVER}",
        f"export PGCHANNELBINDING=require; psql {SERVER}",
        f"DATABASE_URL={SERVER}\nPGREQUIREAUTH = scram-sha-256",
        f"PGGSSENCMODE=require psql {SERVER}",
        f"PGKRBSRVNAME=postgres psql {SERVER}",
    ],
)
def test_a_variable_about_security_that_was_pasted_beside_the_url_is_not_overlooked(pasted: str) -> None:
    check_refused(DatabaseURLResolver({"DATABASE_URL": pasted}).resolve(), "PG")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmode=REQUIRE", {"sslmode": "require"}),
        ("sslmode=require%20#main", {"sslmode": "require"}),
        ("sslmode=require&sslmode=require", {"sslmode": "require"}),
        ("sslmode=Verify_Full", {"sslmode": "verify-full"}),
        ("ssl-mode=REQUIRED", {"sslmode": "require"}),
        ("sslMode=PREFERRED", {"sslmode": "prefer"}),
        ("ssl=true", {"sslmode": "require"}),
        ("ssl", {"sslmode": "require"}),
        ("ssl=no-verify", {"sslmode": "require"}),
        ("ssl=verify-full", {"sslmode": "verify-full"}),
        ("ssl=false", {"sslmode": "disable"}),
        ("useSSL=true", {"sslmode": "require"}),
        ("tls=true", {"sslmode": "require"}),
        ("useTLS=1", {"sslmode": "require"}),
        ("requiressl=1", {"sslmode": "require"}),
        ("requiressl=0", {}),
        ("ssl_require=true", {"sslmode": "require"}),
        ("sslaccept=strict", {"sslmode": "verify-full"}),
        ("sslaccept=accept_invalid_certs", {}),
        ("tlsMode=0&usePrivateKey=false", {}),
        ("tlsMode=verify-ca", {"sslmode": "verify-ca"}),
        ("direct_tls=true", {"sslmode": "require", "sslnegotiation": "direct"}),
        ("direct_tls=false", {}),
        ("rejectUnauthorized=true", {"sslmode": "verify-full"}),
        ("rejectUnauthorized=false&ssl=true", {"sslmode": "require"}),
        ("trustServerCertificate=true&ssl=true", {"sslmode": "require"}),
        ("ssl_ca=/etc/ca.pem&sslmode=verify-ca", {"sslmode": "verify-ca", "sslrootcert": "/etc/ca.pem"}),
        ("channelBinding=Require", {"channel_binding": "require"}),
        ("require_auth=scram-sha-256,MD5", {"require_auth": "scram-sha-256,md5"}),
        ("require_auth=!none,!password", {"require_auth": "!none,!password"}),
        ("ssl_min_protocol_version=tlsv1.3", {"ssl_min_protocol_version": "TLSv1.3"}),
        # of several demands, the strictest
        ("ssl=true&sslmode=verify-full", {"sslmode": "verify-full"}),
        ("ssl=true&sslmode=prefer", {"sslmode": "require"}),
        ("ssl=verify-full&sslmode=require", {"sslmode": "verify-full"}),
        ("sslmode=require&sslaccept=strict", {"sslmode": "verify-full"}),
        ("sslmode=require&ssl=false", {"sslmode": "require"}),
    ],
)
def test_what_other_drivers_write_means_at_least_as_much(
    query: str, expected: dict[str, str], received: list[dict[str, Any]]
) -> None:
    assert driver_receives(resolve(query), received) == expected


CHOICES_OF_LIBPQ = {
    "channel_binding": "disable prefer require",
    "gssdelegation": "0 1",
    "gssencmode": "disable prefer require",
    "gsslib": "gssapi sspi",
    "require_auth": "password md5 gss sspi scram-sha-256 oauth none",
    "ssl_max_protocol_version": "TLSv1 TLSv1.1 TLSv1.2 TLSv1.3",
    "ssl_min_protocol_version": "TLSv1 TLSv1.1 TLSv1.2 TLSv1.3",
    "sslcertmode": "disable allow require",
    "sslcompression": "0 1",
    "sslmode": "disable allow prefer require verify-ca verify-full",
    "sslnegotiation": "postgres direct",
    "sslsni": "0 1",
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in CHOICES_OF_LIBPQ.items() for value in values.split()]
)
def test_all_that_a_parameter_of_libpq_may_be_arrives(name: str, value: str, received: list[dict[str, Any]]) -> None:
    assert driver_receives(resolve(f"{name}={value}"), received) == {name: value}


@pytest.mark.parametrize("name", ["ssl", "tls", "useSSL", "useTLS", "sslmode"])
def test_yes_and_no_may_be_said_in_many_words(name: str, received: list[dict[str, Any]]) -> None:
    for word in ("1", "true", "T", "yes", "y", "on", "required", "no-verify"):
        assert driver_receives(resolve(f"{name}={word}"), received) == {"sslmode": "require"}
    for word in ("0", "false", "f", "NO", "n", "off", "none", "disabled"):
        assert driver_receives(resolve(f"{name}={word}"), received) == {"sslmode": "disable"}


@pytest.mark.parametrize(
    "name",
    [
        *("sslfactoryarg", "sslidentity", "ssl_check_hostname", "ssl_verify_cert", "ssl_cipher", "ssl_context"),
        *("ssl_ca_certs", "ssl_protocol", "ssl_enabled", "ssl_min_version", "ssl_max_version", "require_tls"),
        *("tlsCAFile", "tlsCertificateKeyFile", "ca", "capath", "clientCertificateKeyStore", "trustStorePassword"),
        *(
            "authentication",
            "auth_protocol",
            "encryption",
            "encrypt",
            "use_spnego",
            "kerberosServerName",
            "server_cert_name",
        ),
    ],
)
def test_a_parameter_of_another_driver_about_security_is_refused_by_name(name: str) -> None:
    check_refused(resolve(f"{name}={VALUE}"), f"the parameter {name.lower()},")


@pytest.mark.parametrize(
    "name",
    [
        *("sslResponseTimeout", "tlsInsecure", "certFingerprint", "decryptor", "secureTransport", "verifier"),
        *("trustAnyone", "authMechanism", "binding_type", "gssResponseTimeout", "krb5conf", "kerberosRealm"),
        *("saslMechanism", "scramMaxIterations", "spnegoRealm", "sspiServiceClass", "jaasLogin", "pkcs12", "pem_text"),
        *("ciphers_suite", "allow_unauthorized", "s" * 50 + "sl"),
    ],
)
def test_a_name_that_may_hold_a_password_is_refused_without_being_shown(name: str) -> None:
    resolution = resolve(f"{name}={VALUE}")
    check_refused(resolution)
    assert name.lower() not in resolution.message


def test_the_author_of_a_thing_is_not_about_security() -> None:
    assert resolve("author=me").reason is None


def test_ordinary_parameters_are_not_taken_for_security() -> None:
    """Every name of other tools that is dropped, and libpq's other names, go on as before."""
    for name in sorted(building.KNOWN - security.NAMES - building.LIFTED - set(building.ALIASES)):
        assert resolve(f"{name}=1").reason is None, name


def test_the_end_of_a_password_is_not_shown_as_a_name() -> None:
    """A '?' or '&' in a password makes a name of its end, which may happen to hold three such letters."""
    check_refused(resolve(f"ssl{VALUE}=1"))
    check_refused(resolve(f"{VALUE}tls"))


SECRETS = [
    ("password", SECRET),
    ("sslpassword", SECRET),
    ("passfile", f"/home/{SECRET}"),
    ("oauth_client_secret", SECRET),
    ("scram_client_key", SECRET),
    ("scram_server_key", SECRET),
    ("sslkey", f"pkcs11:object=key;pin-value={SECRET}"),
    ("options", f"-c app.token={SECRET}"),
    ("options", f"-c search_path=app -c app.token={SECRET}"),
    ("options", f"endpoint={SECRET}"),
]


def shown(thing: Any) -> str:
    """Return all that may be printed of a resolution, a URL or an engine."""
    url = getattr(thing, "url", thing)
    return f"{thing!r} {thing} {url!r} {url} {url.set(password='').render_as_string(False)}"


@pytest.mark.parametrize(("name", "value"), SECRETS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(SECRETS)])
def test_a_secret_in_the_query_reaches_the_driver_and_nobody_else(
    name: str, value: str, received: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the engine that a script, the start, a command and Alembic have."""
    query = f"sslmode=require&{name}={quote(value, safe='')}"
    monkeypatch.setenv("DATABASE_URL", f"{SERVER}?{query}")
    resolution = DatabaseURLResolver(os.environ).resolve()
    assert resolution.url is not None
    assert SECRET not in shown(resolution)
    engines = [build_engine(resolution)]

    def keep(self: Migrations, engine: Engine) -> None:
        engines.append(engine)
        engine.connect()

    monkeypatch.setattr(Migrations, "is_current", keep)
    with create_runtime().configured_engine() as engine:
        engines.append(engine)
    with pytest.raises(_CapturedError):
        opening.open_postgresql(resolution, Migrations(PROJECT), connections=1, seconds=5.0)
    engines.append(build_engine(f"postgresql+psycopg://db.example.com/shop?{query}"))
    assert len(engines) == 4
    for engine in engines:
        with pytest.raises(_CapturedError):
            engine.connect()
        assert received[-1][name] == value
        assert received[-1]["sslmode"] == "require"
        assert SECRET not in shown(engine)


def test_alembic_gives_the_driver_what_the_query_held(
    received: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alembic import command
    from alembic.config import Config

    monkeypatch.setenv("DATABASE_URL", f"{SERVER}?sslpassword={SECRET}")
    with pytest.raises(_CapturedError):
        command.current(Config(PROJECT / "alembic.ini"))
    assert received[-1]["sslpassword"] == SECRET
    assert SECRET not in "".join(capsys.readouterr())


def test_plain_settings_stay_where_everybody_looks_for_them() -> None:
    resolution = resolve("options=-c%20statement_timeout%3D5000%20-c%20search_path%3Dapp&sslkey=/run/key.pem")
    assert resolution.url is not None
    assert resolution.url.query["options"] == "-c statement_timeout=5000 -c search_path=app"
    assert resolution.url.query["sslkey"] == "/run/key.pem"
    assert not resolution.secrets


def test_a_resolution_without_a_place_says_what_to_do_instead() -> None:
    for environ in ({}, {"DATABASE_URL": f"{SERVER}?sslmode=strict"}):
        resolution = DatabaseURLResolver(environ).resolve()
        with pytest.raises(ValueError, match="open_database") as refusal:
            build_engine(resolution)
        assert resolution.message in str(refusal.value)


def test_a_resolution_that_names_sqlite_gives_its_engine(tmp_path: Path) -> None:
    resolution = DatabaseURLResolver({"DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"}).resolve()
    engine = build_engine(resolution)
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    engine.dispose()


@pytest.mark.slow
def test_no_engine_prepares_statements(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a transaction pooler they would be looked for on the wrong connection."""
    url = f"{postgres.create_database()}?pgbouncer=true&options=-c%20app.token%3D{SECRET}"
    monkeypatch.setenv("DATABASE_URL", url)
    resolution = DatabaseURLResolver(os.environ).resolve()
    assert resolution.transaction_pooler
    with create_runtime().configured_engine() as command_engine:
        for engine in (build_engine(resolution), command_engine):
            with engine.connect() as connection:
                for number in range(8):
                    assert connection.execute(text("SELECT :number + 0"), {"number": number}).scalar_one() == number
                assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
                assert connection.execute(text("SHOW app.token")).scalar_one() == SECRET
            engine.dispose()
