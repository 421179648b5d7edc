"""Records what a program asks that knows nothing of it: it only gets another client.

A local server stands in for the service: leave it out, and give the client your key, to ask the real one.
"""

from __future__ import annotations

import asyncio

from anthropic import AsyncAnthropic

from jobstore import JobStore
from jobstore.providers import recorded
from jobstore.testing import LLMServer


async def existing_code(client: AsyncAnthropic) -> None:
    """Ask as ever."""
    async with client.messages.stream(
        model="claude-haiku-5-5", max_tokens=100, messages=[{"role": "user", "content": "Say hello"}]
    ) as stream:
        async for text in stream.text_stream:
            print(text, end="")
    print()


async def main() -> None:
    """Let it ask, and show what was recorded."""
    async with (
        JobStore("jobs.db", migrate=True) as store,
        LLMServer("Hello, world!") as server,
        AsyncAnthropic(api_key="any", base_url=server.url) as client,
    ):
        await existing_code(recorded(client, store, task_type="greeting"))
        for job in (await store.jobs.list(task_type="greeting")).items:
            print(job.status, job.model_used, await store.jobs.read_response(job.id), job.output_tokens)


if __name__ == "__main__":
    asyncio.run(main())
