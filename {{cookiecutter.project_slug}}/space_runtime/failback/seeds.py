"""Rows that migrations inserted: PostgreSQL has its own, to which references lead instead."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from space_runtime.failback.order import parents_first
from space_runtime.failback.references import References, Referred, Row
from space_runtime.failback.refusals import Refusals
from space_runtime.failback.schema import TableSchema, Unmovable
from space_runtime.failback.sources import Columns, Locator, Node, Source, StoredRow, pick
from space_runtime.failback.target import Target, Values
from space_runtime.failback.values import is_same


class Seeds:
    """Finds PostgreSQL's own rows in the place of seeds, and tells what people did to them."""

    def __init__(
        self,
        source: Source,
        target: Target,
        references: References,
        refusals: Refusals,
    ) -> None:
        self._source, self._target = source, target
        self._references, self._refusals = references, refusals
        self._missing: dict[Referred, tuple[StoredRow, str]] = {}
        """Seeds in whose place PostgreSQL has none, and why, by what refers to them."""

    def match(self, group: Sequence[TableSchema]) -> dict[str, set[Locator]]:
        """Let references to seeds become references to PostgreSQL's rows; return which do not move.

        Those are all seeds of each table, but those that may be somebody's if PostgreSQL does not
        have them.
        """
        tables = {schema.name: schema for schema in group}
        staying: dict[str, set[Locator]] = {name: set() for name in tables}
        rows: dict[Node, Row] = {}
        later: set[Node] = set()
        changed: list[StoredRow] = []
        for seed in chain.from_iterable(self._source.seeds(name) for name in tables):
            stored = seed.stored
            try:
                row = Row(stored, tables[stored.table].read(stored))
            except Unmovable:
                continue
            staying[stored.table].add(stored.locator)
            # Looking may take long, in a table with many seeds and no key to find them by.
            if seed.later or self._references.columns(stored.table):
                rows[stored.node] = row
            if seed.later:
                later.add(stored.node)
            if seed.now != stored.content:
                changed.append(stored._replace(content=seed.now))
        alike = Counter(
            (table, columns, pick(columns, rows[table, locator].stored.content))
            for table, locator in rows
            for columns in tables[table].telling
        )
        order = parents_first(self._references.parents(row.stored for row in rows.values()))
        for row in map(rows.__getitem__, chain.from_iterable(order)):
            self._references.follow(row)
            stored, schema = row.stored, tables[row.stored.table]
            alone = {
                columns
                for columns in schema.telling
                if alike[schema.name, columns, pick(columns, stored.content)] == 1
            }
            if stored.before and stored.before.reason == "seed_alike":
                alone.clear()
            there, are_like = self._counterpart(schema, row.values, alone)
            if there:
                self._references.replace(stored, there)
            elif stored.node in later:
                staying[schema.name].discard(stored.locator)
            else:
                self._references.refuse(stored)
                is_missing = alone.issuperset(schema.telling[-1:]) and not are_like
                names = self._references.names(stored)
                code = "seed_missing" if is_missing else "seed_alike"
                self._missing.update(dict.fromkeys(names, (stored, code)))
        for stored in changed:
            if stored.locator in staying[stored.table]:
                self._refusals.record(stored, "seed_changed")
        for schema in group:
            for stored, code in self._source.changed_seeds(schema.name):
                if not self._is_changed_too(schema, self._references.settled(stored), code):
                    self._refusals.record(stored, code)
        return staying

    def keep(self, missing: list[Referred]) -> None:
        """Keep the seeds that PostgreSQL does not have, though a row refers to them."""
        for referred in missing:
            if referred in self._missing:
                stored, code = self._missing[referred]
                for name in self._references.names(stored):
                    self._missing.pop(name, None)
                self._refusals.refuse(stored, code)

    def _counterpart(
        self, schema: TableSchema, values: Values, alone: Collection[Columns]
    ) -> tuple[Values | None, bool]:
        """Return PostgreSQL's row for a seed, and whether there is any like it.

        No other seed has the same in the columns `alone`.
        """
        are_like = False
        for columns, rows in self._like(schema, values):
            if rows and (columns is None or (columns in alone and len(rows) == 1)):
                return rows[0], True
            are_like = are_like or bool(rows)
        return None, are_like

    def _like(
        self, schema: TableSchema, values: Values
    ) -> Iterator[tuple[Columns | None, Sequence[Values]]]:
        """Yield PostgreSQL's rows with the same key, and those with the same in some columns."""
        for columns in (*schema.unique, *([] if schema.sequence else [schema.key])):
            key = {name: values.get(name) for name in columns}
            if key and None not in key.values():
                yield None, self._target.find(schema, key)
        key = {name: values.get(name) for name in schema.key}
        for columns in schema.telling:
            wanted = {name: values[name] for name in columns if name in values}
            # The next number is not the same everywhere: alone, it tells nothing.
            if schema.sequence:
                yield None, self._target.find(schema, key | wanted)
            if wanted:
                yield columns, self._target.find(schema, wanted)

    def _is_changed_too(self, schema: TableSchema, stored: StoredRow, code: str) -> bool:
        """Return whether somebody did the same in PostgreSQL: only a person can decide that."""
        try:
            values = schema.read(stored)
        except Unmovable:
            return False
        like = (rows for _, rows in self._like(schema, values) if rows)
        if code == "seed_deleted":
            return not any(like)
        return any(is_same(values, rows[0]) for rows in like)
