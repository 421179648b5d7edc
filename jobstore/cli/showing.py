"""`jobstore show`: all that is known of one job."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, cast

import typer

from jobstore import ApiCall, Attempt, Job, JobStore, JobStoreError, TextsPruned
from jobstore.aio import in_thread
from jobstore.cli import stores
from jobstore.cli.calls import show_calls
from jobstore.cli.listing import status_cell
from jobstore.cli.options import AsJson, Db, JobId, Outputs
from jobstore.cli.screen import (
    Cell,
    ago,
    is_terminal,
    local,
    note,
    one_line,
    say,
    size_of,
    write_exactly,
    write_facts,
    write_heading,
    write_json,
    write_table,
)

PREVIEW_LINES, PREVIEW_CHARACTERS = 10, 800


@dataclass(frozen=True, slots=True)
class Preview:
    """The beginning of a text, or why it cannot be read."""

    text: str
    cut: bool = False
    error: str | None = None


def show(
    job_id: JobId,
    *,
    prompt: Annotated[bool, typer.Option("--prompt", help="Print the whole prompt, and nothing else.")] = False,
    response: Annotated[
        bool, typer.Option("--response", help="Print the whole response, or what there is of it, and nothing else.")
    ] = False,
    db: Db = "",
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Show a job: its attempts, calls to models and texts.

    With `--prompt` or `--response` the text comes exactly as it is stored, so that it can be redirected to a file.
    With `--json` they put the whole text into the document; otherwise texts that lie in files are null there.
    """
    if as_json:
        _show_json(job_id, db, outputs, prompt=prompt, response=response)
    elif prompt and response:
        raise typer.BadParameter("give one of them", param_hint="'--prompt' / '--response'")
    elif prompt:
        _print_prompt(job_id, db, outputs)
    elif response:
        _print_response(job_id, db, outputs)
    else:
        _show(job_id, db, outputs)


def _show_json(job_id: str, db: str, outputs: str | None, *, prompt: bool, response: bool) -> None:
    async def act(store: JobStore) -> dict[str, Any]:
        found = await stores.find(store, job_id)
        job = await store.jobs.get(found)
        document = job.model_dump(mode="json")
        document |= {"attempts": await store.jobs.attempts(found), "calls": await store.calls.list(found)}
        if prompt:
            document["prompt"] = await store.jobs.read_prompt(found)
        if response:
            document["response"] = await store.jobs.read_response(found)
        return document

    write_json(stores.run(db, act, outputs))


def _print_prompt(job_id: str, db: str, outputs: str | None) -> None:
    async def act(store: JobStore) -> str:
        return await store.jobs.read_prompt(await stores.find(store, job_id))

    text = stores.run(db, act, outputs)
    write_exactly(text)
    _end_line(text)


def _print_response(job_id: str, db: str, outputs: str | None) -> None:
    async def act(store: JobStore) -> str:
        last = ""
        async for text in store.jobs.open_response(await stores.find(store, job_id)):
            await in_thread(write_exactly, text)
            last = text
        return last

    _end_line(stores.run(db, act, outputs))


def _end_line(text: str) -> None:
    """Let the shell's prompt begin on a line of its own."""
    if text and not text.endswith("\n") and is_terminal():
        write_exactly("\n")


def _show(job_id: str, db: str, outputs: str | None) -> None:
    async def act(store: JobStore) -> tuple[Job, list[Attempt], list[ApiCall], Preview, Preview]:
        found = await stores.find(store, job_id)
        job = await store.jobs.get(found)
        attempts, calls = await store.jobs.attempts(found), await store.calls.list(found)
        return job, attempts, calls, await _preview_prompt(store, job), await _preview_response(store, job)

    job, attempts, calls, prompt, response = stores.run(db, act, outputs)
    write_facts(_facts(job))
    if attempts:
        write_heading("attempts")
        headings = ["attempt", "outcome", "seconds", "bytes", "started", "worker", "error"]
        write_table(headings, list(map(_attempt_row, attempts)), may_be_cut={"worker", "error"})
        _show_where_it_failed(attempts[-1])
    show_calls(calls)
    _show_text("prompt", _size(job.prompt_bytes, job.prompt_file_path), prompt)
    _show_text("response", _size_of_response(job, attempts), response)
    if prompt.error or response.error:
        raise typer.Exit(1)


async def _preview_prompt(store: JobStore, job: Job) -> Preview:
    try:
        return _cut(await store.jobs.read_prompt(job.id))
    except TextsPruned:  # which the facts tell
        return Preview("")
    except JobStoreError as error:
        return Preview("", error=str(error))


async def _preview_response(store: JobStore, job: Job) -> Preview:
    """Read no more of the response than is shown."""
    text = ""
    parts = cast("AsyncGenerator[str, None]", store.jobs.open_response(job.id))
    try:
        async with aclosing(parts):
            async for part in parts:
                text += part
                if len(text) > PREVIEW_CHARACTERS:
                    break
    except TextsPruned:
        return Preview("")
    except JobStoreError as error:
        return Preview("", error=str(error))
    return _cut(text)


def _cut(text: str) -> Preview:
    lines = text[:PREVIEW_CHARACTERS].splitlines()[:PREVIEW_LINES]
    shown = "\n".join(lines)
    return Preview(shown, cut=len(shown) < len(text.rstrip("\r\n")))


def _facts(job: Job) -> list[tuple[str, Cell]]:
    """Return what is known of a job, without what is not."""
    error = ": ".join(part for part in (job.error_type, job.error_message) if part)
    facts: list[tuple[str, Cell]] = [
        ("job", job.id),
        ("status", status_cell(job)),
        ("message", job.status_message or ""),
        ("error", error),
        ("task type", job.task_type),
        ("api", job.api_type),
        ("model", job.model_used or ""),
        ("session", job.session_id or ""),
        ("priority", str(job.priority)),
        ("tries", f"{job.attempts_used} of {job.max_attempts}"),
        ("timeout", "" if job.timeout is None else f"{job.timeout:g} s"),
        ("key", job.idempotency_key or ""),
        ("created", f"{local(job.created_at)} ({ago(job.created_at)} ago)"),
        ("run at", local(job.run_at) if job.run_at > job.created_at else ""),
        ("expires", local(job.expires_at)),
        ("started", local(job.started_at)),
        ("finished", local(job.finished_at)),
        ("cancel asked", local(job.cancel_requested_at)),
        ("usage", _usage(job)),
        ("metadata", json.dumps(job.metadata, ensure_ascii=False) if job.metadata else ""),
        ("hidden", "yes" if job.cleared else ""),
        ("texts", f"pruned at {local(job.texts_pruned_at)}" if job.texts_pruned_at else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _usage(job: Job) -> str:
    counts = {
        "in": job.input_tokens,
        "out": job.output_tokens,
        "cache read": job.cache_read_tokens,
        "cache write": job.cache_write_tokens,
        "reasoning": job.reasoning_tokens,
    }
    parts = [f"{count:,} {name}" for name, count in counts.items() if count is not None]
    return ", ".join(([f"tokens: {', '.join(parts)}"] if parts else []) + ([f"${job.cost:.6f}"] if job.cost else []))


def _attempt_row(attempt: Attempt) -> list[Cell]:
    seconds = "" if attempt.finished_at is None else f"{(attempt.finished_at - attempt.started_at).total_seconds():.1f}"
    return [
        str(attempt.attempt),
        attempt.outcome or "running",
        seconds,
        "" if attempt.output_bytes is None else f"{attempt.output_bytes:,}",
        f"{attempt.started_at.astimezone():%Y-%m-%d %H:%M:%S}",
        attempt.worker_id,
        ": ".join(part for part in (attempt.error_type, attempt.error_message) if part),
    ]


def _show_where_it_failed(attempt: Attempt) -> None:
    if attempt.error_traceback:
        write_heading(f"where attempt {attempt.attempt} failed")
        for line in attempt.error_traceback.splitlines():
            say(f"  {one_line(line)}")


def _size(size: int | None, path: str | None) -> str:
    parts = [size_of(size)] if size is not None else []
    return ", ".join([*parts, path] if path else parts)


def _size_of_response(job: Job, attempts: list[Attempt]) -> str:
    if job.output_bytes is None and attempts:
        return _size(attempts[-1].output_bytes, attempts[-1].output_file_path)
    return _size(job.output_bytes, job.output_file_path)


def _show_text(name: str, size: str, preview: Preview) -> None:
    if preview.error is not None:
        write_heading(f"{name} ({size})" if size else name)
        note(f"the {name}: {preview.error}")
        return
    if not preview.text:
        return
    write_heading(f"{name} ({size})" if size else name)
    for line in preview.text.splitlines():
        say(f"  {line}")
    if preview.cut:
        say(f"  … (--{name} prints all of it)")
