"""Ask a model about the files of a folder, and keep every prompt and every answer in one SQLite file.

    python examples/quickstart.py [FOLDER]

With ANTHROPIC_API_KEY set, Anthropic's API answers; without, a local stand-in that speaks the same protocol.
The database is ./quickstart.db, and large answers lie in ./quickstart.db.outputs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import jobstore
from jobstore import Job, JobStatus, JobStore, NewJob, Usage
from jobstore.providers import Done, ProviderError, Request, Text, adapter_of
from jobstore.testing import LLMServer
from jobstore.workers import Fail, JobContext, Retry, Worker

DATABASE = "quickstart.db"
MODEL = "claude-haiku-5-5"
MAX_TOKENS = {"explain_file": 500, "write_plan": 16_000}
MAX_FILES, MAX_CHARACTERS = 12, 20_000
IGNORED = (".", "__pycache__", "node_modules", DATABASE)

console = Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)


def main() -> int:
    """Run it all; return the exit code."""
    parser = argparse.ArgumentParser(description="Ask a model about the files of a folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(jobstore.__file__).parent)
    folder = parser.parse_args().folder.resolve()
    texts = dict(read_texts(folder))
    if not texts:
        parser.error(f"there are no text files in {folder}")
    jobs = asyncio.run(run(folder, texts))
    show(jobs)
    return 0 if all(job.status is JobStatus.COMPLETED and is_intact(job) for job in jobs) else 1


async def run(folder: Path, texts: dict[str, str]) -> list[Job]:
    """Record the prompts, work until each has its answer, and return the jobs as they ended."""
    async with JobStore(DATABASE, migrate=True) as store, connect() as client:
        session = await store.sessions.create(name="quickstart", project_directory=str(folder))
        jobs = await store.jobs.enqueue_many(prompts(texts, session.id))
        console.print(f"{len(jobs)} prompts about {folder} are recorded in {DATABASE}.\n")

        with progress_board() as board:
            worker = make_worker(store, client, board)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(stop_when_all_ended(worker, jobs))
                await worker.run()  # until then, or until Ctrl-C
                waiting.cancel()
        return [await store.jobs.get(job.id) for job in jobs]


def make_worker(store: JobStore, client: AsyncAnthropic, board: Progress) -> Worker:
    """Return a worker that streams the model's answers into the jobs."""
    worker = Worker(store, concurrency=4)

    @worker.handles("explain_file", timeout=120)
    @worker.handles("write_plan", timeout=900)
    async def answer(job: JobContext) -> None:
        name, received = str(job.job.metadata["name"]), 0
        line = board.add_task(name, total=None)
        try:
            request = Request.of(job.job, max_tokens=MAX_TOKENS[job.job.task_type])
            async for event in adapter_of(client).stream(client, request):
                match event:
                    case Text(text=text):
                        await job.write(text)
                        received += len(text)
                        board.update(line, completed=received)
                    case Usage():
                        await job.progress(usage=event)
                    case Done():
                        await job.progress(status_message=f"finished: {event.finish_reason}")
        except ProviderError as error:
            console.print(f"{name}: {error}")
            if error.retryable:
                raise Retry(error.retry_after, str(error), error_type=error.category) from error
            raise Fail(str(error), error_type=error.category) from error
        finally:
            board.update(line, total=received)
        if board.disable:
            console.print(f"{name}: {received:,} characters")

    return worker


async def stop_when_all_ended(worker: Worker, jobs: list[Job]) -> None:
    """Stop the worker when each job has been completed or has failed; a retry is waited for."""
    for job in jobs:
        await worker.store.jobs.wait(job.id)
    worker.stop()


@asynccontextmanager
async def connect() -> AsyncIterator[AsyncAnthropic]:
    """Yield a client of the real service, or of a stand-in when there is no key."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        console.print(f"Anthropic's API answers, with the model {MODEL} and your key.")
        async with AsyncAnthropic() as client:
            yield client
        return
    console.print("ANTHROPIC_API_KEY is not set: a LOCAL STAND-IN answers, not a model.", style="bold yellow")
    delay = 0.005 if console.is_terminal else 0.0  # slow enough to watch
    direct = DefaultAsyncHttpxClient(trust_env=False)  # a proxy could not reach this machine
    async with (
        LLMServer(delay=delay) as server,
        AsyncAnthropic(api_key="none", base_url=server.url, http_client=direct) as client,
    ):
        yield client


def read_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and the beginnings of the first text files of a folder and the folders in it."""
    found = 0
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(IGNORED))
        for name in sorted(name for name in names if not name.startswith(IGNORED)):
            path = Path(where, name)
            text = read_text(path)
            if text.strip():
                yield path.relative_to(folder).as_posix(), text
                found += 1
            if found == MAX_FILES:
                return


def read_text(path: Path) -> str:
    """Return the beginning of a text file, and nothing of any other."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS)
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if "\0" in text else text


def prompts(texts: dict[str, str], session_id: str) -> Iterator[NewJob]:
    """Yield one prompt for each text, and a long one about all of them."""

    def new_job(task_type: str, name: str, prompt: str, priority: int = 0) -> NewJob:
        return NewJob(
            prompt=prompt,
            task_type=task_type,
            api_type="claude",
            model_used=MODEL,
            session_id=session_id,
            metadata={"name": name},
            priority=priority,
        )

    task = "Write a long, detailed plan for improving these files: steps, reasons, risks and tests for each."
    everything = "\n\n".join(f"--- {name} ---\n{text}" for name, text in texts.items())
    yield new_job("write_plan", "the plan", f"{task}\n\n{everything}", priority=1)
    for name, text in texts.items():
        task = f"Explain in a few sentences what {name} does and what could go wrong in it."
        yield new_job("explain_file", name, f"{task}\n\n{text}")


def progress_board() -> Progress:
    """Return the live display; where there is no terminal, it shows nothing."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.completed:,.0f} characters"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def show(jobs: list[Job]) -> None:
    """Print what became of the jobs, where the answers lie, and how to look at them."""
    table = Table("job", "status", box=None, header_style="bold")
    for name in ("tokens in", "tokens out", "seconds", "bytes"):
        table.add_column(name, justify="right")
    table.add_column("the answer lies")
    for job in jobs:
        status = f"{job.status}: {job.error_type}" if job.error_type else job.status
        place = "in the file below" if job.output_sha256 else "in its row"
        table.add_row(
            str(job.metadata["name"]), status, *figures(job), place if job.status is JobStatus.COMPLETED else "nowhere"
        )
    console.print()
    console.print(table)
    console.print("\n".join(notes(jobs)), soft_wrap=True)


def figures(job: Job) -> tuple[str, str, str, str]:
    """Return a job's tokens in and out, seconds and bytes, as far as they are known."""
    seconds = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else 0
    size = job.output_bytes or len((job.response or "").encode())
    return f"{job.input_tokens or 0:,}", f"{job.output_tokens or 0:,}", f"{seconds:,.1f}", f"{size:,}"


def notes(jobs: list[Job]) -> Iterator[str]:
    """Yield where the large answers lie, and how to look at everything."""
    for job in jobs:
        if job.output_sha256 is not None:
            verdict = "matches its row" if is_intact(job) else "DOES NOT MATCH ITS ROW"
            yield f"\n{output_path(job)}\nhas the SHA-256 {job.output_sha256}, which {verdict}."
    program = "jobstore" if shutil.which("jobstore") else f"{sys.executable} -m jobstore"
    yield "\nLook at it:"
    yield f'  sqlite3 {DATABASE} "SELECT status, output_tokens, substr(response, 1, 80) FROM background_jobs"'
    yield f"  {program} list --db {DATABASE}"
    yield f"  {program} show {jobs[0].id} --db {DATABASE}"


def output_path(job: Job) -> Path | None:
    """Return where the answer's file lies, if it has one."""
    return Path(f"{DATABASE}.outputs", job.output_file_path) if job.output_file_path else None


def is_intact(job: Job) -> bool:
    """Whether the answer's file, if there is one, is what its row says."""
    path = output_path(job)
    if path is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == job.output_sha256


if __name__ == "__main__":
    sys.exit(main())
