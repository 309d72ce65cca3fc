"""Moves rows to PostgreSQL, as if each had been written there when it came back.

What is referred to comes before what refers to it. A row whose number PostgreSQL has gets another,
and references follow. A row that PostgreSQL refuses stays behind, with the rows that refer to it.
"""

import logging
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, groupby
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import DBAPIError

from space_runtime.failback.copies import Copies
from space_runtime.failback.numbering import Numbering
from space_runtime.failback.order import parents_first
from space_runtime.failback.outcome import MoveFailed, Outcome
from space_runtime.failback.references import References, Row
from space_runtime.failback.refusals import Refusals
from space_runtime.failback.schema import (
    TableSchema,
    Unmovable,
    in_order,
    read_references,
    read_schema,
)
from space_runtime.failback.seeds import Seeds
from space_runtime.failback.sources import (
    ROWS_AT_ONCE,
    FileSource,
    Locator,
    Node,
    Refusal,
    RefusedSource,
    Source,
    StoredRow,
    as_stored_row,
    batches,
    pick,
)
from space_runtime.failback.target import Refused, Target
from space_runtime.records import failbacks
from space_runtime.records.failbacks import RefusedRow
from space_runtime.records.stored import as_text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 2.0


class Move:
    """Moves the rows of one file; the target is in a transaction, which the caller commits."""

    def __init__(
        self,
        rows: Connection | Iterable[RefusedRow],
        target: Connection,
        models: MetaData,
        file_id: UUID,
        *,
        left_out: Mapping[Node, Refusal] = MappingProxyType({}),
    ) -> None:
        """`rows` are an SQLite file, or those of it that were refused before.

        Those `left_out` stay behind without being tried.
        """
        source = FileSource(rows) if isinstance(rows, Connection) else RefusedSource(rows)
        self._source: Source = source
        self._connection, self._file_id = target, file_id
        self._left_out = left_out
        self._target = Target(target)
        present = source.tables()
        self._tables = read_schema(target, models, present)
        references = read_references(self._tables, models, present)
        self._references = References(self._tables, references)
        self._refusals = Refusals(self._target, file_id, self._tables, self._references)
        self._seeds = Seeds(source, self._target, self._references, self._refusals)
        self._staying: dict[str, set[Locator]] = {name: set() for name in self._tables}
        """Rows that do not move: those left out, and seeds."""
        self._numbering: dict[str, Numbering] = {}
        self._new_keys: list[tuple[str, str, str]] = []
        """Of moved rows of one batch: the table, the key that it had, the one that it has."""
        self._copies = Copies(self._target, file_id, self._references)
        self._rows_at_once = ROWS_AT_ONCE
        self._moved = 0
        self._at_work = ""
        self._reported = time.monotonic()

    def run(self, *deferred_triggers: str) -> Outcome:
        """Move the rows, record those that stay behind, and return how many there are of both.

        Raise RefusedAtTheEnd if one of these triggers, or any that is deferred, refuses a row; and
        MoveFailed if PostgreSQL ends the whole move.
        """
        try:
            self._target.prepare()
            for stored, _, _ in self._rows_left_out():
                self._references.refuse(stored)
                self._staying.get(stored.table, set()).add(stored.locator)
            for group in in_order(self._tables):
                self._move_group(group)
            for refused in self._rows_left_out():
                self._refusals.record(*refused)
            self._refusals.write()
            self._target.check_deferred(*deferred_triggers)
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise
            raise MoveFailed(error, self._at_work) from None
        return Outcome(self._moved, self._refusals.count)

    def undo(self) -> None:
        """Undo what run() did, in the same transaction."""
        self._target.undo()

    def report(self) -> None:
        """Log what became of the rows, and name the first of them."""
        numberings = self._numbering.values()
        for notice in chain(*(one.notices for one in numberings), self._refusals.notices):
            logger.warning(notice)
        logger.info(
            "moved %d rows to PostgreSQL, %d of them with new numbers; %d stay behind",
            self._moved,
            sum(one.replaced for one in numberings),
            self._refusals.count,
        )

    def suspects(self, *tables: str) -> list[Node]:
        """Return the rows that were tried, of these tables or else of all.

        Those that refer to others come first: without a row, those that refer to it are not tried.
        """
        schemas = reversed([*chain(*in_order(self._tables))])
        chosen = [one for one in schemas if not tables or one.name in tables]
        return [row.node for schema in chosen for row in self._rows(schema)]

    def with_those_that_refer(
        self, row: RefusedRow, others: Iterable[RefusedRow]
    ) -> list[RefusedRow]:
        """Return a refused row, and those of the others that refer to it, directly or not."""
        stored = map(as_stored_row, others)
        found = self._references.with_those_that_refer(as_stored_row(row), stored)
        return [one.before for one in found if one.before]

    def is_there(self, row: RefusedRow) -> bool:
        """Return whether PostgreSQL has a row with the key of this one."""
        if not (schema := self._tables.get(row.table_name)) or not schema.key:
            return False
        stored, known = as_stored_row(row), row.content | row.settled
        with suppress(Unmovable):
            # Its other values may be such that the columns' types cannot read them.
            content = {name: known.get(name) for name in schema.key}
            values = schema.read(stored._replace(content=content, settled={}))
            self._target.prepare()
            return bool(self._target.find(schema, values))
        return False

    def _rows_left_out(self) -> Iterator[tuple[StoredRow, str, str | None]]:
        """Yield the rows that are not tried, and why: those left out, and of unknown tables."""
        for name in self._source.tables():
            if name not in self._tables:
                for stored in self._source.rows(name):
                    yield stored, "no_such_table", None
                for stored, code in self._source.changed_seeds(name):
                    if code == "seed_changed":
                        yield stored, code, None
        for (name, locator), refusal in self._left_out.items():
            if name in self._tables:
                for stored in self._source.fetch(name, [locator]):
                    yield stored, *refusal

    # tables

    def _move_group(self, group: Sequence[TableSchema]) -> None:
        self._at_work = group[0].name
        seeds = self._seeds.match(group)
        for schema in group:
            self._at_work = schema.name
            self._staying[schema.name] |= seeds[schema.name]
            if schema.sequence:
                self._numbering[schema.name] = self._continued(schema, seeds[schema.name])
        names = {schema.name for schema in group}
        if any(one.table in names for schema in group for one in schema.references):
            self._move_in_order(group)
        else:
            for batch in batches(self._rows(group[0])):
                self._move_rows(group[0], batch)

    def _continued(self, schema: TableSchema, seeds: Collection[Locator]) -> Numbering:
        """Return PostgreSQL's numbering, after the numbers of this table's rows but the seeds."""
        (key,) = schema.key
        numbering = Numbering(self._target, schema)
        last = self._source.highest(schema.name, key, below=numbering.limit, without=seeds)
        if last is not None:
            numbering.advance(int(last))
        return numbering

    def _rows(self, schema: TableSchema) -> Iterator[StoredRow]:
        staying = self._staying[schema.name]
        return (row for row in self._source.rows(schema.name) if row.locator not in staying)

    def _move_in_order(self, group: Sequence[TableSchema]) -> None:
        """Move rows that may refer to each other; those that form a circle go together."""
        rows = chain.from_iterable(self._rows(schema) for schema in group)
        order = parents_first(self._references.parents(rows))
        tables = groupby(order, key=lambda circle: (len(circle) > 1, circle[0][0]))
        for (is_circle, name), circles in tables:
            if is_circle:
                for circle in circles:
                    self._move_circle(circle)
            else:
                locators = (locator for ((_, locator),) in circles)
                for batch in batches(self._source.fetch(name, locators)):
                    self._move_rows(self._tables[name], batch)

    # rows

    def _move_rows(self, schema: TableSchema, stored: Sequence[StoredRow]) -> None:
        """Move rows, of which each comes after those of them that it refers to."""
        self._insert(schema, self._prepared(schema, stored))
        self._record_batch()
        if time.monotonic() > self._reported + SECONDS_BETWEEN_REPORTS:
            self._reported = time.monotonic()
            logger.info("moving rows to PostgreSQL: %d so far", self._moved)

    def _prepared(self, schema: TableSchema, stored: Sequence[StoredRow]) -> list[Row]:
        """Return the rows that can be written, with their numbers; refuse the others."""
        rows = []
        for one in stored:
            try:
                rows.append(Row(one, schema.read(one)))
            except Unmovable as error:
                self._refusals.refuse(one, error.code)
        if self._copies.are_there:
            rows, differing = self._copies.sort_out(schema, rows)
            for row in differing:
                self._refusals.refuse(row.stored, "already_there")
            return rows
        if schema.name not in self._numbering:
            return rows
        rows, renumbered, without = self._numbering[schema.name].renumber(rows)
        for row in renumbered:
            self._references.replace(row.stored, row.values, {*schema.key})
        for row in without:
            self._refusals.refuse(row.stored, "no_number")
        return rows

    def _insert(self, schema: TableSchema, rows: list[Row]) -> None:
        """Insert rows, fewer at once while they are refused, and more again while they are not."""
        while rows:
            some, rows = rows[: self._rows_at_once], rows[self._rows_at_once :]
            # What they refer to may have been refused just now, or got a key from a trigger.
            moving = self._followed(some)
            if not moving:
                continue
            try:
                self._target.attempt(partial(self._insert_batch, schema, moving))
            except Refused as refused:
                if len(moving) > 1:
                    self._rows_at_once = len(moving) // 2
                    rows = moving + rows
                else:
                    self._refusals.refuse(moving[0].stored, "refused", refused.error)
            else:
                self._count_moved(moving)
                self._rows_at_once = min(2 * self._rows_at_once, ROWS_AT_ONCE)

    def _followed(self, rows: Sequence[Row]) -> list[Row]:
        """Let rows refer to what others have become; refuse those whose references stay behind."""
        for row in rows:
            self._references.follow(row)
        moving = []
        for row in rows:
            if refused := self._references.refused_by(row.stored):
                self._seeds.keep(refused)
                self._refusals.refuse(row.stored, "refers_to_refused")
            else:
                moving.append(row)
        return moving

    def _insert_batch(self, schema: TableSchema, rows: Sequence[Row]) -> None:
        referred = [*schema.key, *chain(*self._references.columns(schema.name))]
        columns = list(dict.fromkeys(referred)) if schema.has_trigger else []
        inserted = self._target.insert(schema, [row.values for row in rows], columns)
        if not columns or set(inserted) == {pick(columns, row.values) for row in rows}:
            return
        # A trigger makes keys itself. One by one it is known which row has which.
        if len(rows) > 1:
            raise Refused
        self._let_be(rows[0], dict(zip(columns, inserted[0], strict=True)))

    def _let_be(self, row: Row, values: Mapping[str, Any]) -> None:
        """Let references follow what a trigger made of the columns that they point to."""
        key = self._tables[row.stored.table].key
        row.has_new_key = row.has_new_key or pick(key, row.values) != pick(key, values)
        row.values.update(values)
        self._references.replace(row.stored, row.values)

    def _move_circle(self, circle: Sequence[Node]) -> None:
        """Move rows that refer to each other in a circle: all of them, or none."""
        rows: list[Row] = []
        for name in {name for name, _ in circle}:
            locators = [locator for table, locator in circle if table == name]
            rows += self._prepared(self._tables[name], list(self._source.fetch(name, locators)))
        # What a key consists of may be known only after the first time.
        for row in rows:
            self._references.follow(row)
        moving = self._followed(rows)
        refusal: Refusal = ("refers_to_refused", None)
        if len(moving) == len(circle):
            try:
                self._target.attempt(partial(self._insert_circle, moving))
                self._count_moved(moving)
                moving = []
            except Refused as refused:
                refusal = ("refused", refused.error)
        for row in moving:
            self._refusals.refuse(row.stored, *refusal)
        self._record_batch()

    def _insert_circle(self, rows: Sequence[Row]) -> None:
        schemas = [self._tables[row.stored.table] for row in rows]
        values = [row.values for row in rows]
        self._target.insert_together(list(zip(schemas, values, strict=True)))
        # By what they refer to each other, a trigger has not changed.
        inside = {target for row in rows for _, target in self._references.of(row.stored)}
        for row, schema in zip(rows, schemas, strict=True):
            if schema.has_trigger:
                known = next(one for one in self._references.names(row.stored) if one in inside)
                found = self._target.select(schema, {name: row.values[name] for name in known[1]})
                if len(found) != 1:
                    raise Refused
                referred = [*schema.key, *chain(*self._references.columns(schema.name))]
                self._let_be(row, {name: found[0][name] for name in referred})

    def _count_moved(self, rows: Sequence[Row]) -> None:
        self._moved += len(rows)
        for row in rows:
            if row.has_new_key:
                table = row.stored.table
                new_key = as_text(pick(self._tables[table].key, row.values))
                self._new_keys.append((table, row.stored.key, new_key))

    def _record_batch(self) -> None:
        """Record what became of the rows that were at work: those left behind, and new keys."""
        self._refusals.settle()
        failbacks.record_new_keys(self._connection, self._file_id, self._new_keys)
        self._new_keys.clear()
        self._target.keep()
