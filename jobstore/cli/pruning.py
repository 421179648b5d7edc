"""`jobstore prune` and `jobstore retention`: deleting what has grown old, by hand or by the policies of the store."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from jobstore import InvalidArgument, JobStore, RetentionPolicy
from jobstore.cli import stores
from jobstore.cli.options import ApiType, AsJson, Db, OlderThan, Outputs, Status, TaskType
from jobstore.cli.screen import note, say, write_json, write_table

Keep = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, show_default=False, help="So many stay: of those meant, the last to have ended."),
]
TextsOnly = Annotated[
    bool, typer.Option("--texts-only", help="Remove prompts and responses alone; the jobs stay, and say so.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def prune(
    *,
    older_than: OlderThan = None,
    keep: Keep = None,
    status: Status = None,
    task_type: TaskType = None,
    api_type: ApiType = None,
    texts_only: TextsOnly = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    yes: Yes = False,
    secure: Annotated[
        bool, typer.Option("--secure", help="Overwrite it in the database's file, and leave none in its log.")
    ] = False,
    db: Db = "",
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Delete jobs that have ended, with their attempts and files.

    Those go of which all the options hold; without options, the retention policies are applied, as workers do by
    themselves each hour. Jobs that wait or run are never deleted. What would go is told first, and asked for.

    `jobstore prune --older-than 30d --keep 1000 --status completed --dry-run`
    """
    rule = _rule(older_than, keep, status, task_type, api_type)
    if not rule and (texts_only or secure):
        raise typer.BadParameter("say how old jobs must be, or how many stay", param_hint="'--older-than'")
    what = "the texts of {}" if texts_only else "{}, with all texts"

    how = {"texts_only": texts_only, "secure": secure}
    would = stores.run(db, lambda store: _prune(store, rule, {"texts_only": texts_only, "dry_run": True}), outputs)
    if dry_run:
        _tell(would, what, "would delete", as_json=as_json)
        return
    if any(would.values()):
        _confirm(would, what, yes=yes)
    _tell(stores.run(db, lambda store: _prune(store, rule, how), outputs), what, "deleted", as_json=as_json)


async def _prune(store: JobStore, rule: dict[str, Any], how: dict[str, Any]) -> dict[str, int]:
    """Prune by a rule, named '', or by the policies."""
    if not rule:
        return await store.retention.apply(dry_run="dry_run" in how)
    return {"": await store.jobs.prune(**rule, **how)}


def _confirm(would: dict[str, int], what: str, *, yes: bool) -> None:
    if yes:
        return
    if not _is_someone_there():
        raise typer.BadParameter("nobody can be asked here: look with --dry-run, then say so", param_hint="'--yes'")
    typer.confirm(f"Delete {_in_words(would, what)}, for good?", abort=True, err=True)


def _is_someone_there() -> bool:
    return sys.stdin.isatty()


def _tell(counts: dict[str, int], what: str, outcome: str, *, as_json: bool) -> None:
    if as_json:
        write_json({"jobs": counts[""]} if "" in counts else {"policies": counts})
    elif counts:
        say(f"{outcome} {_in_words(counts, what)}")
    else:
        note("there are no retention policies: give --older-than or --keep, or set one with `jobstore retention`")


def _in_words(counts: dict[str, int], what: str) -> str:
    if "" in counts:
        return what.format(_jobs(counts[""]))
    return ", ".join(f"what policy {name} finds, of {_jobs(count)}" for name, count in counts.items())


def _jobs(count: int) -> str:
    return f"{count:,} ended job{'' if count == 1 else 's'}"


def retention(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False, help="What it is called.")] = None,
    *,
    older_than: OlderThan = None,
    keep: Keep = None,
    status: Status = None,
    task_type: TaskType = None,
    api_type: ApiType = None,
    texts_only: TextsOnly = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the policy of this name.")] = False,
    db: Db = "",
    as_json: AsJson = False,
) -> None:
    """List the retention policies, or set or remove one.

    Workers apply them each hour, and `jobstore prune` does now.

    `jobstore retention old-texts --older-than 30d --texts-only`
    """
    rule = _rule(older_than, keep, status, task_type, api_type)
    if name is None and (rule or texts_only or remove):
        raise typer.BadParameter("say which one, or what a new one is called", param_hint="'NAME'")
    if remove and (rule or texts_only):
        raise typer.BadParameter("give nothing else with it", param_hint="'--remove'")

    async def act(store: JobStore) -> list[RetentionPolicy]:
        if name is not None and not remove:
            await store.retention.set(name, removes="texts" if texts_only else "jobs", **rule)
        elif name is not None and not await store.retention.remove(name):
            raise InvalidArgument("NAME", f"there is no policy {name!r}")
        return await store.retention.list()

    _show(stores.run(db, act), as_json=as_json)


def _show(policies: list[RetentionPolicy], *, as_json: bool) -> None:
    if as_json:
        write_json({"items": policies})
        return
    rows = [
        [
            policy.name,
            policy.removes,
            "" if policy.older_than is None else _duration(policy.older_than),
            "" if policy.keep is None else str(policy.keep),
            ", ".join(policy.statuses),
            policy.task_type or "any",
            policy.api_type or "any",
        ]
        for policy in policies
    ]
    write_table(["name", "removes", "older than", "keep", "status", "task", "api"], rows)


def _duration(seconds: float) -> str:
    """Return a duration as it can be typed."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


def _rule(
    older_than: float | None, keep: int | None, status: Status, task_type: str | None, api_type: str | None
) -> dict[str, Any]:
    """Return the options that were given, as the store takes them."""
    given = {
        "older_than": older_than,
        "keep": keep,
        "status": status or None,
        "task_type": task_type,
        "api_type": api_type,
    }
    return {option: value for option, value in given.items() if value is not None}
