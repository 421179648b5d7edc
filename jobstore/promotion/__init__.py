"""Copies a whole store into another, of any engine: from SQLite to PostgreSQL, and back.

Rows are copied from one snapshot of the source, page by page, each made the same in the target; then the large texts.
What is there already is compared, not copied again, so an interrupted copy goes on where it ended. Then all of the
source is read once more and compared with all of the target: only if both are the same may the target be used.
"""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict

from jobstore.clock import Clock, system_clock
from jobstore.errors import InvalidArgument, PromotionError
from jobstore.operations import promotion
from jobstore.progress import Progress, Tell
from jobstore.promotion.comparing import Comparison, TableSum
from jobstore.promotion.copying import Copying
from jobstore.promotion.pair import Pair, Side, some
from jobstore.repositories.backend import new_id

__all__ = ["Progress", "Promotion", "TableSum", "promote"]


class Promotion(BaseModel):
    """What was copied and found to be the same in both stores."""

    model_config = ConfigDict(frozen=True)

    source: str
    target: str
    """Without passwords."""
    changed: bool
    """False if the target had been finished before: then it was only compared."""
    tables: dict[str, TableSum]
    files: int
    """Large texts that were read back and are what their rows say."""
    bytes: int
    damaged: list[str]
    """Paths of large texts that are missing or damaged in the source, and were left out."""


async def promote(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    source_outputs: str | os.PathLike[str] | None = None,
    target_outputs: str | os.PathLike[str] | None = None,
    force_rescue: bool = False,
    leave_damaged: bool = False,
    report: Tell = lambda _progress: None,
    clock: Clock = system_clock,
) -> Promotion:
    """Copy a store into an empty one: sessions, jobs, attempts, state and large texts, with their ids, times and paths.

    Interrupted, it is called again and goes on. Called again after it has finished, it only compares. Programs that
    use the source are to be stopped before: what they change meanwhile is found at the end, and refused. The target
    cannot be opened until all of it is there.

    Args:
        source: The store to copy, a path or a URL as for `JobStore`.
        target: The store to fill, of the same schema; it is to be migrated and empty.
        source_outputs: Where the source's large texts lie, as for `JobStore`.
        target_outputs: Where the target's are to lie.
        force_rescue: End the leases that workers hold on jobs of the source: they are claimed again, from the target.
        leave_damaged: Copy the rows whose large texts are missing or damaged in the source, without those texts.
        report: Called as it goes on.
        clock: The present time in milliseconds.

    Raises:
        PromotionError: Workers hold leases; or the target is not empty; or texts are missing in the source; or the two
            are not the same at the end.
        InvalidArgument: An argument cannot be accepted.
        DatabaseError: One of the databases cannot be used.
        OutputError: One of the places of large texts cannot be used.

    Example:
        >>> await promote("jobs.db", "postgresql://me@db.example/jobs", target_outputs="s3://bucket/prefix")
    """
    async with (
        Side.opened(source, source_outputs, clock) as origin,
        Side.opened(target, target_outputs, clock) as destination,
    ):
        pair = Pair(origin, destination, report)
        await origin.backend.read(promotion.refuse_unfinished)
        if origin.store_id == destination.store_id:
            raise InvalidArgument("target", "is the source itself: name another database")
        state = await destination.backend.read(promotion.state)
        if state is not None and state.finished:
            return await _compare(pair, changed=False, leave_damaged=leave_damaged)
        if force_rescue:
            await _end_leases(origin)
        return await _copy_and_compare(pair, leave_damaged=leave_damaged)


async def _end_leases(source: Side) -> None:
    while await source.backend.read(promotion.holders):
        await source.backend.write(promotion.end_leases, wakes=True)


async def _copy_and_compare(pair: Pair, *, leave_damaged: bool) -> Promotion:
    """Copy what is missing, compare everything, and let the target be used."""
    run_id = new_id()
    async with pair.source.backend.engine.snapshot() as snapshot:
        await pair.check(snapshot)
        await pair.target.backend.write(promotion.begin, pair.source.store_id, run_id)
        damaged = await Copying(pair, snapshot, run_id).copy()
    if not leave_damaged:
        _refuse_damaged(damaged)
    done = await _compare(pair, changed=True, leave_damaged=leave_damaged)
    await pair.target.backend.write(promotion.finish, run_id)
    return done


async def _compare(pair: Pair, *, changed: bool, leave_damaged: bool) -> Promotion:
    """Read all of both stores.

    Raises:
        PromotionError: They are not the same.
    """
    async with pair.source.backend.engine.snapshot() as source, pair.target.backend.engine.snapshot() as target:
        await pair.check(source)
        found = Comparison(pair, source, target)
        await found.compare()
    if changed:
        await found.remove_what_differs()  # so that it is copied again the next time
    if not leave_damaged:
        _refuse_damaged(found.damaged)
    if found.differences:
        raise PromotionError(_tell_difference(found.differences, changed=changed), tuple(found.differences))
    return Promotion(
        source=pair.source.name,
        target=pair.target.name,
        changed=changed,
        tables=found.tables,
        files=found.files,
        bytes=found.bytes,
        damaged=found.damaged,
    )


def _refuse_damaged(damaged: list[str]) -> None:
    if damaged:
        raise PromotionError(
            f"{len(damaged)} large texts are missing or damaged in the source ({some(damaged)}): "
            "restore them from a backup, or go on without them with --leave-damaged",
            tuple(damaged),
        )


def _tell_difference(differences: list[str], *, changed: bool) -> str:
    what = f"source and target differ ({some(differences)}): "
    if changed:
        return what + "the source was changed meanwhile; stop the programs that use it, and run it again"
    return what + "the target was whole before, and one of them was used since; nothing was changed"
