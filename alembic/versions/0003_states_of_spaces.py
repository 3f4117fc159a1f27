"""Spaces can be filled again and dropped; the number of one never comes to mean another model.

Locks: ``embedding_spaces`` exclusively for a moment. Deploy before the new version of the library.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Allow the states "refilling" and "dropped"."""
    allow_states("filling", "ready", "refilling", "dropped")


def downgrade() -> None:
    """Call them ready, or being filled."""
    schema = op.get_context().version_table_schema or ""
    spaces = sa.table("embedding_spaces", sa.column("state"), schema=schema)
    for state, former in (("refilling", "ready"), ("dropped", "filling")):
        op.execute(
            spaces.update()
            .values(state=op.inline_literal(former))
            .where(spaces.c.state == op.inline_literal(state))
        )
    allow_states("filling", "ready")


def allow_states(*states: str) -> None:
    """Replace the check constraint."""
    schema = op.get_context().version_table_schema or ""
    name = op.f("ck_embedding_spaces_state")
    listed = ", ".join(f"'{state}'" for state in states)
    op.drop_constraint(name, "embedding_spaces", schema=schema, type_="check")
    op.create_check_constraint(name, "embedding_spaces", f"state IN ({listed})", schema=schema)
