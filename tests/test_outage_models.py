"""Tables that real projects have come through an outage: keys, references, seeds, and rows that PostgreSQL refuses."""

import base64
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.bakery import BakedProject
from tests.support.killing import app_that_dies
from tests.support.postgres import Login
from tests.support.server import IMPATIENT, Server

pytestmark = pytest.mark.slow

FAILBACK = ("python", "-m", "space_runtime.failback", "src.main:create_runtime")

SHOP = """
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, inspect
from sqlalchemy.orm import Mapped, mapped_column

from src.database.base import Base
from src.database.session import DatabaseDep
from src.main import app


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None] = mapped_column(unique=True)
    recommended_by: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    what: Mapped[str]


class Role(Base):
    __tablename__ = "roles"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Category(Base):
    __tablename__ = "categories"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]


class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    category_id: Mapped[UUID] = mapped_column(ForeignKey("categories.id"))
    role_id: Mapped[int | None] = mapped_column(ForeignKey("roles.id"))
    what: Mapped[str]


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(unique=True)


class Promotion(Base):
    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


MODELS = {mapper.local_table.name: mapper.class_ for mapper in Base.registry.mappers}


def as_dict(row):
    return {column.key: getattr(row, column.key) for column in inspect(type(row)).columns}


@app.get("/rows/{table}")
async def read_rows(database: DatabaseDep, table: str) -> list[dict]:
    model = MODELS[table]
    key = inspect(model).primary_key[0]
    return await database.read(lambda session: [as_dict(row) for row in session.query(model).order_by(key)])


@app.post("/rows/{table}", status_code=201)
async def create_row(database: DatabaseDep, table: str, values: dict) -> dict:
    def work(session):
        row = MODELS[table](**{
            name: UUID(value) if name == "category_id" else value for name, value in values.items()
        })
        session.add(row)
        session.flush()
        return as_dict(row)

    return await database.write(work)


@app.patch("/rows/{table}/{key}")
async def change_row(database: DatabaseDep, table: str, key: str, values: dict) -> None:
    def work(session):
        model = MODELS[table]
        row = session.get(model, UUID(key) if len(key) == 36 else int(key))
        for name, value in values.items():
            setattr(row, name, value)

    await database.write(work)
"""

MIGRATION = """
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "shop"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "customers",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("email", sa.String(), unique=True),
        sa.Column("recommended_by", sa.Integer(), sa.ForeignKey("customers.id")),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("customer_id", sa.Integer(), sa.ForeignKey("customers.id"), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
    )
    roles = op.create_table(
        "roles",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False, unique=True),
    )
    op.bulk_insert(roles, [{"id": 1, "name": "admin"}, {"id": 2, "name": "member"}])
    categories = op.create_table(
        "categories",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
    )
    op.bulk_insert(categories, [{"id": uuid4(), "name": "General"}, {"id": uuid4(), "name": "Billing"}])
    op.create_table(
        "tickets",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("category_id", sa.Uuid(), sa.ForeignKey("categories.id"), nullable=False),
        sa.Column("role_id", sa.Integer(), sa.ForeignKey("roles.id")),
        sa.Column("what", sa.String(), nullable=False),
    )
    op.create_table(
        "notes",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("url", sa.Text(), nullable=False, unique=True),
    )
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("what", sa.String(), nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError
"""


@pytest.fixture
def shop(project: BakedProject) -> BakedProject:
    """A project whose owner has customers with orders, tickets in categories, and some more."""
    (project.path / "shop.py").write_text(SHOP)
    (project.path / "migrations" / "versions" / "0002_shop.py").write_text(MIGRATION)
    return project


@contextmanager
def serving(shop: BakedProject, login: Login, **environ: str) -> Iterator[Server]:
    """The shop on PostgreSQL."""
    login.allow()
    with shop.boot({"DATABASE_URL": login.url} | environ, in_place=True, app="shop:app") as server:
        ok(server)
        yield server


@contextmanager
def outage(shop: BakedProject, login: Login) -> Iterator[Server]:
    """The shop on SQLite, because PostgreSQL is away; at the end PostgreSQL is back, and serves."""
    login.refuse()
    with shop.boot({"DATABASE_URL": login.url} | IMPATIENT, in_place=True, app="shop:app") as server:
        assert server.settled()["status"] == "degraded", server.log()
        yield server
        login.allow()
        ok(server)


def ok(server: Server) -> dict[str, Any]:
    report = server.health_when(lambda report: report["database"]["backend"] == "postgresql", within=30)
    assert report["status"] == "ok", report
    database: dict[str, Any] = report["database"]
    return database


def create(server: Server, table: str, **values: object) -> dict[str, Any]:
    answer = server.post(f"/rows/{table}", json=values)
    assert answer.status_code == 201, answer.text
    row: dict[str, Any] = answer.json()
    return row


def rows(server: Server, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get(f"/rows/{table}").json()
    return found


def failback(shop: BakedProject, login: Login, *options: str) -> str:
    return shop.run(*FAILBACK, *options, environ={"DATABASE_URL": login.url}, check=False).stdout


def test_a_customer_of_the_outage_keeps_her_orders_and_the_others_keep_theirs(shop: BakedProject, login: Login) -> None:
    with serving(shop, login) as server:
        alice, bea = create(server, "customers", name="Alice"), create(server, "customers", name="Bea")
        assert (alice["id"], bea["id"]) == (1, 2)
    with outage(shop, login) as server:
        mallory = create(server, "customers", name="Mallory")
        friend = create(server, "customers", name="Friend", recommended_by=mallory["id"])
        order = create(server, "orders", customer_id=mallory["id"], what="a lamp")
    with serving(shop, login) as server:
        # what a client was told stays valid
        assert rows(server, "customers") == [alice, bea, mallory, friend]
        assert rows(server, "orders") == [order]
        assert create(server, "customers", name="Cleo")["id"] == 3
        assert create(server, "orders", customer_id=1, what="a chair")["id"] == 1


def test_numbers_that_postgresql_has_are_replaced_and_references_follow(shop: BakedProject, login: Login) -> None:
    with serving(shop, login) as server:
        alice, bea = create(server, "customers", name="Alice"), create(server, "customers", name="Bea")
    with outage(shop, login) as server:
        # with numbers of their own, as somebody's script inserts them
        create(server, "customers", id=1, name="Mallory")
        create(server, "customers", id=2, name="Friend", recommended_by=1)
        create(server, "customers", id=3, name="Third", recommended_by=2)
        create(server, "orders", id=1, customer_id=1, what="a lamp")
        create(server, "orders", id=7, customer_id=2, what="a chair")
    with serving(shop, login) as server:
        assert ok(server)["pending_rows"] == 0
        found = {row["name"]: row for row in rows(server, "customers")}
        assert (found["Alice"], found["Bea"]) == (alice, bea)
        assert found["Third"]["id"] == 3
        assert found["Friend"]["recommended_by"] == found["Mallory"]["id"]
        assert found["Third"]["recommended_by"] == found["Friend"]["id"]
        orders = {row["what"]: row for row in rows(server, "orders")}
        assert orders["a lamp"]["customer_id"] == found["Mallory"]["id"]
        assert orders["a chair"] == {"id": 7, "customer_id": found["Friend"]["id"], "what": "a chair"}
        numbers = {row["id"] for row in found.values()}
        assert create(server, "customers", name="Next")["id"] == max(numbers) + 1
        assert create(server, "orders", customer_id=1, what="next")["id"] == 8


@pytest.mark.thorough
def test_numbers_are_kept_where_postgresql_is_empty(shop: BakedProject, login: Login) -> None:
    with outage(shop, login) as server:
        mallory = create(server, "customers", name="Mallory")
        order = create(server, "orders", customer_id=mallory["id"], what="a lamp")
    with serving(shop, login) as server:
        assert rows(server, "customers") == [mallory]
        assert rows(server, "orders") == [order]
        assert create(server, "customers", name="Next")["id"] == 1


def test_a_refused_row_keeps_those_that_refer_to_it_and_the_command_moves_them_together(
    shop: BakedProject, login: Login, tmp_path: Path
) -> None:
    with serving(shop, login) as server:
        create(server, "customers", name="Alice", email="alice@example.org")
    with outage(shop, login) as server:
        mallory = create(server, "customers", name="Mallory", email="alice@example.org")
        create(server, "customers", name="Friend", recommended_by=mallory["id"])
        create(server, "orders", customer_id=mallory["id"], what="a lamp")
        create(server, "customers", name="Innocent")
    # the disk of a Space is new after each restart
    shutil.rmtree(shop.path / "data")
    with serving(shop, login) as server:
        assert {row["name"] for row in rows(server, "customers")} == {"Alice", "Innocent"}
        assert rows(server, "orders") == []
        report = ok(server)
        assert report["pending_rows"] == 3
        assert "make failback" in report["detail"]
        listed = failback(shop, login, "--list")
        assert "3 refused rows" in listed
        assert f"customers  {mallory['id']}  PostgreSQL refused it (23505 uq_customers_email)" in listed
        assert listed.count("it refers to a row that stayed behind") == 2
        assert "alice@example.org" not in listed
        assert "0 moved, 3 refused again" in failback(shop, login)

        exported = tmp_path / "refused.jsonl"
        assert "3 refused rows" in failback(shop, login, "--export", str(exported))
        assert {json.loads(line)["table"] for line in exported.read_text().splitlines()} == {"customers", "orders"}
        server.patch("/rows/customers/1", json={"email": "alice@example.com"})
        assert "3 moved, 0 refused again" in failback(shop, login)
        server.health_when(lambda report: report["database"]["pending_rows"] == 0)
        found = {row["name"]: row for row in rows(server, "customers")}
        assert found["Mallory"] == mallory
        assert found["Friend"]["recommended_by"] == mallory["id"]
        assert [row["customer_id"] for row in rows(server, "orders")] == [mallory["id"]]
        assert "alice@example.org" not in server.log_at_the_end()


@pytest.mark.thorough
def test_refused_rows_can_be_discarded(shop: BakedProject, login: Login) -> None:
    with serving(shop, login) as server:
        create(server, "notes", url="here")
    with outage(shop, login) as server:
        create(server, "notes", url="here")
    with serving(shop, login) as server:
        assert ok(server)["pending_rows"] == 1
        assert "YES=1 says yes" in failback(shop, login, "--discard", "all")
        assert "1 refused rows were deleted" in failback(shop, login, "--discard", "all", "--yes")
        server.health_when(lambda report: report["database"]["pending_rows"] == 0)


@pytest.mark.thorough
def test_a_refused_row_is_tried_again_by_its_number_and_the_others_stay(shop: BakedProject, login: Login) -> None:
    with serving(shop, login) as server:
        here, there = (create(server, "notes", url=url) for url in ("here", "there"))
    with outage(shop, login) as server:
        for url in ("here", "there"):
            create(server, "notes", url=url)
    with serving(shop, login) as server:
        for note in (here, there):
            server.patch(f"/rows/notes/{note['id']}", json={"url": f"not {note['url']}"})
        assert "RETRY is `all` or a number" in failback(shop, login, "--retry", "3")
        assert "1 moved, 0 refused again" in failback(shop, login, "--retry", "2")
        assert [row["url"] for row in rows(server, "notes")] == ["not here", "not there", "there"]
        server.health_when(lambda report: report["database"]["pending_rows"] == 1)
        assert "1 moved, 0 refused again" in failback(shop, login, "--retry", "all")
        server.health_when(lambda report: report["database"]["pending_rows"] == 0)


def test_what_migrations_insert_is_nobodys_row(shop: BakedProject, login: Login) -> None:
    with serving(shop, login) as server:
        roles, categories = rows(server, "roles"), rows(server, "categories")
    with outage(shop, login) as server:
        assert server.health()["database"]["pending_rows"] == 0
    with outage(shop, login) as server:
        general = next(row["id"] for row in rows(server, "categories") if row["name"] == "General")
        assert general not in {row["id"] for row in categories}
        create(server, "tickets", category_id=general, role_id=2, what="help")
        server.health_when(lambda report: report["database"]["pending_rows"] == 1)
    with serving(shop, login) as server:
        assert ok(server)["pending_rows"] == 0
        assert (rows(server, "roles"), rows(server, "categories")) == (roles, categories)
        (ticket,) = rows(server, "tickets")
        assert ticket["category_id"] == next(row["id"] for row in categories if row["name"] == "General")
        assert ticket["role_id"] == 2


def test_a_change_to_what_a_migration_inserted_is_told_and_not_lost(shop: BakedProject, login: Login) -> None:
    with serving(shop, login) as server:
        roles = rows(server, "roles")
    with outage(shop, login) as server:
        assert server.patch("/rows/roles/2", json={"name": "guest"}).status_code == 200
        general = rows(server, "categories")[0]["id"]
        create(server, "tickets", category_id=general, role_id=2, what="help")
    with serving(shop, login) as server:
        assert rows(server, "roles") == roles
        assert rows(server, "tickets")[0]["role_id"] == 2
        assert ok(server)["pending_rows"] == 1
        assert "roles  2  a migration inserted it, and it was changed on SQLite" in failback(shop, login, "--list")


@pytest.mark.thorough
def test_a_reference_to_what_postgresql_no_longer_has_stays_until_it_is_there_again(
    shop: BakedProject, login: Login
) -> None:
    with serving(shop, login), login.postgres.connect(login.url) as connection:
        connection.execute("DELETE FROM categories WHERE name = 'General'")
    with outage(shop, login) as server:
        general = next(row["id"] for row in rows(server, "categories") if row["name"] == "General")
        create(server, "tickets", category_id=general, what="help")
    with serving(shop, login) as server:
        assert ok(server)["pending_rows"] == 2
        again = create(server, "categories", name="General")
        assert "1 moved, 0 refused again" in failback(shop, login)
        assert [row["category_id"] for row in rows(server, "tickets")] == [again["id"]]
        assert len(rows(server, "categories")) == 2


REFUSING_TRIGGER = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.url = 'bad' THEN RAISE 'no' USING ERRCODE = 'PT409'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION refuse()
"""


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (base64.b64encode(os.urandom(15_000)).decode(), "54000"),
        pytest.param("bad", "PT409", marks=pytest.mark.thorough),
    ],
)
def test_whatever_postgresql_says_about_one_row_the_rest_moves(
    shop: BakedProject, login: Login, url: str, code: str
) -> None:
    with serving(shop, login), login.postgres.connect(login.url) as connection:
        connection.execute(REFUSING_TRIGGER)
    with outage(shop, login) as server:
        create(server, "notes", url="good")
        create(server, "notes", url=url)
        create(server, "notes", url="good, too")
        assert server.post("/api/items", json={"title": "an item"}).status_code == 201
    with serving(shop, login) as server:
        assert {row["url"] for row in rows(server, "notes")} == {"good", "good, too"}
        assert server.titles() == ["an item"]
        assert ok(server)["pending_rows"] == 1
        assert f"PostgreSQL refused it ({code})" in failback(shop, login, "--list")


@pytest.mark.parametrize(
    ("rights", "numbers"),
    [
        ("", ({}, {})),
        pytest.param("GRANT USAGE ON SEQUENCES", ({"id": 1}, {"id": 2}), marks=pytest.mark.thorough),
    ],
    ids=["rows", "rows and numbers"],
)
def test_a_role_that_may_only_write_rows_can_fail_back(
    shop: BakedProject, login: Login, rights: str, numbers: tuple[dict[str, int], dict[str, int]]
) -> None:
    administrator = login.postgres.url(login.url.rpartition("/")[2])
    with login.postgres.connect(administrator) as connection:
        connection.execute(
            f"""
            REVOKE ALL ON SCHEMA public FROM PUBLIC, {login.name};
            GRANT USAGE ON SCHEMA public TO {login.name};
            ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {login.name};
            {f"ALTER DEFAULT PRIVILEGES {rights} TO {login.name};" if rights else ""}
            ALTER DATABASE {login.url.rpartition("/")[2]} OWNER TO CURRENT_USER
            """
        )
    shop.run("python", "-m", "alembic", "upgrade", "head", environ={"DATABASE_URL": administrator})
    with serving(shop, login) as server, login.postgres.connect(administrator) as connection:
        assert "could not be moved" not in ok(server)["detail"]
        connection.execute("INSERT INTO customers (name) VALUES ('Alice')")
    with outage(shop, login) as server:
        mallory = create(server, "customers", name="Mallory", **numbers[0])
        friend = create(server, "customers", name="Friend", recommended_by=mallory["id"], **numbers[1])
        create(server, "orders", customer_id=friend["id"], what="a lamp")
        assert server.post("/api/items", json={"title": "an item"}).status_code == 201
    with serving(shop, login) as server:
        assert ok(server)["pending_rows"] == 0
        found = {row["name"]: row for row in rows(server, "customers")}
        assert found.keys() == {"Alice", "Mallory", "Friend"}
        assert found["Alice"]["id"] == 1
        assert found["Friend"]["recommended_by"] == found["Mallory"]["id"]
        assert rows(server, "orders")[0]["customer_id"] == found["Friend"]["id"]
        assert server.titles() == ["an item"]


def test_a_role_that_could_not_fail_back_says_so_while_postgresql_serves(shop: BakedProject, login: Login) -> None:
    with serving(shop, login):
        pass
    administrator = login.postgres.url(login.url.rpartition("/")[2])
    with login.postgres.connect(administrator) as connection:
        connection.execute("DROP TABLE space_runtime_refused_rows")
        connection.execute(f"REVOKE ALL ON SCHEMA public FROM PUBLIC, {login.name}")
        connection.execute(f"GRANT USAGE ON SCHEMA public TO {login.name}")
        connection.execute("ALTER SCHEMA public OWNER TO CURRENT_USER")
    with serving(shop, login) as server:
        assert "run `alembic upgrade head` as a role that may" in ok(server)["detail"]
        server.stop()
        assert "run `alembic upgrade head` as a role that may" in server.log()


def test_a_move_that_postgresql_ends_says_where(shop: BakedProject, login: Login) -> None:
    with serving(shop, login), login.postgres.connect(login.url) as connection:
        connection.execute("REVOKE INSERT ON orders FROM CURRENT_USER")
    login.refuse()
    with shop.boot({"DATABASE_URL": login.url} | IMPATIENT, in_place=True, app="shop:app") as server:
        assert server.settled()["status"] == "degraded"
        customer = create(server, "customers", name="Mallory")
        create(server, "orders", customer_id=customer["id"], what="a lamp")
        login.allow()
        server.health_when(lambda report: report["database"]["reason"] == "rows_not_moved", within=30)
        report = server.health_when(lambda report: report["database"]["pending_rows"] == 2)
        assert (report["status"], report["database"]["reason"]) == ("degraded", "rows_not_moved")
        assert "table orders, error 42501" in report["database"]["detail"]
        with login.postgres.connect(login.url) as connection:
            connection.execute("GRANT INSERT ON orders TO CURRENT_USER")
        ok(server)
        assert [row["customer_id"] for row in rows(server, "orders")] == [customer["id"]]
        server.stop()
        assert "table orders, error 42501" in server.log()


def test_a_table_of_the_owner_may_have_any_name(shop: BakedProject, login: Login) -> None:
    with outage(shop, login) as server:
        promotion = create(server, "promotions", what="two for one")
    with serving(shop, login) as server:
        assert rows(server, "promotions") == [promotion]


REFUSING_AT_THE_END = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.what = 'bad' THEN RAISE 'no' USING ERRCODE = 'check_violation'; END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON promotions DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse()
"""

# Where the process is killed while it gives new numbers, beside the steps in test_failback.py.
STEPS = [
    ("handover", "begin", "after"),
    ("schema", "read_schema", "after"),
    ("numbering", "Numbering.advance", "after"),
    ("numbering", "Numbering._next", "after"),
    ("target", "Target.insert", "before"),
    ("target", "Target.insert", "after"),
    ("target", "Target.insert_together", "after"),
    ("target", "Target.check_deferred", "before"),
    ("move", "Move.undo", "after"),
    ("handover", "failbacks.record_new_keys", "after"),
    ("handover", "failbacks.keep", "before"),
    ("handover", "failbacks.keep", "after"),
    ("handover", "failbacks.record_move", "after"),
    ("handover", "finish", "before"),
]

REPRESENTATIVES = [("numbering", "Numbering._next", "after", "away")]

DEATHS = [
    pytest.param(*death, id="-".join(death), marks=() if death in REPRESENTATIVES else pytest.mark.thorough)
    for death in [(*step, next_start) for step in STEPS for next_start in ("there", "away")]
]


@pytest.mark.parametrize(("module", "name", "moment", "next_start"), DEATHS)
def test_killed_while_rows_get_new_numbers_each_is_there_once_with_its_own_references(
    shop: BakedProject, login: Login, module: str, name: str, moment: str, next_start: str
) -> None:
    with serving(shop, login) as server, login.postgres.connect(login.url) as connection:
        create(server, "customers", name="Alice", email="alice@example.org")
        connection.execute(REFUSING_AT_THE_END)
    login.refuse()
    app = app_that_dies(shop, moment, module, name, "shop")
    with shop.boot({"DATABASE_URL": login.url} | IMPATIENT, in_place=True, app=app) as server:
        assert server.settled()["status"] == "degraded"
        create(server, "customers", id=1, name="Mallory")
        create(server, "customers", id=2, name="Friend", recommended_by=1)
        create(server, "customers", id=3, name="Refused", email="alice@example.org")
        create(server, "customers", id=4, name="One")
        create(server, "customers", id=5, name="Another", recommended_by=4)
        server.patch("/rows/customers/4", json={"recommended_by": 5})
        create(server, "promotions", what="bad")
        create(server, "orders", customer_id=1, what="a lamp")
        create(server, "orders", customer_id=3, what="refused")
        general = rows(server, "categories")[0]["id"]
        create(server, "tickets", category_id=general, what="help")
        login.allow()
        assert server.process.wait(30) == -signal.SIGKILL
    if next_start == "away":
        with outage(shop, login) as server:
            create(server, "customers", id=1, name="Later")
            create(server, "orders", customer_id=1, what="later")
    with serving(shop, login) as server:
        assert server.health_when(lambda report: report["database"]["pending_rows"] == 3)
        found = {row["name"]: row for row in rows(server, "customers")}
        later = {"Later"} if next_start == "away" else set()
        assert sorted(row["name"] for row in rows(server, "customers")) == sorted(
            {"Alice", "Mallory", "Friend", "One", "Another"} | later
        )
        assert found["Alice"]["id"] == 1
        for name, by_whom in {"Friend": "Mallory", "One": "Another", "Another": "One"}.items():
            assert found[name]["recommended_by"] == found[by_whom]["id"]
        of_whom = {"a lamp": "Mallory"} | ({"later": "Later"} if next_start == "away" else {})
        orders = sorted((row["what"], row["customer_id"]) for row in rows(server, "orders"))
        assert orders == sorted((what, found[name]["id"]) for what, name in of_whom.items())
        (ticket,) = rows(server, "tickets")
        assert ticket["category_id"] in {row["id"] for row in rows(server, "categories")}
        assert len(rows(server, "categories")) == 2
        listed = failback(shop, login, "--list")
        assert listed.count("customers  3  PostgreSQL refused it (23505 uq_customers_email)") == 1
        assert listed.count("it refers to a row that stayed behind") == 1
