"""`jobstore migrate`: brings the schema of a database up to date, by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from jobstore.cli.options import AsJson, Db
from jobstore.cli.screen import local, note, say, write_json, write_table
from jobstore.databases import AnyMigrator, find_database
from jobstore.migrate import Status


def migrate(
    *,
    db: Db = "",
    status: Annotated[bool, typer.Option("--status", help="Only list what was applied and what is pending.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a database, or bring its schema up to date.

    Each step is applied as a whole or not at all. A database that holds anything is copied first, to a file
    beside it with `backup` in its name. Other programs may have the database open; they wait while a step runs.
    """
    if status and dry_run:
        raise typer.BadParameter("give one of them", param_hint="'--status' / '--dry-run'")
    database = find_database(db)
    name, migrator = database.name, database.migrator()
    if status:
        _list_steps(name, migrator.status(), as_json=as_json)
    elif dry_run:
        _foretell(name, migrator.status(), as_json=as_json)
    else:
        _apply(name, migrator, as_json=as_json)


def _list_steps(name: str, status: Status, *, as_json: bool) -> None:
    pending = [step.name for step in status.pending]
    if as_json:
        write_json({"database": name, "applied": status.applied, "pending": pending})
        return
    applied = [[record.name, local(record.applied_at)] for record in status.applied]
    write_table(["step", "applied"], [*applied, *([name, "pending"] for name in pending)])


def _foretell(name: str, status: Status, *, as_json: bool) -> None:
    pending = [step.name for step in status.pending]
    backup = bool(pending) and status.holds_anything
    if as_json:
        write_json({"database": name, "pending": pending, "backup": backup})
        return
    if backup:
        say(f"would back up {name}")
    for step in pending:
        say(f"would apply {step}")
    if not pending:
        say(f"{name} is up to date")


def _apply(name: str, migrator: AnyMigrator, *, as_json: bool) -> None:
    progress = note if as_json else say
    result = migrator.run(
        lambda step: progress(f"applying {step.name}"), lambda backup: progress(f"backed up to {backup}")
    )
    if as_json:
        write_json({"database": name, "applied": result.applied, "backup": result.backup})
        return
    say(f"{name} is up to date")
