"""What an existing client asks is recorded alike on each engine: jobs, tries and texts."""

from __future__ import annotations

import asyncio

from jobstore import JobStatus, JobStore
from jobstore.providers import recorded, unrecorded
from jobstore.testing import Answer, LLMServer, Refusal
from tests.providers.support import speaking


async def test_calls_of_a_recorded_client_are_jobs_with_their_tries(store: JobStore) -> None:
    async with LLMServer(Answer("first half second half", chunk_size=4)) as server:
        server.script(Refusal("overloaded", headers={"retry-after-ms": "1"}))
        async with speaking("anthropic", server.url) as speaker:
            client = recorded(speaker.client, store, task_type="ask", strict=True)

            async def one(prompt: str) -> None:
                said = await speaker.adapter.arguments(speaker.request(prompt))
                async for _ in await client.messages.create(**said, stream=True):
                    pass

            await one("first")
            await asyncio.gather(*(one(f"number {number}") for number in range(10)))
    jobs = [await store.jobs.get(job.id) for job in (await store.jobs.list()).items]
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert {await store.jobs.read_response(job.id) for job in jobs} == {"first half second half"}
    tries = {job.prompt: [call.status.value for call in await store.calls.list(job.id)] for job in jobs}
    assert tries == {"first": ["failed", "succeeded"]} | {f"number {number}": ["succeeded"] for number in range(10)}
    assert unrecorded(client) == 0
