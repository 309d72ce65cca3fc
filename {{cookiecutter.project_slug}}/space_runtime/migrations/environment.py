"""What migrations/env.py runs: Alembic, told which tables are this project's own.

Other applications, extensions and the runtime may have tables in the same database. Alembic would
drop what no model describes, so it is only shown what an own migration has made.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alembic import context
from alembic.autogenerate import produce_migrations
from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Column, Connection, Engine, MetaData, inspect, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from space_runtime.backends import SQLITE, backend_of
from space_runtime.backends.errors import DatabaseUnavailable, running_reason
from space_runtime.migrations import Migrations, around, current_revisions
from space_runtime.migrations.history import OwnNames, TableName
from space_runtime.migrations.rendering import (
    add_enum_operations,
    add_sequence_operations,
    render_item,
)
from space_runtime.reasons import REASONS


def run_command(engine: Engine, models: MetaData) -> None:
    """Run a command line such as `alembic upgrade head`: say to which database, and what it did.

    Raise CommandError, which Alembic prints, if the database cannot be used now.
    """
    # It prints what it logs there, and creating the application has given logs a place.
    logging.getLogger("alembic.util.messaging").disabled = True
    backend, say = backend_of(engine), context.config.print_stdout
    say("Database: %s", backend.describe(engine.url))
    try:
        with backend.lock_migrations(engine) as connection:
            _migrations().position(connection)
            before = ", ".join(sorted(current_revisions(connection)))
            connection.rollback()  # Alembic begins its own transactions.
            run(connection, models)
            after = ", ".join(sorted(current_revisions(connection)))
    except (DatabaseUnavailable, DBAPIError) as error:
        reason = REASONS.get(getattr(error, "reason", None) or running_reason(error) or "")
        if reason is None:
            raise
        remedy = reason.remedy or "Check DATABASE_URL."
        raise CommandError(f"Nothing was done: {reason.explanation}. {remedy}") from None
    if _changes_schema():
        was, now = before or "nothing", after or "nothing"
        say(f"Migrated from {was} to {now}." if was != now else f"Nothing to do: it is at {now}.")


def run(connection: Connection, models: MetaData) -> None:
    """Run the Alembic command that is under way."""
    migrations = _migrations()
    own = migrations.own_names()
    default_schema = connection.dialect.default_schema_name
    tables = {(_schema(schema, default_schema), name) for schema, name in own.tables}
    unnamed = set() if _changes_schema() else _present(connection, models) - tables
    autogenerates = getattr(context.config.cmd_opts, "autogenerate", False)
    is_elsewhere = backend_of(connection.engine) is not SQLITE
    on_sqlite = _OnSQLite(set(), {})
    if unnamed or (autogenerates and is_elsewhere):
        on_sqlite = _try_on_sqlite(models)
    foreign = unnamed - on_sqlite.tables
    view = _OwnPart(tables | (unnamed - foreign), own.indexes, foreign)
    context.configure(
        connection=connection,
        target_metadata=models,
        # also on PostgreSQL: a migration that is generated there must run on SQLite, too
        render_as_batch=True,
        # also on SQLite, where each migration would otherwise be committed on its own
        transactional_ddl=True,
        include_schemas=True,
        include_name=view.include_name,
        include_object=view.include_object,
        compare_type=_compare_type,
        render_item=render_item,
        process_revision_directives=partial(_complete_scripts, own, on_sqlite.changes),
    )
    with context.begin_transaction():
        if not _changes_schema():
            context.run_migrations()
            return
        with around(connection):
            context.run_migrations()
        migrations.record(connection)


class _OwnPart:
    """Which part of a database Alembic is shown."""

    def __init__(self, tables: set[TableName], indexes: set[str], foreign: set[TableName]) -> None:
        self._tables, self._indexes, self._foreign = tables, indexes, foreign

    def include_name(self, name: str | None, kind: str, parents: Mapping[Any, str | None]) -> bool:
        """Leave out the tables and schemas of others."""
        if kind == "schema":
            return name is None or name in {schema for schema, _ in self._tables}
        return kind != "table" or (parents["schema_name"], name) in self._tables

    def include_object(
        self, item: SchemaItem, name: str | None, kind: str, reflected: bool, other: Any
    ) -> bool:
        """Keep an index that somebody added by hand; refuse a model of a foreign table."""
        if kind == "table" and any(name == foreign for _, foreign in self._foreign):
            raise CommandError(
                f"The database has a table {name!r} that no migration of this project makes. Give"
                " your model another __tablename__; if the table is this project's own, write"
                f" op.create_table({name!r}, ..., if_not_exists=True) into a migration."
            )
        is_to_be_dropped = kind == "index" and reflected and other is None
        return not is_to_be_dropped or name in self._indexes


def _compare_type(
    migration_context: MigrationContext,
    existing: Column[Any],
    wanted: Column[Any],
    existing_type: TypeEngine[Any],
    wanted_type: TypeEngine[Any],
) -> bool | None:
    """Return False for no difference, or None to let Alembic compare."""
    connection = migration_context.connection
    if connection is None:
        return None
    backend = backend_of(connection.engine)
    return False if backend.is_stored_the_same(connection, existing, wanted) else None


def _schema(name: str | None, default: str | None) -> str | None:
    """Return a schema as Alembic calls it: None for the default one."""
    return None if name == default else name


def _present(connection: Connection, models: MetaData) -> set[TableName]:
    """Return those of the models' tables that the database has."""
    inspector, default = inspect(connection), connection.dialect.default_schema_name
    names = {(_schema(one.schema, default), one.name) for one in models.tables.values()}
    present = {(schema, name) for schema, name in names if inspector.has_table(name, schema)}
    connection.rollback()  # Alembic begins its own transactions.
    return present


class _OnSQLite(NamedTuple):
    """What the migrations make on SQLite."""

    tables: set[TableName]
    """Also those whose names are computed, or in raw SQL."""
    changes: dict[tuple[str, str], ops.AlterColumnOp]
    """Of columns whose types differ from the models'.

    PostgreSQL shows no difference between a Numeric and a LongNumeric, for example.
    """


def _try_on_sqlite(models: MetaData) -> _OnSQLite:
    """Run all migrations on a database in memory."""
    engine = SQLITE.create_engine(make_url("sqlite://"), {}, 1)

    def upgrade(heads: Any, _context: MigrationContext) -> Any:
        return context.script._upgrade_revs("heads", heads)

    with SQLITE.lock_migrations(engine) as connection:
        options = {"fn": upgrade, "compare_type": _compare_type, "transactional_ddl": True}
        on_sqlite = MigrationContext.configure(connection, opts=options)
        try:
            with Operations.context(on_sqlite), on_sqlite.begin_transaction():
                on_sqlite.run_migrations()
        except Exception as error:  # A migration is the owner's code, which may raise anything.
            context.config.print_stdout("The migrations do not run on SQLite: %s", error)
            return _OnSQLite(set(), {})
        changes = _changed_types(produce_migrations(on_sqlite, models).upgrade_ops)
        inspector = inspect(connection)
        names = [*inspector.get_table_names(), *inspector.get_view_names()]
        return _OnSQLite({(None, name) for name in names}, changes)


def _changed_types(operations: ops.UpgradeOps | None) -> dict[tuple[str, str], ops.AlterColumnOp]:
    return {
        (change.table_name, change.column_name): change
        for changes in (operations.ops if operations else [])
        if isinstance(changes, ops.ModifyTableOps)
        for change in changes.ops
        if isinstance(change, ops.AlterColumnOp) and change.modify_type is not None
    }


def _complete_scripts(
    own: OwnNames,
    on_sqlite: Mapping[tuple[str, str], ops.AlterColumnOp],
    migration_context: MigrationContext,
    revision: Any,
    scripts: list[ops.MigrationScript],
) -> None:
    """Add what Alembic leaves out, and let no migration be written that would change nothing."""
    upgrade, downgrade = scripts[0].upgrade_ops, scripts[0].downgrade_ops
    for column, change in on_sqlite.items():
        if upgrade and downgrade and column not in _changed_types(upgrade):
            upgrade.ops.append(ops.ModifyTableOps(change.table_name, [change]))
            downgrade.ops.insert(0, ops.ModifyTableOps(change.table_name, [change.reverse()]))
    add_sequence_operations(own.sequences, migration_context, scripts[0])
    add_enum_operations(own.enums, migration_context, scripts)
    if not getattr(context.config.cmd_opts, "autogenerate", False):
        return
    say = context.config.print_stdout
    if upgrade is None or upgrade.is_empty():
        scripts.clear()
        say("Your models and the database agree, so no migration is written.")
        say('For one that you write by hand: .venv/bin/python -m alembic revision -m "..."')
    else:
        say("Review what is written here; it is applied at the next start.")


def _migrations() -> Migrations:
    return Migrations(Path(context.script.dir).parent)


def _changes_schema() -> bool:
    """Return whether the command is one such as `upgrade`, not one such as `check`."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True
