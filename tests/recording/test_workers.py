"""Workers that ask models: what is asked, what is recorded of it, and how attempts end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic

from jobstore import CallStatus, InvalidArgument, Job, JobStatus, JobStore, Usage
from jobstore.providers import ProviderError, ToolCall, recorded, recording
from jobstore.providers.cost import price
from jobstore.testing import Answer, FakeClock, LLMServer, Refusal
from jobstore.testing.llm_answers import API
from jobstore.workers import JobContext, Worker, constant
from tests.conformance.support import eventually
from tests.providers.support import MODELS, Speaker

COUNTS = Usage(input_tokens=100, output_tokens=50, cache_read_tokens=30, reasoning_tokens=20)
CALL = ToolCall(id="call_1", name="look", arguments='{"at": "it"}')


async def enqueue(store: JobStore, api: str = "anthropic", **fields: Any) -> Job:  # noqa: ANN401 - what enqueue takes
    model = MODELS.get(api, "claude-opus-5-5")  # type: ignore[call-overload]
    given = {"task_type": "plan", "api_type": api, "model_used": model, **fields}
    return await store.jobs.enqueue("ask this", **given)


async def work(store: JobStore, client: object, **terms: Any) -> None:  # noqa: ANN401 - what handles_llm takes
    worker = Worker(store, retry=constant(0))
    worker.handles_llm("plan", client=client, **terms)
    await worker.run(drain=True)


async def statuses(store: JobStore, job: Job) -> list[tuple[int, str]]:
    return [(call.attempt, call.status.value) for call in await store.calls.list(job.id)]


async def test_a_job_is_asked_as_it_is_and_its_call_recorded(
    store: JobStore, server: LLMServer, speaker: Speaker
) -> None:
    server.script(Answer("Hello", reasoning="Let me see", usage=COUNTS, chunk_size=2))
    job = await enqueue(store, speaker.api, metadata={"system": "Be brief.", "max_tokens": 77, "mine": 1})
    await work(store, speaker.client, temperature=0.5)
    [asked] = server.requests
    assert (asked.prompt, asked.system, asked.max_tokens) == ("ask this", "Be brief.", 77)
    assert (asked.api, asked.model, asked.stream) == (speaker.api, MODELS[speaker.api], True)
    assert "0.5" in str(asked.body)
    done = await store.jobs.get(job.id)
    assert (done.status, await store.jobs.read_response(job.id)) == (JobStatus.COMPLETED, "Hello")
    assert done.metadata == {**job.metadata, "finish_reason": "stop"}
    [call] = await store.calls.list(job.id)
    assert (call.status, call.http_status, call.finish_reason) == (CallStatus.SUCCEEDED, 200, "stop")
    assert (call.provider, call.model_asked) == (speaker.adapter.provider, MODELS[speaker.api])
    told = ("model_answered", "remote_id", "duration", "time_to_first_token", "raw_usage")
    assert None not in [getattr(call, name) for name in told]
    assert (call.error_category, call.error_code, call.retry_after) == (None, None, None)


async def test_the_same_usage_is_counted_the_same_and_costs_what_the_price_list_says(
    store: JobStore, server: LLMServer, speaker: Speaker
) -> None:
    server.script(Answer("Hello", reasoning="Let me see", usage=COUNTS))
    job = await enqueue(store, speaker.api)
    await work(store, speaker.client)
    [call] = await store.calls.list(job.id)
    counted = Usage(**{name: getattr(call, name) for name in Usage.model_fields if name != "cost"})
    assert counted.model_copy(update={"cache_write_tokens": None}) == COUNTS.model_copy(
        update={"reasoning_tokens": counted.reasoning_tokens, "cache_write_tokens": None}
    )
    adapter = speaker.adapter
    known = price(
        adapter.provider,
        call.model_answered or "",
        counted,
        call.sent_at,
        raw_usage=call.raw_usage,
        flavor=adapter.flavor,
    )
    assert known is not None
    assert (call.cost, call.price_version, call.cost_is_estimated) == (known.usd, known.version, False)
    done = await store.jobs.get(job.id)
    assert (done.input_tokens, done.output_tokens, done.cost) == (100, 50, call.cost)


async def test_a_model_without_a_price_costs_nobody_knows_what(
    store: JobStore, server: LLMServer, speaker: Speaker
) -> None:
    server.script(Answer("Hello", usage=COUNTS))
    job = await enqueue(store, speaker.api, model_used="a-model-of-no-list")
    await work(store, speaker.client)
    [call] = await store.calls.list(job.id)
    assert (call.input_tokens, call.cost, call.price_version, call.cost_is_estimated) == (100, None, None, None)
    assert (await store.jobs.get(job.id)).cost is None


async def test_calls_of_tools_are_in_the_metadata(store: JobStore, server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("", tool_calls=(CALL,)), "no more of them")
    job = await enqueue(store, speaker.api)
    await work(store, speaker.client)
    done = await store.jobs.get(job.id)
    [call] = done.metadata["tool_calls"]
    assert (call["name"], call["arguments"], done.metadata["finish_reason"]) == ("look", '{"at": "it"}', "tool_calls")
    assert done.response == ""
    await store.jobs.retry(job.id)
    await work(store, speaker.client)
    assert (await store.jobs.get(job.id)).metadata["tool_calls"] == []


async def test_a_retry_is_another_row_and_another_file(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    half = Answer("first half second half", ending="early_end", chunk_size=4)
    server.script(Refusal("overloaded"), half, "at last")
    job = await enqueue(store)
    await work(store, speakers["anthropic"].client)
    assert await statuses(store, job) == [(1, "failed"), (2, "truncated"), (3, "succeeded")]
    attempts = await store.jobs.attempts(job.id)
    assert [attempt.output_bytes for attempt in attempts] == [None, len("first half "), len("at last")]
    assert await store.jobs.read_response(job.id) == "at last"


async def test_a_short_answer_that_cannot_be_recorded_is_kept_as_far_as_possible(
    database: Path, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    server.script(Answer("one two three", chunk_size=4))
    async with JobStore(database, migrate=True, max_output_bytes=10) as store:
        job = await enqueue(store, max_attempts=1)
        await work(store, speakers["anthropic"].client)
        failed = await store.jobs.get(job.id)
        assert (failed.status, failed.error_type) == (JobStatus.FAILED, "OutputTooLarge")
        assert await store.jobs.read_response(job.id) == "one two "


async def test_a_short_answer_is_recorded_without_a_file(
    database: Path, store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    server.script(Answer("a short answer", chunk_size=4))
    job = await enqueue(store)
    await work(store, speakers["anthropic"].client)
    assert (await store.jobs.get(job.id)).response == "a short answer"
    assert not Path(f"{database}.outputs").exists()


async def test_an_output_that_is_just_being_opened_at_the_end_has_the_answer(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    worker = Worker(store)

    @worker.handles("plan")
    async def plan(job: JobContext) -> None:
        async for _ in job.stream(speakers["anthropic"].client):
            pass
        job.answer.open_soon()  # as its timer does

    server.script("a short answer")
    job = await enqueue(store)
    await worker.run(drain=True)
    done = await store.jobs.get(job.id)
    assert (done.status, done.response) == (JobStatus.COMPLETED, "a short answer")


async def test_a_client_of_another_provider_is_not_asked(store: JobStore, server: LLMServer, speaker: Speaker) -> None:
    other = "gemini" if speaker.api == "anthropic" else "claude"
    job = await enqueue(store, other)
    await work(store, speaker.client)
    done = await store.jobs.get(job.id)
    assert (done.status, done.error_type) == (JobStatus.FAILED, "invalid_request")
    assert (server.requests, await store.calls.list(job.id)) == ([], [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"metadata": {"images": ["no/such/image.png"]}},
        {"metadata": {"max_tokens": "many"}},
        {"metadata": {"on_unknown": "guess"}},
        {"model_used": None},
    ],
)
async def test_what_cannot_be_asked_fails_and_nothing_is_sent(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker], wrong: dict[str, Any]
) -> None:
    job = await enqueue(store, **wrong)
    await work(store, speakers["anthropic"].client)
    done = await store.jobs.get(job.id)
    assert (done.status, done.error_type) == (JobStatus.FAILED, "invalid_request")
    assert (server.requests, await store.calls.list(job.id)) == ([], [])


async def test_one_worker_asks_all_providers_and_a_task_s_own_handler_goes_first(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    worker = Worker(store)
    for api in ("anthropic", "openai", "openai_chat", "gemini"):
        worker.handles_llm(api_type=api, client=speakers[api].client)

    @worker.handles("greeting")
    async def greet(_job: JobContext) -> str:
        return "by hand"

    jobs = [await enqueue(store, api) for api in speakers] + [await enqueue(store, task_type="greeting")]
    other = await enqueue(store, "somebody else's")
    await worker.run(drain=True)
    assert sorted(asked.api for asked in server.requests) == sorted(speakers)
    assert {(await store.jobs.get(job.id)).status for job in jobs} == {JobStatus.COMPLETED}
    assert await store.jobs.read_response(jobs[-1].id) == "by hand"
    assert (await store.jobs.get(other.id)).status is JobStatus.IDLE


async def test_neither_kind_of_handler_starves_the_other(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    worker = Worker(store, concurrency=1)
    worker.handles_llm(api_type="anthropic", client=speakers["anthropic"].client)
    order: list[str] = []
    worker.on_claim(lambda event: order.append(event.job.task_type))

    @worker.handles("greeting")
    async def greet(_job: JobContext) -> str:
        return "by hand"

    for _ in range(3):
        await enqueue(store, "nobody's", task_type="greeting")
        await enqueue(store, "anthropic")
    await worker.run(drain=True)
    assert sorted(order[:4]) == ["greeting", "greeting", "plan", "plan"]
    assert len(server.requests) == 3


async def test_a_worker_for_an_api_is_listed_and_counts_for_the_jobs_that_wait(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    worker = Worker(store)
    worker.handles_llm(api_type="anthropic", client=speakers["anthropic"].client)
    server.script(Answer("half of it", ending="stall", chunk_size=4))
    job = await enqueue(store)
    running = asyncio.ensure_future(worker.run(grace=0))
    await eventually(lambda: worker.running == 1)
    [listed] = await store.workers.list()
    assert (listed.task_types, listed.api_types) == ([], ["anthropic"])
    waiting = await enqueue(store, priority=-1, run_at=None)
    worker.concurrency = 1
    told = await store.jobs.explain(waiting.id)
    assert (told.workers, told.reason) in [(1, "next"), (1, "running")]
    worker.stop()
    await running
    assert (await store.jobs.get(job.id)).status is JobStatus.IDLE


async def test_canceling_a_job_cancels_its_call_and_keeps_what_came(
    store: JobStore, server: LLMServer, speaker: Speaker
) -> None:
    server.script(Answer("first half second half", ending="stall", chunk_size=4, usage=COUNTS))
    job = await enqueue(store, speaker.api)
    working = asyncio.ensure_future(work(store, speaker.client))
    await eventually(lambda: _reads(store, job, "first half "))
    await store.jobs.cancel(job.id)
    await working
    done = await store.jobs.get(job.id)
    [call] = await store.calls.list(job.id)
    assert (done.status, call.status, call.error_code) == ("canceled", "canceled", "CancelledError")
    assert await store.jobs.read_response(job.id) == "first half "
    await asyncio.wait_for(server.idle(), 30)


async def test_a_worker_that_stops_cancels_the_call_and_gives_the_job_back(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    server.script(Answer("first half second half", ending="stall", chunk_size=4, usage=COUNTS), "at last")
    job = await enqueue(store)
    worker = Worker(store)
    worker.handles_llm("plan", client=speakers["anthropic"].client)
    running = asyncio.ensure_future(worker.run(grace=0))
    await eventually(lambda: _reads(store, job, "first half "))
    worker.stop()
    await running
    assert (await store.jobs.get(job.id)).attempts_used == 0
    await work(store, speakers["anthropic"].client)
    assert await statuses(store, job) == [(1, "canceled"), (2, "succeeded")]
    [canceled, _] = await store.calls.list(job.id)
    assert (canceled.input_tokens, canceled.cost_is_estimated) == (100, True)


async def test_a_handler_that_stays_in_its_stream_is_fenced_off(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    server.script(Answer("first half second half", ending="stall", chunk_size=4))
    worker = Worker(store, cancel_grace=0.01)
    readers: list[asyncio.Task[None]] = []

    async def read(job: JobContext) -> None:
        async for _ in job.stream(speakers["anthropic"].client):
            pass

    @worker.handles("plan")
    async def plan(job: JobContext) -> None:
        readers.append(asyncio.ensure_future(read(job)))
        while not readers[0].done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait(readers)

    job = await enqueue(store)
    running = asyncio.ensure_future(worker.run(drain=True))
    await eventually(lambda: _reads(store, job, "first half "))
    await store.jobs.cancel(job.id)
    await running
    assert (await store.jobs.get(job.id)).status is JobStatus.CANCELED
    assert await statuses(store, job) == [(1, "unknown")]
    readers[0].cancel()
    await eventually(lambda: _is_settled(store, job))


async def test_how_an_answer_gets_on_is_told_while_it_comes(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "PROGRESS_SECONDS", 0.0)
    server.script(Answer("first half second half", reasoning="Hm", ending="stall", chunk_size=4, usage=COUNTS))
    job = await enqueue(store)
    working = asyncio.ensure_future(work(store, speakers["anthropic"].client))

    async def told() -> bool:
        seen = await store.jobs.get(job.id)
        return (seen.status_message, seen.input_tokens) == ("it answers: 11 characters so far", 100)

    await eventually(told)
    await store.jobs.cancel(job.id)
    await working


async def test_it_is_told_once_a_second_at_most(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(recording, "monotonic", lambda: now)
    told: list[float] = []
    progress = store.jobs.progress

    async def noted(*args: Any, **fields: Any) -> Job:  # noqa: ANN401 - what progress takes
        told.append(now)
        return await progress(*args, **fields)

    monkeypatch.setattr(store.jobs, "progress", noted)
    server.script(Answer("x" * 100, chunk_size=1))
    worker = Worker(store)

    @worker.handles("plan")
    async def plan(job: JobContext) -> None:
        nonlocal now
        async for _ in job.stream(speakers["anthropic"].client):
            now += 0.3

    await enqueue(store)
    await worker.run(drain=True)
    assert len(told) >= 20
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(told))


async def test_an_answer_that_its_handler_leaves_is_none(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    server.script(Answer("first half second half", chunk_size=4))
    worker = Worker(store)

    @worker.handles("plan", retry=constant(60))
    async def plan(job: JobContext) -> None:
        async for _ in job.stream(speakers["anthropic"].client):
            break

    job = await enqueue(store)
    await worker.run(drain=True)
    done = await store.jobs.get(job.id)
    assert (done.status, done.error_type) == (JobStatus.SCHEDULED, "unfinished_answer")
    assert await statuses(store, job) == [(1, "canceled")]


async def test_a_failure_that_its_handler_hides_is_one_all_the_same(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    server.script(Answer("first half second half", ending="early_end", chunk_size=4))
    worker = Worker(store)

    @worker.handles("plan", retry=constant(60))
    async def plan(job: JobContext) -> None:
        with suppress(ProviderError):
            async for _ in job.stream(speakers["anthropic"].client):
                pass

    job = await enqueue(store)
    await worker.run(drain=True)
    done = await store.jobs.get(job.id)
    assert (done.status, done.error_type) == (JobStatus.SCHEDULED, "truncated")


async def test_a_handler_may_ask_again_itself_unless_half_an_answer_is_there(
    store: JobStore, server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    client = speakers["anthropic"].client
    worker = Worker(store)
    refused: list[str] = []

    @worker.handles("plan")
    async def plan(job: JobContext) -> None:
        for _ in range(2):
            with suppress(ProviderError):
                async for _ in job.stream(client):
                    pass
        async for _ in job.stream(client):
            pass

    server.script(Refusal("overloaded"), Answer("one ", usage=COUNTS), Answer("two", usage=COUNTS))
    job = await enqueue(store)
    worker.on_failure(lambda event: refused.append(event.error_type or ""))
    await worker.run(drain=True)
    done = await store.jobs.get(job.id)
    assert (await store.jobs.read_response(job.id), done.input_tokens) == ("one two", 200)
    assert await statuses(store, job) == [(1, "failed"), (1, "succeeded"), (1, "succeeded")]
    server.script(Answer("first half second half", ending="early_end", chunk_size=4), "whole")
    again = await enqueue(store, max_attempts=1)
    await worker.run(drain=True)
    assert (await store.jobs.get(again.id)).error_type == "InvalidArgument"


async def test_the_same_key_is_sent_again_when_nobody_knows_what_became_of_a_call(
    store: JobStore, server: LLMServer, clock: FakeClock
) -> None:
    keys: list[str | None] = []

    async def note(request: httpx2.Request) -> None:
        keys.append(request.headers.get("idempotency-key"))

    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(event_hooks={"request": [note]}))
        client = AsyncAnthropic(api_key="any", base_url=server.url, http_client=http)
        job = await enqueue(store, metadata={"on_unknown": "idempotency_key"})
        [held] = await store.jobs.claim("lost")
        await store.calls.begin(held, provider="anthropic", on_unknown="idempotency_key", idempotency_key="the key")
        clock.advance(31)
        server.script(Refusal("server_error"), "at last")
        await work(store, client)
    assert keys[0] == "the key"
    assert keys[1] not in {None, "the key"}  # the first is known to have failed
    assert [call.idempotency_key for call in await store.calls.list(job.id)] == ["the key", *keys]


def test_wrong_handlers_are_refused(store: JobStore, speakers: dict[API, Speaker]) -> None:
    worker = Worker(store)
    client, gemini = speakers["anthropic"].client, speakers["gemini"].client
    worker.handles_llm("plan", client=client)
    twice = [recorded(each, store, task_type="other") for each in (client, gemini, gemini.aio)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"client": client}, "task_type"),
        ({"client": client, "task_type": "plan", "api_type": "claude"}, "task_type"),
        ({"client": client, "task_type": "plan"}, "task_type"),
        ({"client": object(), "task_type": "other"}, "client"),
        ({"client": client, "task_type": "other", "on_unknown": "guess"}, "on_unknown"),
        ({"client": gemini, "task_type": "other", "on_unknown": "idempotency_key"}, "on_unknown"),
        ({"client": client, "task_type": "other", "timeout": 0}, "timeout"),
        ({"client": client, "task_type": "other", "modle": "misspelt"}, "modle"),
        ({"client": client, "task_type": "other", "max_tokens": 0}, "max_tokens"),
        *(({"client": each, "task_type": "other"}, "client") for each in twice),
    ]
    for fields, field in wrong:
        with pytest.raises(InvalidArgument) as refusal:
            worker.handles_llm(**fields)
        assert refusal.value.field == field
    assert worker.task_types == ["plan"]


async def test_images_are_read_and_sent(store: JobStore, server: LLMServer, speaker: Speaker, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    await enqueue(store, speaker.api, metadata={"images": [str(image)]})
    await work(store, speaker.client)
    assert "iVBORw0KGgo" in str(server.requests[0].body)


async def _is_settled(store: JobStore, job: Job) -> bool:
    return await statuses(store, job) == [(1, "canceled")]


async def _reads(store: JobStore, job: Job, expected: str) -> bool:
    return await store.jobs.read_response(job.id) == expected
