"""What Citus asks of a statement, told from its syntax and from PostgreSQL's analysis of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import psycopg
from pglast import ast, enums, parse_sql
from psycopg import sql

OWNER = "owner_id"
Level: TypeAlias = ast.SelectStmt | ast.UpdateStmt | ast.DeleteStmt
WRITES = (ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt)
SETTINGS = (ast.TransactionStmt, ast.VariableSetStmt)

Tables: TypeAlias = dict[str, str]
"""Tables with owners that one level of a query reads or writes, by the names they have there."""


def problems(statement: str, schema: str, owned: set[str]) -> set[str]:
    """Return which rules a statement breaks; ``no owner`` if it is about all owners."""
    parsed = [raw.stmt for raw in parse_sql(statement)]
    found = set[str]()
    if len(parsed) > 1 and not all(isinstance(part, SETTINGS) for part in parsed):
        found.add("several in one message")
    for node in _nodes(tuple(parsed)):
        match node:
            case ast.SelectStmt() | ast.UpdateStmt() | ast.DeleteStmt():
                found |= _of_level(node, schema, owned)
            case ast.InsertStmt() if _is_owned(node.relation, schema, owned):
                found |= _of_insert(node)
            case ast.MergeStmt():
                found.add("MERGE")
            case ast.FuncCall() if node.funcname[-1].sval == "set_config":
                found.add("set_config")
            case ast.VariableSetStmt() if not node.is_local and node.kind == _SET_VALUE:
                found.add("SET for a session")
            case ast.GroupingSet():
                found.add("grouping sets")
            case ast.ColumnRef() if _name(node)[-1] == "ctid":
                found.add("ctid")
    return found


def writes(statement: str) -> bool:
    """Return whether a statement changes rows."""
    return any(isinstance(node, WRITES) for node in _nodes(tuple(parse_sql(statement))))


def mutable_functions(connection: psycopg.Connection[Any], statement: str) -> set[str]:
    """Return what a writing statement calls that is not immutable: functions, operators, casts.

    Queries within it are left out, for they may. PostgreSQL itself resolves what is called: it
    keeps the statement, analysed, as the body of a function.
    """
    prepared = f"PREPARE looked_at AS {statement}"
    with connection.transaction(force_rollback=True):
        connection.execute(prepared.encode())
        types = "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE statement = %s"
        (parameters,) = connection.execute(types, [prepared]).fetchone() or ([],)
        create = f"CREATE FUNCTION pg_temp.looked_at({', '.join(parameters)}) RETURNS void"
        body = f"LANGUAGE sql BEGIN ATOMIC {statement}; END"
        connection.execute(f"{create} {body}".encode())
        connection.execute("DEALLOCATE looked_at")
        (tree,) = connection.execute(_TREE).fetchone() or ("",)
        writing = " ".join(_writing(tree))
        called = [int(number) for number in re.findall(r":(?:op)?funcid (\d+)", writing)]
        read = [int(number) for number in re.findall(r"{COERCEVIAIO .*?:resulttype (\d+)", writing)]
        found = {name for (name,) in connection.execute(_MUTABLE, [called, read])}
        return found | {"the current time" for _ in re.findall(r"{SQLVALUEFUNCTION", writing)}


_SET_VALUE = enums.VariableSetKind.VAR_SET_VALUE
_TREE = sql.SQL(
    "SELECT prosqlbody::text FROM pg_proc WHERE proname = 'looked_at' "
    "AND pronamespace = pg_my_temp_schema()"
)
_MUTABLE = sql.SQL(
    "SELECT oid::regprocedure::text FROM pg_proc WHERE provolatile <> 'i' AND ("
    "oid = ANY (%s) OR oid IN (SELECT typinput FROM pg_type WHERE oid = ANY (%s)))"
)


def _writing(tree: str) -> Iterator[str]:
    """Yield the queries of an analysed statement that write, each without those within it."""
    are_queries: list[bool] = []
    queries: list[list[str]] = [[]]
    for part in re.split(r"(?<!\\)(?=[{}])", tree):
        if part.startswith("}") and are_queries.pop():
            text = "".join(queries.pop())
            if not text.startswith("{QUERY :commandType 1 "):
                yield text
        if part.startswith("{"):
            are_queries.append(part.startswith("{QUERY "))
            if are_queries[-1]:
                queries.append([])
        queries[-1].append(part)


def _of_level(level: Level, schema: str, owned: set[str]) -> set[str]:
    tables = _tables(level, schema, owned)
    found = set[str]()
    if isinstance(level, ast.UpdateStmt) and any(
        target.name == OWNER for target in level.targetList
    ):
        found.add("a change of the owner")
    groups = _groups(level, tables)
    without = [group for group in groups if "" not in group]
    if without:
        found.add("no owner")
        if len(groups) > 1:
            found.add("joined without the owner")
        if isinstance(level, ast.SelectStmt) and level.lockingClause:
            found.add("locked without the owner")
    return found


def _of_insert(insert: ast.InsertStmt) -> set[str]:
    found = set[str]()
    if OWNER not in {target.name for target in insert.cols}:
        found.add("no owner")
    conflict = insert.onConflictClause
    inferred = conflict.infer.indexElems if conflict and conflict.infer else ()
    if inferred and inferred[0].name != OWNER:
        found.add("a key without the owner")
    return found


def _tables(level: Level, schema: str, owned: set[str]) -> Tables:
    return {
        (source.alias.aliasname if source.alias else source.relname): source.relname
        for source in _within(_sources(level))
        if _is_owned(source, schema, owned)
    }


def _is_owned(source: Any, schema: str, owned: set[str]) -> bool:
    return (
        isinstance(source, ast.RangeVar) and source.schemaname == schema and source.relname in owned
    )


def _sources(level: Level) -> tuple[Any, ...]:
    match level:
        case ast.SelectStmt():
            return level.fromClause or ()
        case ast.UpdateStmt():
            return (level.relation, *(level.fromClause or ()))
        case _:
            return (level.relation, *(level.usingClause or ()))


def _groups(level: Level, tables: Tables) -> list[set[str]]:
    """Return the tables by whom they share the owner with; "" stands for a given owner."""
    groups = [{name} for name in tables]
    joins = [node.quals for node in _within(_sources(level)) if isinstance(node, ast.JoinExpr)]
    for condition in _conjuncts((level.whereClause, *joins)):
        sides = {_owned_side(side, tables) for side in _equated(condition)}
        if len(sides) != 2 or None in sides:
            continue
        joined = [group for group in groups if group & sides]
        groups = [group for group in groups if not group & sides]
        groups.append(set[str]().union({side for side in sides if side == ""}, *joined))
    return groups


def _owned_side(side: Any, tables: Tables) -> str | None:
    if isinstance(side, ast.TypeCast):
        return _owned_side(side.arg, tables)
    if isinstance(side, ast.ParamRef | ast.A_Const):
        return ""
    if not isinstance(side, ast.ColumnRef) or _name(side)[-1] != OWNER:
        return None
    *_, table = ["", *_name(side)[:-1]]
    if not table and len(tables) == 1:
        (table,) = tables
    return table if table in tables else None


def _equated(condition: Any) -> tuple[Any, ...]:
    is_equality = (
        isinstance(condition, ast.A_Expr)
        and condition.kind == enums.A_Expr_Kind.AEXPR_OP
        and condition.name[-1].sval == "="
    )
    return (condition.lexpr, condition.rexpr) if is_equality else ()


def _conjuncts(conditions: Any) -> Iterator[Any]:
    for condition in conditions:
        if isinstance(condition, ast.BoolExpr) and condition.boolop == enums.BoolExprType.AND_EXPR:
            yield from _conjuncts(condition.args)
        elif condition is not None:
            yield condition


def _name(column: ast.ColumnRef) -> list[str]:
    return [getattr(part, "sval", "*") for part in column.fields]


def _nodes(node: Any) -> Iterator[ast.Node]:
    """Yield a node and all below it."""
    if isinstance(node, tuple):
        for part in node:
            yield from _nodes(part)
    elif isinstance(node, ast.Node):
        yield node
        for name in node:
            yield from _nodes(getattr(node, name))


def _within(node: Any) -> Iterator[ast.Node]:
    """Yield the same, but nothing of the queries below."""
    if isinstance(node, tuple):
        for part in node:
            yield from _within(part)
    elif isinstance(node, ast.Node) and not isinstance(node, ast.SelectStmt):
        yield node
        for name in node:
            yield from _within(getattr(node, name))
