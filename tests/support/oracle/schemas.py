"""What tables there are. A schema says it in words of its own, and is then written for SQLAlchemy."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from space_runtime.columns import portable_metadata

from tests.support.oracle.choosing import Choose
from tests.support.oracle.kinds import KINDS, given

NAMES = ("apples", "birds", "cats", "dogs")
# Generated integers are the commonest, and the hardest.
KEYS = ("uuid", "integer", "text", "composite", "integer")
KEYS_OF_PARTS = ("lines", "shared", "pair")
NUMBERINGS = ("serial", "identity", "always", "sequence")
BEGINNINGS = {16: 2**14, 32: 2**30, 64: 2**52}
INTEGERS: dict[int, type[sa.types.TypeEngine[Any]]] = {16: sa.SmallInteger, 32: sa.Integer, 64: sa.BigInteger}

# Why PostgreSQL may refuse a row that SQLite took, whatever else PostgreSQL holds; and how to make it take it.
ODDITIES: dict[str, str | None] = {
    "check": 'ALTER TABLE "{table}" DROP CONSTRAINT "odd_{table}"',
    "trigger": 'DROP TRIGGER "odd_{table}" ON "{table}"',
    "late trigger": 'DROP TRIGGER "odd_{table}" ON "{table}"',
    "width": 'ALTER TABLE "{table}" ALTER COLUMN odd TYPE text',
    "number": None,
    "nul": None,
    "index": None,
}


@dataclass(frozen=True)
class Reference:
    """Columns that hold the key of a row, or another unique column of it."""

    name: str
    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]
    nullable: bool = True
    deferrable: str | None = None
    """Its mode at first: IMMEDIATE or DEFERRED."""
    in_key: bool = False
    known_to: str = "both"
    """Who knows it: both, the database or the models."""
    on_delete: str | None = None
    """What the database does with a row whose target is deleted: CASCADE, SET NULL, or it refuses."""

    @property
    def is_to_sibling(self) -> bool:
        """Whether it leads to a row of the same owner, whose columns it shares."""
        return self.name == "sibling"

    def __str__(self) -> str:
        """What is special about it."""
        marks = [] if self.nullable else ["not null"]
        marks += [f"deferrable initially {self.deferrable.lower()}"] if self.deferrable else []
        marks += [f"on delete {self.on_delete.lower()}"] if self.on_delete else []
        marks += [f"known to the {self.known_to} only"] if self.known_to != "both" else []
        return f"{self.name}({', '.join(self.columns)}) -> {self.target}({', '.join(self.target_columns)})" + "".join(
            f" {mark}" for mark in marks
        )


@dataclass(frozen=True)
class Seed:
    """A row that the migration inserts; the marker among its values is that of all that are equal to it."""

    marker: str
    values: dict[str, Any]
    refs: dict[str, str | None]
    key: str
    """fixed: the same everywhere; drawn: another one in each database."""


@dataclass
class Table:
    """One table. Beside what is listed here it has a column `marker`, by which each row is known for ever."""

    name: str
    key: str
    width: int = 32
    numbering: str = "serial"
    columns: dict[str, str] = field(default_factory=dict)
    references: list[Reference] = field(default_factory=list)
    unique: str | None = None
    """What the column `u` is: not null, null, or there is none."""
    slot_of: str | None = None
    """The reference that is unique together with the column `slot`."""
    odd: str | None = None
    """Why PostgreSQL may refuse a row."""
    computed: bool = False
    without_rowid: bool = False
    autoincrement: bool = False
    has_model: bool = True
    seeds: list[Seed] = field(default_factory=list)

    @property
    def is_numbered(self) -> bool:
        """Whether the database makes the key."""
        return self.key == "integer"

    @cached_property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the key."""
        own = {
            "uuid": ("id",),
            "integer": ("id",),
            "text": ("code",),
            "composite": ("area", "number"),
            "lines": ("line",),
            "shared": (),
            "pair": (),
        }[self.key]
        return (*(column for one in self.references if one.in_key for column in one.columns), *own)

    @property
    def own_key_columns(self) -> tuple[str, ...]:
        """The columns of the key that are no reference and that a client gives."""
        inside = {column for one in self.references if one.in_key for column in one.columns}
        return tuple(column for column in self.key_columns if column not in inside and not self.is_numbered)

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """The columns that are neither references nor a number that the database makes."""
        optional = {"u": self.unique, "slot": self.slot_of, "odd": self.odd}
        return (*self.own_key_columns, *(name for name, one in optional.items() if one), *self.columns)

    @cached_property
    def uniques(self) -> list[tuple[str, ...]]:
        """The sets of columns that are unique, the key first."""
        found = [self.key_columns]
        if self.unique:
            found.append(("u",))
        if self.slot_of:
            found.append((*self.reference(self.slot_of).columns, "slot"))
        if self.odd == "index":
            found.append(("odd",))
        return found

    @property
    def beginning(self) -> int:
        """Where the numbers that SQLite gives begin."""
        return BEGINNINGS[self.width]

    def reference(self, name: str) -> Reference:
        """The reference of this name."""
        return next(one for one in self.references if one.name == name)

    def __str__(self) -> str:
        """Everything about it in a few lines."""
        key = f"integer of {self.width} bits, {self.numbering}" if self.is_numbered else self.key
        marks = {
            f"u text unique {self.unique}": self.unique,
            f"unique({', '.join(self.uniques[-1])})" if self.slot_of else "": self.slot_of,
            f"PostgreSQL may refuse `odd`: {self.odd}": self.odd,
            "computed column": self.computed,
            "without rowid": self.without_rowid,
            "autoincrement": self.autoincrement,
            "no model knows it": not self.has_model,
        }
        lines = [f"{self.name}: key {key} ({', '.join(self.key_columns)})"]
        lines += [f"    {one}" for one in self.references]
        lines += [f"    {name} {kind}" for name, kind in self.columns.items()]
        lines += [f"    {mark}" for mark, holds in marks.items() if holds]
        lines += [f"    seed {one.marker}, {one.key} key, {shown(one.values, one.refs)}" for one in self.seeds]
        return "\n".join(lines)


@dataclass
class Schema:
    """Some tables; the references of each may lead to any."""

    tables: dict[str, Table]
    portable: bool = False
    """Whether the models are made with what a project's Base gives them, or with plain SQLAlchemy."""

    @property
    def seeds(self) -> Iterator[tuple[Table, Seed]]:
        """All seeds in the order in which they are inserted."""
        return ((table, seed) for table in self.tables.values() for seed in table.seeds)

    def metadata(self, *, models: bool) -> sa.MetaData:
        """The tables as the models know them, or as the migration makes them."""
        metadata = portable_metadata() if self.portable else sa.MetaData()
        for table in self.tables.values():
            if table.has_model or not models:
                self._write(table, metadata, models)
        return metadata

    def type_of(self, table: Table, column: str) -> sa.types.TypeEngine[Any]:
        """The type of a column, which a reference has from its target."""
        for one in table.references:
            if column in one.columns:
                target = one.target_columns[one.columns.index(column)]
                return self.type_of(self.tables[one.target], target)
        if column == "id" and table.is_numbered:
            kind: sa.types.TypeEngine[Any] = INTEGERS[table.width]()
            # Only INTEGER makes numbers on SQLite: some owners know that, and some need not.
            return kind.with_variant(sa.Integer(), "sqlite") if table.autoincrement else kind
        if column in table.columns:
            return KINDS[table.columns[column]].make(f"{table.name}_{column}")
        if column == "odd":
            limits: dict[str, sa.types.TypeEngine[Any]] = {"number": sa.Integer(), "width": sa.String(20)}
            return limits.get(table.odd or "", sa.Text())
        fixed: dict[str, sa.types.TypeEngine[Any]] = {
            "id": sa.Uuid(),
            "number": sa.Integer(),
            "line": sa.Integer(),
            "slot": sa.Integer(),
        }
        return fixed.get(column, sa.Text())

    def _write(self, table: Table, metadata: sa.MetaData, models: bool) -> None:
        items: list[sa.schema.SchemaItem] = []
        references = {column: one for one in reversed(table.references) for column in one.columns}
        for name in dict.fromkeys([*table.key_columns, *references, *table.plain_columns]):
            options: list[Any] = []
            if table.is_numbered and name == "id":
                if table.numbering in ("identity", "always"):
                    options.append(sa.Identity(always=table.numbering == "always"))
                elif table.numbering == "sequence":
                    options.append(sa.Sequence(f"numbers_of_{table.name}"))
            nullable = name not in table.key_columns
            if name in references:
                nullable = nullable and references[name].nullable
            elif name == "u":
                nullable = table.unique == "null"
            kind = self.type_of(table, name)
            items.append(sa.Column(name, kind, *options, primary_key=name in table.key_columns, nullable=nullable))
        items.append(sa.Column("marker", sa.Text(), nullable=False))
        if table.computed:
            items.append(sa.Column("computed", sa.Text(), sa.Computed("upper(marker)", persisted=True)))
        items += [sa.UniqueConstraint(*columns) for columns in table.uniques[1:]]
        items += [
            sa.ForeignKeyConstraint(
                one.columns,
                [f"{one.target}.{column}" for column in one.target_columns],
                name=f"{table.name}_{one.name}",
                deferrable=True if one.deferrable else None,
                initially=one.deferrable,
                ondelete=one.on_delete,
            )
            for one in table.references
            if one.known_to in ("both", "models" if models else "database")
        ]
        sa.Table(
            table.name,
            metadata,
            *items,
            sqlite_with_rowid=not table.without_rowid,
            sqlite_autoincrement=table.autoincrement,
        )

    def upgrade(self, connection: sa.Connection, draw: int) -> None:
        """Do what the migration does; keys of seeds that are drawn differ with `draw`."""
        metadata = self.metadata(models=False)
        if connection.dialect.name == "sqlite":
            self._create_on_sqlite(connection, metadata)
        else:
            metadata.create_all(connection, checkfirst=False)
            for statement in self._oddities():
                connection.exec_driver_sql(statement)
        keys: dict[str, dict[str, Any]] = {}
        drawn = random.Random(draw)  # noqa: S311
        for table, seed in self.seeds:
            columns = {name: given(value) for name, value in seed.values.items()}
            for one in table.references:
                target = keys.get(seed.refs[one.name] or "", {})
                for own, name in zip(one.columns, one.target_columns, strict=True):
                    columns.setdefault(own, target.get(name))
            if table.key == "uuid" and seed.key == "drawn":
                columns["id"] = UUID(int=drawn.getrandbits(128))
            written = metadata.tables[table.name]
            returned = connection.execute(written.insert().values(columns).returning(*written.primary_key.columns))
            keys[seed.marker] = columns | dict(returned.mappings().one())

    def _create_on_sqlite(self, connection: sa.Connection, metadata: sa.MetaData) -> None:
        for table in self.tables.values():
            if table.has_model:
                metadata.tables[table.name].create(connection, checkfirst=False)
                continue
            # As an owner writes it by hand, so without whatever the runtime adds to what SQLAlchemy writes.
            written = str(sa.schema.CreateTable(metadata.tables[table.name]).compile(connection))
            if not table.autoincrement:
                written = written.replace("AUTOINCREMENT", "")
            connection.exec_driver_sql(written)

    def _oddities(self) -> Iterator[str]:
        for table in self.tables.values():
            if table.odd == "check":
                yield f"ALTER TABLE {table.name} ADD CONSTRAINT odd_{table.name} CHECK (odd <> 'bad')"
            if table.odd in ("trigger", "late trigger"):
                yield (
                    f"CREATE FUNCTION odd_{table.name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                    " IF NEW.odd = 'bad' THEN RAISE 'odd' USING ERRCODE = 'PT409'; END IF; RETURN NEW; END $$"
                )
                kind, when = ("", "BEFORE") if table.odd == "trigger" else ("CONSTRAINT", "AFTER")
                late = "" if table.odd == "trigger" else "DEFERRABLE INITIALLY DEFERRED"
                yield (
                    f"CREATE {kind} TRIGGER odd_{table.name} {when} INSERT OR UPDATE ON {table.name}"
                    f" {late} FOR EACH ROW EXECUTE FUNCTION odd_{table.name}()"
                )

    def __str__(self) -> str:
        """All tables."""
        base = ["made with Base:"] if self.portable else []
        return "\n".join([*base, *map(str, self.tables.values())])


def shown(values: dict[str, Any], refs: dict[str, str | None]) -> str:
    """Values and references as a person may read them."""
    parts = [f"{name}={short(value)}" for name, value in values.items() if name != "marker"]
    return ", ".join([*parts, *(f"{name} -> {target}" for name, target in refs.items())])


def short(value: Any) -> str:
    """A value that may be long."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)} characters)"


def draw_schema(choose: Choose) -> Schema:
    """Choose some tables."""
    names = NAMES[: choose.number(1, len(NAMES))]
    schema = Schema({}, portable=choose.chance(50))
    for name in names:
        schema.tables[name] = _draw_table(choose, name, list(schema.tables.values()))
    for table in schema.tables.values():
        _draw_references(choose, schema, table)
    for table in schema.tables.values():
        if choose.chance(25) and (slotted := [one for one in table.references if not one.in_key]):
            table.slot_of = choose.one_of(slotted).name
        table.__dict__.pop("uniques", None)
    for table in schema.tables.values():
        _draw_seeds(choose, schema, table)
    return schema


def _draw_table(choose: Choose, name: str, before: list[Table]) -> Table:
    key = choose.one_of((*KEYS, *KEYS_OF_PARTS) if before else KEYS)
    table = Table(name, key)
    if table.is_numbered:
        table.width = choose.one_of((32, 64, 16))
        table.numbering = choose.one_of(NUMBERINGS)
        table.autoincrement = choose.chance(30)
    if key in KEYS_OF_PARTS:
        for name in ("owner", "partner") if key == "pair" else ("owner",):
            target = choose.one_of(before)
            columns = tuple(f"{name}_{column}" for column in target.key_columns)
            table.references.append(Reference(name, columns, target.name, target.key_columns, False, in_key=True))
    if choose.chance(40):
        table.unique = choose.one_of(("not null", "null"))
    if choose.chance(25):
        table.odd = choose.one_of(list(ODDITIES))
    table.computed = choose.chance(15)
    table.without_rowid = key != "integer" and choose.chance(20)
    # The model is where a named sequence is known from.
    table.has_model = not (choose.chance(10) and table.numbering != "sequence")
    with_models = {one.name for one in before if one.has_model and table.has_model}
    table.references = [
        one if one.target in with_models else replace(one, known_to="database") for one in table.references
    ]
    kinds = [kind for kind, one in KINDS.items() if table.has_model or not one.needs_model]
    for number in range(choose.number(0, 2)):
        table.columns[f"value{number}"] = choose.one_of(kinds)
    return table


def _draw_references(choose: Choose, schema: Schema, table: Table) -> None:
    names = list(schema.tables)
    if table.key == "lines" and choose.chance(40):
        _draw_sibling(choose, table)
    for number in range(choose.one_of((0, 1, 1, 2))):
        target = schema.tables[choose.one_of(names)]
        by_unique = target.unique is not None and choose.chance(30)
        target_columns = ("u",) if by_unique else target.key_columns
        name = ("parent", "other")[number]
        deferrable = choose.one_of((None, "IMMEDIATE", "DEFERRED"))
        nullable = not choose.chance(40)
        is_later = names.index(target.name) >= names.index(table.name)
        if is_later and not nullable and not (deferrable == "DEFERRED" and _is_given(schema, table, target)):
            # Rows of both could not be written: the key of neither is known before.
            nullable = True
        on_delete = None
        if choose.chance(20):
            on_delete = choose.one_of(("CASCADE", *(["SET NULL"] if nullable else [])))
        known_to = "both"
        if not (table.has_model and target.has_model):
            known_to = "database"
        elif choose.chance(8) and target is not table:
            known_to = choose.one_of(("database", "models"))
        table.references.append(
            Reference(
                name,
                tuple(f"{name}_{column}" for column in target_columns),
                target.name,
                target_columns,
                nullable=nullable,
                deferrable=deferrable,
                known_to=known_to,
                on_delete=on_delete,
            )
        )


def _draw_sibling(choose: Choose, table: Table) -> None:
    """Let rows of one owner refer to each other, as those of one tenant do."""
    owner = table.references[0]
    columns = (*owner.columns, "sibling_line")
    deferrable = choose.one_of((None, "IMMEDIATE", "DEFERRED"))
    known_to = "both" if table.has_model else "database"
    table.references.append(
        Reference("sibling", columns, table.name, table.key_columns, deferrable=deferrable, known_to=known_to)
    )


def _is_given(schema: Schema, *tables: Table) -> bool:
    """Whether a client knows the keys of these before it writes a row."""
    return all(
        table.key in ("uuid", "text", "composite")
        or (
            table.key in KEYS_OF_PARTS
            and _is_given(schema, *(schema.tables[one.target] for one in table.references if one.in_key))
        )
        for table in tables
    )


def _draw_seeds(choose: Choose, schema: Schema, table: Table) -> None:
    for number in range(choose.number(0, 2) if choose.chance(40) else 0):
        marker = f"seed{number}-{table.name}"
        refs: dict[str, str | None] = {}
        for one in table.references:
            targets = [seed.marker for seed in schema.tables[one.target].seeds]
            if not targets and not one.nullable:
                return
            if one.is_to_sibling:
                targets = []
            refs[one.name] = choose.one_of([*([None] if one.nullable else []), *targets])
        if table.key in ("shared", "pair") and number:
            # The second would need an owner of its own.
            return
        values = draw_values(choose, table, marker, 900 + number)
        drawn = table.is_numbered or (table.key == "uuid" and choose.chance(60))
        if table.key == "uuid" and not drawn:
            values["id"] = UUID(int=500 + number)
        elif table.key == "uuid":
            values.pop("id")
        table.seeds.append(Seed(marker, values, refs, "drawn" if drawn else "fixed"))
    if len(table.seeds) > 1 and table.is_numbered and len(table.uniques) == 1 and choose.chance(60):
        # They have everything in common but their numbers.
        for number, seed in enumerate(table.seeds):
            values = table.seeds[0].values | {"marker": f"seed-{table.name}"}
            table.seeds[number] = replace(seed, values=values, refs=table.seeds[0].refs)


def draw_values(choose: Choose, table: Table, marker: str, number: int) -> dict[str, Any]:
    """Values for a new row, of which those that must be unique are."""
    values: dict[str, Any] = {}
    for name in table.plain_columns:
        if name in table.columns:
            values[name] = choose.one_of(KINDS[table.columns[name]].values)
        else:
            values[name] = fresh(table, name, marker, number)
    return values | {"marker": marker}


def fresh(table: Table, column: str, marker: str, number: int) -> Any:
    """A value that no other row has where that matters."""
    if column == "id":
        return UUID(int=10**9 + number)
    if column == "odd":
        return {"number": 1, "index": f"odd-{marker}"}.get(table.odd or "", "good")
    return {
        "code": f"code-{marker}",
        "area": "north",
        "number": number,
        "line": number % 5,
        "slot": number % 3,
        "u": f"u-{marker}",
    }[column]
