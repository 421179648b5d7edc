"""Every SDK and every way in which an answer can end: each adapter tells it in the same words."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing

import pytest

from jobstore.providers import Category, Responded, Sending, Text
from jobstore.testing import Answer, LLMServer, Refusal
from jobstore.testing.llm_answers import API, Ending, Failure
from tests.providers.support import (
    APIS,
    EVENT_STREAM,
    Speaker,
    chunk,
    done_of,
    of_type,
    raw_server,
    speaking,
    text_of,
)

MIDWAY: dict[Ending, tuple[Category, int | None]] = {
    "early_end": ("truncated", 200),
    "error": ("overloaded", 200),
    "abort": ("connection", None),
}
REFUSED: dict[Failure, tuple[Category, bool]] = {
    "rate_limited": ("rate_limited", True),
    "overloaded": ("overloaded", True),
    "quota": ("quota_exhausted", False),
    "invalid": ("invalid_request", False),
    "expired": ("authentication", False),
    "context_too_long": ("context_too_long", False),
    "server_error": ("server_error", True),
    "timeout": ("timeout", True),
}


async def test_a_whole_answer_ends_with_done(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("Grüße an 🌍 \0 alle", chunk_size=3))
    events = await speaker.ask()
    assert [event.text for event in of_type(events, Text)] == ["Grü", "ße ", "an ", "🌍 \0", " al", "le"]
    assert done_of(events).finish_reason == "stop"


@pytest.mark.parametrize("ending", MIDWAY)
async def test_a_stream_that_does_not_end_properly_fails_after_its_first_half(
    server: LLMServer, speaker: Speaker, ending: Ending
) -> None:
    server.script(Answer("first half second half", ending=ending, chunk_size=4))
    heard, error = await speaker.ask_and_fail()
    assert text_of(heard) == "first half "
    assert (error.category, error.http_status) == MIDWAY[ending]
    assert error.retryable
    assert len(server.requests) == 1


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("answer", [Answer("first half second half", ending="stall"), Answer("slow", delay=3600.0)])
async def test_a_stream_that_falls_silent_or_never_begins_is_a_timeout(
    server: LLMServer, api: API, answer: Answer
) -> None:
    server.script(answer)
    async with speaking(api, server.url, timeout=0.3) as speaker:
        _, error = await speaker.ask_and_fail()
    assert (error.category, error.retryable, error.http_status) == ("timeout", True, None)
    await asyncio.wait_for(server.idle(), 30)


@pytest.mark.parametrize("failure", REFUSED)
async def test_an_error_response_has_its_category_and_is_not_tried_again_by_the_sdk(
    server: LLMServer, speaker: Speaker, failure: Failure
) -> None:
    server.script(Refusal(failure))
    heard, error = await speaker.ask_and_fail()
    assert heard == [Sending()]
    assert (error.category, error.retryable) == REFUSED[failure]
    assert len(server.requests) == 1


async def test_how_long_to_wait_is_told(server: LLMServer, speaker: Speaker) -> None:
    server.script(Refusal("rate_limited", retry_after=2.5))
    _, error = await speaker.ask_and_fail()
    assert (error.category, error.retry_after, error.http_status) == ("rate_limited", 2.5, 429)


async def test_the_sdk_tries_again_if_it_is_told_to(server: LLMServer, speaker: Speaker) -> None:
    server.script(Refusal("overloaded", headers={"retry-after-ms": "1"}), "at last")
    events = speaker.adapter.stream(speaker.client, speaker.request(), sdk_retries=True)
    assert text_of([event async for event in events]) == "at last"
    assert len(server.requests) == 2


async def test_a_huge_answer_arrives_whole(server: LLMServer, speaker: Speaker) -> None:
    huge = "0123456789" * 200_000
    server.script(Answer(huge))
    assert text_of(await speaker.ask()) == huge


async def test_the_same_client_works_after_every_kind_of_failure(server: LLMServer, speaker: Speaker) -> None:
    for ending in MIDWAY:
        server.script(Answer("x" * 100_000, ending=ending), "fine")
        await speaker.ask_and_fail()
        assert text_of(await speaker.ask()) == "fine"


async def test_leaving_an_answer_half_read_ends_its_connection(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("first half second half", ending="stall", chunk_size=4))
    async with aclosing(speaker.stream()) as answer:
        async for event in answer:
            if isinstance(event, Text):
                break
    await asyncio.wait_for(server.idle(), 30)
    assert text_of(await speaker.ask("Say hello")) != ""


async def test_cancelling_whoever_listens_ends_the_connection(server: LLMServer, speaker: Speaker) -> None:
    heard = asyncio.Event()
    server.script(Answer("first half second half", ending="stall", chunk_size=4))

    async def listen() -> None:
        async for event in speaker.stream():
            if isinstance(event, Text):
                heard.set()

    listening = asyncio.create_task(listen())
    await heard.wait()
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    await asyncio.wait_for(server.idle(), 30)


@pytest.mark.parametrize("api", APIS)
async def test_nobody_listening_is_a_connection_error(api: API) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take the port
        async with speaking(api, f"http://127.0.0.1:{taken.getsockname()[1]}") as speaker:
            heard, error = await speaker.ask_and_fail()
    assert heard == [Sending()]
    assert (error.category, error.retryable, error.code) == ("connection", True, "ConnectError")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("garbage", [b"{oh dear", b"\xff", b'{"type": "message_start", "message": null}', b"[]", b"7"])
async def test_garbage_instead_of_events_is_the_servers_error(api: API, garbage: bytes) -> None:
    said = b"event: message_start\ndata: " + garbage + b"\n\n"
    async with raw_server(EVENT_STREAM, chunk(said), chunk(b"")) as url, speaking(api, url) as speaker:
        _, error = await speaker.ask_and_fail()
    assert error.category in {"server_error", "truncated"}
    assert error.retryable


@pytest.mark.parametrize("api", APIS)
async def test_an_empty_stream_is_truncated(api: API) -> None:
    async with raw_server(EVENT_STREAM, chunk(b"")) as url, speaking(api, url) as speaker:
        heard, error = await speaker.ask_and_fail()
    assert [type(event) for event in heard] == [Sending, Responded]
    assert (error.category, error.http_status) == ("truncated", 200)
