"""The `jobstore` command: migrate, enqueue and look at jobs, run workers, keep copies."""

from __future__ import annotations

import sys

from jobstore.cli.app import app

__all__ = ["app", "main"]

INTERRUPTED = 130
"""What a shell reports of a program that SIGINT ended."""


def main(args: list[str] | None = None) -> None:
    """Run the command and exit: 0 is fine, 1 is something wrong with the data or a job, 2 is a wrong usage.

    Args:
        args: Without the program's name; None takes those of the process.

    Raises:
        SystemExit: Always.

    Example:
        >>> main(["stats", "--db", "jobs.db"])
    """
    try:
        app(args, prog_name="jobstore")
    except KeyboardInterrupt:  # before the command is reached; from then on typer says that it was interrupted
        sys.exit(INTERRUPTED)
