"""Applications with an Alembic environment: our revisions as a branch of theirs, or left alone."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory
from migrations.application import WITH_BRANCH, Application
from plugins.server import execute, with_driver
from psycopg import sql

import llmemory.branch
from llmemory import HashEmbedder, Memory, SchemaTooNew, Settings
from llmemory.schema import migrate

HEADS = f"llmemory_{migrate.HEAD}"
TEMPLATES = pytest.mark.parametrize(
    ("kind", "driver"), [("generic", "postgresql+psycopg2"), ("async", "postgresql+asyncpg")]
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def with_branch(folder: Path, url: str, kind: str = "generic", settings: str = "") -> Application:
    return Application(
        folder,
        url,
        kind,
        options="include_schemas=True, include_name=include_name()",
        settings=WITH_BRANCH + settings,
    )


def start_of_shop(application: Application) -> str:
    """Autogenerate the first revision of the application's own branch."""
    return application.revise(
        "shop",
        head="base",
        branch_label="shop",
        version_path=str(application.folder / "alembic" / "versions"),
        depends_on="llmemory_0001",
    )


class TestBranch:
    def test_a_file_for_each_revision_of_the_library(self) -> None:
        (folder,) = llmemory.branch.__path__
        files = ScriptDirectory(folder, version_locations=[folder]).walk_revisions()
        found = [(file.revision, file.down_revision, file.doc) for file in files]
        revisions = list(migrate.script_directory().walk_revisions())
        before = [f"llmemory_{revision.down_revision}" for revision in revisions[:-1]]
        assert found == [
            (f"llmemory_{revision.revision}", down, revision.doc.splitlines()[0])
            for revision, down in zip(revisions, [*before, None], strict=True)
        ]

    @TEMPLATES
    def test_upgrade_heads(
        self, tmp_path: Path, empty_database_url: str, kind: str, driver: str
    ) -> None:
        application = with_branch(tmp_path, with_driver(empty_database_url, driver), kind)
        application.run("upgrade", "heads")
        text = start_of_shop(application)
        assert "create_table('contracts'" in text
        assert "llmemory.documents.owner_id" in text
        assert "drop_" not in text.partition("def downgrade")[0]
        # From nothing: what comes after the library's revisions still has its ``op``.
        application.run("downgrade", "base")
        assert versions(empty_database_url) == set()
        application.run("upgrade", "heads")
        application.run("check")
        assert HEADS in versions(empty_database_url)
        assert len(versions(empty_database_url)) == 2
        with memory_on(empty_database_url) as memory:
            memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
            assert len(memory.search("acme", "days of leave")) == 1

    def test_down_and_up_again(self, tmp_path: Path, database_url: str) -> None:
        application = with_branch(tmp_path, with_driver(database_url, "postgresql+psycopg"))
        with memory_on(database_url) as memory:
            memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        # The library made these tables: taking the branch in afterwards changes nothing.
        application.run("upgrade", "heads")
        assert versions(database_url) == {HEADS}
        application.run("downgrade", "llmemory@llmemory_0001")
        assert revision_of(database_url) == "0001"
        application.run("upgrade", "llmemory@head")
        assert revision_of(database_url) == migrate.HEAD
        with memory_on(database_url) as memory:
            assert len(memory.search("acme", "days of leave")) == 1

    def test_another_schema(self, tmp_path: Path, empty_database_url: str) -> None:
        url = with_driver(empty_database_url, "postgresql+psycopg")
        application = with_branch(tmp_path, url, settings="llmemory_schema = Ten-ant %%1\n")
        application.run("upgrade", "heads")
        assert revision_of(empty_database_url, "Ten-ant %1") == migrate.HEAD
        assert revision_of(empty_database_url) is None

    def test_offline(self, tmp_path: Path, empty_database_url: str) -> None:
        application = with_branch(tmp_path, with_driver(empty_database_url, "postgresql+psycopg"))
        execute(empty_database_url, sql.SQL(application.run("upgrade", "heads", sql=True)))
        assert versions(empty_database_url) == {HEADS}
        with memory_on(empty_database_url) as memory:
            memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
            assert len(memory.search("acme", "days of leave")) == 1
        down = application.run("downgrade", f"{HEADS}:llmemory_0001", sql=True)
        execute(empty_database_url, sql.SQL(down))
        assert revision_of(empty_database_url) == "0001"
        assert versions(empty_database_url) == {"llmemory_0001"}

    def test_a_newer_schema_is_refused(self, tmp_path: Path, database_url: str) -> None:
        execute(database_url, sql.SQL("UPDATE llmemory.llmemory_version SET version_num = '9999'"))
        application = with_branch(tmp_path, with_driver(database_url, "postgresql+psycopg"))
        with pytest.raises(SchemaTooNew, match="9999"):
            application.run("upgrade", "heads")
        assert versions(database_url) == set()


class TestLeftAlone:
    @TEMPLATES
    def test_autogenerate_proposes_nothing_of_ours(
        self, tmp_path: Path, database_url: str, kind: str, driver: str
    ) -> None:
        make_tenant_with_hnsw_index(database_url, "tenant")
        assert "hnsw_" in "".join(indexes_of(database_url, "tenant"))
        application = Application(
            tmp_path,
            with_driver(database_url, driver),
            kind,
            options="include_schemas=True, include_name=include_name('llmemory', 'tenant')",
        )
        text = application.revise("shop").partition("def downgrade")[0]
        assert set(re.findall(r"op\.(\w+)\((?:op\.f\()?'(\w+)'", text)) == {
            ("create_table", "contracts"),
            ("create_table", "orders"),
            ("create_index", "ix_orders_document_id"),
        }
        application.run("upgrade", "head")
        application.run("check")

    def test_without_the_hook_it_proposes_to_drop_them(
        self, tmp_path: Path, database_url: str
    ) -> None:
        url = with_driver(database_url, "postgresql+psycopg")
        application = Application(tmp_path, url, "generic", options="include_schemas=True")
        text = application.revise("shop")
        assert "op.drop_table('embeddings', schema='llmemory')" in text
        assert "op.drop_table('llmemory_version', schema='llmemory')" in text


def make_tenant_with_hnsw_index(url: str, schema: str) -> None:
    settings = Settings(hnsw_owner_vectors=20)
    with Memory(url, schema=schema, embedder=HashEmbedder(), settings=settings) as memory:
        memory.add_documents(
            {"owner_id": "acme", "document_name": f"Note {number}", "content": f"Text {number}."}
            for number in range(30)
        )
        memory.maintain()


def indexes_of(url: str, schema: str) -> list[str]:
    with psycopg.connect(url) as connection:
        query = "SELECT indexname FROM pg_indexes WHERE schemaname = %s"
        return [row[0] for row in connection.execute(query, [schema])]


def memory_on(url: str) -> Memory:
    return Memory(url, embedder=HashEmbedder(), settings=Settings(migrate=False))


def versions(url: str) -> set[str]:
    """Return what the application's own version table holds."""
    with psycopg.connect(url) as connection:
        if connection.execute("SELECT to_regclass('public.alembic_version')").fetchone() == (None,):
            return set()
        return {row[0] for row in connection.execute("SELECT version_num FROM alembic_version")}


def revision_of(url: str, schema: str = "llmemory") -> str | None:
    table = sql.Identifier(schema, "llmemory_version")
    with psycopg.connect(url) as connection:
        name = table.as_string(connection)
        if connection.execute("SELECT to_regclass(%s)", [name]).fetchone() == (None,):
            return None
        row = connection.execute(sql.SQL("SELECT version_num FROM {}").format(table)).fetchone()
        return None if row is None else row[0]
