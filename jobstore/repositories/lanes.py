"""`store.lanes`: how the lanes stand, and pausing them, in every process that uses the database."""

from __future__ import annotations

import builtins
from datetime import datetime

from jobstore.encoding import check_identifier, check_name
from jobstore.errors import InvalidArgument
from jobstore.operations import pausing
from jobstore.overviews import Lane, Pause
from jobstore.repositories.arguments import milliseconds, positive
from jobstore.repositories.backend import Backend


class LaneRepository:
    """The lanes of a store: each is the jobs of one task type for one API. Reached as `store.lanes`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def pause(
        self,
        task_type: str | None = None,
        api_type: str | None = None,
        *,
        seconds: float | None = None,
        until: datetime | None = None,
        reason: str = "",
    ) -> Pause:
        """Let no process claim from a lane, from all lanes of a task type or an API, or from any.

        What runs goes on, and jobs expire meanwhile. A pause ends by itself after `seconds` or at `until`; without
        either, when someone resumes. Pausing again never shortens: a pause of the same that ends later stays as it
        is, so that half a minute that an API has asked for does not end what an operator has paused for good. To
        shorten a pause, resume first.

        Args:
            task_type: Of this task type; None is any.
            api_type: For this API; None is any.
            seconds: For how long.
            until: Until this aware datetime.
            reason: Shown to whoever asks why nothing runs.

        Returns:
            The pause that holds now.

        Raises:
            InvalidArgument: Both `seconds` and `until` are given, the end does not lie ahead, or a name cannot be
                accepted.

        Example:
            >>> await store.lanes.pause(api_type="claude", seconds=600, reason="the key is being replaced")
        """
        if seconds is not None and until is not None:
            raise InvalidArgument("until", "give either seconds or until")
        if not isinstance(reason, str):
            raise InvalidArgument("reason", f"must be a str, not {type(reason).__name__}")
        check_name("reason", reason, InvalidArgument)
        duration = None if seconds is None else positive("seconds", seconds)
        end = milliseconds("until", until)
        scope = _names(task_type, api_type)
        return await self._backend.write(pausing.pause, *scope, duration, end, reason, wakes=True)

    async def resume(self, task_type: str | None = None, api_type: str | None = None) -> builtins.list[Pause]:
        """End all pauses of a task type, of an API or of a lane; without either, all there are.

        A pause of more than was named goes on: while everything is paused, one task type cannot be resumed.

        Args:
            task_type: Of this task type, for whatever API; None is any.
            api_type: For this API, of whatever task type; None is any.

        Returns:
            The pauses that were ended.

        Raises:
            InvalidArgument: A name cannot be accepted.

        Example:
            >>> [ended] = await store.lanes.resume(api_type="claude")
        """
        return await self._backend.write(pausing.resume, *_names(task_type, api_type), wakes=True)

    async def list(self) -> builtins.list[Lane]:
        """Return how each lane stands, in the order of their names. A lane is known once it had a job.

        Example:
            >>> waiting = {lane.task_type: lane.idle for lane in await store.lanes.list()}
        """
        return await self._backend.read(pausing.lanes)

    async def pauses(self) -> builtins.list[Pause]:
        """Return the pauses that hold, also those of lanes that no job is in yet, in the order of their names.

        Example:
            >>> for pause in await store.lanes.pauses():
            ...     print(pause.scope, pause.until, pause.reason)
        """
        return await self._backend.read(pausing.pauses)


def _names(task_type: str | None, api_type: str | None) -> tuple[str, str]:
    """Return what is paused as the table has it, where '' is any."""
    for field, name in (("task_type", task_type), ("api_type", api_type)):
        if name is not None:
            check_identifier(field, name, InvalidArgument)
    return task_type or "", api_type or ""
