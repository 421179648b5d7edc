"""`jobstore migrate`: brings the schema of a database up to date, by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from jobstore.cli.adopting import show_adoption, show_report
from jobstore.cli.options import AsJson, Db, Outputs
from jobstore.cli.screen import local, note, say, write_json, write_table
from jobstore.databases import AnyMigrator, find_database
from jobstore.migrate import Adoption, Status
from jobstore.outputs import place_of


def migrate(
    *,
    db: Db = "",
    outputs: Outputs = None,
    status: Annotated[bool, typer.Option("--status", help="Only list what was applied and what is pending.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only show what was found and done when the old system's file was adopted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a database, or bring its schema up to date.

    Each step is applied as a whole or not at all. A database that holds anything is copied first, to a file
    beside it with `backup` in its name. Other programs may have the database open; they wait while a step runs.

    A database of the old system is adopted: stop the programs that use it before. Its rows become rows of the store,
    and the output files that they name, wherever these lie, are copied to the outputs.
    """
    if status + dry_run + report > 1:
        raise typer.BadParameter("give one of them", param_hint="'--status' / '--dry-run' / '--report'")
    database = find_database(db)
    name = database.name
    migrator = database.migrator(place=None if outputs is None else place_of(outputs))
    if status:
        _list_steps(name, migrator.status(), as_json=as_json)
    elif report:
        show_report(name, migrator.adoption(), as_json=as_json)
    elif dry_run:
        _foretell(name, migrator.status(), migrator.rehearse(), as_json=as_json)
    else:
        _apply(name, migrator, as_json=as_json)


def _list_steps(name: str, status: Status, *, as_json: bool) -> None:
    pending = [step.name for step in status.pending]
    if as_json:
        write_json({"database": name, "applied": status.applied, "pending": pending})
        return
    applied = [[record.name, local(record.applied_at)] for record in status.applied]
    write_table(["step", "applied"], [*applied, *([name, "pending"] for name in pending)])


def _foretell(name: str, status: Status, adoption: Adoption | None, *, as_json: bool) -> None:
    pending = [step.name for step in status.pending]
    backup = bool(pending) and status.holds_anything
    if as_json:
        write_json({"database": name, "pending": pending, "backup": backup, "adoption": adoption})
        return
    if backup:
        say(f"would back up {name}")
    for step in pending:
        say(f"would apply {step}")
    if adoption is not None:
        say(f"would adopt {name}")
        show_adoption(adoption)
    if not pending:
        say(f"{name} is up to date")


def _apply(name: str, migrator: AnyMigrator, *, as_json: bool) -> None:
    progress = note if as_json else say
    result = migrator.run(
        lambda step: progress(f"applying {step.name}"), lambda backup: progress(f"backed up to {backup}")
    )
    if as_json:
        done = {"applied": result.applied, "backup": result.backup, "adoption": result.adoption}
        write_json({"database": name, **done, "not_compacted": result.not_compacted})
        return
    if result.adoption is not None:
        show_adoption(result.adoption)
    if result.not_compacted is not None:
        note(
            f"the room of the old tables was not given back ({result.not_compacted}): run `jobstore vacuum --full` when there is time"
        )
    say(f"{name} is up to date")
