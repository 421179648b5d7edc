"""Turns errors into one line and an exit code."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from jobstore import InvalidArgument, JobStoreError
from jobstore.cli.screen import flush, forget_output, note

BROKEN_PIPE = 141
"""What a shell reports of a program that SIGPIPE ended: its reader, such as `head`, has had enough."""

_NAMES = {"url": "db", "model_used": "model", "session_id": "session"}
"""Arguments of the store that the commands call otherwise."""


class ReportingCommand(TyperCommand):
    """A command that ends with a line on the standard error and an exit code instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - of typer's own or of click, by typer's version
        """Run the command."""
        try:
            result = super().invoke(ctx)
            flush()
        except InvalidArgument as error:
            raise typer.BadParameter(error.reason, ctx, param_hint=f"'{self._typed(error.field)}'") from None
        except JobStoreError as error:
            note(str(error))
            raise typer.Exit(1) from None
        except BrokenPipeError:
            forget_output()
            raise typer.Exit(BROKEN_PIPE) from None
        return result

    def _typed(self, field: str) -> str:
        """Return an argument's name as it is typed: of an option, if the command has one for it."""
        options = {param.name: param.opts[0] for param in self.params if param.param_type_name == "option"}
        return options.get(_NAMES.get(field, field), field)
