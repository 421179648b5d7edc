"""`jobstore backup`, `restore` and `reset`: copies of a database, putting one back, and starting afresh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobstore import InvalidArgument, health
from jobstore.cli.options import AsJson, Db, Outputs
from jobstore.cli.progress import ProgressScreen
from jobstore.cli.screen import note, say, size_of, write_json
from jobstore.databases import Database, find_database
from jobstore.health import Backup

_SHOWN = 10


def backup(
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", show_default=False, help="Where to; by default beside the database."),
    ] = None,
    *,
    db: Db = "",
    outputs: Outputs = None,
    keep: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="Remove all but the newest N copies."),
    ] = None,
    compress: Annotated[bool, typer.Option("--compress", help="Into one file, compressed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the database and its large texts, while they are used.

    The copy is read back before it gets its name. Exit code 1: it was copied, but large texts are missing or damaged in
    the store itself; they are named.
    """
    with ProgressScreen() as screen:
        made = health.backup(db, destination, outputs=outputs, compress=compress, keep=keep, report=screen.show)
    _tell_damaged(made.damaged, "the store")
    if as_json:
        write_json(made)
    else:
        _show(made)
        for path in made.removed:
            say(f"removed {path}")
    if made.damaged:
        raise typer.Exit(1)


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="What `jobstore backup` has made.")
    ],
    *,
    db: Db = "",
    outputs: Outputs = None,
    leave_damaged: Annotated[
        bool, typer.Option("--leave-damaged", help="Go on without large texts that are missing or damaged in it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the database's place.

    All of it is read before. What was there is kept under another name. No program may have the database open. Killed
    in the middle, it is as before or as after.
    """
    with ProgressScreen() as screen:
        done = health.restore(source, db, outputs=outputs, leave_damaged=leave_damaged, report=screen.show)
    _tell_damaged(done.damaged, "the backup")
    if as_json:
        write_json(done)
        return
    if done.kept is not None:
        say(f"what was there is kept as {done.kept}")
    if done.kept_outputs is not None:
        say(f"its large texts are kept in {done.kept_outputs}")
    say(f"restored {done.path} with {done.texts:,} large texts, {size_of(done.bytes)}")


def reset(
    *,
    db: Db = "",
    outputs: Outputs = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete all that the store holds, after a backup.

    No program may have it open. On PostgreSQL no worker may live, and the backup is yours to make: with pg_dump.
    """
    database = find_database(db)
    if not yes:
        _confirm(database)

    def backed_up(made: Backup) -> None:
        note(f"backed up to {made.path}")

    with ProgressScreen() as screen:
        done = health.reset(db, outputs=outputs, report=screen.show, backed_up=backed_up)
    if as_json:
        write_json(done)
    else:
        say(f"{done.name} is empty now")


def _confirm(database: Database) -> None:
    """Let the name of the database be typed.

    Raises:
        InvalidArgument: Another was.
    """
    name = database.name.partition("?")[0].rpartition("/")[2] or database.name
    if database.path is None:
        note("no backup is made on PostgreSQL: run pg_dump before")
    typed = typer.prompt(f"This deletes all that {database.name} holds. Type {name} to go on", err=True)
    if typed != name:
        raise InvalidArgument("name", f"{typed!r} is not {name}: nothing was deleted")


def _show(made: Backup) -> None:
    texts = f"{made.texts:,} large texts, {size_of(made.bytes)}"
    say(f"backed up to {made.path}, with {texts}, and read back")


def _tell_damaged(paths: list[str], where: str) -> None:
    for path in paths[:_SHOWN]:
        note(f"missing or damaged in {where}: {path}")
    if len(paths) > _SHOWN:
        note(f"and {len(paths) - _SHOWN:,} more")
