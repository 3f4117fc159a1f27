"""The revisions of this library as a branch of an application's own Alembic environment.

The files beside this one stand for those of the library, one for one, under names that no
application uses. Each brings the schema to its revision as ``migrate.upgrade`` would, so that the
schema's own version table stays what tells its state, whoever migrated it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from alembic import context, op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.schema import CreateSchema

from llmemory.schema import migrate
from llmemory.schema.prerequisites import check_undistributed, prepare_schema
from llmemory.settings import Settings, checked_schema

__all__ = ["Step"]


class Step(NamedTuple):
    """What a file of the branch does: bring the schema to a revision, or back to the one before.

    Doing what is done already changes nothing: the library may have migrated the schema by itself
    before the application took the branch in.
    """

    revision: str

    @property
    def functions(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """``upgrade`` and ``downgrade`` of the file."""
        return self.upgrade, self.downgrade

    def upgrade(self) -> None:
        """Bring the schema to the revision, unless it is there or beyond."""
        schema = schema_of_application()
        if op.get_context().as_sql:
            if self._before is None:
                op.execute("CREATE EXTENSION IF NOT EXISTS vector")
                op.execute(CreateSchema(schema, if_not_exists=True))
        else:
            prepare_schema(op.get_bind(), schema)
            if self._is_reached(schema):
                return
        scripts = migrate.script_directory()
        run(schema, self._before, lambda heads, _: scripts._upgrade_revs(self.revision, heads))

    def downgrade(self) -> None:
        """Take the schema to what was before the revision, unless it is there or behind."""
        schema = schema_of_application()
        if not op.get_context().as_sql:
            if not self._is_reached(schema):
                return
            check_undistributed(op.get_bind(), schema)
        target = self._before or "base"
        scripts = migrate.script_directory()
        run(schema, self.revision, lambda heads, _: scripts._downgrade_revs(target, heads))

    @property
    def _before(self) -> str | None:
        before = migrate.script_directory().get_revision(self.revision).down_revision
        assert before is None or isinstance(before, str)
        return before

    def _is_reached(self, schema: str) -> bool:
        found = migrate.revision_of(op.get_bind(), schema)
        if found is None:
            return False
        migrate.check_known(schema, found)
        passed = migrate.script_directory().iterate_revisions(found, "base")
        return self.revision in {script.revision for script in passed}


def schema_of_application() -> str:
    """Return the schema that the application's environment names, else that of the settings."""
    config = context.config
    given = config.attributes.get("llmemory_schema") or config.get_main_option("llmemory_schema")
    return checked_schema(given or Settings.from_env().schema_name)


def run(schema: str, start: str | None, steps: Callable[[Any, Any], list[Any]]) -> None:
    """Run `steps` on the application's connection, or print them, in a context of the library's."""
    outer = op.get_context()
    inner = MigrationContext.configure(
        connection=None if outer.as_sql else outer.connection,
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"} if outer.as_sql else None,
        opts={
            **migrate.context_options(schema),
            "as_sql": outer.as_sql,
            "fn": steps,
            "literal_binds": outer.as_sql,
            "output_buffer": outer.output_buffer,
            "starting_rev": start if outer.as_sql else None,
        },
    )
    with Operations.context(inner):
        inner.run_migrations()
    # That took ``alembic.op`` from the application's revisions, which come after.
    Operations(outer)._install_proxy()
