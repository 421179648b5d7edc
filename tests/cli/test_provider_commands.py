"""`jobstore work --providers`: a worker without any code, and what is seen of its calls afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from jobstore import CallStatus, JobStore, Settlement, Usage
from jobstore.testing import LLMServer, Refusal
from tests.cli.conftest import Command

T = TypeVar("T")
Act = Callable[[Callable[[JobStore], Awaitable[T]]], T]

MODELS = {
    "claude": "claude-opus-5-5",
    "openai": "gpt-6-luna",
    "openai_chat": "gpt-6-luna",
    "google": "gemini-3.8-flash",
}


async def test_jobs_for_three_providers_are_done_without_code(migrated: Path) -> None:
    async with JobStore(migrated) as store, LLMServer(lambda request: f"by {request.api}") as server:
        jobs = [
            await store.jobs.enqueue("ask", task_type=f"task {api}", api_type=api, model_used=model)
            for api, model in MODELS.items()
        ]
        environment = dict(os.environ) | {
            "ANTHROPIC_API_KEY": "any",
            "OPENAI_API_KEY": "any",
            "GEMINI_API_KEY": "any",
            "ANTHROPIC_BASE_URL": server.url,
            "OPENAI_BASE_URL": f"{server.url}/v1",
            "GOOGLE_GEMINI_BASE_URL": server.url,
        }
        command = (sys.executable, "-m", "jobstore", "work", "--db", migrated, "--providers", "claude,openai,gemini")
        process = await asyncio.create_subprocess_exec(
            *map(str, command), "--drain", "--log-level", "warning", env=environment, stderr=subprocess.PIPE
        )
        _, errors = await asyncio.wait_for(process.communicate(), 120)
        assert (process.returncode, errors) == (0, b"")
        said = [await store.jobs.read_response(job.id) for job in jobs]
        assert said == ["by anthropic", "by openai", "by openai_chat", "by gemini"]
        assert [len(await store.calls.list(job.id)) for job in jobs] == [1, 1, 1, 1]


async def test_several_processes_get_the_same_options(migrated: Path) -> None:
    async with JobStore(migrated) as store, LLMServer(Refusal("invalid")) as server:
        job = await store.jobs.enqueue("ask", task_type="task", api_type="claude", model_used="any")
        environment = dict(os.environ) | {"ANTHROPIC_API_KEY": "any", "ANTHROPIC_BASE_URL": server.url}
        options = ("--providers", "claude", "--on-unknown", "hold", "--processes", 2, "--drain", "--db", migrated)
        process = await asyncio.create_subprocess_exec(
            *map(str, (sys.executable, "-m", "jobstore", "work", *options)), env=environment, stderr=subprocess.PIPE
        )
        _, errors = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == 0, errors
        [call] = await store.calls.list(job.id)
        assert (call.on_unknown, call.error_category) == ("hold", "invalid_request")


def test_providers_that_cannot_be_asked_are_refused(command: Command, tmp_path: Path) -> None:
    assert "there is no adapter for 'mine'" in command.misused("work", "--providers", "claude,mine")
    assert "either MODULE or --providers" in command.misused("work", "module", "--providers", "claude")
    assert "either MODULE or --providers" in command.misused("work", "--drain")
    command.environment |= {"OPENAI_API_KEY": "", "GEMINI_API_KEY": "any"}
    command.environment |= {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "", "HOME": str(tmp_path)}
    assert "set OPENAI_API_KEY" in command.misused("work", "--providers", "openai")
    assert "set ANTHROPIC_API_KEY" in command.misused("work", "--providers", "claude", "--drain")
    keys = ("--on-unknown", "idempotency_key")
    assert "takes no idempotency keys" in command.misused("work", "--providers", "gemini", *keys)


def test_the_calls_of_a_job_are_shown(command: Command, act: Act[None]) -> None:
    job_id = command.enqueue("p")

    async def call(store: JobStore) -> None:
        [claim] = await store.jobs.claim("w")
        refused = await store.calls.begin(claim, provider="anthropic", model="claude-opus-5-5")
        await store.calls.settle(
            refused, Settlement(status=CallStatus.FAILED, error_category="rate_limited", retry_after=2.5)
        )
        made = await store.calls.begin(claim, provider="anthropic", model="claude-opus-5-5")
        usage = Usage(input_tokens=1200, output_tokens=30, cost=0.0042)
        await store.calls.settle(
            made, Settlement(status=CallStatus.SUCCEEDED, usage=usage, request_id="req_7", duration=1.25)
        )
        small = await store.calls.begin(claim, provider="google", model="gemini-3.8-flash")
        await store.calls.settle(small, Settlement(status=CallStatus.SUCCEEDED, usage=Usage(cost=0.0000042)))

    act(call)
    shown = command.ok("show", job_id)
    assert "rate_limited, asks to wait 2.5 s" in shown
    assert all(part in shown for part in ("succeeded", "1,200", "$0.0042", "req_7", "claude-opus-5-5"))
    assert "$0.000004" in shown  # not as if it were free
    document = command.json("show", job_id)
    assert [made["status"] for made in document["calls"]] == ["failed", "succeeded", "succeeded"]


def test_a_job_that_is_held_says_so(command: Command, act: Act[None]) -> None:
    job_id = command.enqueue("p")

    async def lose(store: JobStore) -> None:
        [claim] = await store.jobs.claim("w", lease=0.001)
        await store.calls.begin(claim, provider="anthropic", on_unknown="hold")
        await store.execute("UPDATE job_attempts SET lease_expires_at = 0")
        assert await store.jobs.claim("another") == []

    act(lose)
    assert command.ok("why", job_id).startswith("It is held since ")
    command.ok("retry", job_id)
    assert command.json("show", job_id)["status"] == "idle"
