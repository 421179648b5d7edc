"""Turns errors into one line and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

from jobstore import InvalidArgument, JobStoreError
from jobstore.cli.screen import flush, forget_output, note

P = ParamSpec("P")

BROKEN_PIPE = 141
"""What a shell reports of a program that SIGPIPE ended: its reader, such as `head`, has had enough."""


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command end with a line on the standard error and an exit code instead of a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            flush()
        except InvalidArgument as error:
            raise typer.BadParameter(error.reason, param_hint=f"'{error.field}'") from None
        except JobStoreError as error:
            note(str(error))
            raise typer.Exit(1) from None
        except BrokenPipeError:
            forget_output()
            raise typer.Exit(BROKEN_PIPE) from None

    return run
