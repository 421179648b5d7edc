"""Puts the commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from jobstore.cli import (
    changing,
    checking,
    dumping,
    enqueueing,
    explaining,
    following,
    keeping,
    listing,
    migrating,
    pausing,
    promoting,
    pruning,
    showing,
    vacuuming,
    workers,
    working,
)
from jobstore.cli.options import GroupDb
from jobstore.cli.reporting import reported
from jobstore.version import VERSION

app = typer.Typer(
    name="jobstore",
    help="A durable store of jobs that call LLM APIs: record prompts, look at jobs, run workers.",
    epilog="The database is named by --db, else by JOBSTORE_URL, else it is ./jobs.db."
    "\n\nExit codes: 0 fine, 1 something is wrong with the data or a job, 2 wrong usage.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # plain tracebacks: they show no values, which may be texts of users
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"jobstore {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    db: GroupDb = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("migrate")(reported(migrating.migrate))
app.command("check")(reported(checking.check))
app.command("enqueue", no_args_is_help=True)(reported(enqueueing.enqueue))
app.command("list")(reported(listing.list_jobs))
app.command("show", no_args_is_help=True)(reported(showing.show))
app.command("why", no_args_is_help=True)(reported(explaining.why))
app.command("tail", no_args_is_help=True)(reported(following.tail))
app.command("cancel", no_args_is_help=True)(reported(changing.cancel))
app.command("retry", no_args_is_help=True)(reported(changing.retry))
app.command("clear", no_args_is_help=True)(reported(changing.clear))
app.command("prune")(reported(pruning.prune))
app.command("retention")(reported(pruning.retention))
app.command("vacuum")(reported(vacuuming.vacuum))
app.command("dump", no_args_is_help=True)(reported(dumping.dump))
app.command("load", no_args_is_help=True)(reported(dumping.load))
app.command("lanes")(reported(pausing.lanes))
app.command("pause")(reported(pausing.pause))
app.command("resume")(reported(pausing.resume))
app.command("workers")(reported(workers.workers))
app.command("stats")(reported(listing.stats))
app.command("backup")(reported(keeping.backup))
app.command("restore", no_args_is_help=True)(reported(keeping.restore))
app.command("reset")(reported(keeping.reset))
app.command("promote", no_args_is_help=True)(reported(promoting.promote))
app.command("work", no_args_is_help=True)(reported(working.work))
