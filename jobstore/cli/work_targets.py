"""What `jobstore work` runs: imports a module of the user's and finds the worker in it."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from jobstore import JobStore
from jobstore.workers import Worker

DEFAULT_NAME = "worker"
HINT = "'MODULE[:NAME]'"

logger = logging.getLogger(__name__)

_IMPORTING = re.compile(rf"{re.escape(__file__)}|importlib")
"""Files whose frames tell nothing about the user's module."""

MakeWorker = Callable[[JobStore], Worker]


def load(target: str, named: str | None, default: str, options: Mapping[str, Any]) -> tuple[JobStore, MakeWorker]:
    """Return the store to open and what makes the worker of it.

    Args:
        target: MODULE or MODULE:NAME; NAME is a `Worker`, or a function that makes one of an open store.
        named: The database, if the user named one.
        default: The database, if none is named.
        options: What else the user said of the store.

    Raises:
        BadParameter: There is no such module or name, it is something else, or the worker has a store of its own and
            another was named.
    """
    found = _import(target)
    if isinstance(found, Worker):
        if named is not None or options:
            raise typer.BadParameter(
                "the worker brings its own store: leave out --db, --outputs, --max-output-bytes and --min-free-bytes",
                param_hint=HINT,
            )
        return found.store, lambda _: found
    if not callable(found):
        raise typer.BadParameter(f"{target} is neither a Worker nor a function that returns one", param_hint=HINT)

    def make(store: JobStore) -> Worker:
        worker = found(store)
        if not isinstance(worker, Worker):
            raise typer.BadParameter(f"{target} returned {type(worker).__name__}, not a Worker", param_hint=HINT)
        return worker

    return JobStore(named or default, **options), make


def _import(target: str) -> object:
    """Import what MODULE:NAME says, from the current folder before anything else."""
    module_name, _, name = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    missing = typer.BadParameter(f"there is no module {module_name} in {Path.cwd()}", param_hint=HINT)
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise missing
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise missing from None
        logger.error("%s cannot be imported", module_name, exc_info=_without_own_frames(error))  # noqa: TRY400
        raise typer.Exit(1) from None
    try:
        return getattr(module, name or DEFAULT_NAME)
    except AttributeError:
        raise typer.BadParameter(f"{module_name} has no {name or DEFAULT_NAME}", param_hint=HINT) from None


def _without_own_frames(error: Exception) -> Exception:
    """Leave out of a traceback how the module came to be imported."""
    trace = error.__traceback__
    while trace is not None and _IMPORTING.search(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return error.with_traceback(trace)
