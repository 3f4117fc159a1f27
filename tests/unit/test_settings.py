"""Settings: ranges, the environment, secrets."""

from __future__ import annotations

import annotated_types
import pytest
from pydantic import SecretStr

from llmemory import AsyncMemory, ConfigurationError, HashEmbedder, Settings
from llmemory.settings import checked_schema

PASSWORD = "hunter2-secret"
URL = f"postgresql://me:{PASSWORD}@host/app"


def bounds() -> list[tuple[str, str, float]]:
    found = []
    for name, field in Settings.model_fields.items():
        for rule in field.metadata:
            for kind, attribute in ((annotated_types.Ge, "ge"), (annotated_types.Gt, "gt"),
                                    (annotated_types.Le, "le")):  # fmt: skip
                if isinstance(rule, kind):
                    found.append((name, attribute, float(getattr(rule, attribute))))
    return found


@pytest.mark.parametrize(("name", "kind", "bound"), bounds())
def test_a_number_out_of_range_is_refused(name: str, kind: str, bound: float) -> None:
    beyond = {"ge": bound - 1, "gt": bound, "le": bound + 1}[kind]
    with pytest.raises(ConfigurationError, match=name) as caught:
        Settings(**{name: int(beyond) if beyond == int(beyond) else beyond})
    assert "docs/configuration.md" in str(caught.value)


def test_every_number_has_bounds_and_every_setting_a_description() -> None:
    bounded = {name for name, _, _ in bounds()}
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), name
        if field.annotation in (int, float, float | None):
            assert name in bounded


@pytest.mark.parametrize(
    "values",
    [
        {"no_such_setting": 1},
        {"pool_size": "many"},
        {"pool_size": None},
        {"pool_timeout_s": float("nan")},
        {"migrate": "perhaps"},
        {"embedder": "magic"},
        {"language": "klingon"},
        {"schema_name": ""},
        {"schema_name": "s" * 64},
        {"chunk_size": 100, "chunk_overlap": 100},
        {"chunk_size": 100},
    ],
)
def test_a_wrong_value_is_a_configuration_error(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Settings(**values)


def test_the_environment_is_read_by_from_env_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMEMORY_DATABASE_URL", URL)
    monkeypatch.setenv("LLMEMORY_POOL_SIZE", "7")
    monkeypatch.setenv("LLMEMORY_SCHEMA_NAME", "tenant")
    monkeypatch.setenv("LLMEMORY_MIGRATE", "false")
    monkeypatch.setenv("LLMEMORY_LANGUAGE", "")
    monkeypatch.setenv("POOL_SIZE", "9")
    assert Settings().pool_size == 5
    found = Settings.from_env(max_limit=3)
    assert (found.pool_size, found.schema_name, found.migrate) == (7, "tenant", False)
    assert (found.max_limit, found.language) == (3, "english")
    assert isinstance(found, Settings)
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == URL
    assert Settings.from_env(pool_size=2).pool_size == 2
    memory = AsyncMemory(embedder=HashEmbedder())
    assert (memory.schema, memory.settings.pool_size) == ("tenant", 7)
    assert AsyncMemory(settings=Settings(), embedder=HashEmbedder()).schema == "llmemory"


@pytest.mark.parametrize(
    ("name", "value"),
    [("POOL_SIZE", "0"), ("POOL_SIZE", "x"), ("LANGUAGE", "klingon"), ("SCHEMA_NAME", "s" * 64)],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LLMEMORY_{name}", value)
    with pytest.raises(ConfigurationError):
        AsyncMemory("postgresql://host/app", embedder=HashEmbedder())


def test_secrets_are_not_shown() -> None:
    memory = AsyncMemory(URL, embedder=HashEmbedder())
    settings = Settings(database_url=SecretStr(URL))
    for shown in (
        repr(settings),
        str(settings),
        repr(settings.model_dump()),
        settings.model_dump_json(),
        repr(memory),
        repr(memory.settings),
        repr(vars(memory)),
    ):
        assert PASSWORD not in shown
    with pytest.raises(ConfigurationError) as caught:
        Settings(database_url=[URL])
    assert PASSWORD not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


def test_settings_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Settings().pool_size = 3


@pytest.mark.parametrize("name", ["a", "s" * 63, "ü" * 31, "with space", 'quote"', "Capital-dash"])
def test_schema_names_that_postgresql_can_hold(name: str) -> None:
    assert checked_schema(name) == name


@pytest.mark.parametrize(
    "name", ["", "s" * 64, "ü" * 32, "a\0", "\ud800", "pg_x", "information_schema", None, 5, b"a"]
)
def test_schema_names_that_it_cannot(name: object) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        checked_schema(name)  # type: ignore[arg-type]


def test_no_embedder_at_hand_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmemory.embedding import static

    monkeypatch.setattr(static, "find_spec", lambda name: None)
    for choice in ("auto", "static"):
        with pytest.raises(ConfigurationError, match="embedded") as caught:
            AsyncMemory("postgresql://host/app", settings=Settings(embedder=choice))  # type: ignore[arg-type]
        assert "embedder" in str(caught.value)
    AsyncMemory("postgresql://host/app", settings=Settings(embedder="hash"))
