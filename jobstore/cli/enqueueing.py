"""`jobstore enqueue`: records a prompt as a new job."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from jobstore import Job, JobStore
from jobstore.cli import stores
from jobstore.cli.listing import without_texts
from jobstore.cli.options import AsJson, Db, Outputs, read_moment, read_object
from jobstore.cli.screen import say, write_json

STDIN = "-"


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", show_default=False, help="The prompt; - reads it from the standard input."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="PATH", exists=True, dir_okay=False, help="Read the prompt from a file."),
]
NewTaskType = Annotated[
    str, typer.Option("--task-type", metavar="NAME", help="What kind of work it is; workers choose by it.")
]
NewApiType = Annotated[str, typer.Option("--api-type", metavar="NAME", help="Which API it is for.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Which model it is for.")]
NewSession = Annotated[str | None, typer.Option("--session", metavar="ID", help="The session it belongs to.")]
Priority = Annotated[int, typer.Option("--priority", metavar="N", help="Higher is claimed first.")]
RunAt = Annotated[
    datetime | None,
    typer.Option(
        "--run-at", metavar="WHEN", parser=read_moment, help="Not before: 2030-01-31T08:00, or +90s, +15m, +2h, +1d."
    ),
]
ExpiresAt = Annotated[
    datetime | None,
    typer.Option(
        "--expires-at", metavar="WHEN", parser=read_moment, help="Cancel it if it still waits then; as --run-at."
    ),
]
MaxAttempts = Annotated[int, typer.Option("--max-attempts", metavar="N", help="How often it may be tried.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="How long one attempt may take.")]
Metadata = Annotated[
    dict | None,  # type: ignore[type-arg]  # typer takes plain types only
    typer.Option("--metadata", metavar="JSON", parser=read_object, help='Anything: {"target": "plan"}'),
]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key", metavar="KEY", help="With a key used before, no job is made: the first is named."
    ),
]


def enqueue(
    prompt: Prompt = None,
    *,
    file: PromptFile = None,
    task_type: NewTaskType,
    api_type: NewApiType,
    model: Model = None,
    session: NewSession = None,
    priority: Priority = 0,
    run_at: RunAt = None,
    expires_at: ExpiresAt = None,
    max_attempts: MaxAttempts = 3,
    timeout: Timeout = None,
    metadata: Metadata = None,
    idempotency_key: IdempotencyKey = None,
    db: Db = "",
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Record a prompt as a new job, and print the job's id.

    `jobstore enqueue "Say hello" --task-type greeting --api-type claude`

    `git diff | jobstore enqueue - --task-type review --api-type claude`
    """
    text = _read_prompt(prompt, file)

    async def act(store: JobStore) -> Job:
        return await store.jobs.enqueue(
            text,
            task_type=task_type,
            api_type=api_type,
            model_used=model,
            session_id=session,
            priority=priority,
            run_at=run_at,
            expires_at=expires_at,
            max_attempts=max_attempts,
            timeout=timeout,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    job = stores.run(db, act, outputs)
    if as_json:
        write_json(without_texts(job))
    else:
        say(job.id)


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give a prompt, - for the standard input, or --file", param_hint="'PROMPT'")
    if file is not None:
        return _decode(_read_file(file), "--file")
    if prompt == STDIN:
        return _decode(sys.stdin.buffer.read(), "the standard input")
    return prompt or ""


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"it cannot be read: {error.strerror}", param_hint="'--file'") from None


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"it is not UTF-8 (byte {error.start})", param_hint=f"'{source}'") from None
