"""Workers that are killed while they ask models: what was sent is known, and no half answer is ever taken for one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from jobstore import Job, JobStatus, JobStore
from jobstore.operations.promotion import end_leases
from jobstore.testing import Answer, LLMServer
from jobstore.testing.llm_answers import LLMRequest

# Forks a worker for each line that it reads: to import an SDK takes longer than all that the worker then does.
FORKING = """
import asyncio, os, sys
from anthropic import AsyncAnthropic
from jobstore import JobStore
from jobstore.workers import Worker, constant

async def work(database, url):
    async with JobStore(database) as store, AsyncAnthropic(api_key="any", base_url=url) as client:
        worker = Worker(store, concurrency=4, retry=constant(0))
        worker.handles_llm(api_type="claude", client=client, max_tokens=1000)
        await worker.run(drain=True)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        asyncio.run(work(*sys.argv[1:]))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""
JOBS = 16
"""More than a worker can do until it is killed."""
LONGEST = 0.4
"""Seconds from a worker's first request until it is killed; an answer takes about half of it."""


def answer_to(prompt: str) -> str:
    return f"{prompt} is answered. " * 60


class Provider:
    """Answers each prompt in its own way, slowly, and often not to the end; tells when it is asked."""

    def __init__(self, chance: random.Random) -> None:
        self.asked: Counter[str] = Counter()
        self.was_asked = asyncio.Event()
        self._chance = chance

    def __call__(self, request: LLMRequest) -> Answer:
        self.asked[request.prompt] += 1
        self.was_asked.set()
        ending = self._chance.choice(("ok", "ok", "early_end", "abort", "error"))
        return Answer(answer_to(request.prompt), ending=ending, chunk_size=40, delay=0.005)  # type: ignore[arg-type]


Fork = Callable[[], Awaitable[int]]
Ended = Callable[[], Awaitable[None]]


@asynccontextmanager
async def forking(database: Path, url: str) -> AsyncIterator[tuple[Fork, Ended]]:
    """Yield how to start a worker, which returns its pid, and how to wait for its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKING, str(database), url, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    orders, lines = process.stdin, process.stdout

    async def fork() -> int:
        orders.write(b"one more\n")
        return int(await lines.readline())

    async def ended() -> None:
        assert await lines.readline() == b"ended\n"

    yield fork, ended
    orders.close()
    assert await process.wait() == 0


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.full)])
async def test_whenever_a_worker_is_killed_the_ledger_knows_what_was_sent(database: Path, rounds: int) -> None:
    seed = random.randrange(10**6)  # noqa: S311 - chance, not a secret
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311 - the same
    provider = Provider(chance)
    async with JobStore(database, migrate=True) as store, LLMServer(provider) as server:
        async with forking(database, server.url) as (fork, ended):
            for number in range(rounds):
                await enqueue(store, number)
                provider.was_asked.clear()
                worker = await fork()
                await asyncio.wait_for(provider.was_asked.wait(), 60)
                await asyncio.sleep(chance.uniform(0, LONGEST))  # this is where it is killed
                with suppress(ProcessLookupError):  # unless chance has let it do all there was
                    os.kill(worker, signal.SIGKILL)
                await ended()
                await store.run(end_leases)
                await check(store, provider)
            await fork()
            await ended()
        await check(store, provider)
        assert {job.status for job in await jobs_of(store)} == {JobStatus.COMPLETED}
        [unknown] = await store.execute("SELECT COUNT(*) AS calls FROM api_calls WHERE status = 'unknown'")
        assert unknown["calls"] >= rounds / 2


async def enqueue(store: JobStore, number: int) -> None:
    """Let there be enough to do."""
    waiting = await store.jobs.count(status="idle") + await store.jobs.count(status="scheduled")
    for place in range(max(0, JOBS - waiting)):
        await store.jobs.enqueue(
            f"Prompt {number}.{place}", task_type="ask", api_type="claude", model_used="any", max_attempts=10**6
        )


async def jobs_of(store: JobStore) -> list[Job]:
    return [await store.jobs.get(row["id"]) for row in await store.execute("SELECT id FROM background_jobs")]


async def check(store: JobStore, provider: Provider) -> None:
    for job in await jobs_of(store):
        prompt = job.prompt or ""
        calls, attempts = await store.calls.list(job.id), await store.jobs.attempts(job.id)
        # Each request that arrived was noted before it was sent, and no call is left open.
        assert provider.asked[prompt] <= len(calls)
        assert all(call.status != "sent" for call in calls)
        # Each attempt's answer is known as far as it was received; none of it belongs to another.
        whole = answer_to(prompt)
        text = await store.jobs.read_response(job.id) or ""
        assert whole.startswith(text)
        # Completed is what has the provider's end, and that once.
        completed = [attempt.attempt for attempt in attempts if attempt.outcome == "completed"]
        succeeded = [call.attempt for call in calls if call.status == "succeeded"]
        assert completed == succeeded
        assert len(completed) == (job.status is JobStatus.COMPLETED)
        assert job.status is not JobStatus.COMPLETED or text == whole
