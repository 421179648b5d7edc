"""Operations: units of work written as generators that yield SQL statements and return a value.

An operation does no I/O. An engine drives it: it runs each yielded statement and sends the rows back.
So the same operation runs on every engine, several compose into one atomic operation with `yield from`,
and a test can drive one with no database at all.

Example:
    Insert into a table of your own and enqueue a job, both or neither::

        def order(now: int, name: str) -> Operation[Row | None]:
            sql = "INSERT INTO orders (name, at) VALUES (:name, :now) RETURNING id"
            return (yield from fetch_one(sql, name=name, now=now))

        await store.run(order, "first")
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

Value: TypeAlias = str | int | float | bytes | None
"""What a column can hold and a parameter can be."""

Row: TypeAlias = Mapping[str, Any]
"""One row of a result: column name to value, in the order of the columns."""


class Dialect(NamedTuple):
    """The facts in which databases differ, as far as operations need them."""

    lock_rows: str
    """The clause of a SELECT that locks its rows and passes over those that others have locked."""
    lateral: bool
    """Whether a subquery in FROM may refer to what stands before it."""
    writes_in_with: bool
    """Whether WITH may hold statements that write, so that several make one round trip."""
    takes_arrays: bool
    """Whether one statement may take the parameters of many, each as an array; see `fetch_each`."""
    holds_nul: bool
    """Whether a text column can hold NUL characters."""
    column_types: str
    """The query for the names and types of a :table's columns, in their order."""


class Statement(NamedTuple):
    """One SQL statement with its `:name` parameters, and which of its rows are wanted."""

    sql: str
    parameters: Mapping[str, Value] | list[Mapping[str, Value]]
    fetch: Literal["one", "all", "each", "count", "many", "dialect"]


Operation: TypeAlias = Generator[Statement, Any, T]
"""Yields statements, is sent their results, returns a `T`."""

MakeOperation: TypeAlias = Callable[Concatenate[int, P], Operation[T]]
"""Makes a fresh operation; the first argument is the present time in milliseconds.

An engine takes one of these rather than an operation, because a batch that was rolled back is driven again.
"""


Make = TypeVar("Make", bound=Callable[..., Generator[Statement, Any, Any]])


def guarded(make_operation: Make) -> Make:
    """Declare that an operation writes nothing that it computed from an earlier read of its own.

    Its statements guard themselves in their WHERE clauses, so an engine may run those of several such operations
    in turns, in one transaction. Any other operation has the database to itself, as far as it can tell.
    """
    return guarded_if(lambda *_args: True)(make_operation)


def guarded_if(condition: Callable[..., bool]) -> Callable[[Make], Make]:
    """Declare the same of those calls whose arguments, but for the time, meet a condition."""

    def declare(make_operation: Make) -> Make:
        make_operation.is_guarded = condition  # type: ignore[attr-defined]
        return make_operation

    return declare


def is_guarded(make_operation: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Return what was declared of an operation with these arguments."""
    condition = getattr(make_operation, "is_guarded", None)
    return condition is not None and condition(*args)


def fetch_one(sql: str, /, **parameters: Value) -> Operation[Row | None]:
    """Run a statement and return its first row, or None if it has none."""
    row: Row | None = yield Statement(sql, parameters, "one")
    return row


def fetch_each(sql: str, /, **parameters: Value) -> Operation[Row | None]:
    """Run a statement that takes arrays, and return the row that answers these parameters, or None if none does.

    Each parameter reaches it as an array, with a value for each of the operations that wait with the same text. A row
    tells in its column `number` whose it is: the place in the arrays, from 1 on.
    """
    row: Row | None = yield Statement(sql, parameters, "each")
    return row


def fetch_all(sql: str, /, **parameters: Value) -> Operation[list[Row]]:
    """Run a statement and return all its rows."""
    rows: list[Row] = yield Statement(sql, parameters, "all")
    return rows


def execute(sql: str, /, **parameters: Value) -> Operation[int]:
    """Run a statement and return how many rows it changed (-1 if it changes none by nature)."""
    count: int = yield Statement(sql, parameters, "count")
    return count


def execute_many(sql: str, parameters: Iterable[Mapping[str, Value]]) -> Operation[int]:
    """Run a statement once for each set of parameters and return how many rows it changed in all."""
    count: int = yield Statement(sql, list(parameters), "many")
    return count


_DIALECT = Statement("", {}, "dialect")


def dialect() -> Operation[Dialect]:
    """Ask the engine for the facts of its database."""
    facts: Dialect = yield _DIALECT
    return facts


def placeholders(name: str, values: Iterable[Value]) -> tuple[str, dict[str, Value]]:
    """Return the text and the parameters of an SQL list.

    Example:
        >>> placeholders("id", ["a", "b"])
        (':id0, :id1', {'id0': 'a', 'id1': 'b'})
    """
    parameters = numbered(name, values)
    return ", ".join(f":{key}" for key in parameters), parameters


def numbered(name: str, values: Iterable[Value]) -> dict[str, Value]:
    """Return the parameters alone, where the text is known.

    Example:
        >>> numbered("id", ["a", "b"])
        {'id0': 'a', 'id1': 'b'}
    """
    return {f"{name}{index}": value for index, value in enumerate(values)}
