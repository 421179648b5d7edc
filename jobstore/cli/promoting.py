"""`jobstore promote`: a whole store into another, from SQLite to PostgreSQL or back."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from jobstore.cli.options import AsJson
from jobstore.cli.progress import ProgressScreen
from jobstore.cli.screen import note, say, size_of, write_json, write_table
from jobstore.promotion import Promotion
from jobstore.promotion import promote as promote_store

_PLACE = "Where its large texts lie: a folder, or a URL such as s3://bucket/prefix. A file's are beside it by default."


def promote(
    *,
    source: Annotated[str, typer.Option("--from", metavar="URL", show_default=False, help="The store to copy.")],
    target: Annotated[
        str, typer.Option("--to", metavar="URL", show_default=False, help="The store to fill: migrated, and empty.")
    ],
    source_outputs: Annotated[
        str | None, typer.Option("--from-outputs", metavar="FOLDER|URL", show_default=False, help=_PLACE)
    ] = None,
    target_outputs: Annotated[
        str | None, typer.Option("--to-outputs", metavar="FOLDER|URL", show_default=False, help=_PLACE)
    ] = None,
    force_rescue: Annotated[
        bool, typer.Option("--force-rescue", help="End the leases of workers that still run; their jobs start again.")
    ] = False,
    leave_damaged: Annotated[
        bool, typer.Option("--leave-damaged", help="Go on without large texts that are missing or damaged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a whole store into another: to PostgreSQL, or back.

    Ids, times, statuses and texts stay the same. Stop the programs that use the source before. If it is interrupted,
    run it again: it goes on where it ended. At the end all of both is read and compared; only then can the target be
    opened. Run again after that, it only compares.
    """
    with ProgressScreen() as screen:
        try:
            done = asyncio.run(
                promote_store(
                    source,
                    target,
                    source_outputs=source_outputs,
                    target_outputs=target_outputs,
                    force_rescue=force_rescue,
                    leave_damaged=leave_damaged,
                    report=screen.show,
                )
            )
        except KeyboardInterrupt:
            note("interrupted: run the same command again to go on")
            raise
    if as_json:
        write_json(done)
    else:
        _show(done)


def _show(done: Promotion) -> None:
    rows = [[name, f"{found.rows:,}", found.sha256[:16]] for name, found in done.tables.items()]
    write_table(["table", "rows", "sha-256"], rows)
    for path in done.damaged:
        note(f"left out, because it is missing or damaged: {path}")
    state = "now holds all" if done.changed else "already held all"
    texts = f"{done.files:,} large texts, {size_of(done.bytes)}"
    say(f"{done.target} {state} that {done.source} holds: every row and {texts}, read back and compared")
