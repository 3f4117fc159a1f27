"""``llmemory.distribution`` on a server without Citus: what it refuses, and what it would send."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.helpers import fetch
from plugins.server import with_driver
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from llmemory import ConfigurationError, ValidationError
from llmemory.models import tables_for
from llmemory.schema import distribution, row_level_security
from llmemory.schema.prerequisites import check_undistributed
from llmemory.statements import distribution as sql

TABLES = tables_for("Ten:ant's")
ALL = {table.name for table in TABLES.metadata.sorted_tables}


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    url = with_driver(database_url, "postgresql+psycopg")
    with create_engine(url, poolclass=NullPool).begin() as connection:
        yield connection


def sent(statements: Iterator[object]) -> list[str]:
    return [str(statement).replace("\\:", ":") for statement in statements]


def test_without_citus_both_ways_say_what_to_run(connection: Connection) -> None:
    for change in (distribution.distribute, distribution.undistribute):
        with pytest.raises(ConfigurationError, match="CREATE EXTENSION citus;"):
            change(connection)


def test_there_are_two_layouts(connection: Connection) -> None:
    with pytest.raises(ValidationError, match='"owner" or "schema"'):
        distribution.distribute(connection, by="name")  # type: ignore[arg-type]


def test_plain_tables_are_left_alone(connection: Connection) -> None:
    assert distribution.distribute_new_tables(connection, "llmemory") == []
    assert distribution.warnings(connection, "llmemory") == []
    check_undistributed(connection, "llmemory")


def test_tables_are_distributed_parents_first() -> None:
    name = "'\"Ten:ant''s\".\"{}\"'"
    beside = f", colocate_with => {name.format('documents')}"
    assert sent(sql.by_owner(TABLES, ())) == [
        f"SELECT create_distributed_table({name.format('documents')}, 'owner_id')",
        *(
            f"SELECT create_distributed_table({name.format(table)}, 'owner_id'{beside})"
            for table in ("lexical_statistics", "chunks", "embedding_jobs", "embeddings")
        ),
        f"SELECT create_reference_table({name.format('embedding_spaces')})",
    ]


def test_what_is_distributed_already_is_left_out() -> None:
    (statement,) = sent(sql.by_owner(TABLES, ALL - {"embedding_jobs"}))
    assert '"embedding_jobs"' in statement
    assert sent(sql.by_owner(TABLES, ALL)) == []


def test_children_come_back_with_their_parents() -> None:
    name = "'\"Ten:ant''s\".\"{}\"'"
    assert sent(sql.by_owner_undone(TABLES, ALL)) == [
        f"SELECT undistribute_table({name.format('documents')}, cascade_via_foreign_keys => true)",
        f"SELECT undistribute_table({name.format('lexical_statistics')})",
        f"SELECT undistribute_table({name.format('embedding_spaces')})",
    ]
    assert sent(sql.by_owner_undone(TABLES, ())) == []


def test_a_schema_goes_as_a_whole() -> None:
    assert str(sql.by_schema(TABLES)) == "SELECT citus_schema_distribute('\"Ten:ant''s\"')"
    assert str(sql.by_schema_undone(TABLES)) == "SELECT citus_schema_undistribute('\"Ten:ant''s\"')"


def test_the_functions_that_are_sent_to_nodes_exist(
    connection: Connection, database_url: str
) -> None:
    for statement in sent(sql.distributed_functions(tables_for("llmemory"))):
        name = statement.removeprefix("SELECT create_distributed_function('").removesuffix("')")
        assert fetch(database_url, "SELECT to_regprocedure(%s) IS NOT NULL", name) == [(True,)]


def test_the_schema_comes_into_being_on_plain_tables(
    database_url: str, connection: Connection
) -> None:
    connection.execute(sql.LOCAL_SCHEMA)
    (value,) = connection.exec_driver_sql(
        "SELECT current_setting('citus.enable_schema_based_sharding')"
    ).one()
    assert value == "off"


def test_only_a_role_that_policies_do_not_bind_moves_rows(connection: Connection) -> None:
    row_level_security.enable(connection)
    assert not row_level_security.is_active(connection, "llmemory")
    connection.exec_driver_sql("CREATE ROLE llmemory_bound")
    connection.exec_driver_sql("GRANT USAGE ON SCHEMA llmemory TO llmemory_bound")
    connection.exec_driver_sql("SET LOCAL ROLE llmemory_bound")
    try:
        assert row_level_security.is_active(connection, "llmemory")
    finally:
        connection.rollback()
