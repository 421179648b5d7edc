"""Code that asks models itself, within `store.jobs.record`: the text comes through, and all of it is recorded."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from jobstore import AnswerUnfinished, DiskFull, JobStatus, JobStore, OutputTooLarge, Usage
from jobstore.outputs import writer
from jobstore.providers import ProviderError, Request
from jobstore.repositories import answers
from jobstore.repositories.recording import RecordedCall
from jobstore.testing import Answer, LLMServer, Refusal
from jobstore.testing.llm_answers import API
from tests.conformance.support import SPILLED, eventually
from tests.providers.support import MODELS, Speaker

COUNTS = Usage(input_tokens=100, output_tokens=50)
HALF = Answer("first half second half", ending="early_end", chunk_size=4)


async def text_of(call: RecordedCall, client: object) -> str:
    return "".join([text async for text in call.stream(client, model="claude-opus-5-5", max_tokens=100)])


async def statuses(store: JobStore, call: RecordedCall) -> list[str]:
    return [each.status.value for each in await store.calls.list(call.job.id)]


@pytest.fixture
def client(speakers: dict[API, Speaker]) -> object:
    return speakers["anthropic"].client


async def test_an_answer_is_yielded_and_recorded(store: JobStore, server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("Grüße an 🌍 \0 alle", chunk_size=3, usage=COUNTS))
    pieces: list[str] = []
    async with store.jobs.record(
        "Say hello", task_type="greeting", api_type=speaker.api, model_used=MODELS[speaker.api]
    ) as call:
        async for text in call.stream(speaker.client, max_tokens=100):
            pieces.append(text)
            [sent] = await store.calls.list(call.job.id)
            assert sent.status == "sent"
    assert pieces == ["Grü", "ße ", "an ", "🌍 \0", " al", "le"]
    job = await store.jobs.get(call.job.id)
    assert (job.status, await store.jobs.read_response(job.id)) == (JobStatus.COMPLETED, "".join(pieces))
    assert (job.input_tokens, job.output_tokens, job.metadata) == (100, 50, {"finish_reason": "stop"})
    [settled] = await store.calls.list(job.id)
    assert (settled.status, settled.cost, job.cost) == ("succeeded", settled.cost, settled.cost)
    assert server.requests[0].prompt == "Say hello"


async def test_a_request_of_one_s_own_is_sent_as_it_is(store: JobStore, server: LLMServer, client: object) -> None:
    request = Request(model="another-model", prompt="something else", max_tokens=5)
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        async for _ in call.stream(client, request):
            pass
    assert (server.requests[0].model, server.requests[0].prompt) == ("another-model", "something else")


async def test_a_prompt_that_lies_in_a_file_is_asked_whole(store: JobStore, server: LLMServer, client: object) -> None:
    async with store.jobs.record(SPILLED, task_type="greeting", api_type="claude") as call:
        assert call.job.prompt_file_path is not None
        await text_of(call, client)
    assert server.requests[0].prompt == SPILLED


async def test_a_failure_reaches_the_caller_and_the_record(store: JobStore, server: LLMServer, client: object) -> None:
    server.script(HALF)
    with pytest.raises(ProviderError):
        async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            await text_of(call, client)
    assert (call.job.status, call.job.error_type) == (JobStatus.FAILED, "truncated")
    assert await store.jobs.read_response(call.job.id) == "first half "
    assert await statuses(store, call) == ["truncated"]


async def test_a_hidden_failure_is_recorded_all_the_same(store: JobStore, server: LLMServer, client: object) -> None:
    server.script(HALF)
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        with suppress(ProviderError):
            await text_of(call, client)
        with pytest.raises(ProviderError):
            await call.finish()
    assert (call.job.status, call.job.error_type) == (JobStatus.FAILED, "truncated")


async def test_an_answer_that_was_left_is_not_completed(store: JobStore, server: LLMServer, client: object) -> None:
    server.script(Answer("first half second half", chunk_size=4, ending="stall"))
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        async for _ in call.stream(client, model="claude-opus-5-5"):
            break
        with pytest.raises(AnswerUnfinished) as failure:
            await call.finish()
    assert failure.value.job_id == call.job.id
    assert (call.job.status, call.job.error_type) == (JobStatus.FAILED, "unfinished_answer")
    assert await statuses(store, call) == ["canceled"]
    await asyncio.wait_for(server.idle(), 30)


async def test_the_counts_of_a_withheld_answer_are_kept_as_the_provider_said_them(
    store: JobStore, server: LLMServer, client: object
) -> None:
    server.script(Answer("I can", stop_reason="refusal", usage=COUNTS))
    with suppress(ProviderError):
        async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            await text_of(call, client)
    [made] = await store.calls.list(call.job.id)
    assert made.error_category == "content_filtered"
    assert (made.raw_usage or {})["output_tokens"] == made.output_tokens == COUNTS.output_tokens


async def test_a_text_of_one_s_own_counts_for_the_answer(store: JobStore, server: LLMServer, client: object) -> None:
    server.script(HALF)
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        with suppress(ProviderError):
            await text_of(call, client)
        await call.finish("good enough")
    assert (call.job.status, call.job.response) == (JobStatus.COMPLETED, "good enough")
    assert await statuses(store, call) == ["truncated"]


async def test_cancelling_the_caller_cancels_the_call(store: JobStore, server: LLMServer, client: object) -> None:
    server.script(Answer("first half second half", chunk_size=4, ending="stall"))
    calls: list[RecordedCall] = []

    async def ask() -> None:
        async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            calls.append(call)
            await text_of(call, client)

    asking = asyncio.ensure_future(ask())
    await eventually(lambda: _reads(store, calls, "first half "))
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert calls[0].job.status is JobStatus.CANCELED
    assert await statuses(store, calls[0]) == ["canceled"]


async def test_asking_again_after_a_refusal_is_one_job_and_two_calls(
    store: JobStore, server: LLMServer, client: object
) -> None:
    server.script(Refusal("rate_limited", retry_after=1), "at last")
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        with suppress(ProviderError):
            await text_of(call, client)
        assert await text_of(call, client) == "at last"
    first, second = await store.calls.list(call.job.id)
    assert (first.error_category, first.http_status, first.retry_after) == ("rate_limited", 429, 1.0)
    assert (second.status, call.job.status) == ("succeeded", JobStatus.COMPLETED)


async def test_a_call_that_cannot_be_noted_is_not_sent(store: JobStore, server: LLMServer, client: object) -> None:
    with suppress(Exception):
        async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            await store.execute("UPDATE job_attempts SET finished_at = 1, outcome = 'lost'")
            await text_of(call, client)
    assert server.requests == []


async def test_a_short_answer_is_recorded_in_three_writes_and_no_file(
    database: Path, store: JobStore, server: LLMServer, client: object
) -> None:
    server.script(Answer("a short answer", chunk_size=4))
    before = store.stats().writer.operations
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        assert await text_of(call, client) == "a short answer"
    assert store.stats().writer.operations == before + 3
    assert (call.job.response, call.job.output_file_path) == ("a short answer", None)
    assert not Path(f"{database}.outputs").exists()


async def test_an_output_that_is_just_being_opened_at_the_end_has_the_answer(
    store: JobStore, server: LLMServer, client: object
) -> None:
    server.script("a short answer")
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        await text_of(call, client)
        call.answer.open_soon()  # as its timer does
    assert (call.job.status, call.job.response) == (JobStatus.COMPLETED, "a short answer")


async def test_eight_kilobytes_open_the_output_however_fast_they_come(
    store: JobStore, server: LLMServer, client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "OPEN_SECONDS", 3600)
    server.script(Answer("x" * 18_000, chunk_size=1000, ending="stall"))  # after half of it
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        stream = call.stream(client, model="claude-opus-5-5")
        for _ in range(9):
            await anext(stream)
        await eventually(lambda: _reads(store, [call], "x" * 9000))


async def test_what_waited_for_the_output_to_open_does_not_wait_in_it_again(
    store: JobStore, server: LLMServer, client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 3600)
    server.script(Answer("a short answer", chunk_size=7, ending="stall"))  # after half of it
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        assert await anext(call.stream(client, model="claude-opus-5-5")) == "a short"
        await eventually(lambda: _reads(store, [call], "a short"))


async def test_an_answer_without_a_text_is_an_empty_one(store: JobStore, server: LLMServer, client: object) -> None:
    server.script(Answer(""))
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        assert await text_of(call, client) == ""
    assert (call.job.status, call.job.response) == (JobStatus.COMPLETED, "")


async def test_a_short_answer_that_cannot_be_recorded_is_kept_as_far_as_possible(
    database: Path, server: LLMServer, client: object
) -> None:
    server.script(Answer("one two three", chunk_size=4))
    async with JobStore(database, migrate=True, max_output_bytes=10) as store:
        with pytest.raises(OutputTooLarge):
            async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
                await text_of(call, client)
        assert (call.job.status, call.job.error_type) == (JobStatus.FAILED, "OutputTooLarge")
        assert await store.jobs.read_response(call.job.id) == "one two "


async def test_an_answer_that_finds_no_room_is_not_completed(
    store: JobStore, server: LLMServer, client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_job_id: str) -> None:
        raise DiskFull

    server.script("x" * 20_000)
    async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
        monkeypatch.setattr(store.jobs._backend.outputs, "create", refuse)
        with pytest.raises(DiskFull):
            await text_of(call, client)
    assert (call.job.status, call.job.error_type) == (JobStatus.FAILED, "DiskFull")
    assert call.job.output_file_path is None


def test_the_store_loads_no_provider_by_itself() -> None:
    loaded = (
        "[name for name in sys.modules if name.startswith(('jobstore.providers', 'anthropic', 'openai', 'google'))]"
    )
    code = f"import sys, jobstore; print({loaded})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


async def _reads(store: JobStore, calls: list[RecordedCall], expected: str) -> bool:
    return bool(calls) and await store.jobs.read_response(calls[0].job.id) == expected
