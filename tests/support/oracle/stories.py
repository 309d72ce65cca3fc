"""What happens to the tables: requests before, during and after outages, and to PostgreSQL from elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.oracle.choosing import Choose
from tests.support.oracle.kinds import KINDS
from tests.support.oracle.schemas import Schema, Table, draw_schema, draw_values, fresh, shown


@dataclass
class NewRow:
    """A row that is to be written."""

    table: str
    marker: str
    values: dict[str, Any]
    refs: dict[str, str | None]
    number: int | None = None
    """The number that the client asks for, where the database would make one."""
    key_of: str | None = None
    """The row on the other side whose key it has, too."""

    def __str__(self) -> str:
        """What is written."""
        key = f", numbered {self.number}" if self.number else ""
        key += f", with the key of {self.key_of}" if self.key_of else ""
        return f"{self.marker} ({shown(self.values, self.refs)}{key})"


@dataclass
class Create:
    """Rows that one request writes."""

    rows: list[NewRow]

    def __str__(self) -> str:
        """One line."""
        return f"create {' and '.join(map(str, self.rows))}"


@dataclass
class Change:
    """A request that changes one row."""

    marker: str
    values: dict[str, Any]
    refs: dict[str, str | None]

    def __str__(self) -> str:
        """One line."""
        return f"change {self.marker}: {shown(self.values, self.refs)}"


@dataclass
class Delete:
    """A request that deletes one row."""

    marker: str

    def __str__(self) -> str:
        """One line."""
        return f"delete {self.marker}"


Operation = Create | Change | Delete


@dataclass
class Outage:
    """What happens while PostgreSQL is away from the application, and after it came back."""

    on_sqlite: list[Operation]
    elsewhere: list[Operation]
    """What others do to PostgreSQL in the meantime."""
    is_live: bool
    """Whether PostgreSQL comes back while the application runs; else the application starts again."""
    restarts: bool
    """Whether the application starts again in the middle of the outage."""
    afterwards: list[Operation]


@dataclass
class Story:
    """Tables and what happens to them."""

    schema: Schema
    before: list[Operation]
    outages: list[Outage]
    repairs: int = 0
    """How many causes of refusals are removed in the end."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis prints, which the error has said already."""
        printer.text("the story above")

    def __repr__(self) -> str:
        """The whole story."""
        return "\n" + "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield str(self.schema)
        yield "before:"
        yield from (f"    {one}" for one in self.before)
        for number, outage in enumerate(self.outages, 1):
            yield f"outage {number}{', with a restart' if outage.restarts else ''}:"
            yield from (f"    {one}" for one in outage.on_sqlite)
            yield from (f"    elsewhere: {one}" for one in outage.elsewhere)
            yield "PostgreSQL comes back" if outage.is_live else "PostgreSQL comes back, and the application restarts"
            yield from (f"    {one}" for one in outage.afterwards)
        if self.repairs:
            yield f"{self.repairs} causes of refusals are removed, and the refused rows are tried again"


@dataclass
class _Known:
    """Which rows there would be if nothing were refused."""

    rows: dict[str, str] = field(default_factory=dict)
    """The table of each marker."""
    owners: dict[str, str | None] = field(default_factory=dict)
    """The owner of each marker that has one."""

    def of(self, table: str) -> list[str]:
        return [marker for marker, name in self.rows.items() if name == table]


class _Writer:
    """Chooses operations that make sense."""

    def __init__(self, choose: Choose, schema: Schema) -> None:
        self._choose, self._schema = choose, schema
        self._count = 0
        self._borrowed: set[str] = set()
        self._seeds = {seed.marker: table.name for table, seed in schema.seeds}

    def operations(
        self, known: _Known, others: _Known, at_most: int, *, on_sqlite: bool = False, elsewhere: bool = False
    ) -> list[Operation]:
        """Some operations by who knows these rows; `others` are only on the other side."""
        found: list[Operation] = []
        for _ in range(self._choose.number(0, at_most)):
            what = self._choose.one_of(("create", "create", "create", "change", "delete"))
            one = getattr(self, f"_{what}")(known, others, on_sqlite, elsewhere)
            if one is not None:
                found.append(one)
        return found

    def _create(self, known: _Known, others: _Known, on_sqlite: bool, elsewhere: bool) -> Create | None:
        table = self._schema.tables[self._choose.one_of(list(self._schema.tables))]
        if elsewhere and others.rows and self._choose.chance(70):
            # Where it may get in the way of a row that is to come.
            table = self._schema.tables[self._choose.one_of(list(others.rows.values()))]
        rows: list[NewRow] = []
        if not self._add(table, known, others, rows, on_sqlite, elsewhere):
            return None
        for row in rows:
            known.rows[row.marker] = row.table
            known.owners[row.marker] = row.refs.get("owner")
        return Create(rows)

    def _add(
        self,
        table: Table,
        known: _Known,
        others: _Known,
        rows: list[NewRow],
        on_sqlite: bool,
        elsewhere: bool,
        asked_for: tuple[Table, str] | None = None,
    ) -> str | None:
        """Add a row, and the row that it cannot be without; return its marker, or None if that is not possible."""
        choose = self._choose
        self._count += 1
        marker = f"{table.name[:-1]}{self._count}"
        values = draw_values(choose, table, marker, self._count)
        if table.odd not in (None, "index") and choose.chance(25):
            values["odd"] = {"number": 2**40, "nul": "b\0d", "width": "b" * 21}.get(table.odd or "", "bad")
        elif table.odd == "index" and choose.chance(25):
            values["odd"] = long_text(self._count)
        if table.unique == "null" and choose.chance(30):
            values["u"] = None
        row = NewRow(table.name, marker, values, {})
        if others.rows and choose.chance(30 if not elsewhere else 75):
            self._borrow(table, row, others, on_sqlite, elsewhere)
        elif on_sqlite and table.is_numbered and choose.chance(5):
            row.number = choose.number(1, 6)
            # Who takes the same number in PostgreSQL by hand is to blame that its own numbering meets it.
            self._borrowed.add(marker)
        rows.append(row)
        for one in table.references:
            target = self._schema.tables[one.target]
            candidates = known.of(one.target)
            if asked_for and asked_for[0] is target:
                candidates = [asked_for[1]]
            if one.is_to_sibling:
                candidates = [each for each in candidates if known.owners.get(each) == row.refs["owner"]]
            if target is table and not table.is_numbered:
                candidates = [*candidates, marker]
            if not candidates and not one.nullable:
                # A row that waits for this one in the same transaction.
                if asked_for or one.deferrable != "DEFERRED":
                    return None
                needed = self._add(target, known, others, rows, on_sqlite, elsewhere, (table, marker))
                if needed is None:
                    return None
                candidates = [needed]
            if one.nullable and (not candidates or choose.chance(20)):
                row.refs[one.name] = None
            else:
                # The newest first: what was made in this outage is what moves.
                row.refs[one.name] = choose.one_of(candidates[::-1])
        return marker

    def _borrow(self, table: Table, row: NewRow, others: _Known, on_sqlite: bool, elsewhere: bool) -> None:
        """Let a row have the key, or another unique value, of a row on the other side."""
        # Two rows that want the same would be refused or not depending on which one came first.
        lenders = [one for one in others.of(table.name) if one not in self._borrowed]
        if not lenders:
            return
        # An older one is more likely to be referred to.
        lender = self._choose.one_of(lenders)
        self._borrowed.add(lender)
        may_have_key = table.key in ("text", "composite") or (elsewhere and table.key in ("integer", "uuid"))
        if may_have_key and not (table.unique and self._choose.chance(40)):
            row.key_of = lender
        elif table.unique:
            row.values["u"] = f"u-{lender}"

    def _change(self, known: _Known, others: _Known, on_sqlite: bool, elsewhere: bool) -> Change | None:
        choose = self._choose
        if not known.rows:
            return None
        marker = choose.one_of(list(known.rows)[::-1])
        table = self._schema.tables[known.rows[marker]]
        is_seed = marker in self._seeds
        if is_seed and not on_sqlite and not self._may_change_in_postgresql(table, marker):
            return None
        self._count += 1
        values: dict[str, Any] = {}
        names = [name for name in table.plain_columns if name not in table.own_key_columns]
        if is_seed and not on_sqlite:
            names = [name for name in names if name in table.columns]
        if is_seed and on_sqlite:
            # Two values of these are one on PostgreSQL: whether such a change is one may be seen either way.
            names = [name for name in names if table.columns.get(name) not in ("integers", "utc")]
        for name in choose.some_of(names, 2):
            if name in table.columns:
                values[name] = choose.one_of(KINDS[table.columns[name]].values)
            elif name == "odd":
                values[name] = fresh(table, name, f"{marker}-{self._count}", self._count)
            elif name == "u":
                values[name] = f"u-{marker}-{self._count}"
            else:
                values[name] = fresh(table, name, marker, self._count)
        if elsewhere and table.unique and choose.chance(50) and not is_seed:
            lenders = [one for one in others.of(table.name) if one not in self._borrowed]
            if lenders:
                lender = choose.one_of(lenders[::-1])
                self._borrowed.add(lender)
                values["u"] = f"u-{lender}"
        refs: dict[str, str | None] = {}
        for one in table.references:
            if not one.in_key and (on_sqlite or not is_seed) and choose.chance(50):
                targets = known.of(one.target)[::-1]
                if one.is_to_sibling:
                    targets = [each for each in targets if known.owners.get(each) == known.owners.get(marker)]
                if is_seed:
                    # What it means that a seed refers to a row that is new, nobody has said.
                    targets = [each for each in targets if each in self._seeds]
                if targets or one.nullable:
                    refs[one.name] = choose.one_of([*targets, *([None] if one.nullable else [])])
        return Change(marker, values, refs) if values or refs else None

    def _may_change_in_postgresql(self, table: Table, marker: str) -> bool:
        """Whether PostgreSQL's own copy of a seed can be found afterwards: by its key, or by `u`."""
        (seed,) = (one for one in table.seeds if one.marker == marker)
        return seed.key == "fixed" or table.unique is not None

    def _delete(self, known: _Known, others: _Known, on_sqlite: bool, elsewhere: bool) -> Delete | None:
        # What it means to delete a seed on SQLite nobody has said: PostgreSQL's own copy stays.
        candidates = [one for one in known.rows if not (on_sqlite and one in self._seeds)]
        if not candidates:
            return None
        marker = self._choose.one_of(candidates[::-1])
        if any(one.known_to == "models" for table in self._schema.tables.values() for one in table.references):
            # No database would refuse it, and a reference might lead nowhere.
            return None
        # It may be refused, so it stays known.
        return Delete(marker)


def long_text(number: int) -> str:
    """Text that is too long for an index, and cannot be compressed."""
    import random

    return random.Random(number).randbytes(10_000).hex()  # noqa: S311


def draw_story(choose: Choose) -> Story:
    """Choose tables, and what happens to them."""
    schema = draw_schema(choose)
    writer = _Writer(choose, schema)
    seeds = {seed.marker: table.name for table, seed in schema.seeds}
    owners = {seed.marker: seed.refs.get("owner") for _, seed in schema.seeds}
    postgresql = _Known(dict(seeds), dict(owners))
    story = Story(schema, writer.operations(postgresql, _Known(), 4), [])
    for _ in range(choose.one_of((1, 1, 2, 3))):
        sqlite = _Known(dict(seeds), dict(owners))
        hidden = _Known({marker: name for marker, name in postgresql.rows.items() if marker not in seeds})
        on_sqlite = writer.operations(sqlite, hidden, 7, on_sqlite=True)
        new = _Known({marker: name for marker, name in sqlite.rows.items() if marker not in seeds}, sqlite.owners)
        elsewhere = writer.operations(postgresql, new, 3, elsewhere=True)
        postgresql.rows |= new.rows
        outage = Outage(on_sqlite, elsewhere, not choose.chance(50), choose.chance(20), [])
        outage.afterwards = writer.operations(postgresql, _Known(), 3)
        story.outages.append(outage)
    if choose.chance(50):
        story.repairs = choose.number(1, 3)
    return story
