"""The `jobstore` command: migrate, enqueue and look at jobs, run workers, keep copies."""

from __future__ import annotations

from jobstore.cli.app import app

__all__ = ["app", "main"]


def main(args: list[str] | None = None) -> None:
    """Run the command and exit: 0 is fine, 1 is something wrong with the data or a job, 2 is a wrong usage.

    Args:
        args: Without the program's name; None takes those of the process.

    Raises:
        SystemExit: Always.

    Example:
        >>> main(["stats", "--db", "jobs.db"])
    """
    app(args, prog_name="jobstore")
