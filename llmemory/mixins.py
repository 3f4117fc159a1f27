"""Mixins for an application's own models: columns beside a document, or a reference to one.

They work with any declarative base, such as ``db.Model`` of Flask-SQLAlchemy.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Text, Uuid, and_
from sqlalchemy.orm import Mapped, declared_attr, foreign, mapped_column, relationship

from llmemory.models import Document

__all__ = ["DocumentExtension", "DocumentReference"]


class DocumentExtension:
    """More columns for a document, in a table of yours with the same key.

    A row is deleted with its document. A ``__table_args__`` of your own must begin with those of
    this class: ``__table_args__ = (*DocumentExtension.table_args(), ...)``.

    Example:
        >>> class Contract(DocumentExtension, Base):
        ...     __tablename__ = "contracts"
        ...     value: Mapped[int]
        >>> session.add(Contract(document=document, value=500))
    """

    owner_id: Mapped[str] = mapped_column(Text, primary_key=True)
    document_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)

    @staticmethod
    def table_args() -> tuple[ForeignKeyConstraint]:
        """Return the foreign key to the document."""
        key = ForeignKeyConstraint(
            ["owner_id", "document_id"],
            [Document.owner_id, Document.document_id],
            ondelete="CASCADE",
        )
        return (key,)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> Any:
        return cls.table_args()

    @declared_attr
    @classmethod
    def document(cls) -> Mapped[Document]:
        """The document, loaded only where a query asks for it."""
        return relationship(Document, lazy="raise_on_sql")


class DocumentReference:
    """A reference to a document, or none, for a row with a key of its own.

    There is no foreign key: the row stays when its document goes, and ``document`` is None then.

    Example:
        >>> class Order(DocumentReference, Base):
        ...     __tablename__ = "orders"
        ...     order_id: Mapped[int] = mapped_column(primary_key=True)
        >>> session.add(Order(document=document))
    """

    document_owner_id: Mapped[str | None] = mapped_column(Text)
    document_id: Mapped[UUID | None] = mapped_column(Uuid, index=True)

    @declared_attr
    @classmethod
    def document(cls) -> Mapped[Document | None]:
        """The document, loaded only where a query asks for it."""
        return relationship(
            Document,
            primaryjoin=lambda: and_(
                foreign(cls.document_owner_id) == Document.owner_id,
                foreign(cls.document_id) == Document.document_id,
            ),
            lazy="raise_on_sql",
        )
