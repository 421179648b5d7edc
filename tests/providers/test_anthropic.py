"""The Anthropic adapter against the local LLM server: the real SDK, over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from anthropic import AsyncAnthropic, CredentialsError
from anthropic.lib.credentials import AccessToken

from jobstore import Usage
from jobstore.providers import Category, Done, Event, ProviderError, Request, Sending, Text, adapter_of
from jobstore.testing import Answer, LLMServer, Refusal
from jobstore.testing.llm_answers import Ending

MODEL = "claude-opus-5-5"
PRIVATE = "words that only the prompt has"


def stream(client: AsyncAnthropic, prompt: str = PRIVATE, **fields: Any) -> AsyncGenerator[Event, None]:  # noqa: ANN401 - as a request takes them
    request = Request(model=MODEL, prompt=prompt, max_tokens=1000, **fields)
    return adapter_of(client).stream(client, request)


async def ask(client: AsyncAnthropic, prompt: str = PRIVATE, **fields: Any) -> list[Event]:  # noqa: ANN401 - as a request takes them
    return [event async for event in stream(client, prompt, **fields)]


async def ask_and_fail(client: AsyncAnthropic) -> tuple[list[Event], ProviderError]:
    """Return what was heard before the failure, and the failure."""
    heard: list[Event] = []
    with pytest.raises(ProviderError) as failure:
        await _listen(client, heard)
    assert PRIVATE not in "".join(traceback.format_exception(failure.value))
    return heard, failure.value


async def _listen(client: AsyncAnthropic, heard: list[Event]) -> None:
    async for event in stream(client):
        heard.append(event)  # noqa: PERF401 - kept also when the next one fails


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def test_an_answer_comes_in_pieces_with_its_counts_and_ends_with_done(
    server: LLMServer, client: AsyncAnthropic
) -> None:
    server.script(Answer("Grüße an 🌍 \0 alle", chunk_size=3, usage=Usage(input_tokens=7, output_tokens=5)))
    events = await ask(client)
    assert [event.text for event in events if isinstance(event, Text)] == ["Grü", "ße ", "an ", "🌍 \0", " al", "le"]
    counts = [event for event in events if isinstance(event, Usage)]
    assert (counts[0].input_tokens, counts[0].output_tokens) == (7, 1)
    assert (counts[-1].input_tokens, counts[-1].output_tokens) == (7, 5)
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.provider_reason, done.model) == ("stop", "end_turn", MODEL)
    assert (done.request_id, done.response_id) == (f"req_{1:024d}", f"msg_{1:024d}")


async def test_the_request_says_what_was_asked(server: LLMServer, client: AsyncAnthropic) -> None:
    await ask(client, "Explain\nthis", system="Be brief.", stop=["END"])
    [request] = server.requests
    assert (request.model, request.prompt, request.system) == (MODEL, "Explain\nthis", "Be brief.")
    assert (request.max_tokens, request.stream) == (1000, True)


async def test_input_tokens_include_what_came_from_the_cache_and_what_was_written_to_it(
    server: LLMServer, client: AsyncAnthropic
) -> None:
    counts = Usage(input_tokens=100, cache_read_tokens=60, cache_write_tokens=25, output_tokens=40, reasoning_tokens=30)
    server.script(Answer("Hello", usage=counts))
    events = await ask(client)
    assert [event for event in events if isinstance(event, Usage)][-1] == counts
    done = events[-1]
    assert isinstance(done, Done)
    assert done.raw_usage == {
        "input_tokens": 15,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 25,
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 30},
    }


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "paused"),
        ("something_new", "other"),
    ],
)
async def test_the_reason_to_stop_is_told_in_our_word_and_in_the_providers(
    server: LLMServer, client: AsyncAnthropic, stop_reason: str, finish_reason: str
) -> None:
    server.script(Answer("Hello", stop_reason=stop_reason))
    done = (await ask(client))[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.provider_reason) == (finish_reason, stop_reason)


async def test_a_refusal_by_the_model_is_no_answer_but_its_tokens_are_known(
    server: LLMServer, client: AsyncAnthropic
) -> None:
    server.script(Answer("I can", stop_reason="refusal", usage=Usage(output_tokens=9)))
    heard, error = await ask_and_fail(client)
    assert (error.category, error.retryable, error.code) == ("content_filtered", False, "refusal")
    assert [event for event in heard if isinstance(event, Usage)][-1].output_tokens == 9


@pytest.mark.parametrize(
    ("ending", "category", "http_status", "code"),
    [
        ("early_end", "truncated", 200, None),
        ("error", "overloaded", 200, "overloaded_error"),
        ("abort", "connection", None, "RemoteProtocolError"),
    ],
)
async def test_a_stream_that_does_not_end_properly_fails_after_its_first_half(
    server: LLMServer,
    client: AsyncAnthropic,
    ending: Ending,
    category: Category,
    http_status: int | None,
    code: str | None,
) -> None:
    server.script(Answer("first half second half", ending=ending, chunk_size=4))
    heard, error = await ask_and_fail(client)
    assert text_of(heard) == "first half "
    assert (error.category, error.retryable, error.http_status, error.code) == (category, True, http_status, code)
    assert error.request_id == f"req_{1:024d}"
    assert not any(isinstance(event, Done) for event in heard)


async def test_an_unknown_error_in_mid_stream_is_the_servers(server: LLMServer, client: AsyncAnthropic) -> None:
    server.script(Answer("first half second half", ending="error", error_type="brand_new_error"))
    _, error = await ask_and_fail(client)
    assert (error.category, error.retryable, error.code) == ("server_error", True, "brand_new_error")


@pytest.mark.parametrize(
    ("refusal", "category", "retryable"),
    [
        (Refusal(429), "rate_limited", True),
        (Refusal(429, headers={"x-should-retry": "false"}), "rate_limited", False),
        (Refusal(429, error_code="enforced_spend_limit_reached"), "quota_exhausted", False),
        (Refusal(402), "quota_exhausted", False),
        (Refusal(529), "overloaded", True),
        (Refusal(400), "invalid_request", False),
        (Refusal(404), "invalid_request", False),
        (Refusal(400, "prompt is too long: 300000 tokens > 200000 maximum"), "context_too_long", False),
        (Refusal(413), "context_too_long", False),
        (Refusal(400, "Output blocked by content filtering policy"), "content_filtered", False),
        (Refusal(401), "authentication", False),
        (Refusal(403), "authentication", False),
        (Refusal(408, error_type="unheard_of"), "timeout", True),
        (Refusal(409, error_type="unheard_of"), "server_error", True),
        (Refusal(422, error_type="unheard_of"), "invalid_request", False),
        (Refusal(500), "server_error", True),
        (Refusal(504), "timeout", True),
    ],
    ids=lambda value: f"{value.status}-{value.error_code or value.message[:6]}" if isinstance(value, Refusal) else None,
)
async def test_an_error_response_has_its_category_and_is_not_retried_by_the_sdk(
    server: LLMServer, client: AsyncAnthropic, refusal: Refusal, category: Category, *, retryable: bool
) -> None:
    server.script(refusal)
    heard, error = await ask_and_fail(client)
    assert heard == [Sending()]
    assert (error.category, error.retryable, error.http_status) == (category, retryable, refusal.status)
    assert (error.provider, error.request_id, error.retry_after) == ("anthropic", f"req_{1:024d}", None)
    assert error.provider_message == refusal.message
    assert len(server.requests) == 1


async def test_what_the_server_says_may_quote_the_prompt_and_stays_out_of_messages(
    server: LLMServer, client: AsyncAnthropic
) -> None:
    server.script(Refusal(400, f"messages.0: {PRIVATE}", error_type=PRIVATE, error_code=PRIVATE))
    _, error = await ask_and_fail(client)
    assert error.provider_message == f"messages.0: {PRIVATE}"
    assert error.code is None
    assert "HTTP 400" in str(error)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1e300"}, 86_400.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
    ],
)
async def test_retry_after_is_understood_in_all_its_forms(
    server: LLMServer, client: AsyncAnthropic, headers: dict[str, str], seconds: float | None
) -> None:
    server.script(Refusal(429, headers=headers))
    _, error = await ask_and_fail(client)
    assert error.retry_after == seconds


async def test_retry_after_may_be_a_date_ahead(server: LLMServer, client: AsyncAnthropic) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.script(Refusal(429, retry_after=date))
    _, error = await ask_and_fail(client)
    assert error.retry_after is not None
    assert 3000 < error.retry_after <= 3600


async def test_the_same_client_works_after_every_kind_of_failure(server: LLMServer, client: AsyncAnthropic) -> None:
    endings: tuple[Ending, ...] = ("early_end", "error", "abort")
    for ending in endings:
        server.script(Answer("x" * 100_000, ending=ending), "fine")
        await ask_and_fail(client)
        assert text_of(await ask(client)) == "fine"


async def test_nobody_listening_is_a_connection_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with AsyncAnthropic(api_key="any", base_url=url) as client:
            _, error = await ask_and_fail(client)
    assert (error.category, error.retryable, error.code) == ("connection", True, "ConnectError")


async def test_credentials_that_cannot_be_loaded_are_an_authentication_error(server: LLMServer) -> None:
    async def credentials(*, force_refresh: bool = False) -> AccessToken:
        raise CredentialsError(f"no token to be had, refreshed: {force_refresh}")

    async with AsyncAnthropic(credentials=credentials, base_url=server.url) as client:
        _, error = await ask_and_fail(client)
    assert (error.category, error.retryable, error.code) == ("authentication", False, "CredentialsError")
    assert server.requests == []


async def test_a_server_that_falls_silent_is_a_timeout(server: LLMServer, client: AsyncAnthropic) -> None:
    server.script(Answer("never", delay=3600.0))
    _, error = await ask_and_fail(client.with_options(timeout=0.05))
    assert (error.category, error.retryable) == ("timeout", True)


async def speak(*pieces: bytes) -> tuple[asyncio.Server, str]:
    """Serve raw bytes to whoever asks, and close the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    return listening, "http://127.0.0.1:{1}".format(*listening.sockets[0].getsockname())


EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_an_answer_that_was_complete_counts_though_the_connection_breaks_after_it() -> None:
    listening, url = await speak(
        EVENT_STREAM,
        chunk(
            b'event: message_delta\ndata: {"type": "message_delta", "delta": {"stop_reason": "end_turn"},'
            b' "usage": {"output_tokens": "many"}}\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n'
        ),
    )
    async with listening, AsyncAnthropic(api_key="any", base_url=url) as client:
        events = await ask(client)
    assert isinstance(events[-1], Done)
    assert [event for event in events if isinstance(event, Usage)] == [Usage()]  # a count that is none is unknown


@pytest.mark.parametrize("garbage", [b"{oh dear", b"\xff"])
async def test_garbage_instead_of_events_is_the_servers_error(garbage: bytes) -> None:
    listening, url = await speak(EVENT_STREAM, chunk(b"event: message_start\ndata: " + garbage + b"\n\n"))
    async with listening, AsyncAnthropic(api_key="any", base_url=url) as client:
        _, error = await ask_and_fail(client)
    assert (error.category, error.retryable) == ("server_error", True)


async def test_a_long_plan_is_answered_with_more_than_a_megabyte(client: AsyncAnthropic) -> None:
    prompt = "Write a long implementation plan.\n\ndef area(width, height)"
    first = text_of(await ask(client, prompt))
    assert len(first.encode()) >= 2**20
    assert text_of(await ask(client, prompt)) == first


async def test_leaving_an_answer_half_read_lets_the_next_one_through(server: LLMServer, client: AsyncAnthropic) -> None:
    server.script(Answer("x" * 1_000_000))
    async with aclosing(stream(client, "Say much")) as answer:
        async for event in answer:
            if isinstance(event, Text):
                break
    assert text_of(await ask(client, "Say hello")) != ""


async def test_no_text_shows_in_the_repr_of_an_event() -> None:
    assert PRIVATE not in repr(Text(PRIVATE))
