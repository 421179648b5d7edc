"""`store.retention`: policies kept in the database, by which workers remove what has grown old."""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable
from typing import Literal

from jobstore.encoding import check_identifier
from jobstore.errors import InvalidArgument
from jobstore.operations import retention
from jobstore.operations.retention import rule_of
from jobstore.overviews import RetentionPolicy
from jobstore.repositories import pruning
from jobstore.repositories.backend import Backend
from jobstore.repositories.filters import Statuses


class RetentionRepository:
    """The retention policies of a store. Reached as `store.retention`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def set(
        self,
        name: str,
        *,
        removes: Literal["jobs", "texts"] = "jobs",
        older_than: float | None = None,
        keep: int | None = None,
        status: Statuses = None,
        task_type: str | None = None,
        api_type: str | None = None,
    ) -> None:
        """Set a policy, in the place of one of the same name. The maintenance of workers applies it within the hour.

        A job goes if all that is given holds of it, as with `store.jobs.prune`. Of several policies, each is applied.

        Args:
            name: What it is called.
            removes: Whole jobs, with their attempts and files; or only their texts, prompt and response: the job
                stays and says so in `texts_pruned_at`.
            older_than: Jobs that have ended at least so many seconds ago; 0 is any.
            keep: This many of the jobs that are meant stay, whatever their age: the ones that ended last.
            status: Of completed, failed and canceled; None is any of them.
            task_type: Of this task type.
            api_type: For this API.

        Raises:
            InvalidArgument: Neither `older_than` nor `keep` is given, or an argument cannot be accepted.

        Example:
            >>> await store.retention.set("texts", removes="texts", older_than=30 * 86400)
            >>> await store.retention.set("jobs", older_than=365 * 86400)
            >>> await store.retention.set("failures", status="failed", keep=10_000)
        """
        check_identifier("name", name, InvalidArgument)
        if removes not in {"jobs", "texts"}:
            raise InvalidArgument("removes", 'must be "jobs" or "texts"')
        rule = pruning.read_rule(older_than, keep, status, task_type, api_type, texts_only=removes == "texts")
        await self._backend.write(retention.put, name, rule)

    async def list(self) -> builtins.list[RetentionPolicy]:
        """Return all policies, in the order of their names.

        Example:
            >>> names = [policy.name for policy in await store.retention.list()]
        """
        return await self._backend.read(retention.policies)

    async def remove(self, name: str) -> bool:
        """Remove a policy; return whether there was one.

        Example:
            >>> await store.retention.remove("failures")
        """
        check_identifier("name", name, InvalidArgument)
        return await self._backend.write(retention.remove, name)

    async def apply(self, *, dry_run: bool = False) -> dict[str, int]:
        """Apply all policies now, as the maintenance of workers does by itself.

        Args:
            dry_run: Only tell what they would remove; each by itself, so what two of them find counts twice.

        Returns:
            Of how many jobs each has removed something, by its name.

        Example:
            >>> removed = await store.retention.apply(dry_run=True)
        """
        if not dry_run:
            return await apply(self._backend)
        return {policy.name: await pruning.count(self._backend, rule_of(policy)) for policy in await self.list()}


async def apply(backend: Backend, breathe: Callable[[], Awaitable[None]] | None = None) -> dict[str, int]:
    """Apply all policies: whole jobs first, so that no texts are removed for nothing; `breathe` after each round."""
    policies = await backend.read(retention.policies)
    in_order = sorted(policies, key=lambda policy: policy.removes == "texts")
    return {policy.name: await pruning.prune(backend, rule_of(policy), breathe) for policy in in_order}
