"""Stories in which rows lost their meaning once, or would if one step were left out; as short as they can be."""

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

from tests.support.oracle.kinds import KINDS
from tests.support.oracle.schemas import Reference, Schema, Seed, Table
from tests.support.oracle.stories import Change, Create, Delete, NewRow, Operation, Outage, Story


def _story(
    tables: list[Table],
    on_sqlite: list[Operation],
    *,
    before: list[Operation] | None = None,
    elsewhere: list[Operation] | None = None,
    repairs: int = 0,
) -> Story:
    outage = Outage(on_sqlite, elsewhere or [], is_live=True, restarts=False, afterwards=[])
    return Story(Schema({table.name: table for table in tables}), before or [], [outage], repairs)


def _create(table: str, number: int, refs: dict[str, str | None] | None = None, **values: object) -> Create:
    marker = f"{table[:-1]}{number}"
    return Create([NewRow(table, marker, {"marker": marker, **values}, refs or {})])


def _seed(table: str, number: int, key: str, refs: dict[str, str | None] | None = None, **values: object) -> Seed:
    marker = f"seed{number}-{table}"
    return Seed(marker, {"marker": marker, **values}, refs or {}, key)


def _reference(table: str, column: str = "id", *, nullable: bool = True) -> Reference:
    return Reference("parent", (f"parent_{column}",), table, (column,), nullable=nullable)


def _taken(table: str, number: int, of: str) -> Create:
    """What others write to PostgreSQL with the number of a row on SQLite."""
    marker = f"{table[:-1]}{number}"
    return Create([NewRow(table, marker, {"marker": marker}, {}, key_of=of)])


ONCE_FAILED = {
    "a reference follows a number that PostgreSQL has": _story(
        [Table("apples", "integer"), Table("birds", "integer", references=[_reference("apples", nullable=False)])],
        [_create("apples", 1), _create("birds", 2, {"parent": "apple1"})],
        elsewhere=[_taken("apples", 3, "apple1")],
    ),
    "a row that refers to a refused one stays behind, until that can move": _story(
        [Table("apples", "integer", unique="not null"), Table("birds", "integer", references=[_reference("apples")])],
        [_create("apples", 2, u="u-apple1"), _create("birds", 3, {"parent": "apple2"})],
        before=[_create("apples", 1, u="u-apple1")],
        repairs=1,
    ),
    "a child of a refused row with a natural key is not given to a stranger": _story(
        [Table("apples", "text"), Table("birds", "integer", references=[_reference("apples", "code")])],
        [_create("apples", 2, code="one"), _create("birds", 3, {"parent": "apple2"})],
        before=[_create("apples", 1, code="one")],
    ),
    "a new row beside a seed is no empty file": _story(
        [Table("apples", "text", seeds=[_seed("apples", 0, "fixed", code="seed")])],
        [_create("apples", 1, code="new")],
    ),
    "a reference leads to PostgreSQL's own copy of a seed with a random key": _story(
        [
            Table("apples", "uuid", columns={"value0": "jsonb"}, seeds=[_seed("apples", 0, "drawn", value0={"a": []})]),
            Table("birds", "integer", references=[_reference("apples", nullable=False)]),
        ],
        [_create("birds", 1, {"parent": "seed0-apples"})],
    ),
    "a reference leads to the seed of the same number among those that are equal otherwise": _story(
        [
            Table(
                "apples",
                "integer",
                seeds=[replace(_seed("apples", number, "drawn"), values={"marker": "seed"}) for number in range(3)],
            ),
            Table("birds", "integer", references=[_reference("apples", nullable=False)]),
        ],
        [_create("birds", number, {"parent": f"seed{number}-apples"}) for number in range(3)],
        elsewhere=[Delete("seed1-apples")],
    ),
    "a seed that somebody changed is told, and references lead to PostgreSQL's": _story(
        [
            Table("apples", "integer", unique="not null", seeds=[_seed("apples", 0, "drawn", u="u-seed")]),
            Table("birds", "integer", references=[_reference("apples")]),
        ],
        [Change("seed0-apples", {"u": "u-other"}, {}), _create("birds", 1, {"parent": "seed0-apples"})],
    ),
    "a seed that PostgreSQL has no more is kept once": _story(
        [
            Table("apples", "text", unique="not null", seeds=[_seed("apples", 0, "fixed", code="seed", u="u-seed")]),
            Table("birds", "integer", references=[_reference("apples", "code")]),
            Table("cats", "integer", references=[_reference("apples", "u")]),
        ],
        [_create("birds", 1, {"parent": "seed0-apples"}), _create("cats", 2, {"parent": "seed0-apples"})],
        elsewhere=[Delete("seed0-apples")],
    ),
    "JSON that is a number": _story(
        [Table("apples", "uuid", columns={"value0": "json", "value1": "portable json"})],
        [_create("apples", 1, id=UUID(int=1), value0=0, value1=1.5)],
    ),
    "a password that is hashed when it is written": _story(
        [Table("apples", "uuid", columns={"value0": "hashed"})],
        [_create("apples", 1, id=UUID(int=1), value0=KINDS["hashed"].values[0])],
    ),
    "a decimal, without a rowid": _story(
        [Table("apples", "uuid", columns={"value0": "numeric"}, without_rowid=True)],
        [_create("apples", 1, id=UUID(int=1), value0=Decimal("0.10"))],
    ),
    "numbers of a table that was written by hand, too large for PostgreSQL's column": _story(
        [Table("apples", "integer", width=16, autoincrement=True, has_model=False)],
        [_create("apples", 1)],
    ),
    "a refused row still knows what number the row that it refers to has got": _story(
        [
            Table("apples", "integer"),
            Table("birds", "integer", unique="not null", references=[_reference("apples", nullable=False)]),
        ],
        [_create("apples", 3), _create("birds", 4, {"parent": "apple3"}, u="u-bird2")],
        before=[_create("apples", 1), _create("birds", 2, {"parent": "apple1"}, u="u-bird2")],
        elsewhere=[_taken("apples", 5, "apple3")],
        repairs=1,
    ),
    "a circle of which one reference may be empty at first": _story(
        [
            Table("apples", "integer", references=[_reference("birds", nullable=False)]),
            Table("birds", "integer", references=[_reference("apples")]),
        ],
        [
            _create("birds", 1, {"parent": None}),
            _create("apples", 2, {"parent": "bird1"}),
            Change("bird1", {}, {"parent": "apple2"}),
        ],
    ),
    "a row refers to itself, and its key follows a number that PostgreSQL has": _story(
        [
            Table("apples", "integer"),
            Table(
                "birds",
                "lines",
                references=[
                    Reference("owner", ("owner_id",), "apples", ("id",), nullable=False, in_key=True),
                    Reference("parent", ("parent_owner_id", "parent_line"), "birds", ("owner_id", "line")),
                ],
            ),
        ],
        [_create("apples", 2), _create("birds", 3, {"owner": "apple2", "parent": "bird3"}, line=1)],
        elsewhere=[_taken("apples", 4, "apple2")],
    ),
    "a row that PostgreSQL would refuse only at the end": _story(
        [Table("apples", "integer", odd="late trigger"), Table("birds", "integer", references=[_reference("apples")])],
        [_create("apples", 1, odd="bad"), _create("birds", 2, {"parent": "apple1"}), _create("apples", 3, odd="good")],
        repairs=1,
    ),
    "two rows that need each other": _story(
        [
            Table(
                "apples",
                "text",
                references=[
                    Reference("parent", ("parent_code",), "apples", ("code",), nullable=False, deferrable="DEFERRED")
                ],
            )
        ],
        [
            Create(
                [
                    NewRow("apples", "apple1", {"marker": "apple1", "code": "one"}, {"parent": "apple2"}),
                    NewRow("apples", "apple2", {"marker": "apple2", "code": "two"}, {"parent": "apple1"}),
                ]
            )
        ],
    ),
}
