"""Shows how far a long piece of work has come."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from jobstore.cli.screen import note
from jobstore.progress import Progress


class ProgressScreen:
    """Shows how far it has come: as a bar for each stage, or as a line for each that ended where nobody looks on.

    Args:
        quiet: Show nothing where nobody looks on.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        if console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bars = Bars(*columns, console=console)
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, progress: Progress) -> None:
        """Show how far a stage has come."""
        stage, done, total = progress
        if self._bars is None:
            if done == total and total and not self._quiet:
                note(f"{stage}: {total:,} done")
            return
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._stages[stage], completed=done)
