"""`jobstore work`: runs a worker that a module of the user's makes, in this process or in several."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from typing import Annotated

import typer

from jobstore import JobStore
from jobstore.cli import logs, work_targets
from jobstore.cli.options import GroupDb, Outputs, database, named_database
from jobstore.cli.work_targets import DEFAULT_NAME, MakeWorker
from jobstore.workers.supervised import obeying
from jobstore.workers.supervisor import Supervisor

logger = logging.getLogger(__name__)

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE[:NAME]", show_default=False, help=f"Where the worker is; NAME is {DEFAULT_NAME} if left out."
    ),
]
Processes = Annotated[
    int,
    typer.Option("--processes", metavar="N", min=1, max=1000, help="How many processes run the worker, each its own."),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        metavar="N",
        min=1,
        show_default=False,
        help="How many jobs a process runs at the same time, if not as many as the worker says.",
    ),
]
Drain = Annotated[bool, typer.Option("--drain", help="End when nothing is left to claim.")]
Grace = Annotated[
    float, typer.Option("--grace", metavar="SECONDS", min=0, help="How long running jobs may take once it stops.")
]
Reload = Annotated[bool, typer.Option("--reload", help="Start anew on SIGHUP, with new code: for development.")]
LogLevel = Annotated[
    logs.LogLevel,
    typer.Option("--log-level", metavar="LEVEL", help="What the standard error tells: debug, info, warning or error."),
]
LogFormat = Annotated[
    logs.LogFormat, typer.Option("--log-format", metavar="FORMAT", help="text, or json: an object a line, with ids.")
]
Supervised = Annotated[bool, typer.Option("--supervised", hidden=True)]


def work(
    context: typer.Context,
    target: Target,
    *,
    processes: Processes = 1,
    concurrency: Concurrency = None,
    drain: Drain = False,
    grace: Grace = 10.0,
    reload: Reload = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
    db: GroupDb = None,
    outputs: Outputs = None,
    supervised: Supervised = False,
) -> None:
    """Run a worker until SIGTERM or SIGINT (Ctrl-C), or until nothing is left to claim.

    MODULE is imported from the current folder. NAME is a `Worker` in it, which brings its own store; or a function
    that is given the open store of `--db` and returns a `Worker`, such as
    `def worker(store): worker = Worker(store); …; return worker`.

    Once it is told to stop it claims no more, and waits for running jobs as long as `--grace` says; what runs longer
    is given back. A second signal ends the waiting.

    With `--processes`, one that crashes is started again, after a pause that grows. When one crashes five times in a
    row, all end with exit code 1.
    """
    logs.configure(log_level, log_format)
    if processes > 1 or reload:
        command = _child_command(target, concurrency, grace, log_level, log_format, outputs, drain=drain)
        if (named := named_database(context, db)) is not None:
            command += ["--db", named]
        _supervise([command] * processes, grace, drain=drain, reload=reload)
    else:
        named = named_database(context, db)
        store, make = work_targets.load(target, named, database(context, db), outputs)
        asyncio.run(_work(store, make, concurrency, grace, drain=drain, supervised=supervised))


async def _work(
    store: JobStore,
    make: MakeWorker,
    concurrency: int | None,
    grace: float,
    *,
    drain: bool,
    supervised: bool,
) -> None:
    async with store:
        worker = make(store)
        worker.concurrency = concurrency or worker.concurrency
        logger.info("worker %s works on %s", worker.id, store.name, extra={"worker_id": worker.id})
        with obeying(worker) if supervised else contextlib.nullcontext():
            await worker.run(drain=drain, grace=grace)


def _supervise(commands: list[list[str]], grace: float, *, drain: bool, reload: bool) -> None:
    if reload and os.name == "nt":
        raise typer.BadParameter("Windows has no SIGHUP to reload on", param_hint="'--reload'")

    async def act() -> int:
        return await Supervisor(commands, grace=grace, drain=drain, reloads=reload).run()

    code = asyncio.run(act())
    if code:
        raise typer.Exit(code)


def _child_command(
    target: str,
    concurrency: int | None,
    grace: float,
    log_level: str,
    log_format: str,
    outputs: str | None,
    *,
    drain: bool,
) -> list[str]:
    """Return the command line of one of several processes."""
    command = [sys.executable, "-m", "jobstore", "work", target, "--supervised", "--grace", str(grace)]
    command += ["--log-level", log_level, "--log-format", log_format]
    if concurrency is not None:
        command += ["--concurrency", str(concurrency)]
    if outputs is not None:
        command += ["--outputs", outputs]
    return [*command, "--drain"] if drain else command
