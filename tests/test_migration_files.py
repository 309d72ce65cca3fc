"""Migrations that `make migration` writes touch only this project's tables, and run on both databases."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Postgres

pytestmark = pytest.mark.slow

# As a person runs them one after the other, but in a process that imports the libraries once.
ALEMBIC = """
import sys
from alembic.config import main
for command in sys.argv[1:]:
    main(command.split())
"""
ROUND_TRIP = ("upgrade head", "check", "downgrade 0001", "upgrade head", "check")


def alembic(project: BakedProject, url: str, *commands: str) -> str:
    """Run Alembic's commands on a database; return what they print."""
    return project.run("python", "-c", ALEMBIC, *commands, environ={"DATABASE_URL": url}).stdout


def make_migration(project: BakedProject, url: str, name: str) -> str:
    """Run `make migration`, as if `make dev` had installed what the tests have; return the text of the file."""
    (project.path / ".venv").mkdir(exist_ok=True)
    (project.path / ".venv" / "ready").touch()
    programs = f"BIN={Path(sys.executable).parent}"
    project.run("make", "migration", f"m={name}", programs, environ={"DATABASE_URL": url})
    return text_of_migration(project, name)


def write_migration(project: BakedProject, url: str, name: str) -> str:
    """Do what `make migration` does, in one process; return the text of the file."""
    alembic(project, url, "upgrade head", f"revision --autogenerate -m {name}")
    for command in ("format --quiet", "check --fix --quiet"):
        project.run("ruff", *command.split(), "migrations")
    return text_of_migration(project, name)


def text_of_migration(project: BakedProject, name: str) -> str:
    (file,) = (project.path / "migrations" / "versions").glob(f"*_{name}.py")
    return file.read_text()


def add_models(project: BakedProject, text: str) -> None:
    models = project.path / "src" / "items" / "models.py"
    models.write_text(models.read_text() + text)


def sqlite_url(tmp_path: Path, name: str = "other.db") -> str:
    return f"sqlite:///{tmp_path}/{name}"


TYPES = '''
# ruff: noqa
import enum
import uuid
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from fastapi_users_db_sqlalchemy.generics import GUID as UsersGUID
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import deferred
from sqlalchemy_utils import ChoiceType, EmailType, JSONType, UUIDType
from sqlmodel import AutoString

from src.database.base import PortableJSON, UTCDateTime


class GUID(sa.types.TypeDecorator):
    """As the documentation of SQLAlchemy shows it."""

    impl = sa.CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect):
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID())
        return dialect.type_descriptor(sa.CHAR(36))

    def process_bind_param(self, value, dialect):
        return value if value is None or dialect.name == "postgresql" else str(value)

    def process_result_value(self, value, dialect):
        return value if value is None or isinstance(value, uuid.UUID) else uuid.UUID(value)


class Vector3(sa.types.TypeDecorator):
    """A vector, which is text on SQLite."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect):
        return dialect.type_descriptor(Vector(3) if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value, dialect):
        return value if dialect.name == "postgresql" else repr(value)

    def process_result_value(self, value, dialect):
        return list(value) if dialect.name == "postgresql" else eval(value)


class Short(sa.String):
    """A string with another name."""


class Status(enum.Enum):
    draft = "draft"
    published = "published"


class Everything(Base):
    __tablename__ = "everything"

    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    waited: Mapped[timedelta]
    guid: Mapped[uuid.UUID] = mapped_column(GUID)
    user_id: Mapped[uuid.UUID] = mapped_column(UsersGUID)
    binary_uuid: Mapped[uuid.UUID] = mapped_column(UUIDType)
    text_uuid: Mapped[uuid.UUID] = mapped_column(UUIDType(binary=False))
    plain_uuid: Mapped[uuid.UUID]
    email: Mapped[str] = mapped_column(EmailType)
    choice: Mapped[str] = mapped_column(ChoiceType([("a", "A")]))
    json: Mapped[Any] = mapped_column(JSONType)
    name: Mapped[str] = mapped_column(AutoString(50))
    vector: Mapped[Any] = mapped_column(Vector3)
    variant: Mapped[Any] = mapped_column(Vector(3).with_variant(sa.JSON(), "sqlite"))
    tags: Mapped[list[str]] = mapped_column(sa.ARRAY(sa.String(20)).with_variant(sa.JSON(), "sqlite"))
    moods: Mapped[list[str]] = mapped_column(
        sa.ARRAY(sa.Enum("sad", "glad", name="mood")).with_variant(sa.JSON(), "sqlite")
    )
    signs: Mapped[list[str]] = mapped_column(
        postgresql.ARRAY(postgresql.ENUM("plus", "minus", name="sign")).with_variant(sa.JSON(), "sqlite")
    )
    data: Mapped[dict[str, Any]] = mapped_column(PortableJSON)
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    status: Mapped[Status] = mapped_column(sa.Enum(Status))
    short: Mapped[str] = mapped_column(Short(7))


class Second(Base):
    __tablename__ = "second"

    number: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True)
    status: Mapped[Status] = mapped_column(sa.Enum(Status))


class Order(Base):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(sa.Sequence("order_numbers", start=1000), primary_key=True)
    title: Mapped[str]
'''

WRITE_A_ROW = """
import os
import uuid
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from src.database.session import build_engine
from src.items.models import Everything, Order, Status

one = uuid.UUID(int=1)
values = dict(
    waited=timedelta(hours=1), guid=one, user_id=one, binary_uuid=one, text_uuid=one, plain_uuid=one, email="a@b.c",
    choice="a", json={"a": 1}, name="n", vector=[1.0, 2.0, 3.0], variant=[1.0, 2.0, 3.0], tags=["x"],
    moods=["sad"], signs=["plus"], data={"b": None},
    at=datetime(2026, 1, 2, tzinfo=UTC), status=Status.published, short="s",
)
engine = build_engine(os.environ["DATABASE_URL"])
with Session(engine) as session:
    session.add_all([Everything(**values), Order(title="a"), Order(title="b")])
    session.commit()
    print("orders:", [order.number for order in session.query(Order).order_by(Order.number)])
    row = session.query(Everything).one()
    # objects of the package's own come back
    del values["variant"], values["choice"]
    differ = [name for name, value in values.items() if getattr(row, name) != value]
    print("differ:", differ)
engine.dispose()
"""

ON_POSTGRESQL = {
    "id": "bigint",
    "waited": "interval",
    "guid": "uuid",
    "user_id": "uuid",
    "binary_uuid": "uuid",
    "text_uuid": "uuid",
    "plain_uuid": "uuid",
    "email": "character varying(255)",
    "choice": "character varying(255)",
    "json": "json",
    "name": "character varying(50)",
    "vector": "vector(3)",
    "variant": "vector(3)",
    "tags": "character varying(20)[]",
    "moods": "mood[]",
    "signs": "sign[]",
    "data": "jsonb",
    "at": "timestamp with time zone",
    "status": "status",
    "short": "character varying(7)",
}
ON_SQLITE = {
    "id": "INTEGER",
    "waited": "DATETIME",
    "guid": "CHAR(36)",
    "user_id": "CHAR(36)",
    "binary_uuid": "BINARY(16)",
    "text_uuid": "CHAR(32)",
    "plain_uuid": "CHAR(32)",
    "email": "VARCHAR(255)",
    "choice": "VARCHAR(255)",
    "json": "TEXT",
    "name": "VARCHAR(50)",
    "vector": "TEXT",
    "variant": "JSON",
    "tags": "JSON",
    "moods": "JSON",
    "signs": "JSON",
    "data": "JSON",
    "at": "DATETIME",
    "status": "VARCHAR(9)",
    "short": "VARCHAR(7)",
}
COLUMNS = """
    SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = 'everything'::regclass AND attnum > 0 ORDER BY attnum
"""


@pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.thorough)], indirect=True
)
def test_columns_get_the_type_that_each_database_has_wherever_the_migration_was_written(
    project: BakedProject, database_url: str, postgres: Postgres, tmp_path: Path
) -> None:
    of_sqlite = database_url if database_url.startswith("sqlite") else sqlite_url(tmp_path)
    of_postgresql = postgres.create_database() if database_url.startswith("sqlite") else database_url
    with postgres.connect(of_postgresql) as server:
        if not server.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone():
            pytest.skip("pgvector is not installed (apt install 'postgresql-*-pgvector')")
        server.execute("CREATE EXTENSION IF NOT EXISTS vector")
    add_models(project, TYPES)
    written = write_migration(project, database_url, "types")
    imports = [line for line in written.splitlines() if line.startswith(("import", "from"))]
    assert imports == [
        "import pgvector.sqlalchemy",
        "import sqlalchemy as sa",
        "from alembic import op",
        "from sqlalchemy.dialects import postgresql",
    ]
    for url in (of_sqlite, of_postgresql):
        alembic(project, url, *ROUND_TRIP)
        said = project.run("python", "-c", WRITE_A_ROW, environ={"DATABASE_URL": url}).stdout
        assert "differ: []" in said
        assert ("orders: [1, 2]" if url == of_sqlite else "orders: [1000, 1001]") in said
    with postgres.connect(of_postgresql) as server:
        assert server.execute(COLUMNS).fetchall() == list(ON_POSTGRESQL.items())
        server.execute("INSERT INTO second VALUES (DEFAULT, 'draft')")
        numbered = "SELECT column_default FROM information_schema.columns"
        numbered += " WHERE (table_name, column_name) = ('orders', 'number')"
        assert server.execute(numbered).fetchall() == [(None,)]
    with closing(sqlite3.connect(of_sqlite.removeprefix("sqlite:///"))) as file:
        declared = file.execute("SELECT name, type FROM pragma_table_info('everything')")
        assert dict(declared.fetchall()) == ON_SQLITE
        file.execute("INSERT INTO second (status) VALUES ('draft')")
        assert file.execute("SELECT number FROM second").fetchall() == [(1,)]


OF_PACKAGES = '''
import sqlalchemy as sa
import sqlalchemy_utils
from alembic.autogenerate.api import AutogenContext
from alembic.runtime.migration import MigrationContext
from fastapi_users_db_sqlalchemy.generics import TIMESTAMPAware
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.mutable import MutableDict

from space_runtime.migrations.rendering import render_item


class Password(sa.types.TypeDecorator):
    """Chooses its type as sqlalchemy_utils.PasswordType does, which needs another package."""

    impl = sa.VARBINARY(1024)
    cache_ok = True

    def load_dialect_impl(self, dialect):
        kind = postgresql.BYTEA(60) if dialect.name == "postgresql" else sa.VARBINARY(60)
        return dialect.type_descriptor(kind)


def declared(kind, dialect):
    try:
        return kind.compile(dialect)
    except sa.exc.CompileError:
        return None


for kind in (
    TIMESTAMPAware(timezone=True),
    Password(),
    MutableDict.as_mutable(sa.JSON(none_as_null=True)),
    sqlalchemy_utils.ArrowType(timezone=True),
    sqlalchemy_utils.ChoiceType([(1, "one")], impl=sa.SmallInteger()),
    sqlalchemy_utils.CountryType(),
    sqlalchemy_utils.IPAddressType(),
    sqlalchemy_utils.LtreeType(),
    sqlalchemy_utils.ScalarListType(int),
    sqlalchemy_utils.StringEncryptedType(sa.Unicode(300), "key"),
    sqlalchemy_utils.TSVectorType("title"),
    sqlalchemy_utils.TimezoneType(backend="zoneinfo"),
    sqlalchemy_utils.URLType(),
):
    context = AutogenContext(MigrationContext.configure(dialect_name="postgresql"))
    names = {"sa": sa}
    written = render_item("type", kind, context)
    exec("\\n".join(context.imports), names)
    for dialect in (postgresql.dialect(), sqlite.dialect()):
        here, there = declared(eval(written, names), dialect), declared(kind, dialect)
        assert here == there, (kind, here, there)
print("all are written")
'''


def test_a_type_of_another_package_is_written_as_what_each_database_stores(bake: Bakery) -> None:
    assert "all are written" in bake().run("python", "-c", OF_PACKAGES).stdout


PRICE = """
    price: Mapped[Decimal] = mapped_column(sa.Numeric(30, 10), server_default="0")
"""


def test_a_type_that_changes_on_sqlite_only_is_noticed_on_postgresql(
    project: BakedProject, postgres: Postgres, tmp_path: Path
) -> None:
    models = project.path / "src" / "items" / "models.py"
    imports = "from decimal import Decimal\n\nimport sqlalchemy as sa\n\nfrom src.database.base import LongNumeric\n"
    models.write_text(imports + models.read_text() + PRICE)
    of_sqlite, of_postgresql = sqlite_url(tmp_path), postgres.create_database()
    written = write_migration(project, of_postgresql, "price")
    (script,) = (project.path / "migrations" / "versions").glob("*_price.py")
    leaving = "def upgrade() -> None:\n    with op.get_context().autocommit_block():\n        pass\n"
    script.write_text(written.replace("def upgrade() -> None:\n", leaving))
    alembic(project, of_sqlite, "upgrade head")
    models.write_text(models.read_text().replace("sa.Numeric(30, 10)", "LongNumeric(30, 10)"))
    written = write_migration(project, of_postgresql, "long")
    assert 'batch_op.alter_column(\n            "price"' in written
    for url in (of_postgresql, of_sqlite):
        alembic(project, url, "upgrade head", "check", "downgrade -1", "upgrade head", "check")
    with closing(sqlite3.connect(of_sqlite.removeprefix("sqlite:///"))) as file:
        assert file.execute("SELECT type FROM pragma_table_info('items') WHERE name = 'price'").fetchone() == ("TEXT",)
    assert "no migration is written" in alembic(project, of_postgresql, "revision --autogenerate -m none")


STATUS = """
    status: Mapped[Status] = mapped_column(sa.Enum(Status), server_default="draft")


class Other(Base):
    __tablename__ = "others"

    number: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[Status] = mapped_column(sa.Enum(Status))
"""
MOODS = """
    moods: Mapped[list[str] | None] = mapped_column(
        sa.ARRAY(sa.Enum("sad", "glad", name="mood")).with_variant(sa.JSON(), "sqlite")
    )
"""
STATUS_TYPE = """
import enum

import sqlalchemy as sa


class Status(enum.Enum):
    draft = "draft"
    published = "published"


class Item("""


@pytest.mark.thorough
def test_an_enum_is_created_before_the_column_that_needs_it_and_dropped_after_the_last_one(
    project: BakedProject, database_url: str, postgres: Postgres, tmp_path: Path
) -> None:
    models = project.path / "src" / "items" / "models.py"
    before = models.read_text()
    models.write_text(before.replace("class Item(", STATUS_TYPE.lstrip()) + STATUS)
    write_migration(project, database_url, "status")
    other = postgres.create_database() if database_url.startswith("sqlite") else sqlite_url(tmp_path)
    for url in (database_url, other):
        alembic(project, url, "upgrade 0001")
        add_an_item(url)
        alembic(project, url, *ROUND_TRIP)
        assert statuses(url) == [("draft",)]
    models.write_text(before)
    write_migration(project, database_url, "gone")
    for url in (database_url, other):
        alembic(project, url, "upgrade head", "check", "downgrade -1", "upgrade head", "check", "downgrade base")
    if not database_url.startswith("sqlite"):
        with postgres.connect(database_url) as server:
            assert server.execute("SELECT typname FROM pg_type WHERE typtype = 'e'").fetchall() == []


@pytest.mark.thorough
def test_a_value_that_an_enum_gets_is_added_on_both_databases(
    project: BakedProject, postgres: Postgres, tmp_path: Path
) -> None:
    models = project.path / "src" / "items" / "models.py"
    models.write_text(models.read_text().replace("class Item(", STATUS_TYPE.lstrip()) + STATUS + MOODS)
    of_sqlite, of_postgresql = sqlite_url(tmp_path), postgres.create_database()
    make_migration(project, of_sqlite, "status")
    alembic(project, of_postgresql, "upgrade head")
    add_an_item(of_postgresql)
    # also as the default, which PostgreSQL takes only once the new value is committed
    more = models.read_text().replace('"published"\n', '"published"\n    withdrawn = "withdrawn"\n')
    more = more.replace('"glad"', '"glad", "calm"')
    models.write_text(more.replace('server_default="draft"', 'server_default="withdrawn"'))
    written = make_migration(project, of_sqlite, "more")
    assert "ALTER TYPE status ADD VALUE IF NOT EXISTS 'withdrawn'" in written
    for url in (of_postgresql, of_sqlite, postgres.create_database()):
        alembic(project, url, "upgrade head", "check")
    with postgres.connect(of_postgresql) as server:
        server.execute("UPDATE items SET status = 'withdrawn'")
        server.execute("UPDATE others SET moods = '{calm}'")


AN_ITEM = "INSERT INTO items VALUES ('6f1e3a3c6f1e3a3c6f1e3a3c6f1e3a3c', 'one', NULL, '2026-01-01', '2026-01-01')"


def add_an_item(url: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
            file.execute(AN_ITEM)
    else:
        with psycopg.connect(url) as server:
            server.execute(AN_ITEM)


def statuses(url: str) -> list[tuple[object, ...]]:
    query = "SELECT status FROM items"
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return file.execute(query).fetchall()
    with psycopg.connect(url) as server:
        return server.execute(query).fetchall()


NOTES = """

class Note(Resource, Base):
    __tablename__ = "notes"

    text: Mapped[str] = mapped_column(String(20), index=True)
"""
CUSTOMERS = """

class Customer(Resource, Base):
    __tablename__ = "customers"

    nick: Mapped[str] = mapped_column(String(20))
"""
FOREIGN_ON_POSTGRESQL = """
    CREATE TABLE spatial_ref_sys (srid integer PRIMARY KEY);
    ALTER EXTENSION plpgsql ADD TABLE spatial_ref_sys;
    CREATE TABLE customers (id serial PRIMARY KEY, name text);
    INSERT INTO customers (name) VALUES ('Alice'), ('Bea');
    CREATE INDEX ix_customers_name ON customers (name);
    CREATE INDEX ix_of_an_administrator ON items (description);
    CREATE VIEW items_view AS SELECT * FROM items;
    CREATE SCHEMA other;
    CREATE TABLE other.alembic_version (version_num text);
    CREATE TABLE other.items (id integer PRIMARY KEY);
    CREATE TABLE space_runtime_something (id integer PRIMARY KEY);
    CREATE TABLE notes_search (LIKE items) PARTITION BY RANGE (created_at);
    CREATE TABLE notes_search_1 PARTITION OF notes_search DEFAULT;
"""
FOREIGN_ON_SQLITE = """
    CREATE TABLE customers (id integer PRIMARY KEY, name text);
    INSERT INTO customers (name) VALUES ('Alice'), ('Bea');
    CREATE INDEX ix_customers_name ON customers (name);
    CREATE INDEX ix_of_an_administrator ON items (description);
    CREATE VIEW items_view AS SELECT * FROM items;
    CREATE VIRTUAL TABLE items_text USING fts5 (title, content='items');
    CREATE TABLE space_runtime_something (id integer PRIMARY KEY);
"""


@pytest.mark.parametrize(
    "database_url", ["postgresql", pytest.param("sqlite", marks=pytest.mark.thorough)], indirect=True
)
def test_what_others_have_in_the_same_database_is_not_mentioned_in_a_migration(
    project: BakedProject, database_url: str
) -> None:
    alembic(project, database_url, "upgrade head")
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
            file.executescript(FOREIGN_ON_SQLITE)
    else:
        with psycopg.connect(database_url) as server:
            server.execute(FOREIGN_ON_POSTGRESQL)
            for number in range(10):
                server.execute(f"CREATE TABLE foreign_{number} (id integer PRIMARY KEY)".encode())
    models = project.path / "src" / "items" / "models.py"
    before = models.read_text()
    models.write_text(before + CUSTOMERS)
    for command in ("check", "revision --autogenerate -m customers"):
        said = project.run("python", "-c", ALEMBIC, command, environ={"DATABASE_URL": database_url}, check=False)
        assert said.returncode != 0
        assert "a table 'customers' that no migration of this project makes" in said.stdout
    models.write_text(before + NOTES)
    written = make_migration(project, database_url, "notes")
    assert 'op.create_table(\n        "notes",' in written
    assert "drop_table" not in written.partition("def downgrade")[0]
    for foreign in (
        "customers",
        "administrator",
        "view",
        "search",
        "items_text",
        "other",
        "foreign_",
        "spatial",
        "space_",
    ):
        assert foreign not in written
    # what this project has created, it also drops
    models.write_text(before)
    written = write_migration(project, database_url, "no_notes")
    upgrade = written.partition("def downgrade")[0]
    assert 'op.drop_table("notes")' in upgrade
    assert upgrade.count("drop_table") == 1
    assert "customers" not in written
    assert "No new upgrade operations" in alembic(project, database_url, "upgrade head", "check")


RAW = '''
import sqlalchemy as sa
from alembic import op

revision = "raw"
down_revision = "0001"
CUSTOMERS = """
    CREATE TABLE customers (id UUID PRIMARY KEY, nick VARCHAR(20) NOT NULL,
        created_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL)
"""


def upgrade():
    op.execute(CUSTOMERS)
    for name in ("note", "other"):
        op.create_table(f"{name}s", sa.Column("id", sa.Uuid(), primary_key=True))


def downgrade():
    pass
'''


@pytest.mark.thorough
def test_a_table_is_this_projects_own_however_a_migration_makes_it(project: BakedProject, database_url: str) -> None:
    (project.path / "migrations" / "versions" / "raw.py").write_text(RAW)
    add_models(project, CUSTOMERS + NOTES)
    written = write_migration(project, database_url, "more")
    upgrade = written.partition("def downgrade")[0]
    assert 'op.batch_alter_table("notes"' in upgrade
    assert 'op.batch_alter_table("customers"' in upgrade
    assert "create_table" not in written
    assert "others" not in written
    alembic(project, database_url, "upgrade head", "check")
