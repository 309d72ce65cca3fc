"""What migrations/env.py runs: Alembic, told which tables are this project's own.

Other applications, extensions and the runtime may have tables in the same database. Alembic would
drop what no model describes, so it is only shown what a model or an own migration has named.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from alembic import context
from alembic.autogenerate import produce_migrations
from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Column, Connection, Engine, MetaData, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from space_runtime.backends import SQLITE, backend_of
from space_runtime.backends.errors import DatabaseUnavailable, running_reason
from space_runtime.migrations import Migrations, around, current_revisions
from space_runtime.migrations.history import OwnNames
from space_runtime.migrations.rendering import add_enum_operations, render_item
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
    view = _OwnPart(own, models, connection.dialect.default_schema_name)
    autogenerates = getattr(context.config.cmd_opts, "autogenerate", False)
    is_elsewhere = backend_of(connection.engine) is not SQLITE
    on_sqlite = _changed_on_sqlite(models) if autogenerates and is_elsewhere else {}
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
        process_revision_directives=partial(_complete_scripts, own.enums, on_sqlite),
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

    def __init__(self, own: OwnNames, models: MetaData, default_schema: str | None) -> None:
        named = own.tables | {(table.schema, table.name) for table in models.tables.values()}
        # Alembic says None for the default schema.
        self._tables = {(None if at == default_schema else at, name) for at, name in named}
        self._indexes = own.indexes

    def include_name(self, name: str | None, kind: str, parents: Mapping[Any, str | None]) -> bool:
        """Leave out the tables and schemas of others."""
        if kind == "schema":
            return name is None or name in {schema for schema, _ in self._tables}
        return kind != "table" or (parents["schema_name"], name) in self._tables

    def include_object(
        self, item: SchemaItem, name: str | None, kind: str, reflected: bool, other: Any
    ) -> bool:
        """Keep an index that somebody added by hand."""
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


def _changed_on_sqlite(models: MetaData) -> dict[tuple[str, str], ops.AlterColumnOp]:
    """Return the columns whose types differ on SQLite, where the migrations are tried for that.

    PostgreSQL shows no difference between a Numeric and a LongNumeric, for example.
    """
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
            return {}
        return _changed_types(produce_migrations(on_sqlite, models).upgrade_ops)


def _changed_types(operations: ops.UpgradeOps | None) -> dict[tuple[str, str], ops.AlterColumnOp]:
    return {
        (change.table_name, change.column_name): change
        for changes in (operations.ops if operations else [])
        if isinstance(changes, ops.ModifyTableOps)
        for change in changes.ops
        if isinstance(change, ops.AlterColumnOp) and change.modify_type is not None
    }


def _complete_scripts(
    enums: Mapping[str, set[str]],
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
    add_enum_operations(enums, migration_context, scripts)
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
