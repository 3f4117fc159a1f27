"""Orders and their documents in one transaction, with Flask-SQLAlchemy and its own Session.

Uses the database that LLMEMORY_DATABASE_URL names:

    pip install ".[flask]" flask-sqlalchemy
    flask --app examples/flask_orders.py run

An order and its document appear, change and go together, or not at all. Check first who calls, and
whether they may use the workspace: this example trusts its callers.
"""

from __future__ import annotations

import os

from flask import Blueprint, Flask, abort, request
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import CheckConstraint, and_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from llmemory.flask import LLMemory, install_error_handlers
from llmemory.mixins import DocumentReference


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
llmemory = LLMemory()
orders = Blueprint("orders", __name__, url_prefix="/workspaces/<workspace_id>/orders")


class Order(DocumentReference, db.Model):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("amount > 0"),)

    workspace_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


def create_app() -> Flask:
    app = Flask(__name__)
    url = os.environ["LLMEMORY_DATABASE_URL"]
    app.config["SQLALCHEMY_DATABASE_URI"] = url.replace("postgresql://", "postgresql+psycopg://", 1)
    db.init_app(app)
    llmemory.init_app(app)
    install_error_handlers(app)
    app.register_blueprint(orders)
    app.register_error_handler(IntegrityError, conflict)
    app.register_error_handler(StaleDataError, conflict)
    app.add_url_rule("/health", view_func=health)
    with app.app_context():
        # A real application has a migration for it.
        db.create_all()
    return app


@orders.put("/<int:number>")
def save_order(workspace_id: str, number: int) -> ResponseReturnValue:
    body = request.get_json()
    # Embeds and reads what is stored; the transaction of db.session begins after it.
    document = llmemory.memory.build_document(
        workspace_id, f"Order {number}", body["text"], external_id=f"order-{number}"
    )
    order = db.session.get(Order, (workspace_id, number))
    if order is None:
        order = Order(workspace_id=workspace_id, number=number)
        db.session.add(order)
    order.amount = body["amount"]
    order.document = document
    db.session.commit()
    return {"number": number}


@orders.delete("/<int:number>")
def delete_order(workspace_id: str, number: int) -> ResponseReturnValue:
    deletion = llmemory.memory.delete_statement(workspace_id, external_ids=[f"order-{number}"])
    order = db.session.get(Order, (workspace_id, number)) or abort(404)
    db.session.delete(order)
    db.session.execute(deletion)
    db.session.commit()
    return "", 204


@orders.get("")
def find_orders(workspace_id: str) -> ResponseReturnValue:
    hits = llmemory.memory.search_statement(workspace_id, request.args["query"]).subquery()
    found = (
        select(Order.number, Order.amount, hits.c.score)
        .join(
            hits,
            and_(
                Order.document_owner_id == hits.c.owner_id, Order.document_id == hits.c.document_id
            ),
        )
        .where(Order.amount >= request.args.get("least", 0, type=int))
        .order_by(hits.c.rank)
    )
    return [dict(row._mapping) for row in db.session.execute(found)]


def conflict(error: Exception) -> ResponseReturnValue:
    db.session.rollback()
    return {"detail": "The order is wrong, or somebody else changed it."}, 409


def health() -> ResponseReturnValue:
    found = llmemory.memory.health()
    return found.model_dump(mode="json"), 200 if found.healthy else 503
