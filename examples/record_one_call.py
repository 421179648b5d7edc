"""Records one call that the program makes itself: the prompt, each piece of the answer, and what the call cost.

A local server stands in for the service: leave it out, and give the client your key, to ask the real one.
"""

from __future__ import annotations

import asyncio

from anthropic import AsyncAnthropic

from jobstore import JobStore
from jobstore.testing import LLMServer


async def main() -> None:
    """Ask, and show what was recorded."""
    async with (
        JobStore("jobs.db", migrate=True) as store,
        LLMServer("Hello, world!") as server,
        AsyncAnthropic(api_key="any", base_url=server.url) as client,
    ):
        async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            async for text in call.stream(client, model="claude-haiku-5-5", max_tokens=100):
                print(text, end="")
        print()
        for made in await store.calls.list(call.job.id):
            print(made.provider, made.status, made.http_status, made.finish_reason, made.output_tokens, made.cost)


if __name__ == "__main__":
    asyncio.run(main())
