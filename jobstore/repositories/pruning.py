"""Removing jobs that have ended, or their texts alone, round by round: rows first, then the files that they named."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from jobstore.aio import in_thread
from jobstore.encoding import check_identifier
from jobstore.errors import InvalidArgument, InvalidJob
from jobstore.lifecycle import TERMINAL
from jobstore.models import MAX_PRIORITY
from jobstore.operations import pruning
from jobstore.operations.pruning import FIRST, Pruned, Rule
from jobstore.repositories.arguments import check_range, not_negative
from jobstore.repositories.backend import Backend
from jobstore.repositories.filters import Statuses, read_statuses


def read_rule(
    older_than: float | None,
    keep: int | None,
    status: Statuses,
    task_type: str | None,
    api_type: str | None,
    *,
    texts_only: bool,
) -> Rule:
    """Return which jobs are to go.

    Raises:
        InvalidArgument: An argument cannot be accepted; it names the argument.
    """
    if older_than is None and keep is None:
        raise InvalidJob("older_than", "say how old jobs must be, or with keep how many stay")
    if keep is not None:
        check_range("keep", keep, 0, MAX_PRIORITY, InvalidArgument)
    for field, name in (("task_type", task_type), ("api_type", api_type)):
        if name is not None:
            check_identifier(field, name, InvalidArgument)
    statuses = read_statuses(status) or list(TERMINAL)
    if not set(statuses) <= set(TERMINAL):
        raise InvalidArgument("status", f"must be of those that have ended: {', '.join(TERMINAL)}")
    age = None if older_than is None else not_negative("older_than", older_than)
    return Rule(texts_only, statuses, task_type, api_type, age, keep)


async def count(backend: Backend, rule: Rule) -> int:
    """Return how many jobs a rule finds now."""
    last = await backend.read(pruning.newest, rule)
    return 0 if last is None else await backend.read(pruning.count, rule, last)


async def prune(backend: Backend, rule: Rule, breathe: Callable[[], Awaitable[None]] | None = None) -> int:
    """Remove what a rule finds now; return of how many jobs.

    Args:
        backend: Where.
        rule: Which jobs, and whether wholly.
        breathe: Called after each round.
    """
    last = await backend.read(pruning.newest, rule)
    remove = pruning.remove_texts if rule.texts_only else pruning.delete
    total, after = 0, FIRST
    while last is not None and (found := await backend.read(pruning.doomed, rule, after, last)):
        pruned = await _round(backend, remove, [position.id for position in found], last)
        total += pruned.jobs
        after = found[-1]
        if breathe is not None:
            await breathe()
    return total


async def delete_of_session(backend: Backend, session_id: str) -> None:
    """Delete all jobs of a session with their files."""
    while (await _round(backend, pruning.delete_of_session, session_id)).jobs:
        pass


async def _round(backend: Backend, make_operation: Any, *args: object) -> Pruned:  # noqa: ANN401
    """Run an operation that removes some rows, then remove the files that they named, before more rows go."""

    def abandoned(pruned: Pruned | None) -> None:
        if pruned is not None and pruned.file_paths:
            backend.discard(pruned.file_paths)

    pruned: Pruned = await backend.write(make_operation, *args, abandoned=abandoned)
    if pruned.file_paths and backend.has_outputs:  # else they are left to a sweep of a store that knows where they lie
        await in_thread(backend.outputs.remove, pruned.file_paths)
    return pruned
