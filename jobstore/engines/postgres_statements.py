"""What operations ask of PostgreSQL: which statements may be, how they are sent, and what their results mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from jobstore.engines.postgres_pipeline import TOKEN, Bound, Query, Result, bind, to_query
from jobstore.errors import InvalidArgument, StatementFailed
from jobstore.sql import Dialect, Statement, Value

DIALECT = Dialect(
    lock_rows="FOR UPDATE SKIP LOCKED",
    lateral=True,
    writes_in_with=True,
    takes_arrays=True,
    holds_nul=False,
    column_types="SELECT column_name AS name, data_type AS type FROM information_schema.columns"
    " WHERE table_schema = current_schema() AND table_name = :table ORDER BY ordinal_position",
)

_REFUSED = frozenset(
    "ABORT BEGIN CALL COMMIT COPY DEALLOCATE DISCARD END LISTEN NOTIFY PREPARE RELEASE RESET ROLLBACK SAVEPOINT "  # noqa: SIM905 - reads as SQL
    "SET START UNLISTEN VACUUM".split()
)
_READING = ("SELECT", "SHOW", "VALUES", "EXPLAIN")
_WRITING = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_SPACE = re.compile(r"(?:[\s;]|--[^\n\r]*|/\*.*?(?:\*/|$))*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]*")


@lru_cache(maxsize=2048)
def permitted(sql: str) -> Query:
    """Return an operation's statement as PostgreSQL takes it.

    Raises:
        InvalidArgument: It would end or change the transaction that the operation shares with others.
    """
    word = _first_word(sql)
    if word in _REFUSED:
        raise InvalidArgument("sql", f"{word} is the store's own business: use a connection of your own for it")
    return to_query(sql)


def _first_word(sql: str) -> str:
    space = _SPACE.match(sql)
    word = _WORD.match(sql, space.end() if space else 0)
    return word.group().upper() if word else ""


def statements(script: str) -> list[str]:
    """Return the statements of a script without texts, quoted names and comments, so that a look at words will do.

    Example:
        >>> statements("SELECT ';' /* one; */ ; COMMIT")
        ['SELECT', 'COMMIT']
    """
    return [" ".join(part.split()) for part in TOKEN.sub(" ", script).split(";")]


def bound(statement: Statement, *others: Statement) -> list[Bound]:
    """Return a statement as it is to be sent, once for each set of its parameters, or once with those of others."""
    if not isinstance(statement, Statement):
        raise InvalidArgument("make_operation", "must yield statements: write `yield from execute(…)` and the like")
    if statement.fetch == "dialect":
        return []
    query = permitted(statement.sql)
    single = [_checked(query, parameters) for one in (statement, *others) for parameters in _sets(one)]
    if statement.fetch != "each":
        return single
    return [Bound(query, [_array(values) for values in zip(*(one.values for one in single), strict=True)])]


def _sets(statement: Statement) -> Sequence[Mapping[str, Value]]:
    parameters = statement.parameters
    return parameters if isinstance(parameters, list) else [parameters]


def _checked(query: Query, parameters: Mapping[str, Any]) -> Bound:
    """Refuse what psycopg could bind but no other engine."""
    try:
        checked = bind(query, parameters)
    except KeyError as missing:
        raise StatementFailed(f"the parameter {missing.args[0]} has no value") from None
    for name, value in zip(query.names, checked.values, strict=True):
        if value is not None and not isinstance(value, str | int | float | bytes):
            raise StatementFailed(f"the parameter {name} cannot be stored: {type(value).__name__}")
    return checked


def _array(values: Sequence[Value]) -> str:
    """Return values as the text of an array."""
    return "{" + ",".join(["NULL" if value is None else _quoted(str(value)) for value in values]) + "}"


def _quoted(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def fetched(fetch: Literal["one", "all", "each", "count", "many", "dialect"], results: Sequence[Result]) -> Any:  # noqa: ANN401
    """Return what an operation gets of its statement's results."""
    if fetch == "dialect":
        return DIALECT
    if fetch in {"count", "many"}:
        return sum(result.rowcount for result in results)
    [result] = results
    if fetch == "all":
        return result.rows
    row = result.rows[0] if result.rows else None
    if row is not None and fetch == "each":
        del row["number"]
    return row


def wrote(statement: Statement, results: Sequence[Result]) -> bool:
    """Whether a statement changed rows; what the functions that it calls may have changed is not seen."""
    if results and results[0].command.startswith(_READING):
        return _writes_within(statement.sql)
    return any(result.rowcount != 0 for result in results)


@lru_cache(maxsize=2048)
def _writes_within(sql: str) -> bool:
    """Whether a query has parts that write, of which the server tells no number."""
    return _first_word(sql) == "WITH" and _WRITING.search(sql) is not None
