"""Moves rows to PostgreSQL, as if each had been written there when it came back.

What is referred to comes before what refers to it. A row whose number PostgreSQL has gets another,
and references follow. A row that PostgreSQL refuses stays behind, with the rows that refer to it.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import inf
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import DBAPIError

from space_runtime.failback.behind import MOST_ROWS_NAMED, RowsBehind
from space_runtime.failback.order import parents_first
from space_runtime.failback.outcome import MoveFailed, Outcome
from space_runtime.failback.schema import (
    Reference,
    TableSchema,
    Unmovable,
    in_order,
    in_order_of_insertion,
    keys_of,
    read_references,
    read_schema,
    referred_columns,
)
from space_runtime.failback.sources import (
    ROWS_AT_ONCE,
    Locator,
    Source,
    StoredRow,
    batches,
)
from space_runtime.failback.target import Refused, Target
from space_runtime.failback.values import as_raw, is_same
from space_runtime.records import failbacks
from space_runtime.records.failbacks import RefusalCode, RefusedRow
from space_runtime.records.generated_keys import highest
from space_runtime.records.stored import Raw, as_text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 2.0

Node = tuple[str, Locator]


@dataclass(slots=True)
class _Row:
    """A row on its way."""

    stored: StoredRow
    values: dict[str, Any]
    """What is written to PostgreSQL."""
    has_new_key: bool = False


@dataclass(slots=True)
class _Refusal:
    """A row that stays behind, and why."""

    table: str
    stored: StoredRow
    code: RefusalCode
    error: str | None = None


class Move:
    """Moves the rows of a source; the target is in a transaction, which the caller commits."""

    def __init__(
        self,
        source: Source,
        target: Connection,
        models: MetaData,
        file_id: UUID,
        *,
        copy_of: Collection[UUID] = (),
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Rows that came to PostgreSQL with one of the files `copy_of` are not moved once more.

        `on_progress` is called before each batch.
        """
        self._source, self._connection, self._file_id = source, target, file_id
        self._is_copy, self._on_progress = bool(copy_of), on_progress
        self._target = Target(target)
        present = source.tables()
        self._tables = read_schema(target, models, present)
        self._missing_tables = [name for name in present if name not in self._tables]
        self._references = read_references(self._tables, models, present)
        self._referred = referred_columns(self._references)
        self._keys = keys_of(self._tables)
        self._new_keys: list[tuple[str, str, str]] = []
        """Of moved rows of one batch: the table, the key that it had, the one that it has."""
        self._keys_of_copied = {
            (row.table_name, row.old_key): row.new_key
            for row in (failbacks.read_new_keys(target, copy_of) if copy_of else ())
        }
        self._seeds: dict[str, set[Locator]] = {}
        self._missing_seeds: dict[tuple[str, tuple[str, ...], tuple[Any, ...]], StoredRow] = {}
        self._kept_seeds: set[Node] = set()
        self._replaced_below: dict[str, float] = {}
        """Which numbers PostgreSQL's numbering might meet, in tables where it does not go on."""
        self._rows_at_once = ROWS_AT_ONCE
        self._behind = RowsBehind(target, file_id, self._tables, source.before)
        self._moved = self._renumbered_rows = 0
        self._unsettled: list[_Refusal] = []
        self._at_work = ""
        self._reported = time.monotonic()

    def run(self, changed_seeds: Iterable[RefusedRow] = ()) -> Outcome:
        """Move the rows and record those that stay behind, among them changed seeds of before.

        Raise MoveFailed if PostgreSQL ends the whole move.
        """
        try:
            self._target.prepare()
            self._keep_changed_seeds(changed_seeds)
            for name in self._missing_tables:
                for stored in self._source.rows(name):
                    self._refuse_keys(name, stored)
            for group in in_order(self._tables):
                self._move_group(group)
            for name in self._missing_tables:
                for stored in self._source.rows(name):
                    self._settle(_Refusal(name, stored, "no_such_table"))
            self._behind.write()
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise
            raise MoveFailed(self._at_work, error) from error
        logger.info(
            "moved %d rows to PostgreSQL, %d of them with new numbers; %d stay behind",
            self._moved,
            self._renumbered_rows,
            self._behind.count,
        )
        return Outcome(self._moved, self._behind.count)

    def _keep_changed_seeds(self, rows: Iterable[RefusedRow]) -> None:
        """Let changed seeds stay behind, as before, unless somebody changed PostgreSQL's, too.

        Only a person can decide which values a seed should have.
        """
        for row in rows:
            stored = StoredRow((row.number,), row.key, row.content, row.settled)
            schema = self._tables.get(row.table_name)
            if schema is None or not self._is_changed_too(schema, stored, row.reason):
                self._behind.record(row.table_name, stored, row.reason)

    def _is_changed_too(self, schema: TableSchema, stored: StoredRow, code: RefusalCode) -> bool:
        try:
            values = schema.read(stored)
        except Unmovable:
            return False
        there = self._target.counterpart(schema, values)
        if code == "seed_deleted":
            return there is None
        return there is not None and is_same(values, there)

    def _move_group(self, group: list[TableSchema]) -> None:
        for schema in group:
            self._at_work = schema.name
            self._match_seeds(schema)
            self._advance_sequence(schema)
        names = {schema.name for schema in group}
        if any(one.table in names for schema in group for one in schema.references):
            self._move_in_order(group)
        else:
            schema = group[0]
            rows = self._source.rows(schema.name)
            seeds = self._seeds[schema.name]
            for batch in batches(row for row in rows if row.locator not in seeds):
                self._move_rows(schema, batch)

    def _move_in_order(self, group: list[TableSchema]) -> None:
        """Move rows that may refer to each other; those that form a circle go together."""
        schemas = {schema.name: schema for schema in group}
        waiting: list[Node] = []

        def move_waiting() -> None:
            if waiting:
                name = waiting[0][0]
                locators = [locator for _, locator in waiting]
                for batch in batches(self._source.fetch(name, locators)):
                    self._move_rows(schemas[name], batch)
                waiting.clear()

        for circle in parents_first(self._parents(group)):
            if len(circle) > 1 or (waiting and waiting[0][0] != circle[0][0]):
                move_waiting()
            if len(circle) > 1:
                self._move_circle(schemas, circle)
            else:
                waiting += circle
                if len(waiting) == ROWS_AT_ONCE:
                    move_waiting()
        move_waiting()

    def _parents(self, group: list[TableSchema]) -> dict[Node, list[Node]]:
        """Return for each row of these tables the rows of these tables that it refers to."""
        at: dict[tuple[str, tuple[str, ...], tuple[Any, ...]], Node] = {}
        referring: dict[Node, list[tuple[str, tuple[str, ...], tuple[Any, ...]]]] = {}
        for schema in group:
            for row in self._source.rows(schema.name):
                if row.locator in self._seeds[schema.name]:
                    continue
                node = (schema.name, row.locator)
                for columns in self._referred.get(schema.name, ()):
                    stored = _pick(columns, row.content)
                    at[schema.name, columns, self._keys.same(schema.name, columns, stored)] = node
                referring[node] = [
                    (one.table, one.to, self._keys.same(one.table, one.to, values))
                    for one, values in self._referring(schema, row)
                    if None not in values
                ]
        return {node: [at[one] for one in found if one in at] for node, found in referring.items()}

    def _move_rows(self, schema: TableSchema, stored: Sequence[StoredRow]) -> None:
        """Move rows, of which each comes after those of them that it refers to."""
        self._insert(schema, self._prepared(schema, stored))
        self._record_batch()
        if time.monotonic() > self._reported + SECONDS_BETWEEN_REPORTS:
            self._reported = time.monotonic()
            logger.info("moving rows to PostgreSQL: %d so far", self._moved)

    def _insert(self, schema: TableSchema, rows: Sequence[_Row]) -> None:
        """Insert rows, fewer at once while they are refused, and more again while they are not."""
        left = list(rows)
        with self._target.attempts():
            while left:
                some = left[: self._rows_at_once]
                # What they refer to may have been refused just now, or got a key from a trigger.
                for row in some:
                    self._follow_references(schema, row)
                moving = [row for row in some if not self._stays_with_another(schema, row)]
                if moving and (refused := self._insert_some(schema, moving)):
                    if len(moving) > 1:
                        left[: len(some)] = moving
                        self._rows_at_once = len(moving) // 2
                        continue
                    self._refuse(schema.name, moving[0].stored, "refused", refused.error)
                elif moving:
                    self._count_moved(schema, moving)
                    self._rows_at_once = min(2 * self._rows_at_once, ROWS_AT_ONCE)
                del left[: len(some)]

    def _insert_some(self, schema: TableSchema, rows: Sequence[_Row]) -> Refused | None:
        self._on_progress()
        try:
            self._target.attempt(lambda: self._insert_batch(schema, rows))
        except Refused as refused:
            return refused
        return None

    def _insert_batch(self, schema: TableSchema, rows: Sequence[_Row]) -> None:
        referred = [*schema.key, *chain(*self._referred.get(schema.name, ()))]
        columns = list(dict.fromkeys(referred)) if schema.has_trigger else []
        inserted = self._target.insert(schema, [row.values for row in rows], columns)
        if not columns or set(inserted) == {_pick(columns, row.values) for row in rows}:
            return
        # A trigger makes keys itself. One by one it is known which row has which.
        if len(rows) > 1:
            raise Refused
        (row,), (values,) = rows, inserted
        row.values.update(zip(columns, values, strict=True))
        self._replace_keys(schema, row, columns)
        row.has_new_key = True

    def _count_moved(self, schema: TableSchema, rows: Sequence[_Row]) -> None:
        self._moved += len(rows)
        self._new_keys += [
            (schema.name, row.stored.key, as_text(_pick(schema.key, row.values)))
            for row in rows
            if row.has_new_key
        ]

    def _record_batch(self) -> None:
        """Record what became of the rows that were at work: those left behind, and new keys."""
        for one in self._unsettled:
            self._settle(one)
        self._unsettled.clear()
        if self._new_keys:
            failbacks.record_new_keys(self._connection, self._file_id, self._new_keys)
            self._new_keys.clear()

    def _move_circle(self, schemas: Mapping[str, TableSchema], circle: Sequence[Node]) -> None:
        """Move rows that refer to each other in a circle: all of them, or none."""
        tables = in_order_of_insertion([schemas[name] for name in {name for name, _ in circle}])
        rows: list[tuple[TableSchema, _Row]] = []
        for schema in tables:
            locators = [locator for name, locator in circle if name == schema.name]
            stored = self._source.fetch(schema.name, locators)
            rows += [(schema, row) for row in self._prepared(schema, list(stored))]
        # What a key consists of may be known only after the first time.
        for schema, row in [*rows, *rows]:
            self._follow_references(schema, row)
        self._on_progress()
        moving = [pair for pair in rows if not self._stays_with_another(*pair)]
        if len(moving) < len(circle):
            for schema, row in moving:
                self._refuse(schema.name, row.stored, "refers_to_refused")
        else:
            try:
                self._target.attempt_deferred(lambda: self._insert_circle(tables, rows))
            except Refused as refused:
                for schema, row in rows:
                    self._refuse(schema.name, row.stored, "refused", refused.error)
            else:
                for schema, row in rows:
                    self._count_moved(schema, [row])
        self._record_batch()

    def _insert_circle(
        self, tables: Sequence[TableSchema], rows: Sequence[tuple[TableSchema, _Row]]
    ) -> None:
        """Insert the rows, filling in afterwards what may be empty until then."""
        following = {schema.name for schema in tables}
        filled_in_later = []
        for schema in tables:
            own = [row for one, row in rows if one is schema]
            if len(own) <= ROWS_AT_ONCE:  # else it takes several statements to insert them
                following.remove(schema.name)
            values = []
            for row in own:
                empty = {
                    name
                    for one in schema.references
                    if one.table in following and not one.can_wait
                    for name in one.columns
                    if schema.columns[name].is_nullable and row.values.get(name) is not None
                }
                values.append(row.values | dict.fromkeys(empty))
                if empty:
                    filled_in_later.append((schema, row, sorted(empty)))
            self._target.insert(schema, values)
            following.discard(schema.name)
        for schema, row, names in filled_in_later:
            self._target.update(schema, row.values, names)

    # one row

    def _prepared(self, schema: TableSchema, stored: Sequence[StoredRow]) -> list[_Row]:
        """Return the rows that can be written, with their numbers; refuse the others."""
        rows = []
        for one in stored:
            try:
                rows.append(_Row(one, schema.read(one)))
            except Unmovable as error:
                self._refuse(schema.name, one, error.code)
        if self._is_copy:
            return self._without_those_there(schema, rows)
        return self._renumbered(schema, rows) if schema.sequence else rows

    def _renumbered(self, schema: TableSchema, rows: list[_Row]) -> list[_Row]:
        """Give new numbers to rows whose numbers PostgreSQL has; refuse them if it gives none."""
        (key,) = schema.key
        numbers = [row.values.get(key) for row in rows]
        # In a column of any type but INTEGER, SQLite has NULL for a key that nobody gave.
        taken: set[Any] = {None}
        integers = [number for number in numbers if isinstance(number, int)]
        most = highest(schema.columns[key].kind)
        below = self._replaced_below.get(schema.name, -inf)
        taken.update(self._target.taken(schema, integers))
        taken.update(number for number in integers if number > most or number < below)
        if taken.isdisjoint(numbers):
            return rows
        new = iter(self._target.next_numbers(schema, sum(one in taken for one in numbers)))
        kept = []
        for row in rows:
            if row.values.get(key) in taken:
                number = next(new, None)
                if number is None:
                    self._refuse(schema.name, row.stored, "no_number")
                    continue
                if self._renumbered_rows < MOST_ROWS_NAMED:
                    old = row.values.get(key)
                    logger.warning("table %s: number %s is now %s", schema.name, old, number)
                self._renumbered_rows += 1
                row.values[key] = number
                row.has_new_key = True
                self._replace_keys(schema, row, {key})
            kept.append(row)
        return kept

    def _without_those_there(self, schema: TableSchema, rows: list[_Row]) -> list[_Row]:
        """Return the rows that PostgreSQL does not have; refuse those that it has but differently.

        The file is a copy of one that was moved before: two machines went on with one snapshot.
        """
        if not schema.key or not rows:
            return rows
        for row in rows:
            new_key = self._keys_of_copied.get((schema.name, row.stored.key))
            if new_key is not None and len(schema.key) == 1:
                (name,) = schema.key
                row.values[name] = type(row.values[name])(new_key)
                self._replace_keys(schema, row, {name})
            self._follow_references(schema, row)
        keys = [_pick(schema.key, row.values) for row in rows]
        there = self._target.with_keys(schema, keys)
        new = []
        for key, row in zip(keys, rows, strict=True):
            if key not in there:
                new.append(row)
            elif not is_same(row.values, there[key]):
                self._refuse(schema.name, row.stored, "already_there")
        return new

    def _follow_references(self, schema: TableSchema, row: _Row) -> None:
        """Let the row refer to what the rows that it refers to have become."""
        changed = set(row.stored.settled)
        for one, stored in self._referring(schema, row.stored):
            new = self._keys.replacement(one.table, one.to, stored)
            if new is not None:
                row.values.update(zip(one.columns, new, strict=True))
                changed.update(one.columns)
        if changed:
            self._replace_keys(schema, row, changed)

    def _referring(
        self, schema: TableSchema, stored: StoredRow
    ) -> list[tuple[Reference, tuple[Any, ...]]]:
        """Return what the row refers to: the references, and the values that SQLite stored."""
        return [(one, _pick(one.columns, stored.content)) for one in schema.references]

    def _replace_keys(self, schema: TableSchema, row: _Row, changed: Collection[str]) -> None:
        """Let references to this row follow the change of these columns."""
        for columns in self._referred.get(schema.name, ()):
            if any(name in changed for name in columns):
                stored = _pick(columns, row.stored.content)
                self._keys.replace(schema.name, columns, stored, _pick(columns, row.values))

    # rows that stay behind

    def _stays_with_another(self, schema: TableSchema, row: _Row) -> bool:
        """Refuse the row if it refers to one that stays behind; return whether it does."""
        if not self._keys.has_refused:
            return False
        refused = [
            (one.table, one.to, self._keys.same(one.table, one.to, stored))
            for one, stored in self._referring(schema, row.stored)
            if self._keys.is_refused(one.table, one.to, stored)
        ]
        for one in refused:
            seed = self._missing_seeds.get(one)
            if seed is not None and (one[0], seed.locator) not in self._kept_seeds:
                self._kept_seeds.add((one[0], seed.locator))
                self._unsettled.append(_Refusal(one[0], seed, "seed_missing"))
        if refused:
            self._refuse(schema.name, row.stored, "refers_to_refused")
        return bool(refused)

    def _refuse(
        self, table: str, row: StoredRow, code: RefusalCode, error: str | None = None
    ) -> None:
        """Let the row stay behind, and all that refer to it."""
        self._refuse_keys(table, row)
        # It may refer to rows of the same batch, of which nobody knows yet what becomes of them.
        self._unsettled.append(_Refusal(table, row, code, error))

    def _refuse_keys(self, table: str, row: StoredRow) -> None:
        for columns in self._referred.get(table, ()):
            self._keys.refuse(table, columns, _pick(columns, row.content))

    def _settle(self, refusal: _Refusal) -> None:
        """Record the row, and what its references to rows that were moved have become."""
        stored = self._settled(refusal.table, refusal.stored)
        self._behind.record(refusal.table, stored, refusal.code, refusal.error)

    def _settled(self, table: str, stored: StoredRow) -> StoredRow:
        """Return the row with what its references to rows that were moved have become.

        What it refers to may have got a number, and been refused all the same: the next attempt
        gives that row another one.
        """
        settled = {**stored.settled}
        for one in self._references[table]:
            values = _pick(one.columns, stored.content)
            new = self._keys.replacement(one.table, one.to, values)
            if new is not None and not self._keys.is_refused(one.table, one.to, values):
                for name, value in zip(one.columns, new, strict=True):
                    settled[name] = self._as_stored(table, name, value)
        return replace(stored, settled=settled)

    def _as_stored(self, table: str, name: str, value: Any) -> Raw:
        column = self._tables[table].columns.get(name) if table in self._tables else None
        try:
            return column.conversion.store(value) if column else as_raw(value)
        except Exception:
            # The model may give another type to the column than to the one that it refers to.
            return as_raw(value)

    # rows that migrations inserted

    def _match_seeds(self, schema: TableSchema) -> None:
        """Let references to what a migration inserted become references to PostgreSQL's own."""
        seeds = self._seeds[schema.name] = set()
        is_referred_to = schema.name in self._referred
        for seed in self._source.seeds(schema.name):
            self._on_progress()
            key = as_text(_pick(schema.key, seed.now))
            stored = StoredRow(seed.locator, key, seed.inserted)
            try:
                row = _Row(stored, schema.read(stored))
            except Unmovable:
                continue
            self._follow_references(schema, row)
            # Looking may take long, in a table with many seeds and no key to find them by.
            is_needed = is_referred_to or seed.later
            there = self._target.counterpart(schema, row.values) if is_needed else None
            if there is None and seed.later:
                continue
            seeds.add(seed.locator)
            for columns in self._referred.get(schema.name, ()):
                inserted = _pick(columns, seed.inserted)
                if there is None:
                    self._keys.refuse(schema.name, columns, inserted)
                    same = self._keys.same(schema.name, columns, inserted)
                    self._missing_seeds[schema.name, columns, same] = stored
                else:
                    self._keys.replace(schema.name, columns, inserted, _pick(columns, there))
            if seed.now != seed.inserted:
                self._settle(
                    _Refusal(schema.name, replace(stored, content=seed.now), "seed_changed")
                )
        for deleted in self._source.deleted_seeds(schema.name):
            stored = self._settled(schema.name, deleted)
            if not self._is_changed_too(schema, stored, "seed_deleted"):
                self._behind.record(schema.name, stored, "seed_deleted")

    def _advance_sequence(self, schema: TableSchema) -> None:
        """Let PostgreSQL's numbering continue after all numbers that it would meet otherwise.

        It does not meet those in the upper half of what a key can hold: see generated_keys.py.
        """
        if schema.sequence is None:
            return
        (key,) = schema.key
        limit = min(schema.own_numbers_from, self._target.last_number(schema) + 1)
        seeds = self._seeds[schema.name]
        last = self._source.highest(schema.name, key, below=limit, without=seeds)
        if last is not None and not self._target.advance(schema, int(last), limit):
            # Without a right to it, the numbering is taken to be where it usually is.
            may_number = self._target.may_number(schema)
            self._replaced_below[schema.name] = inf if may_number else limit


def _pick(columns: Iterable[str], values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple([values.get(name) for name in columns])
