"""Alembic's environment: migrates one schema, on a connection given or made from the settings."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateSchema

from llmemory.database.engines import Database
from llmemory.schema import migrate
from llmemory.schema.prerequisites import prepare_schema
from llmemory.settings import Settings


def compare_by_name(connection: Connection, schema: str) -> None:
    """Take the schema out of the search path, where its tables would be reflected without it.

    It stands there if the role is named like the schema: "$user" is the default path's first part.
    """
    connection.execute(
        text(
            "SELECT set_config('search_path', coalesce(string_agg(quote_ident(name), ', '), ''), "
            "false) FROM unnest(current_schemas(false)) AS name WHERE name <> :schema"
        ),
        {"schema": schema},
    )
    connection.dialect.default_schema_name = "pg_catalog"


def run(connection: Connection, schema: str) -> None:
    """Run the migrations that the caller asked for on `connection`."""
    context.configure(connection=connection, **migrate.context_options(schema))
    with context.begin_transaction():
        prepare_schema(connection, schema)
        context.run_migrations()


async def run_from_settings(settings: Settings) -> None:
    """Run them on a connection of our own: a developer called ``alembic`` in the clone."""
    database = Database(settings)
    try:
        async with database.transaction() as connection:
            await connection.run_sync(compare_by_name, settings.schema_name)
            await connection.run_sync(run, settings.schema_name)
    finally:
        await database.close()


if context.is_offline_mode():
    schema_name = context.config.attributes.get("schema") or Settings.from_env().schema_name
    context.configure(
        dialect_name="postgresql",
        # A driver would take the % of a name doubled; nobody undoes that in a script.
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        **migrate.context_options(schema_name),
    )
    with context.begin_transaction():
        if context.get_starting_revision_argument() is None:
            context.execute("CREATE EXTENSION IF NOT EXISTS vector")
            context.execute(CreateSchema(schema_name, if_not_exists=True))
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given, context.config.attributes["schema"])
else:
    asyncio.run(run_from_settings(Settings.from_env()))
