"""Streams that come in pieces of any size, cut anywhere, also within a character, an event or a line's end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobstore import Usage
from jobstore.providers import Event, ProviderError, ToolCall
from jobstore.testing import Answer
from jobstore.testing.llm_answers import API, LLMRequest
from jobstore.testing.llm_server import PROTOCOLS
from tests.providers.support import APIS, EVENT_STREAM, MODELS, Speaker, chunk, raw_server, speaking

WHOLE = Answer(
    "Grüße an 🌍\n\nalle \0 und\u2028mehr",
    reasoning="Über\r\nlegt",
    tool_calls=(ToolCall(id="call_1", name="clock", arguments='{"zone": "Zürich"}'),),
    usage=Usage(input_tokens=7, output_tokens=5),
)
CUT = Answer(WHOLE.text, ending="early_end")
rounds = pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.full)])
apis = pytest.mark.parametrize("api", APIS)
cuts = st.lists(st.floats(0, 1), max_size=30)
"""Parts of a stream's length."""


def stream_of(api: API, answer: Answer) -> bytes:
    """Return all bytes of an answer's stream."""
    [protocol] = [protocol for protocol in PROTOCOLS if protocol.api == api]
    asked = LLMRequest(MODELS[api], "Greet", api=api, body={"stream_options": {"include_usage": True}})
    return b"".join(protocol.events(asked, answer, "req_1", 5))


def cut_at(data: bytes, places: list[float]) -> Iterator[bytes]:
    """Yield data in pieces, cut at these parts of its length."""
    borders = sorted({0, len(data), *(round(place * len(data)) for place in places)})
    for start, end in pairwise(borders):
        yield data[start:end]


async def hear(api: API, pieces: Iterator[bytes]) -> list[Event] | ProviderError:
    """Return what an adapter makes of a stream that comes in these pieces."""
    said = [chunk(piece) for piece in pieces]
    async with raw_server(EVENT_STREAM, *said, chunk(b"")) as url, speaking(api, url) as speaker:
        return await listen(speaker)


@cache
def heard_whole(api: API) -> list[Event]:
    """Return what an adapter makes of the stream in one piece."""
    heard = asyncio.run(hear(api, iter([stream_of(api, WHOLE)])))
    assert isinstance(heard, list)
    return heard


async def listen(speaker: Speaker) -> list[Event] | ProviderError:
    try:
        return await speaker.ask("Greet")
    except ProviderError as error:
        return error


@apis
@rounds
def test_pieces_of_any_size_say_the_same(api: API, rounds: int) -> None:
    data = stream_of(api, WHOLE)

    @settings(max_examples=rounds, deadline=None)
    @given(places=cuts)
    def holds(places: list[float]) -> None:
        assert asyncio.run(hear(api, cut_at(data, places))) == heard_whole(api)

    holds()


@apis
def test_single_bytes_say_the_same(api: API) -> None:
    data = stream_of(api, WHOLE)
    assert asyncio.run(hear(api, (data[i : i + 1] for i in range(len(data))))) == heard_whole(api)


@apis
@rounds
def test_a_stream_that_ends_anywhere_before_its_end_is_never_complete(api: API, rounds: int) -> None:
    data = stream_of(api, CUT)

    @settings(max_examples=rounds, deadline=None)
    @given(end=st.floats(0, 1, exclude_max=True), places=cuts)
    def holds(end: float, places: list[float]) -> None:
        heard = asyncio.run(hear(api, cut_at(data[: round(end * len(data))], places)))
        assert isinstance(heard, ProviderError)
        assert heard.category in {"truncated", "server_error"}
        assert heard.retryable

    holds()


@apis
@rounds
def test_a_whole_stream_that_is_cut_is_complete_or_fails_but_never_says_something_else(api: API, rounds: int) -> None:
    data = stream_of(api, WHOLE)

    @settings(max_examples=rounds, deadline=None)
    @given(end=st.floats(0, 1))
    def holds(end: float) -> None:
        whole = heard_whole(api)
        heard = asyncio.run(hear(api, iter([data[: round(end * len(data))]])))
        assert isinstance(heard, ProviderError) or heard[:-1] == whole[: len(heard) - 1]

    holds()
