"""The resolver holds every row of the corpus, and survives what nobody wrote down."""

import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event

PROJECT = Path(__file__).parents[1] / "{{cookiecutter.project_slug}}"
sys.path.insert(0, str(PROJECT))

from space_runtime.url.resolution import Resolution  # noqa: E402
from space_runtime.url.vocabulary import UnusableURLError  # noqa: E402
from src.database.resolver import DatabaseURLResolver  # noqa: E402
from src.database.session import build_engine  # noqa: E402

from tests.support.examples import examples  # noqa: E402

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
REPEATABLE = settings(database=None, derandomize=True)


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


PASTED = "postgresql://app:Vt7mQz29LkRw@db.example.com:5432/shop"
ADDRESS = PASTED.partition("://")[2]
MEANT = ("app", "Vt7mQz29LkRw", "db.example.com", 5432, "shop")
# Each of these is here for a rule that no row of the corpus needs.
ENCLOSED = {
    "soft hyphen": f"\u00ad{PASTED}\u00ad",
    "marks of direction": f"\u202a{PASTED}\u202c",
    "printed quotes": f"\u201c{PASTED}\u201d",
    "printed quotes of another language": f"\u201e{PASTED}\u201c",
    "printed quotes in a sentence": f"use \u201c{PASTED}\u201d instead",
    "single printed quotes": f"\u2018{PASTED}\u2019",
    "single pointed quotes": f"\u2039{PASTED}\u203a",
    "quotes of HTML": f"&quot;{PASTED}&quot;",
    "angle brackets": f"<{PASTED}>",
    "parentheses": f"({PASTED})",
    "a list": f"[{PASTED}]",
    "a link in Markdown": f"[the database]({PASTED}) is here",
    "a table": f"shop,{PASTED}",
    "JSON": '{"url": "' + PASTED + '", "ssl": true}',
    "JSON with escaped slashes": '"' + PASTED.replace("/", "\\/") + '"',
    "an encoded form field": quote(PASTED, safe=""),
    "a form field in small letters": quote(PASTED, safe="").replace("3A", "3a").replace("2F", "2f"),
    "a keyword string in an assignment": (
        "export DATABASE_URL=\"host=db.example.com user=app password='Vt7mQz29LkRw' port=5432 dbname=shop\""
    ),
    "a keyword string with escapes": (
        "host = db.example.com user=app password=Vt7\\mQz29LkRw port=5432 dbname='sh\\op'"
    ),
    "an assignment without a blank": f"DATABASE_URL:{PASTED}",
    "a command with options": f"psql {PASTED} -c 'select 1'",
    "a command in a pipe": f"pg_dump {PASTED} | gzip > dump.gz",
    "a comment with two slashes": f"{PASTED} // production",
    "a comment with an address": f"{PASTED} # ask me@example.com",
    "a comment without a blank": f"{PASTED} #production",
    "a comma": f"{PASTED},",
    "another variable below": f"{PASTED}\nDEBUG=1",
    "a comment below": f"{PASTED}\n#production",
    "a brace below": f"{PASTED}\n}}",
    "another URL below": f"{PASTED}\nhttps://example.com",
    "a word after an empty line": f"{PASTED}\n\nproduction",
    "a sentence below": f"{PASTED}\nreplace the password",
    "a line break of a text processor": PASTED.replace("example", "exam\u2028ple"),
    "a wrapped line": PASTED.replace("example", "exam\r\n  ple"),
    "PostGIS": f"postgis://{ADDRESS}",
    "R2DBC": f"r2dbc:postgresql://{ADDRESS}",
    "Django's old name": f"postgresql_psycopg2://{ADDRESS}",
    "capitals": f"POSTGRESQL://{ADDRESS}",
    "capitals in a command": f"psql POSTGRESQL://{ADDRESS}",
    "a blank before the colon": f"postgresql ://{ADDRESS}",
    "four slashes": f"postgresql:////{ADDRESS}",
    "a tunnel's scheme before the host": PASTED.replace("@", "@tcp://"),
    "a scheme in capitals before the host": PASTED.replace("@", "@HTTPS://"),
    "user's other name": "postgresql://db.example.com:5432/shop?username=app&pwd=Vt7mQz29LkRw",
    "password's short name": "postgresql://db.example.com/shop?user=app&pass=Vt7mQz29LkRw&port=5432",
    "database's names": "postgresql://app:Vt7mQz29LkRw@db.example.com:5432/?db=shop&database=other",
    "the database in the query wins": "postgresql://app:Vt7mQz29LkRw@db.example.com:5432/other?dbname=shop",
    "another tool's database does not": f"{PASTED}?database=other",
    "host's other name": "postgresql://app:Vt7mQz29LkRw@/shop?hostname=db.example.com&port=5432",
}
# What stands after `postgresql://`, and what differs from `app:Vt7mQz29LkRw@db.example.com/shop`.
ADDRESSES: dict[str, tuple[str, dict[str, Any]]] = {
    "a '/' and a '@' in a password": ("app:p/a@s:s@h.internal/shop", {"host": "h.internal", "password": "p/a@s:s"}),
    "a '?' and a name in a password": ("app:pa?ss=w@db.example.com/shop", {"password": "pa?ss=w"}),
    "a '?' and a known name in a password": ("app:pa?user=w@db.example.com/shop", {"password": "pa?user=w"}),
    "a '?' and a name in a user's name": ("a?ss=w:Vt7mQz29LkRw@db.example.com/shop", {"user": "a?ss=w"}),
    "a '@', a '?' and a name in a password": ("app:p@a?ss=w@db.example.com/shop", {"password": "p@a?ss=w"}),
    "a '&' and a name in a password": ("app:p&user=w@db.example.com", {"password": "p&user=w", "dbname": ""}),
    "a '&' in a database's name": ("app:Vt7mQz29LkRw@db.example.com/shop&co=x", {"dbname": "shop&co=x"}),
    "a '@' in a database's name": ("app:Vt7mQz29LkRw@db.example.com/shop@home", {"dbname": "shop@home"}),
    "the same after a port": ("app:Vt7mQz29LkRw@db:5432/shop@home", {"host": "db", "dbname": "shop@home"}),
    "the same on this machine": ("app:Vt7mQz29LkRw@localhost/shop@home", {"host": "localhost", "dbname": "shop@home"}),
    "the same after IPv6": ("app:Vt7mQz29LkRw@[::1]/shop@home", {"host": "::1", "dbname": "shop@home"}),
    "the same without a user": ("db.example.com:5432/shop@home", {"user": "", "password": "", "dbname": "shop@home"}),
    "a '@' in an unknown parameter": ("app:Vt7mQz29LkRw@db.example.com/shop?x_y=me@home", {}),
    "a '@' in a parameter after several hosts": (
        "app:Vt7mQz29LkRw@a:1,[::1]:2?application_name=me@home&user=app&dbname=shop",
        {"host": "a,::1", "port": "1,2", "application_name": "me@home"},
    ),
    "a '@' behind an encoded address": (
        "app:Vt7mQz29LkRw@%2Ftmp/shop?application_name=me@home",
        {"host": "/tmp", "application_name": "me@home"},
    ),
    "parameters of HTML": (
        "app:Vt7mQz29LkRw@db.example.com/shop?connect_timeout=9&amp;application_name=me",
        {"connect_timeout": "9", "application_name": "me"},
    ),
    "parameters after ';'": (
        "app:Vt7mQz29LkRw@db.example.com/shop?connect_timeout=9;application_name=me",
        {"connect_timeout": "9", "application_name": "me"},
    ),
    "parameters after a second '?'": (
        "app:Vt7mQz29LkRw@db.example.com/shop?connect_timeout=9?application_name=me",
        {"connect_timeout": "9", "application_name": "me"},
    ),
    "parameters without a '?'": (
        "app:Vt7mQz29LkRw@db.example.com/shop&application_name=me",
        {"application_name": "me"},
    ),
    "'&' in JSON": (
        "app:Vt7mQz29LkRw@db.example.com/shop?connect_timeout=9\\u0026application_name=me",
        {"connect_timeout": "9", "application_name": "me"},
    ),
    "a line of a shell": (
        "app:Vt7mQz29LkRw@db.example.com/shop?connect_timeout=9\\&application_name=me",
        {"connect_timeout": "9", "application_name": "me"},
    ),
    "a ';' in a value": (
        "app:Vt7mQz29LkRw@db.example.com/shop?application_name=me;you",
        {"application_name": "me;you"},
    ),
    "a ';' instead of a '?'": (
        "app:Vt7mQz29LkRw@db.example.com/shop;application_name=me",
        {"application_name": "me"},
    ),
    "a '@' and no database": ("app:p@a.b/x@db.example.com", {"password": "p@a.b/x", "dbname": ""}),
    "IPv6 without brackets": ("app:Vt7mQz29LkRw@2001:db8::5/shop", {"host": "2001:db8::5"}),
    "Cloud SQL": ("app:Vt7mQz29LkRw@/cloudsql/p:r:i/shop", {"host": "/cloudsql/p:r:i"}),
    "a socket in /var": ("app:Vt7mQz29LkRw@/var/run/postgresql/shop", {"host": "/var/run/postgresql"}),
    "a socket in /run": ("app:Vt7mQz29LkRw@/run/postgresql/shop", {"host": "/run/postgresql"}),
    "a socket in /tmp": ("app:Vt7mQz29LkRw@/tmp/shop", {"host": "/tmp"}),
    "a socket's port": ("app:Vt7mQz29LkRw@%2Ftmp:5433/shop", {"host": "/tmp", "port": "5433"}),
    "a socket's file": ("app:Vt7mQz29LkRw@/shop?host=/tmp/.s.PGSQL.5433", {"host": "/tmp", "port": "5433"}),
    "a socket of other drivers": ("app:Vt7mQz29LkRw@/shop?socket=/tmp", {"host": "/tmp"}),
    "a socket of MySQL's drivers": ("app:Vt7mQz29LkRw@/shop?unix_socket=/tmp", {"host": "/tmp"}),
    "an empty parameter": ("app:Vt7mQz29LkRw@db.example.com/shop?user=&port=", {}),
    "a user in the query": ("other:Vt7mQz29LkRw@db.example.com/shop?user=app", {}),
    "a port for one of two hosts": ("app:Vt7mQz29LkRw@a,b:5433/shop", {"host": "a,b", "port": ",5433"}),
    "one port for several hosts": ("app:Vt7mQz29LkRw@a,b/shop?port=5433", {"host": "a,b", "port": "5433,5433"}),
    "a host in the query and the port outside": ("app:Vt7mQz29LkRw@:5433/shop?host=a", {"host": "a", "port": 5433}),
    "an address beside the host": (
        "app:Vt7mQz29LkRw@db.example.com/shop?hostaddr=192.0.2.7",
        {"hostaddr": "192.0.2.7"},
    ),
    "an address without a host": (
        "app:Vt7mQz29LkRw@/shop?hostaddr=192.0.2.7",
        {"host": "", "hostaddr": "192.0.2.7"},
    ),
    "addresses that are none": ("app:Vt7mQz29LkRw@db.example.com/shop?hostaddr=db", {}),
    "more addresses than hosts": ("app:Vt7mQz29LkRw@db.example.com/shop?hostaddr=192.0.2.7,192.0.2.8", {}),
    "an international name": ("app:Vt7mQz29LkRw@b\u00fccher.example/shop", {"host": "b\u00fccher.example"}),
    "a schema of Prisma": ("app:Vt7mQz29LkRw@db.example.com/shop?schema=mine", {"options": "-c search_path=mine"}),
    "two schemas": (
        "app:Vt7mQz29LkRw@db.example.com/shop?search_path=mine,%22public%22",
        {"options": '-c search_path=mine,"public"'},
    ),
    "Prisma's usual schema": ("app:Vt7mQz29LkRw@db.example.com/shop?schema=public", {}),
    "a schema behind a transaction pooler": ("app:Vt7mQz29LkRw@db.example.com/shop?schema=mine&pgbouncer=yes", {}),
    "a schema that is none": ("app:Vt7mQz29LkRw@db.example.com/shop?schema=mine%20-c%20jit%3Doff", {}),
    "a schema and options": (
        "app:Vt7mQz29LkRw@db.example.com/shop?currentSchema=mine&options=-c%20jit%3Doff",
        {"options": "-c jit=off -c search_path=mine"},
    ),
    "options with '+' for a blank": (
        "app:Vt7mQz29LkRw@db.example.com/shop?options=-c+jit%3Doff+-c+timezone%3DUTC",
        {"options": "-c jit=off -c timezone=UTC"},
    ),
    "options with blanks, which are no command's": (
        "app:Vt7mQz29LkRw@db.example.com/shop?options=-c jit=off -c timezone=UTC",
        {"options": "-c jit=off -c timezone=UTC"},
    ),
    "a number with a fragment": (
        "app:Vt7mQz29LkRw@db.example.com/shop?connect_timeout=9#main",
        {"connect_timeout": "9"},
    ),
    "JDBC's timeout": ("app:Vt7mQz29LkRw@db.example.com/shop?loginTimeout=9", {"connect_timeout": "9"}),
    "JDBC's name of a program": (
        "app:Vt7mQz29LkRw@db.example.com/shop?ApplicationName=me",
        {"application_name": "me"},
    ),
    "Npgsql's schema": (
        "app:Vt7mQz29LkRw@db.example.com/shop?SearchPath=mine",
        {"options": "-c search_path=mine"},
    ),
    "pg8000's socket": ("app:Vt7mQz29LkRw@/shop?unix_sock=/tmp/.s.PGSQL.5432", {"host": "/tmp", "port": "5432"}),
    "Npgsql's timeout": ("app:Vt7mQz29LkRw@db.example.com/shop?connectTimeout=9", {"connect_timeout": "9"}),
    "a choice in capitals": (
        "app:Vt7mQz29LkRw@db.example.com/shop?target_session_attrs=PRIMARY",
        {"target_session_attrs": "primary"},
    ),
    "a choice that libpq does not have": ("app:Vt7mQz29LkRw@db.example.com/shop?load_balance_hosts=yes", {}),
    "a number that is none": ("app:Vt7mQz29LkRw@db.example.com/shop?keepalives=yes", {}),
}
PARAMETERS_OF_LIBPQ = {
    "application_name": "me",
    "client_encoding": "utf8",
    "connect_timeout": "9",
    "fallback_application_name": "me",
    "hostaddr": "192.0.2.7",
    "keepalives": "0",
    "keepalives_count": "4",
    "keepalives_idle": "20",
    "keepalives_interval": "9",
    "load_balance_hosts": "disable|random",
    "max_protocol_version": "3.2",
    "min_protocol_version": "3.0",
    "options": "-c jit=off",
    "target_session_attrs": "any|read-write|read-only|primary|standby|prefer-standby",
    "tcp_user_timeout": "9000",
}
# What tools write into a URL, and psycopg does not know.
PARAMETERS_OF_TOOLS = {
    "asyncpg": "command_timeout server_settings statement_cache_size timeout",
    "SQLAlchemy with asyncpg": "async_fallback prepared_statement_cache_size prepared_statement_name_func",
    "SQLAlchemy": "echo isolation_level max_overflow plugin pool_pre_ping pool_recycle pool_size pool_timeout",
    "psycopg": "autocommit prepare_threshold",
    "libpq, but of no use here": "replication service servicefile",
    "lib/pq": "binary_parameters",
    "pgx": "default_query_exec_mode pool_max_conns pool_min_conns statement_cache_capacity",
    "pgJDBC": "preparethreshold readonly rewritebatchedinserts sockettimeout stringtype targetservertype tcpkeepalive",
    "Npgsql": "encoding maxpoolsize minpoolsize pooling timezone",
    "node-postgres": "statement_timeout uselibpqcompat",
    "Prisma": "connection_limit pgbouncer single_use_connections socket_timeout",
    "Vercel and Supabase": "supa workaround",
    "TablePlus": "env name safemodelevel statuscolor",
    "Django": "conn_health_checks conn_max_age disable_server_side_cursors",
    "Rails": "pool prepared_statements reaping_frequency",
    "Doctrine": "charset serverversion",
    "drivers of MySQL": "allowpublickeyretrieval",
    "sqlite3": "cache check_same_thread mode uri",
}
REFUSED = {
    "empty": ["DATABASE_URL:", "DATABASE_URL=''", "'", "\u201c\u201d", "\\", "\u200b"],
    "placeholder": [
        *("None", "null", "NULL", "nil", "undefined", "NaN", "n/a", "NA", "not set", "unset", "empty", "todo", "TBD"),
        *("fixme", "placeholder", "example", "xxx", "...", "***", "\u2026", "\u2022\u2022", "change_me", "changethis"),
        *("database_url", "DB-URL", "postgres uri", "<DATABASE_URL>", "[your url]", "your database url", "replace me"),
        *("insert url here", "add your url", "paste here", "put-your-url-here", "enter_url", "?", "-", "_"),
        *("DATABASE_URL: None", "DATABASE_URL = None", "DB2_URL=None", "--env DATABASE_URL=None"),
        "postgresql://user:pass@hostname/db",
        "postgresql://user:pass@example.com/db",
        "postgresql://db_user:db_password@db_host/db_name",
        "postgresql://user:passwd@example.org/db",
        "postgresql://user:PWD@EXAMPLE.net/db",
        *(f"postgresql://app:Vt7mQz29LkRw@{host}:5432/shop" for host in ("HOST", "HOSTNAME", "DBHOST", "DB_HOST")),
        *(f"postgresql://app:Vt7mQz29LkRw@{host}/shop" for host in ("PGHOST", "POSTGRES_HOST", "SERVER")),
        *(
            f"postgresql://app:{word}@db.example.com/shop"
            for word in (
                *("null", "NULL", "undefined", "<your password>", "[your-password]", "XXX", "...", "___", "###", "???"),
                *("*", "\u2026", "npg_****************", "npg_\u2022\u2022\u2022", "\u25cf\u25cf\u25cf\u25cf"),
                *("yourpassword", "your_db_password", "your-secret", "YOUR_PWD", "your-password-here", "your_pass"),
                *("replace_with_password", "insert-your-password", "enter_password", "replace-me", "replace_this"),
                *("insert here", "your_token_here"),
            )
        ),
        *(
            f"postgresql://{name}:Vt7mQz29LkRw@db.example.com/shop"
            for name in ("your_user", "your_name", "postgres.[ref]", "<user>")
        ),
        *(
            f"postgresql://app:Vt7mQz29LkRw@db.example.com/{name}"
            for name in ("your_database", "yourdb", "your_project", "<name>")
        ),
        *(
            f"postgresql://app:Vt7mQz29LkRw@{host}:5432/shop"
            for host in (
                *("db.[YOUR-PROJECT-REF].supabase.co", "db.your-project-ref.supabase.co", "db.<ref>.supabase.co"),
                *("db.xxxxxxxx.supabase.co", "your-server.postgres.database.azure.com", "db.YOUR_PROJECT.supabase.co"),
                *("your_server", "your-tenant", "your_instance_name", "yourhost"),
            )
        ),
        "postgresql://app:Vt7mQz29LkRw@/shop?host=your-server",
        "sqlite:///<path>/app.db",
    ],
    "unexpanded_variable": [
        *(
            "$DATABASE_URL",
            "$DATABASE_URL/shop",
            "$env:DATABASE_URL",
            "${DATABASE_URL:-postgresql://a:b@c/d}",
            "$(URL)",
        ),
        *("%DATABASE_URL%", "{{ url | default('postgresql://a:b@c/d') }}", "{DATABASE_URL}", "__DATABASE_URL__"),
        *("#{DATABASE_URL}", "<%= ENV['DATABASE_URL'] %>", "secrets.DATABASE_URL", "vars.DATABASE_URL", "secret.URL"),
        *("process.env.DATABASE_URL", "os.environ['DATABASE_URL']", "os.getenv('DATABASE_URL')", "env.DATABASE_URL"),
        *("ENV['DATABASE_URL']", "import.meta.env.DATABASE_URL", "env(DATABASE_URL)"),
        *(
            f"postgresql://app:{word}@db.example.com/shop"
            for word in (
                *("$DB_PASSWORD", "$(DB_PASSWORD)", "%DB_PASSWORD%", "{password}", "{}", "%s", "__DB_PASSWORD__"),
                *(
                    "#{password}",
                    "<%= password %>",
                    "%(password)s",
                    "{{password}}",
                    "${password}",
                    "{config.password}",
                    "%7Bpassword%7D",
                ),
            )
        ),
        "postgresql://app:Vt7mQz29LkRw@$host/shop",
        "postgresql://app:Vt7mQz29LkRw@db.example.com:$PORT/shop",
        "postgresql://$user:Vt7mQz29LkRw@db.example.com/shop",
        "postgresql://app:Vt7mQz29LkRw@db.example.com/$name",
        "sqlite:///$DB_PATH",
        "sqlite:///$home/app.db",
        "sqlite:///%APPDATA%/app.db",
    ],
    "unsupported_scheme": [
        *("postgresql+ssh://a@b/c", "sqlite+libsql://x.turso.io", "sqlite+pysqlcipher://:key@/app.db"),
        "https://example.com/?next=postgresql://a:b@c/d",
    ],
    "unparseable": [
        *("postgresql:", "sqlite:", "postgresql:app", "redis:6379", "socket:/tmp", "sqlite://app:Vt7m@h/d"),
        *("host=db.example.com", "a=b user=c", "host=a user=b c"),
    ],
    "invalid_host": [
        *(
            f"postgresql://app:Vt7mQz29LkRw@{host}/shop"
            for host in ("256.1.1.1", "5432", "-a", "a..b", "a b", "%2C", "%2Ftmp%2Ca", "[::g]")
        ),
        "postgresql://app:Vt7mQz29LkRw@" + "h," * 40 + "h/shop",
        "postgresql://app:Vt7mQz29LkRw@[fe80::1%25" + "a" * 70 + "]/shop",
        "postgresql://app:Vt7mQz29LkRw@\u00e4" + "a" * 63 + ".example/shop",
    ],
    "invalid_port": ["postgresql://app:Vt7mQz29LkRw@a:0/shop", "postgresql://app:Vt7mQz29LkRw@a,b,c/shop?port=1,2"],
    "control_characters": [
        "postgresql://app%07:Vt7mQz29LkRw@db.example.com/shop",
        "postgresql://app:Vt7m%00@db.example.com/shop",
        "postgresql://app:Vt7mQz29LkRw@db%0a.example.com/shop",
        "postgresql://app:Vt7mQz29LkRw@db.example.com/shop?application_name=%0a",
        "postgresql://app:Vt7mQz29LkRw@db.example.com/shop?sslrootcert=%0a",
        "sqlite:///a%00.db",
        "postgresql://app:Vt7m\udcff@db.example.com/shop",
    ],
    "missing_host": [
        *("postgresql:///shop?user=app", "postgresql://app:Vt7mQz29LkRw@/shop?host="),
        *("dbname=shop port=5432", "dbname=shop user=app", "user=app port=5432", "host='' user=app"),
    ],
}
REPAIRS = [
    ("", PASTED),
    ("", f"postgresql+psycopg://{ADDRESS}"),
    ("", "sqlite:///shop.db"),
    ("translated_parameter:ssl-mode", f"{PASTED}?ssl-mode=require"),
    ("translated_parameter:ssl_mode", f"{PASTED}?ssl_mode=require"),
    ("translated_parameter:oauth_issuer", f"{PASTED}?oauth-issuer=me"),
    ("blanks", f" {PASTED}"),
    ("driver", PASTED.replace(":", "+asyncpg:", 1)),
    ("escapes", PASTED.replace("/", "\\/")),
    ("host", PASTED.replace("@", "@https://")),
    ("invisible_characters", f"{PASTED}\u200b"),
    ("invisible_characters blanks", f"\ufeff {PASTED}"),
    ("line_breaks", PASTED.replace("example", "exam\nple")),
    ("other_lines", f"{PASTED}\nDEBUG=1"),
    ("prefix", f"DATABASE_URL={PASTED}"),
    ("prefix", f"psql {PASTED}"),
    ("query", f"{PASTED}&keepalives=1"),
    ("quotes", f"'{PASTED}'"),
    ("quotes", f"<{PASTED}>"),
    ("quotes prefix", f"psql '{PASTED}'"),
    ("scheme", PASTED.replace("ql:", ":")),
    ("quotes prefix", f"psql '{PASTED}?options=-c jit=off -c timezone=UTC'"),
    ("scheme", f"jdbc:{PASTED}"),
    ("scheme", f"r2dbc:{PASTED}"),
    ("slashes", PASTED.replace("//", "///")),
    ("trailing_characters", f"{PASTED};"),
    ("translated_parameter:search_path", f"{PASTED}?search_path=mine"),
    ("translated_parameter:schema", f"{PASTED}?keepalives=1&amp;schema=mine"),
]
SQLITE = {
    "in memory": ("sqlite:///:memory:", ":memory:"),
    "in memory, two slashes": ("sqlite://:memory:", ":memory:"),
    "in memory with another slash": ("sqlite:////:memory:", ":memory:"),
    "a shared memory": ("sqlite:///file:shop?mode=memory&uri=true", ":memory:"),
    "a file's address": ("sqlite:///file:shop.db?uri=true", "shop.db"),
    "one slash": ("sqlite:/data/shop.db", "/data/shop.db"),
    "JDBC": ("jdbc:sqlite:shop.db", "shop.db"),
}


@pytest.mark.parametrize("value", ENCLOSED.values(), ids=ENCLOSED)
def test_what_encloses_a_url_does_not_change_what_it_means(value: str) -> None:
    url = resolve(value).url
    assert url is not None
    assert (url.username, url.password, url.host, url.port, url.database) == MEANT


def test_a_keyword_string_is_not_percent_encoded() -> None:
    url = resolve("host=db.example.com user=app password=Vt7%41 dbname=shop").url
    assert url is not None
    assert url.password == "Vt7%41"  # noqa: S105


@pytest.mark.parametrize(("address", "difference"), ADDRESSES.values(), ids=ADDRESSES)
def test_the_driver_receives_what_an_address_means(address: str, difference: dict[str, Any]) -> None:
    received = what_the_driver_receives(resolve(f"postgresql://{address}"))
    usual = {"user": "app", "password": "Vt7mQz29LkRw", "host": "db.example.com", "dbname": "shop"}
    expected = {name: value for name, value in {**usual, **difference}.items() if value}
    for name in ["arguments", "context", *MAY_BE_ADDED - set(expected)]:
        received.pop(name, None)
    assert {**received, "port": received.get("port", 5432)} == {"port": 5432, **expected}


@pytest.mark.parametrize(("name", "values"), PARAMETERS_OF_LIBPQ.items())
def test_the_driver_receives_the_parameters_of_libpq(name: str, values: str) -> None:
    for value in values.split("|"):
        assert what_the_driver_receives(resolve(f"{PASTED}?{name}={quote(value)}"))[name] == value


@pytest.mark.parametrize("names", PARAMETERS_OF_TOOLS.values(), ids=PARAMETERS_OF_TOOLS)
def test_the_parameters_of_tools_are_dropped_by_name(names: str) -> None:
    resolution = resolve(f"{PASTED}?{'&'.join(f'{name}=1' for name in names.split())}")
    assert resolution.repairs == tuple(f"dropped_parameter:{name}" for name in names.split())


@pytest.mark.parametrize(("reason", "value"), [(reason, value) for reason in REFUSED for value in REFUSED[reason]])
def test_what_cannot_be_used_is_refused_for_the_right_reason(reason: str, value: str) -> None:
    assert resolve(value).reason == _reason_without_safety_net(value) == reason


@pytest.mark.parametrize(("value", "path"), SQLITE.values(), ids=SQLITE)
def test_the_path_of_sqlite_is_what_was_meant(value: str, path: str) -> None:
    resolution = resolve(value)
    assert resolution.url is not None
    assert (resolution.backend, resolution.url.database) == ("sqlite", path)


@pytest.mark.parametrize(("repairs", "value"), REPAIRS)
def test_what_was_repaired_is_named(repairs: str, value: str) -> None:
    assert resolve(value).repairs == tuple(repairs.split())


@pytest.mark.parametrize("said", ["pgbouncer", "pgbouncer=1", "pgbouncer=TRUE", "pgbouncer=yes", "pgbouncer=on"])
def test_a_url_may_say_that_a_transaction_pooler_answers(said: str) -> None:
    assert resolve(f"{PASTED}?{said}").transaction_pooler
    assert not resolve(f"{PASTED}?pgbouncer=false").transaction_pooler


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
@examples(few=500, many=12_000)
def test_any_string_at_all_gives_a_resolution(examples: int) -> None:
    settings(REPEATABLE, max_examples=examples)(given(value=ANYTHING)(check_that_it_is_resolved))()


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


WITH_A_SECRET = st.builds(
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


@pytest.mark.slow
@examples(few=600, many=3_000)
def test_no_part_of_a_value_is_ever_shown(examples: int) -> None:
    """Wherever the secret stands and whatever stands around it, nothing shows it."""

    @settings(REPEATABLE, max_examples=examples)
    @given(value=WITH_A_SECRET)
    def holds(value: str) -> None:
        resolution = resolve(value, SPACE_ID="someone/something")
        assert not [part for part in (MARKER, "Zq7", "Kw9Jx4", "kw9jx4") if part in shown(resolution)]

    holds()


@pytest.mark.slow
@examples(few=400, many=2_000)
def test_an_encoded_password_arrives_as_it_is(examples: int) -> None:
    """Whatever a password holds, percent-encoding carries it unless it is a known placeholder."""

    @settings(REPEATABLE, max_examples=examples)
    @given(password=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cs"]), min_size=1))
    def holds(password: str) -> None:
        resolution = resolve(f"postgresql://app:{quote(password, safe='')}@db.example.com:5432/appdb")
        if resolution.url is None:
            assert resolution.reason in {"placeholder", "unexpanded_variable"}
        else:
            assert what_the_driver_receives(resolution)["password"] == password

    holds()
