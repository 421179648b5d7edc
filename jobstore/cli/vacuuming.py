"""`jobstore vacuum`: giving space back."""

from __future__ import annotations

from typing import Annotated

import typer

from jobstore import InvalidArgument, JobStore, Space, Vacuumed, health
from jobstore.cli import stores
from jobstore.cli.options import AsJson, Db
from jobstore.cli.screen import say, size_of, write_json


def vacuum(
    *,
    secure: Annotated[
        bool, typer.Option("--secure", help="Fail unless nothing that was deleted is left in the file and its log.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Write the file anew, while no program has it open. It needs twice its room.")
    ] = False,
    db: Db = "",
    as_json: AsJson = False,
) -> None:
    """Give free space back to the system, beside running workers.

    A file's free pages are cut off in steps of some milliseconds, and its write-ahead log is moved into it. On
    PostgreSQL, each table is vacuumed and analyzed. What a file system, an SSD or a backup keeps of deleted texts is
    out of reach, also of `--secure`.
    """
    if full and secure:
        raise typer.BadParameter("give one of them: a file written anew holds nothing else", param_hint="'--full'")

    async def act(store: JobStore) -> Vacuumed:
        return await store.vacuum(secure=secure)

    try:
        done = health.write_anew(db) if full else stores.run(db, act)
    except InvalidArgument as error:
        field = f"--{error.field}" if error.field in {"secure", "full"} else error.field
        raise InvalidArgument(field, error.reason) from None
    if as_json:
        write_json(done)
    else:
        say(f"before: {_in_words(done.before)}")
        say(f"after:  {_in_words(done.after)}")


def _in_words(space: Space) -> str:
    return f"{size_of(space.total)}, of which {size_of(space.free)} are free"
