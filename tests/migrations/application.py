"""A real project with an Alembic environment, as ``alembic init`` makes it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from llmemory.mixins import DocumentExtension, DocumentReference

class Base(DeclarativeBase):
    pass

class Contract(DocumentExtension, Base):
    __tablename__ = "contracts"
    value: Mapped[int]

class Order(DocumentReference, Base):
    __tablename__ = "orders"
    order_id: Mapped[int] = mapped_column(primary_key=True)
"""

CONFIGURED = "connection=connection, target_metadata=target_metadata"
PAGE = Path(__file__).parents[2] / "docs" / "migrations.md"
# As the documentation says.
WITH_BRANCH = PAGE.read_text().partition("```ini\n")[2].partition("```")[0]


class Application:
    """A folder with models and migrations of its own.

    Args:
        folder: Where to make it.
        url: Its database, with the driver that the template needs.
        template: ``generic`` or ``async``, of Alembic.
        options: What its env.py passes to ``context.configure``.
        settings: Lines for its alembic.ini.
    """

    def __init__(
        self, folder: Path, url: str, template: str, *, options: str = "", settings: str = ""
    ) -> None:
        self.folder = folder
        ini = folder / "alembic.ini"
        command.init(Config(str(ini), stdout=io.StringIO()), str(folder / "alembic"), template)
        replace(ini, "sqlalchemy.url = driver://user:pass@localhost/dbname", "")
        replace(ini, "path_separator = os", settings or "path_separator = os")
        replace(ini, "prepend_sys_path = .", "")
        replace(ini, "[alembic]\n", f"[alembic]\nsqlalchemy.url = {url.replace('%', '%%')}\n")
        (folder / "application_models.py").write_text(MODELS)
        environment = folder / "alembic" / "env.py"
        replace(
            environment,
            "target_metadata = None",
            "from application_models import Base\n"
            "from llmemory.schema.migrate import include_name\n"
            "target_metadata = Base.metadata",
        )
        replace(environment, CONFIGURED, f"{CONFIGURED}, {options}")
        # It would silence the loggers of the tests.
        replace(environment, "fileConfig(config.config_file_name)", "pass")

    def run(self, name: str, *args: Any, **kwargs: Any) -> str:
        """Run an Alembic command and return what it prints."""
        printed = io.StringIO()
        config = Config(str(self.folder / "alembic.ini"), stdout=printed, output_buffer=printed)
        sys.modules.pop("application_models", None)
        getattr(command, name)(config, *args, **kwargs)
        return printed.getvalue()

    def revise(self, message: str, **options: Any) -> str:
        """Autogenerate a revision and return its text."""
        before = set(self.revisions())
        self.run("revision", message, autogenerate=True, **options)
        (made,) = set(self.revisions()) - before
        return made.read_text()

    def revisions(self) -> list[Path]:
        """Return the files of its own revisions."""
        return sorted((self.folder / "alembic" / "versions").glob("*.py"))


def replace(file: Path, old: str, new: str) -> None:
    """Put `new` in the place of `old`, which must be there."""
    text = file.read_text()
    assert old in text, f"{old!r} is not in {file.name}"
    file.write_text(text.replace(old, new))
