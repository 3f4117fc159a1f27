"""The project's tests, run by Django's test runner: ``manage.py test``."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any
from urllib.request import urlopen

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, override_settings
from psycopg.conninfo import conninfo_to_dict

from llmemory import AsyncMemory, ChunkToEmbed, ConfigurationError, Memory
from llmemory.django import close_memories, get_async_memory, get_memory
from llmemory.schema.migrate import HEAD

NOWHERE = "postgresql://nobody:hunter2@127.0.0.1:1/nothing"
ABSENT = "00000000-0000-0000-0000-000000000000"

# As a module of a project might, before the runner has made the test database.
of_import = get_memory()


def llmemory(**values: Any) -> Any:
    return override_settings(LLMEMORY={"EMBEDDER": "hash", **values})


given_contexts: list[str] = []


def context_of(chunk: ChunkToEmbed) -> str:
    given_contexts.append(chunk.document_name)
    return "Of a handbook."


def url_of(memory: Memory) -> str:
    secret = memory.settings.database_url
    assert secret is not None
    return secret.get_secret_value()


class ViewTests(TestCase):
    def test_views(self) -> None:
        for kind in ("sync", "async"):
            with self.subTest(kind):
                url = f"/{kind}/{kind}"
                added = self.client.post(url, "Staff have leave.", content_type="text/plain")
                found = self.client.get(url, {"query": "leave"})
                assert found.json() == {"contents": ["Staff have leave."]}
                assert (
                    self.client.delete(f"{url}?id={added.json()['document_id']}").status_code == 200
                )

    async def test_views_under_asgi(self) -> None:
        for kind in ("sync", "async"):
            with self.subTest(kind):
                url = f"/{kind}/asgi_{kind}"
                await self.async_client.post(url, "Staff have leave.", content_type="text/plain")
                found = await self.async_client.get(url, {"query": "leave"})
                assert found.json() == {"contents": ["Staff have leave."]}

    def test_documents_lie_in_the_test_database(self) -> None:
        assert connection.settings_dict["NAME"].startswith("test_")
        assert url_of(of_import) != url_of(get_memory())
        get_memory().add_document("here", "Note", "Staff have leave.")
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM llmemory.documents WHERE owner_id = 'here'")
            assert cursor.fetchone() == (1,)

    def test_contexts_of_chunks(self) -> None:
        with llmemory(DATABASE="default", CHUNK_CONTEXT=f"{__name__}.context_of"):
            get_memory().add_document("contexts", "Leave", "25 days.")
            close_memories()
        assert given_contexts == ["Leave"]

    def test_errors_that_callers_can_mend(self) -> None:
        for kind in ("sync", "async"):
            with self.subTest(kind):
                blank = self.client.post(f"/{kind}/acme", " ", content_type="text/plain")
                assert blank.status_code == 422
                assert "content" in blank.json()["detail"]
                missing = self.client.delete(f"/{kind}/acme?id={ABSENT}")
                assert (missing.status_code, set(missing.json())) == (404, {"detail"})

    def test_a_database_that_is_away(self) -> None:
        for kind in ("sync", "async"):
            with self.subTest(kind), llmemory(DATABASE_URL=NOWHERE):
                with self.assertLogs("llmemory.web", "ERROR"):
                    answer = self.client.get(f"/{kind}/acme", {"query": "leave"})
                assert (answer.status_code, answer["Retry-After"]) == (503, "5")
                for word in ("hunter2", "127.0.0.1", "nobody"):
                    assert word not in answer.content.decode()

    def test_other_errors_stay_errors_of_the_application(self) -> None:
        with llmemory(POOL_SIZE=0):
            with pytest.raises(ConfigurationError):
                self.client.get("/sync/acme", {"query": "leave"})
            self.client.raise_request_exception = False
            assert self.client.get("/sync/acme", {"query": "leave"}).status_code == 500


class LiveTests(LiveServerTestCase):
    def test_a_request_over_the_network(self) -> None:
        for kind in ("sync", "async"):
            with urlopen(f"{self.live_server_url}/{kind}/live?query=leave") as answer:
                assert json.load(answer) == {"contents": []}


class MemoryTests(TestCase):
    def test_the_same_memory_as_long_as_the_settings_are_the_same(self) -> None:
        memory, asynchronous = get_memory(), get_async_memory()
        assert type(memory) is Memory
        assert type(asynchronous) is AsyncMemory
        assert get_memory() is memory
        assert get_async_memory() is asynchronous
        with llmemory(DATABASE="default", SCHEMA_NAME="other"):
            assert get_memory().schema == "other"
            assert get_async_memory().schema == "other"
        assert get_memory().schema == "llmemory"

    def test_closing(self) -> None:
        memory = get_memory()
        memory.search("acme", "leave")
        close_memories()
        assert get_memory() is not memory
        assert get_memory().search("acme", "leave") == []

    def test_commands(self) -> None:
        get_memory().initialize()
        with llmemory(DATABASE="default", SCHEMA_NAME="fresh", MIGRATE=False):
            with pytest.raises(CommandError, match="has no tables yet"):
                call_command("llmemory", "status", stdout=StringIO())
            call_command("llmemory", "upgrade", stdout=(output := StringIO()))
            assert output.getvalue() == f'Schema "fresh" is at revision {HEAD}.\n'
            call_command("llmemory", "status", stdout=(output := StringIO()))
            assert json.loads(output.getvalue())["healthy"]
        with llmemory(DATABASE_URL=NOWHERE), pytest.raises(CommandError, match="reached"):
            call_command("llmemory", "upgrade")

    def test_django_sees_nothing_to_migrate(self) -> None:
        call_command("makemigrations", check=True, dry_run=True, stdout=StringIO())


class SettingsTests(SimpleTestCase):
    def test_a_setting_that_is_fine(self) -> None:
        for values in ({"DATABASE_URL": NOWHERE}, {"DATABASE": "special"}, {}):
            with self.subTest(values), llmemory(**values):
                assert run_checks() == []

    def test_settings_that_are_wrong(self) -> None:
        wrong = {
            "text": "postgresql://localhost/app",
            "keys": {1: 2},
            "pool_size": {"POOL_SIZE": "hunter2"},
            "databse": {"DATABSE": "default"},
            "DATABASES": {"DATABASE": "absent"},
            "SQLite": {"DATABASE": "notes"},
            "63 characters": {"DATABASE": "overlong"},
            "DATABASE_URL": {"DATABASE": "default", "DATABASE_URL": NOWHERE},
            "imported": {"EMBEDDER": "llmemory.NoSuchEmbedder"},
            "embedder": {"EMBEDDER": "torch"},
            "alias": {"DATABASE": None},
            "arguments": {"EMBEDDER": "json.dumps"},
            "CHUNK_CONTEXT": {"CHUNK_CONTEXT": "json.nothing_of_the_kind"},
            "dotted path": {"CHUNK_CONTEXT": 5},
            "function": {"CHUNK_CONTEXT": "llmemory.__version__"},
        }
        for word, value in wrong.items():
            with self.subTest(word), override_settings(LLMEMORY=value):
                (error,) = run_checks()
                assert error.id == "llmemory.E001"
                if word not in {"text", "keys"}:
                    assert word in error.msg
                assert "hunter2" not in error.msg
                with pytest.raises(ConfigurationError):
                    get_memory()

    def test_parameters_of_a_database_are_taken_over(self) -> None:
        with llmemory(DATABASE="special"):
            url = url_of(get_memory())
        assert url.startswith("postgresql+psycopg://")
        parameters = conninfo_to_dict(url.replace("+psycopg", ""))
        parameters.pop("client_encoding", None)
        # Of several test processes, each has its number in the name.
        assert str(parameters.pop("dbname")).startswith("a/b?c")
        assert parameters == {
            "host": "/run/postgresql",
            "user": "Ännä Smith",
            "password": "p@ss +%ö",
            "connect_timeout": "3",
            "sslmode": "require",
        }
        with llmemory(DATABASE="service"):
            url = url_of(get_memory())
        assert conninfo_to_dict(url.replace("+psycopg", ""))["service"] == "documents"
