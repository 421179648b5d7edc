"""`jobstore lanes`, `jobstore pause` and `jobstore resume`: how the lanes stand, and holding them up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from jobstore import JobStore, Lane, Pause
from jobstore.cli import stores
from jobstore.cli.options import ApiType, AsJson, Db, TaskType, read_duration
from jobstore.cli.screen import Cell, ago, local, note, one_line, say, write_heading, write_json, write_table


def lanes(*, db: Db = "", as_json: AsJson = False) -> None:
    """Show what waits and what is paused, by lane.

    A lane is a task type and an API.
    """

    async def act(store: JobStore) -> tuple[list[Lane], list[Pause]]:
        return await store.lanes.list(), await store.lanes.pauses()

    found, pauses = stores.run(db, act)
    if as_json:
        write_json({"lanes": found, "pauses": pauses})
        return
    headings = ["lane", "idle", "scheduled", "running", "oldest", "paused"]
    write_table(headings, list(map(_row, found)), may_be_cut={"lane", "paused"})
    if pauses:
        write_heading("pauses")
        rows: list[list[Cell]] = [[one.scope, _end(one.until), local(one.paused_at), one.reason] for one in pauses]
        write_table(["paused", "until", "since", "reason"], rows, may_be_cut={"paused", "reason"})


def pause(
    *,
    task_type: TaskType = None,
    api_type: ApiType = None,
    seconds: Annotated[
        float | None,
        typer.Option("--for", metavar="TIME", parser=read_duration, help="For so long: 90s, 10m, 2h, 1d."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Shown to whoever asks why.")] = "",
    db: Db = "",
    as_json: AsJson = False,
) -> None:
    """Pause a lane, a task type or an API, in all processes.

    Without options, everything is paused. No process claims of it any more; what runs goes on. Without `--for` it lasts
    until `jobstore resume`. A pause of the same that lasts longer stays.

    `jobstore pause --api-type claude --for 10m --reason "new key"`
    """

    async def act(store: JobStore) -> Pause:
        return await store.lanes.pause(task_type, api_type, seconds=seconds, reason=reason)

    held = stores.run(db, act)
    if as_json:
        write_json(held)
    else:
        say(_described(held))


def resume(*, task_type: TaskType = None, api_type: ApiType = None, db: Db = "", as_json: AsJson = False) -> None:
    """Resume a lane, a task type or an API.

    Without options, everything is resumed; with a task type or an API, all lanes in it. A pause of more than was named
    goes on, and is told.
    """

    async def act(store: JobStore) -> tuple[list[Pause], list[Pause]]:
        return await store.lanes.resume(task_type, api_type), await store.lanes.pauses()

    ended, held = stores.run(db, act)
    wider = [one for one in held if one.task_type in {None, task_type} and one.api_type in {None, api_type}]
    if as_json:
        write_json({"resumed": ended, "still_paused": wider})
        return
    for one in ended:
        say(f"{one.scope} is resumed")
    if not ended:
        say("nothing was paused")
    for one in wider:
        note(f"still, {_described(one)}")


def _row(lane: Lane) -> list[Cell]:
    oldest = "" if lane.oldest_seconds is None else ago(datetime.now(UTC) - timedelta(seconds=lane.oldest_seconds))
    paused = f"until {_end(lane.paused_until)} {lane.pause_reason}".strip() if lane.paused else ""
    name = f"{lane.task_type}/{lane.api_type}"
    return [name, f"{lane.idle:,}", f"{lane.scheduled:,}", f"{lane.running:,}", oldest, one_line(paused)]


def _described(pause: Pause) -> str:
    why = f" ({one_line(pause.reason)})" if pause.reason else ""
    return f"{pause.scope} is paused until {_end(pause.until)}{why}"


def _end(until: datetime | None) -> str:
    return "resumed" if until is None else local(until)
