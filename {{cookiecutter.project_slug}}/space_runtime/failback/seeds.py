"""Rows that migrations inserted: PostgreSQL has its own, to which references lead instead."""

from space_runtime.failback.references import References, Row
from space_runtime.failback.references import Target as Referred
from space_runtime.failback.refusals import Refusals
from space_runtime.failback.schema import TableSchema, Unmovable
from space_runtime.failback.sources import Locator, Source, StoredRow, pick
from space_runtime.failback.target import Target
from space_runtime.failback.values import is_same
from space_runtime.records.stored import as_text


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
        self._missing: dict[Referred, StoredRow] = {}
        """Seeds that PostgreSQL does not have, by what refers to them."""

    def match(self, schema: TableSchema) -> set[Locator]:
        """Let references to seeds become references to PostgreSQL's rows; return which do not move.

        That is all of them, but those that may be somebody's if PostgreSQL does not have them.
        """
        matched = set()
        is_referred_to = bool(self._references.columns(schema.name))
        for seed in self._source.seeds(schema.name):
            key = as_text(pick(schema.key, seed.now))
            stored = StoredRow(schema.name, seed.locator, key, seed.inserted)
            try:
                row = Row(stored, schema.read(stored))
            except Unmovable:
                continue
            self._references.follow(row)
            # Looking may take long, in a table with many seeds and no key to find them by.
            is_needed = is_referred_to or seed.later
            there = self._target.counterpart(schema, row.values) if is_needed else None
            if there is None and seed.later:
                continue
            matched.add(seed.locator)
            if there is not None:
                self._references.replace(stored, there)
            elif is_referred_to:
                self._references.refuse(stored)
                self._missing.update(dict.fromkeys(self._references.names(stored), stored))
            if seed.now != seed.inserted:
                self._refusals.record(stored._replace(content=seed.now), "seed_changed")
        for stored, code in self._source.changed_seeds(schema.name):
            if not self._is_changed_too(schema, self._references.settled(stored), code):
                self._refusals.record(stored, code)
        return matched

    def keep(self, missing: list[Referred]) -> None:
        """Keep the seeds that PostgreSQL does not have, though a row refers to them."""
        for referred in missing:
            if stored := self._missing.get(referred):
                for name in self._references.names(stored):
                    self._missing.pop(name, None)
                self._refusals.refuse(stored, "seed_missing")

    def _is_changed_too(self, schema: TableSchema, stored: StoredRow, code: str) -> bool:
        """Return whether somebody did the same in PostgreSQL: only a person can decide that."""
        try:
            values = schema.read(stored)
        except Unmovable:
            return False
        there = self._target.counterpart(schema, values)
        if code == "seed_deleted":
            return there is None
        return there is not None and is_same(values, there)
