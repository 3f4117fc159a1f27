"""Metadata have an index of each owner's own, so that what others have takes a filter no time.

Locks: ``documents`` exclusively while the index is made, 0.004 to 0.03 ms a document.
Deploy before the new version of the library; filters of the old one have no index meanwhile.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index metadata below their owner."""
    schema = op.get_context().version_table_schema or ""
    op.drop_index(op.f("ix_documents_metadata"), table_name="documents", schema=schema)
    owned: sa.ColumnElement[dict[str, object]] = sa.literal_column(
        "jsonb_set('{}'::jsonb, ARRAY[owner_id], metadata)"
    )
    op.create_index(
        op.f("ix_documents_owner_id_metadata"),
        "documents",
        [owned.label("owned")],
        schema=schema,
        postgresql_using="gin",
        postgresql_ops={"owned": "jsonb_path_ops"},
        postgresql_with={"gin_pending_list_limit": 256},
    )


def downgrade() -> None:
    """Index metadata of all owners together."""
    schema = op.get_context().version_table_schema or ""
    op.drop_index(op.f("ix_documents_owner_id_metadata"), table_name="documents", schema=schema)
    op.create_index(
        op.f("ix_documents_metadata"),
        "documents",
        ["metadata"],
        schema=schema,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
