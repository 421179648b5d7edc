"""`jobstore work`: runs a worker that a module of the user's makes."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobstore import JobStore
from jobstore.cli.options import GroupDb, Outputs, database, named_database
from jobstore.workers import Worker

logger = logging.getLogger(__name__)

DEFAULT_NAME = "worker"
HINT = "'MODULE[:NAME]'"
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def work(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE[:NAME]",
            show_default=False,
            help=f"Where the worker is; NAME is {DEFAULT_NAME} if left out.",
        ),
    ],
    *,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is left to claim.")] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            show_default=False,
            help="How many jobs run at the same time, if not as many as the worker says.",
        ),
    ] = None,
    grace: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", min=0, help="How long running jobs may take once it stops.")
    ] = 10.0,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(
            "--log-level", metavar="LEVEL", help="What the standard error tells: debug, info, warning or error."
        ),
    ] = "info",
    db: GroupDb = None,
    outputs: Outputs = None,
) -> None:
    """Run a worker until SIGTERM or SIGINT (Ctrl-C), or until nothing is left to claim.

    MODULE is imported from the current folder. NAME is a `Worker` in it, which brings its own store; or a function
    that is given the open store of `--db` and returns a `Worker`, such as
    `def worker(store): worker = Worker(store); …; return worker`.

    Once it is told to stop it claims no more, and waits for running jobs as long as `--grace` says; what runs longer
    is given back. A second signal ends the waiting.
    """
    logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    found = _load(target)
    make: Callable[[JobStore], object]
    if isinstance(found, Worker):
        if named_database(context, db) is not None or outputs is not None:
            raise typer.BadParameter("the worker brings its own store: leave out --db and --outputs", param_hint=HINT)
        store, make = found.store, lambda _: found
    elif callable(found):
        store, make = JobStore(database(context, db), outputs=outputs), found
    else:
        raise typer.BadParameter(f"{target} is neither a Worker nor a function that returns one", param_hint=HINT)

    async def act() -> None:
        async with store:
            worker = make(store)
            if not isinstance(worker, Worker):
                raise typer.BadParameter(f"{target} returned {type(worker).__name__}, not a Worker", param_hint=HINT)
            worker.concurrency = concurrency or worker.concurrency
            logger.info("worker %s works on %s", worker.id, store.name)
            await worker.run(drain=drain, grace=grace)

    asyncio.run(act())


def _load(target: str) -> object:
    """Import what MODULE:NAME says, from the current folder before anything else."""
    module_name, _, name = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        missing = getattr(error, "name", None) or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise  # the module is there, and lacks something itself
        raise typer.BadParameter(f"there is no module {module_name} in {Path.cwd()}", param_hint=HINT) from None
    try:
        return getattr(module, name or DEFAULT_NAME)
    except AttributeError:
        raise typer.BadParameter(f"{module_name} has no {name or DEFAULT_NAME}", param_hint=HINT) from None
