"""Puts the commands together."""

from __future__ import annotations

from collections.abc import Callable
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
from jobstore.cli.reporting import ReportingCommand
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


_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Jobs": {
        "enqueue": enqueueing.enqueue,
        "list": listing.list_jobs,
        "show": showing.show,
        "tail": following.tail,
        "why": explaining.why,
        "stats": listing.stats,
        "cancel": changing.cancel,
        "retry": changing.retry,
        "clear": changing.clear,
    },
    "Workers": {
        "work": working.work,
        "workers": workers.workers,
        "lanes": pausing.lanes,
        "pause": pausing.pause,
        "resume": pausing.resume,
    },
    "The store": {
        "migrate": migrating.migrate,
        "check": checking.check,
        "backup": keeping.backup,
        "restore": keeping.restore,
        "reset": keeping.reset,
        "promote": promoting.promote,
    },
    "Room and tables": {
        "prune": pruning.prune,
        "retention": pruning.retention,
        "vacuum": vacuuming.vacuum,
        "dump": dumping.dump,
        "load": dumping.load,
    },
}
"""The panels of the help, in its order."""
_NOTHING_WITHOUT_ARGUMENTS = frozenset(
    ("enqueue", "show", "tail", "why", "cancel", "retry", "clear", "work", "restore", "promote", "dump", "load")
)

for _panel, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(
            _name,
            cls=ReportingCommand,
            rich_help_panel=_panel,
            no_args_is_help=_name in _NOTHING_WITHOUT_ARGUMENTS,
        )(_command)
