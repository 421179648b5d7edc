"""Follows a running answer from another process: this one asks a model, and starts itself again to look on.

A local server stands in for the service, and speaks slowly. `jobstore tail ID` follows from a terminal.
"""

from __future__ import annotations

import asyncio
import sys

from anthropic import AsyncAnthropic

from jobstore import JobStore
from jobstore.testing import Answer, LLMServer


async def follow(job_id: str) -> None:
    """Print an answer while another process writes it."""
    async with JobStore("jobs.db") as store:
        async for text in store.jobs.tail(job_id):
            print(text, end="", flush=True)
        print(f" ({(await store.jobs.get(job_id)).status})")


async def ask() -> None:
    """Ask a model, and let another process follow."""
    answer = Answer("One piece after the other, as they come.", chunk_size=4, delay=0.1)
    async with (
        JobStore("jobs.db", migrate=True) as store,
        LLMServer(answer) as server,
        AsyncAnthropic(api_key="any", base_url=server.url) as client,
    ):
        async with store.jobs.record("Go on", task_type="plan", api_type="claude") as call:
            follower = await asyncio.create_subprocess_exec(sys.executable, __file__, call.job.id)
            async for _ in call.stream(client, model="claude-haiku-5-5"):
                pass
        await follower.wait()


if __name__ == "__main__":
    asyncio.run(follow(sys.argv[1]) if sys.argv[1:] else ask())
