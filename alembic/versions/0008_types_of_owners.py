"""Documents are found by their type.

Locks: ``documents`` against writing while the index is made, 0.001 ms a document.
Deploy before or after the new version of the library.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index the types of each owner's documents."""
    schema = op.get_context().version_table_schema or ""
    op.create_index(
        op.f("ix_documents_owner_id_document_type"),
        "documents",
        ["owner_id", "document_type"],
        schema=schema,
    )


def downgrade() -> None:
    """Leave types without an index."""
    schema = op.get_context().version_table_schema or ""
    op.drop_index(
        op.f("ix_documents_owner_id_document_type"), table_name="documents", schema=schema
    )
