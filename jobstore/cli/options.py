"""Options that several commands share, and how what is typed is read."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from jobstore import JobStatus
from jobstore.databases import URL_VARIABLE

DEFAULT_DATABASE = "jobs.db"

_DISTANCE = re.compile(r"([+-])(\d+(?:\.\d+)?)([smhd])")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def named_database(context: typer.Context, value: str | None) -> str | None:
    """Return the database that was named, behind the command's name or before it."""
    before: str | None = context.parent.params.get("db") if context.parent is not None else None
    return value or before


def database(context: typer.Context, value: str | None) -> str:
    """Return the database that is meant."""
    return named_database(context, value) or os.environ.get(URL_VARIABLE) or DEFAULT_DATABASE


def read_moment(text: str) -> datetime:
    """Read a time: ISO 8601, local without a time zone, or a distance from now such as +90s, -2h, +1d.

    Raises:
        BadParameter: It is neither.
    """
    try:
        if match := _DISTANCE.fullmatch(text):
            sign, amount, unit = match.groups()
            return datetime.now(UTC) + timedelta(**{_UNITS[unit]: float(sign + amount)})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no time: write 2030-01-31T08:00, or +90s, +15m, +2h, -1d") from None


def read_duration(text: str) -> float:
    """Read a duration such as 90s or 10m as seconds.

    Raises:
        BadParameter: It is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time: write 90s, 10m, 2h or 1d")
    return timedelta(**{_UNITS[match[2]]: float(match[1])}).total_seconds()


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadParameter: It is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter('it must be a JSON object, such as {"target": "plan"}')
    return value


_DB_HELP = (
    "The database: a path, sqlite:///abs/path.db or postgresql://user@host/name. "
    f"Without it, {URL_VARIABLE}, or else ./{DEFAULT_DATABASE}."
)

GroupDb = Annotated[str | None, typer.Option("--db", metavar="URL", show_default=False, help=_DB_HELP)]
"""As it was given, before the command's name or behind it."""

Db = Annotated[str, typer.Option("--db", metavar="URL", callback=database, show_default=False, help=_DB_HELP)]
"""Behind the command's name: the database that is meant."""

Outputs = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|URL",
        show_default=False,
        help="Where large texts lie: a folder, or a URL such as s3://bucket/prefix. Without it, the file's path with "
        ".outputs behind it; PostgreSQL has no default.",
    ),
]

MaxOutputBytes = Annotated[
    int | None,
    typer.Option(
        metavar="BYTES", min=1, show_default=False, help="What one answer may have at most; without it, 1 GiB."
    ),
]
MinFreeBytes = Annotated[
    int | None,
    typer.Option(
        metavar="BYTES",
        min=0,
        show_default=False,
        help="Claim nothing while less room than that is left on the disks; without it, 64 MiB, or 2 % of a small one.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, with times in ISO 8601.")]

JobId = Annotated[
    str, typer.Argument(metavar="ID", show_default=False, help="The job's id, or the last 6 or more characters of it.")
]

JobIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", show_default=False, help="Ids of jobs, or the last 6 or more characters of each."),
]

Status = Annotated[
    list[JobStatus] | None,
    typer.Option("--status", metavar="STATUS", help=f"Only these: {', '.join(JobStatus)}. May be repeated."),
]
Session = Annotated[str | None, typer.Option("--session", metavar="ID", help="Only of this session.")]
TaskType = Annotated[str | None, typer.Option("--task-type", metavar="NAME", help="Only of this task type.")]
ApiType = Annotated[str | None, typer.Option("--api-type", metavar="NAME", help="Only for this API.")]
CreatedAfter = Annotated[
    datetime | None,
    typer.Option("--created-after", metavar="WHEN", parser=read_moment, help="2030-01-31T08:00, or -90s, -2h, -1d."),
]
CreatedBefore = Annotated[
    datetime | None, typer.Option("--created-before", metavar="WHEN", parser=read_moment, help="The same.")
]
OlderThan = Annotated[
    float | None,
    typer.Option(
        metavar="DURATION",
        parser=read_duration,
        show_default=False,
        help="Only jobs that have ended so long ago: 90s, 15m, 2h, 30d.",
    ),
]
Everything = Annotated[
    bool, typer.Option("--everything", help="Instead of ids and options that choose jobs: all that there are.")
]
