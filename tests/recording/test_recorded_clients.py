"""Clients made by `recorded`: the program sees what it would have seen, and every call of a model is recorded."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, assert_type

import httpx2
import pytest
from anthropic import AsyncAnthropic, AsyncAnthropicVertex
from anthropic.types import Message
from google import genai
from openai import AsyncOpenAI
from pydantic import BaseModel

from jobstore import DiskFull, InvalidArgument, Job, JobStatus, JobStore, JobStoreError, StoreClosed
from jobstore.calls import ApiCall
from jobstore.operations.promotion import end_leases
from jobstore.providers import adapter_of, recorded, sdk_calls, unrecorded
from jobstore.providers.gemini import _leave as leave
from jobstore.testing import Answer, LLMServer, Refusal
from jobstore.testing.llm_answers import API, LLMRequest, Script
from tests.conformance.support import eventually
from tests.providers.support import APIS, MODELS, PRIVATE, Speaker, raw_server, speaking

NOW = {"retry-after-ms": "1"}
HALF = "first half "
STREAM = (
    b'data: {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hello"}}]}\n\n'
    b'data: {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    b"data: [DONE]\n\n"
)
ENDS = ("message_stop", "response.completed", "finish_reason='stop'", "FinishReason.STOP")
"""How each SDK shows the end of an answer."""
TEXT = "first half second half"
REPLIES: dict[str, tuple[Script, ...]] = {
    "ok": (Answer("Grüße an 🌍 \0 alle", chunk_size=3),),
    "early end": (Answer(TEXT, ending="early_end", chunk_size=4), Answer(TEXT)),
    "error": (Answer(TEXT, ending="error", chunk_size=4), Answer(TEXT)),
    "abort": (Answer(TEXT, ending="abort", chunk_size=4), Answer(TEXT)),
    "invalid": (Refusal("invalid"),),
    "expired": (Refusal("expired"),),
    "refused for good": tuple(Refusal("rate_limited", headers=NOW) for _ in range(6)),
    "overloaded, then fine": (Refusal("overloaded", headers=NOW), Answer(TEXT)),
}
"""What the server says, also should it be asked again."""
STREAMED = {
    "ok": ("completed", ["succeeded"]),
    "early end": ("truncated", ["truncated"]),
    "error": ("overloaded", ["failed"]),
    "abort": ("connection", ["failed"]),
    "invalid": ("invalid_request", ["failed"]),
    "expired": ("authentication", ["failed"]),
    "overloaded, then fine": ("completed", ["failed", "succeeded"]),
}
"""How the job ends, and its rows of the ledger."""


async def ask(speaker: Speaker, client: Any, *, streamed: bool, prompt: str = PRIVATE) -> Any:  # noqa: ANN401
    """Make a call, as its SDK has it; of a streamed one return the stream."""
    arguments = await speaker.adapter.arguments(speaker.request(prompt))
    match speaker.api:
        case "anthropic":
            return await client.messages.create(**arguments, stream=streamed)
        case "openai":
            return await client.responses.create(**arguments, stream=streamed)
        case "openai_chat":
            arguments["stream_options"] = {"include_usage": True} if streamed else None
            return await client.chat.completions.create(**arguments, stream=streamed)
    models = client.aio.models
    return await (models.generate_content_stream if streamed else models.generate_content)(**arguments)


def plain(value: Any) -> Any:  # noqa: ANN401 - whatever an SDK returns or raises
    """Return all that can be compared of it."""
    if isinstance(value, BaseModel):
        return type(value), value.model_dump(exclude={"sdk_http_response"}), getattr(value, "_request_id", None)
    if isinstance(value, Exception):
        names = ("status_code", "code", "status", "type", "body", "details", "request_id", "message", "error_code")
        attributes = {name: getattr(value, name, None) for name in names}
        return type(value), str(value), attributes, type(value.__cause__)
    return value


async def outcome(speaker: Speaker, client: Any, *, streamed: bool) -> list[Any]:  # noqa: ANN401
    """Return all that the program sees of a call: values, or pieces, and what was raised."""
    seen: list[Any] = []
    try:
        answer = await ask(speaker, client, streamed=streamed)
        if not streamed:
            return [plain(answer)]
        async for piece in answer:
            seen.append(plain(piece))  # noqa: PERF401 - kept also when the next one fails
    except Exception as error:  # noqa: BLE001 - it is what is compared
        seen.append(plain(error))
    return seen


@asynccontextmanager
async def twins(api: API) -> AsyncIterator[list[tuple[LLMServer, Speaker]]]:
    """Yield two servers that say the same, each with a client."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(LLMServer()) for _ in range(2)]
        speakers = [await stack.enter_async_context(speaking(api, server.url)) for server in servers]
        yield list(zip(servers, speakers, strict=True))


async def last(store: JobStore) -> tuple[Job, list[ApiCall]]:
    """Return the latest job, once it has ended, with its calls."""
    [listed] = (await store.jobs.list(limit=1)).items
    job = await store.jobs.wait(listed.id, timeout=30)
    return job, await store.calls.list(job.id)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_program_sees_what_it_would_have_seen(store: JobStore, api: API, streamed: bool) -> None:  # noqa: FBT001
    async with twins(api) as [(server, speaker), (tapped_server, tapped)]:
        client = recorded(tapped.client, store, task_type="ask")
        for told, replies in REPLIES.items():
            server.script(*replies)
            tapped_server.script(*replies)
            expected, seen = await asyncio.gather(
                outcome(speaker, speaker.client, streamed=streamed), outcome(tapped, client, streamed=streamed)
            )
            assert repr(seen).replace(tapped_server.url, server.url) == repr(expected), told
            job, calls = await last(store)
            assert len(calls) == len(tapped_server.requests), told
            assert job.prompt == PRIVATE
            if streamed and told in STREAMED:
                assert (job.error_type or job.status.value, [call.status.value for call in calls]) == STREAMED[told]
            for each in (server, tapped_server):
                each.requests.clear()
                each._script.clear()
        assert unrecorded(client) == 0


async def test_a_call_is_a_job_with_its_answer_and_what_it_took(
    store: JobStore, server: LLMServer, speaker: Speaker
) -> None:
    session = await store.sessions.create(name="talk", project_directory="/somewhere")
    client = recorded(speaker.client, store, task_type="ask", session_id=session.id)
    assert type(client) is type(speaker.client)
    for streamed in (False, True):
        server.script(Answer(TEXT, chunk_size=4))
        await outcome(speaker, client, streamed=streamed)
        job, [call] = await last(store)
        assert (job.status, job.task_type, job.session_id) == (JobStatus.COMPLETED, "ask", session.id)
        assert (job.model_used, job.max_attempts) == (MODELS[speaker.api], 1)
        assert await store.jobs.read_response(job.id) == TEXT
        assert (call.status, call.http_status, call.finish_reason) == ("succeeded", 200, "stop")
        assert call.cost is not None
        assert (job.input_tokens, job.output_tokens, job.cost) == (call.input_tokens, call.output_tokens, call.cost)
        assert (call.provider, call.model_asked) == (speaker.adapter.provider, MODELS[speaker.api])


@pytest.mark.parametrize("streamed", [False, True])
async def test_each_try_of_the_sdk_has_its_row(
    store: JobStore,
    server: LLMServer,
    speaker: Speaker,
    streamed: bool,  # noqa: FBT001
) -> None:
    client = recorded(speaker.client, store, task_type="ask")
    server.script(Refusal("overloaded", headers=NOW), Refusal("server_error", headers=NOW), Answer(TEXT))
    await outcome(speaker, client, streamed=streamed)
    job, calls = await last(store)
    assert [(call.status, call.error_category) for call in calls] == [
        ("failed", "overloaded"),
        ("failed", "server_error"),
        ("succeeded", None),
    ]
    assert job.status is JobStatus.COMPLETED
    assert await store.jobs.count() == 1


async def test_who_leaves_a_stream_finds_the_job_canceled_and_its_beginning_kept(
    store: JobStore, server: LLMServer, speaker: Speaker
) -> None:
    client = recorded(speaker.client, store, task_type="ask")
    server.script(Answer(TEXT, ending="stall", chunk_size=4))
    stream = await ask(speaker, client, streamed=True)
    async for piece in stream:
        if "'lf '" in str(piece):
            break
    if speaker.api == "gemini":
        await leave(stream)
    else:
        await stream.close()
    del stream
    gc.collect()
    job, [call] = await last(store)
    assert (job.status, call.status) == (JobStatus.CANCELED, "canceled")
    assert HALF.startswith(await store.jobs.read_response(job.id) or "none")


@pytest.mark.parametrize("streamed", [False, True])
async def test_whoever_is_cancelled_finds_the_job_canceled(
    store: JobStore,
    server: LLMServer,
    speaker: Speaker,
    streamed: bool,  # noqa: FBT001
) -> None:
    client = recorded(speaker.client, store, task_type="ask")
    server.script(Answer(TEXT, ending="stall", chunk_size=4))
    asking = asyncio.create_task(outcome(speaker, client, streamed=streamed))
    await eventually(lambda: len(server.requests) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    job, [call] = await last(store)
    assert (job.status, call.status) == (JobStatus.CANCELED, "canceled")


async def test_wherever_a_call_is_cancelled_its_job_ends(store: JobStore, speaker: Speaker) -> None:
    client = recorded(speaker.client, store, task_type="ask")
    for steps in range(0, 120, 5):
        asking = asyncio.create_task(outcome(speaker, client, streamed=bool(steps % 2)))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
    for job in (await store.jobs.list()).items:
        assert (await store.jobs.wait(job.id, timeout=30)).status.is_terminal
        assert all(call.status != "sent" for call in await store.calls.list(job.id))


async def test_a_stream_that_is_dropped_unread_is_canceled(
    store: JobStore, speaker: Speaker, server: LLMServer
) -> None:
    if speaker.api == "gemini":  # it asks only when it is read
        return
    client = recorded(speaker.client, store, task_type="ask")
    server.script(Answer(TEXT, ending="stall", chunk_size=4))
    stream = await ask(speaker, client, streamed=True)
    del stream
    gc.collect()
    job, [call] = await last(store)
    assert (job.status, call.status) == (JobStatus.CANCELED, "canceled")


async def test_typed_helpers_and_raw_responses_are_unchanged(store: JobStore, speakers: dict[API, Speaker]) -> None:
    claude = recorded(speakers["anthropic"].client, store, task_type="ask")
    said: dict[str, Any] = {
        "model": "claude-opus-5-5",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    async with claude.messages.stream(**said) as events:
        text = "".join([piece async for piece in events.text_stream])
        assert (await events.get_final_message()).content[0].text == text
    raw = await claude.messages.with_raw_response.create(**said)
    assert raw.headers["request-id"]
    assert (await raw.parse()).content[0].text == text
    async with claude.messages.with_streaming_response.create(**said) as response:
        assert (await response.parse()).content[0].text == text
    await claude.with_options(timeout=9, max_retries=0).with_options(timeout=8).messages.create(**said)

    gpt = recorded(speakers["openai"].client, store, task_type="ask")
    async with gpt.responses.stream(model="gpt-6-luna", input="Hi") as events:
        assert (await events.get_final_response()).output_text == text
    async with gpt.chat.completions.stream(model="gpt-6-luna", messages=said["messages"]) as chunks:
        assert (await chunks.get_final_completion()).choices[0].message.content == text
    raw = await gpt.responses.with_raw_response.create(model="gpt-6-luna", input="Hi")
    assert raw.parse().output_text == text

    gemini = recorded(speakers["gemini"].client.aio, store, task_type="ask")
    chat = gemini.chats.create(model="gemini-3.8-flash")
    assert (await chat.send_message("Hi")).text == text

    jobs = [await store.jobs.wait(job.id, timeout=30) for job in (await store.jobs.list()).items]
    assert [(job.status, await store.jobs.read_response(job.id)) for job in jobs] == [(JobStatus.COMPLETED, text)] * 8


async def test_a_response_closed_unread_is_canceled(store: JobStore, client_of_claude: AsyncAnthropic) -> None:
    client = recorded(client_of_claude, store, task_type="ask")
    message: Any = [{"role": "user", "content": "Hi"}]
    async with client.messages.with_streaming_response.create(model="any", max_tokens=9, messages=message):
        pass
    job, [call] = await last(store)
    assert (job.status, call.status) == (JobStatus.CANCELED, "canceled")


@pytest.fixture
def client_of_claude(speakers: dict[API, Speaker]) -> AsyncAnthropic:
    client: AsyncAnthropic = speakers["anthropic"].client
    return client


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_store_that_is_closed_does_not_stop_the_call(
    database: Path,
    server: LLMServer,
    speaker: Speaker,
    streamed: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with JobStore(database, migrate=True) as store:
        client = recorded(speaker.client, store, task_type="ask")
        strict = recorded(speaker.client, store, task_type="ask", strict=True)
    server.script(Answer(TEXT), Answer(TEXT))
    with caplog.at_level(logging.WARNING):
        seen = await outcome(speaker, client, streamed=streamed)
    assert len(seen) == len(await outcome(speaker, speaker.client, streamed=streamed))
    assert not any(isinstance(kind, type) and issubclass(kind, Exception) for kind, *_ in seen)
    assert unrecorded(client) == 1
    assert [record.message.rpartition(" ")[2] for record in caplog.records] == ["StoreClosed"]
    assert PRIVATE not in caplog.text
    server.requests.clear()
    with pytest.raises(StoreClosed):
        [piece async for piece in await ask(speaker, strict, streamed=True)]
    assert (server.requests, unrecorded(strict)) == ([], 1)


async def test_a_store_that_closes_records_first_what_came_until_then(
    database: Path, server: LLMServer, speaker: Speaker
) -> None:
    server.script(Answer(TEXT, ending="stall", chunk_size=4), Answer(TEXT, chunk_size=4))
    async with JobStore(database, migrate=True) as store:
        client = recorded(speaker.client, store, task_type="ask")
        left = await ask(speaker, client, streamed=True)
        async for piece in left:
            if "'lf '" in str(piece):
                break
        read = await ask(speaker, client, streamed=True)
        async for piece in read:
            if any(end in str(piece) for end in ENDS):
                break  # whoever has seen the end need not read on, nor close the stream
    async with JobStore(database) as store:
        whole, part = (await store.jobs.list()).items
        assert (part.status, (await store.calls.list(part.id))[0].status) == (JobStatus.CANCELED, "canceled")
        assert HALF.startswith(await store.jobs.read_response(part.id) or "none")
        assert (whole.status, (await store.calls.list(whole.id))[0].status) == (JobStatus.COMPLETED, "succeeded")
        assert await store.jobs.read_response(whole.id) == TEXT
    for stream in (left, read):
        await (leave(stream) if speaker.api == "gemini" else stream.close())


@pytest.mark.parametrize("strict", [False, True])
async def test_a_call_that_outlives_the_store_is_told_of(
    database: Path,
    server: LLMServer,
    client_of_claude: AsyncAnthropic,
    strict: bool,  # noqa: FBT001
) -> None:
    is_closed = asyncio.Event()

    async def late(_request: LLMRequest) -> Answer:
        await is_closed.wait()
        return Answer(TEXT)

    server.script(late)
    async with JobStore(database, migrate=True) as store:
        client = recorded(client_of_claude, store, task_type="ask", strict=strict)
        asking = asyncio.create_task(outcome(Speaker("anthropic", adapter_of(client), client), client, streamed=False))
        await eventually(lambda: len(server.requests) == 1)
    is_closed.set()
    [(kind, *_)] = await asking
    assert kind is (StoreClosed if strict else Message)
    assert unrecorded(client) == 1


async def test_a_full_disk_does_not_stop_the_call(
    store: JobStore, speaker: Speaker, server: LLMServer, caplog: pytest.LogCaptureFixture
) -> None:
    engine: Any = store._opened().backend.engine
    await engine._writer.submit(lambda connection: connection.execute("PRAGMA max_page_count = 1"))  # no more than are
    prompt = "x" * 60_000
    client = recorded(speaker.client, store, task_type="ask")
    answers = [await ask(speaker, client, streamed=False, prompt=prompt) for _ in range(2)]
    assert len(answers) == len(server.requests) == 2
    assert unrecorded(client) == 2
    assert "DiskFull" in caplog.text
    strict = recorded(speaker.client, store, task_type="ask", strict=True)
    with pytest.raises(DiskFull):
        await ask(speaker, strict, streamed=False, prompt=prompt)
    assert len(server.requests) == 2


async def test_a_stream_waits_for_its_recording_once_at_either_end(
    database: Path, client_of_claude: AsyncAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    timeout = asyncio.timeout

    def counted(seconds: float | None) -> asyncio.Timeout:
        if seconds == sdk_calls.PATIENCE:
            waits.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(sdk_calls, "PATIENCE", 0.0123)
    monkeypatch.setattr(asyncio, "timeout", counted)
    message: Any = [{"role": "user", "content": "Hi"}]
    async with JobStore(database, migrate=True) as store:
        client = recorded(client_of_claude, store, task_type="ask")
        with locked(database):
            async with client.messages.stream(model="any", max_tokens=9, messages=message) as stream:
                await stream.until_done()
            assert len(waits) == 2

        async def is_recorded() -> bool:
            return await store.jobs.count(status="completed") == 1

        await eventually(is_recorded)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Let nobody else write into a database."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("strict", [False, True])
async def test_a_job_that_is_lost_meanwhile_is_told_only_if_wanted(
    store: JobStore,
    server: LLMServer,
    speaker: Speaker,
    strict: bool,  # noqa: FBT001
) -> None:
    client = recorded(speaker.client, store, task_type="ask", strict=strict)
    server.script(Answer(TEXT, chunk_size=4))
    stream = await ask(speaker, client, streamed=True)
    pieces = [await anext(aiter(stream))]
    await store.execute("DELETE FROM background_jobs")
    with pytest.raises(JobStoreError) if strict else nullcontext():
        pieces += [piece async for piece in stream]
        assert "'lf'" in str(pieces)
    assert unrecorded(client) == 1


async def test_many_at_once_each_have_their_own_job(store: JobStore, speaker: Speaker) -> None:
    client = recorded(speaker.client, store, task_type="ask")

    async def one(number: int) -> None:
        answer = await ask(speaker, client, streamed=bool(number % 2), prompt=f"number {number}")
        if number % 2:
            [piece async for piece in answer]

    await asyncio.gather(*map(one, range(50)))
    jobs = [await store.jobs.wait(job.id, timeout=30) for job in (await store.jobs.list(limit=100)).items]
    assert sorted(job.prompt or "" for job in jobs) == sorted(f"number {number}" for number in range(50))
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    [calls] = await store.execute("SELECT COUNT(*) AS number FROM api_calls WHERE status = 'succeeded'")
    assert (calls["number"], unrecorded(client)) == (50, 0)


async def test_a_compressed_response_is_understood(store: JobStore) -> None:
    sent = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}\n\n'
    body = gzip.compress(sent)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
    async with (
        raw_server(head + b"content-length: %d\r\n\r\n" % len(body), body) as url,
        speaking("anthropic", url) as speaker,
    ):
        await outcome(speaker, recorded(speaker.client, store, task_type="ask"), streamed=True)
    job, _ = await last(store)
    assert job.error_type == "overloaded"


async def test_a_stream_that_was_read_before_as_from_a_cache_is_understood(store: JobStore) -> None:
    kept = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=STREAM)
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: kept)) as http:
        client = recorded(AsyncOpenAI(api_key="any", http_client=http), store, task_type="ask")
        message: Any = [{"role": "user", "content": "Hi"}]
        stream = await client.chat.completions.create(model="any", messages=message, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello"
    job, [call] = await last(store)
    assert (job.status, call.status) == (JobStatus.COMPLETED, "succeeded")
    assert await store.jobs.read_response(job.id) == "Hello"


async def test_what_asks_no_model_is_not_recorded(store: JobStore, speakers: dict[API, Speaker]) -> None:
    client = recorded(speakers["openai"].client, store, task_type="ask")
    with pytest.raises(Exception, match="404"):
        await client.models.list()
    with pytest.raises(Exception, match="404"):
        await client.embeddings.create(model="any", input="text")
    assert await store.jobs.count() == 0


async def test_the_other_client_stays_as_it_is_and_shares_its_connections(store: JobStore, speaker: Speaker) -> None:
    client = recorded(speaker.client, store, task_type="ask")
    await ask(speaker, speaker.client, streamed=False)
    assert await store.jobs.count() == 0
    with pytest.raises(InvalidArgument, match="recorded already"):
        recorded(client, store, task_type="ask")
    del client
    gc.collect()
    await ask(speaker, speaker.client, streamed=False)
    with pytest.raises(InvalidArgument, match="not recorded"):
        unrecorded(speaker.client)
    if speaker.api != "gemini":  # whose HTTP clients are the program's to close, when it has given them
        async with recorded(speaker.client, store, task_type="ask"):
            pass
        assert speaker.client.is_closed()


async def test_a_gemini_client_with_connections_of_its_own_is_closed_by_the_recorded_one(
    store: JobStore, server: LLMServer
) -> None:
    client = recorded(
        genai.Client(api_key="any", http_options={"base_url": server.url, "api_version": "v1"}), store, task_type="ask"
    )
    gc.collect()  # nobody else holds the original
    await client.aio.models.generate_content(model="gemini-3.8-flash", contents="Hi")
    client.models.generate_content  # noqa: B018 - it is there
    await client.aio.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await client.aio.models.generate_content(model="gemini-3.8-flash", contents="Hi")


def test_what_cannot_be_recorded_is_refused(store: JobStore) -> None:
    with pytest.raises(InvalidArgument, match="client"):
        recorded(object(), store, task_type="ask")
    vertex: Any = object.__new__(AsyncAnthropicVertex)
    with pytest.raises(InvalidArgument, match="Vertex"):
        recorded(vertex, store, task_type="ask")


async def test_a_client_that_records_by_itself_is_not_asked_for_a_job(
    store: JobStore, server: LLMServer, client_of_claude: AsyncAnthropic
) -> None:
    client = recorded(client_of_claude, store, task_type="ask")
    with pytest.raises(InvalidArgument, match="recorded"):
        async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            [text async for text in call.stream(client, model="any")]
    assert (server.requests, await store.jobs.count()) == ([], 1)


@pytest.mark.full
def test_types_are_the_original_s() -> None:
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout


async def typed(store: JobStore) -> None:
    """Is never run: mypy finds here that the types are the original's."""
    claude = recorded(AsyncAnthropic(), store, task_type="ask")
    assert_type(claude, AsyncAnthropic)
    assert_type(await claude.messages.create(model="any", max_tokens=9, messages=[]), Message)
    assert_type(recorded(AsyncOpenAI(), store, task_type="ask"), AsyncOpenAI)
    assert_type(recorded(genai.Client(), store, task_type="ask"), genai.Client)


KILLED = """
import asyncio, sys
from anthropic import AsyncAnthropic
from jobstore import JobStore
from jobstore.providers import recorded

async def main(database, url):
    async with JobStore(database) as store, AsyncAnthropic(api_key="any", base_url=url) as original:
        client = recorded(original, store, task_type="ask")
        message = {"role": "user", "content": "Hi"}
        async for _ in await client.messages.create(model="any", max_tokens=9, messages=[message], stream=True):
            pass

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_program_that_is_killed_leaves_its_call_unknown_and_its_beginning(
    database: Path, server: LLMServer
) -> None:
    server.script(Answer(TEXT, ending="stall", chunk_size=4))
    async with JobStore(database, migrate=True) as store:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(database), server.url)

        async def has_begun() -> bool:
            jobs = (await store.jobs.list()).items
            return bool(jobs) and await store.jobs.read_response(jobs[0].id) == HALF

        await eventually(has_begun)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await store.run(end_leases)
        job, [call] = await last(store)
        assert (job.status, call.status) == (JobStatus.FAILED, "unknown")
        assert await store.jobs.read_response(job.id) == HALF
