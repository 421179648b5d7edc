"""One worker asks three providers: each job says by its `api_type` whom to ask, and by `model_used` which model.

A local server stands in for all three: leave it out, and give the clients your keys, to ask the real ones. From the
command line, `jobstore work --providers claude,openai,gemini` does the same.
"""

from __future__ import annotations

import asyncio

from anthropic import AsyncAnthropic
from google import genai
from google.genai.types import HttpOptions
from openai import AsyncOpenAI

from jobstore import JobStore
from jobstore.testing import LLMServer
from jobstore.workers import Worker

MODELS = {"claude": "claude-haiku-5-5", "openai": "gpt-6-luna", "gemini": "gemini-3.8-flash"}


async def main() -> None:
    """Enqueue a job for each, do them, and show the answers."""
    async with (
        JobStore("jobs.db", migrate=True) as store,
        LLMServer(lambda request: f"Hello from {request.model}!") as server,
        AsyncAnthropic(api_key="any", base_url=server.url) as claude,
        AsyncOpenAI(api_key="any", base_url=f"{server.url}/v1") as openai,
        genai.Client(api_key="any", http_options=HttpOptions(base_url=server.url)).aio as gemini,
    ):
        worker = Worker(store)
        for api_type, client in (("claude", claude), ("openai", openai), ("gemini", gemini)):
            worker.handles_llm(api_type=api_type, client=client, system="Be brief.", max_tokens=100)
        jobs = [
            await store.jobs.enqueue("Say hello", task_type="greeting", api_type=api_type, model_used=model)
            for api_type, model in MODELS.items()
        ]
        await worker.run(drain=True)
        for job in jobs:
            print(job.api_type, "·", await store.jobs.read_response(job.id))


if __name__ == "__main__":
    asyncio.run(main())
