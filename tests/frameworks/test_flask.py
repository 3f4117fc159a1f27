"""The Flask extension, through Flask's own test client and command runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, request

from llmemory import ChunkToEmbed, ConfigurationError, HashEmbedder, Memory
from llmemory.flask import LLMemory, install_error_handlers
from llmemory.schema.migrate import HEAD

NOWHERE = "postgresql://nobody:hunter2@127.0.0.1:1/nothing"

llmemory = LLMemory()


@pytest.fixture
def make_app(database_url: str) -> Iterator[Callable[..., Flask]]:
    """Applications of one factory, as ``create_app`` functions make them."""
    made: list[Flask] = []

    def make(**config: Any) -> Flask:
        app = Flask("app")
        app.config.from_mapping(
            {"LLMEMORY_DATABASE_URL": database_url, "LLMEMORY_EMBEDDER": "hash", **config}
        )
        llmemory.init_app(app)
        app.add_url_rule("/<owner>", view_func=add, methods=["POST"])
        app.add_url_rule("/<owner>", view_func=search)
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["llmemory"].close()


def add(owner: str) -> Any:
    return llmemory.memory.add_document(owner, "Note", request.data.decode()).model_dump(
        mode="json"
    )


def search(owner: str) -> Any:
    hits = llmemory.memory.search(owner, request.args["query"])
    return [hit.content for hit in hits]


def test_each_application_has_its_own_memory(make_app: Callable[..., Flask]) -> None:
    first, second = make_app(), make_app(LLMEMORY_SCHEMA_NAME="second")
    assert first.test_client().post("/acme", data="Staff have leave.").json["status"] == "created"
    assert first.test_client().get("/acme?query=leave").json == ["Staff have leave."]
    assert second.test_client().get("/acme?query=leave").json == []
    assert first.extensions["llmemory"].schema == "llmemory"
    assert second.extensions["llmemory"].schema == "second"
    with first.app_context():
        of_first = llmemory.memory
    with first.app_context():
        assert llmemory.memory is of_first


def test_the_configuration_wins_over_the_environment(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMEMORY_SCHEMA_NAME", "of_the_environment")
    monkeypatch.setenv("LLMEMORY_POOL_SIZE", "3")
    settings = make_app(LLMEMORY_SCHEMA_NAME="of_the_application").extensions["llmemory"].settings
    assert (settings.schema_name, settings.pool_size) == ("of_the_application", 3)


def test_prefixed_variables_of_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_LLMEMORY_EMBEDDER", "hash")
    monkeypatch.setenv("FLASK_LLMEMORY_POOL_SIZE", "2")
    app = Flask("app")
    app.config.from_prefixed_env()
    LLMemory(app)
    assert app.extensions["llmemory"].settings.pool_size == 2


def test_an_embedder_of_the_application() -> None:
    app, embedder = Flask("app"), HashEmbedder(8)
    LLMemory(app, embedder=embedder)
    assert app.extensions["llmemory"].embedder is embedder


def test_contexts_of_the_application(database_url: str) -> None:
    app, seen = Flask("app"), list[str]()

    def context(chunk: ChunkToEmbed) -> str:
        seen.append(chunk.document_name)
        return "Of a handbook."

    app.config["LLMEMORY_DATABASE_URL"] = database_url
    llmemory = LLMemory(app, embedder=HashEmbedder(8), chunk_context=context)
    with app.app_context():
        llmemory.memory.add_document("acme", "Leave", "25 days.")
        llmemory.memory.close()
    assert seen == ["Leave"]


@pytest.mark.parametrize(
    "config",
    [{"LLMEMORY_DATABASE": NOWHERE}, {"LLMEMORY_POOL_SIZE": "hunter2"}],
    ids=["unknown", "out of range"],
)
def test_a_wrong_configuration_is_refused_at_once(config: dict[str, Any]) -> None:
    app = Flask("app")
    app.config.update(config)
    with pytest.raises(ConfigurationError) as caught:
        LLMemory(app)
    (name,) = config
    assert name.removeprefix("LLMEMORY_").lower() in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_application_without_a_memory(make_app: Callable[..., Flask]) -> None:
    with pytest.raises(RuntimeError, match="application context"):
        _ = llmemory.memory
    with Flask("other").app_context(), pytest.raises(ConfigurationError, match="init_app"):
        _ = llmemory.memory
    with pytest.raises(ConfigurationError, match="once"):
        llmemory.init_app(make_app())


def test_nothing_is_connected_before_the_first_call(make_app: Callable[..., Flask]) -> None:
    app = make_app(LLMEMORY_DATABASE_URL=NOWHERE)
    install_error_handlers(app)
    answer = app.test_client().get("/acme?query=leave")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert set(answer.json) == {"detail"}
    assert not any(word in answer.text for word in ("hunter2", "127.0.0.1", "nobody"))


def test_errors_that_callers_can_mend(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    install_error_handlers(app)
    answer = app.test_client().post("/acme", data=" ")
    assert answer.status_code == 422
    assert "content" in answer.json["detail"]


def test_other_errors_stay_errors_of_the_application(
    make_app: Callable[..., Flask], database_url: str
) -> None:
    app = make_app(LLMEMORY_DATABASE_URL=f"{database_url}_that_is_not_there")
    install_error_handlers(app)
    assert app.test_client().get("/acme?query=leave").status_code == 500
    app.testing = True
    with pytest.raises(ConfigurationError):
        app.test_client().get("/acme?query=leave")


def test_handlers_for_one_blueprint(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    blueprint = Blueprint("api", __name__, url_prefix="/api")
    blueprint.add_url_rule("/<owner>", view_func=search)
    install_error_handlers(blueprint)
    app.register_blueprint(blueprint)
    assert app.test_client().get("/api/acme?query=").status_code == 422
    assert app.test_client().get("/acme?query=").status_code == 500


def test_commands(make_app: Callable[..., Flask]) -> None:
    app = make_app(LLMEMORY_SCHEMA_NAME="fresh", LLMEMORY_MIGRATE=False)
    invoke = app.test_cli_runner().invoke
    before = invoke(args=["llmemory", "status"])
    assert before.exit_code == 1
    assert "has no tables yet" in before.output
    upgraded = invoke(args=["llmemory", "upgrade"])
    reached = f'Schema "fresh" is at revision {HEAD}.\n'
    assert (upgraded.exit_code, upgraded.output) == (0, reached)
    after = invoke(args=["llmemory", "status"])
    assert after.exit_code == 0
    assert '"healthy": true' in after.output
    assert invoke(args=["llmemory", "upgrade"]).exit_code == 0


def test_a_command_that_fails(make_app: Callable[..., Flask]) -> None:
    failed = (
        make_app(LLMEMORY_DATABASE_URL=NOWHERE)
        .test_cli_runner()
        .invoke(args=["llmemory", "upgrade"])
    )
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: The database could not be reached")


def test_the_memory_is_the_blocking_one(make_app: Callable[..., Flask]) -> None:
    with make_app().app_context():
        assert type(llmemory.memory) is Memory
