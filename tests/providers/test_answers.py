"""What comes back: pieces, thoughts, calls of tools, counts and reasons to end, the same from every provider."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types import Message
from google.genai.types import GenerateContentResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseErrorEvent,
    ResponseOutputItemDoneEvent,
)

from jobstore import Usage
from jobstore.providers import Answer as AdapterAnswer
from jobstore.providers import (
    Done,
    Event,
    FinishReason,
    ProviderError,
    Reasoning,
    Responded,
    Sending,
    Started,
    ToolCall,
)
from jobstore.testing import Answer, LLMServer
from jobstore.testing.llm_answers import API
from tests.providers.support import PRIVATE, Speaker, done_of, of_type, text_of, usage_of

CALLS = (
    ToolCall(id="call_a", name="weather", arguments='{"city": "Paris", "days": 3}'),
    ToolCall(id="call_b", name="clock", arguments="{}"),
)
COUNTS = Usage(input_tokens=100, cache_read_tokens=60, cache_write_tokens=25, output_tokens=40, reasoning_tokens=30)


async def test_how_the_call_stands_is_told_before_the_answer(server: LLMServer, speaker: Speaker) -> None:
    server.script("Hello")
    events = await speaker.ask()
    sending, responded, started = events[:3]
    assert sending == Sending()
    assert isinstance(responded, Responded)
    assert responded.http_status == 200
    assert isinstance(started, Started)
    assert started.model == speaker.model
    assert started.response_id is not None
    done = done_of(events)
    assert (done.response_id, done.model) == (started.response_id, speaker.model)
    if speaker.api == "gemini":  # it has no other name for it, and tells it with the first part of the answer
        assert done.request_id == started.response_id
    else:
        assert done.request_id == responded.request_id == f"req_{1:024d}"


async def test_nothing_is_sent_before_the_event_after_sending_is_asked_for(server: LLMServer, speaker: Speaker) -> None:
    stream = speaker.stream()
    assert await anext(stream) == Sending()
    assert server.requests == []
    await stream.aclose()
    assert server.requests == []


async def test_thoughts_are_told_apart_from_the_answer(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("The answer", reasoning="Let me see", chunk_size=4))
    events = await speaker.ask()
    assert [event.text for event in of_type(events, Reasoning)] == ["Let ", "me s", "ee"]
    assert text_of(events) == "The answer"


async def test_calls_of_tools_are_told_when_all_of_them_is_known(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("I look it up.", tool_calls=CALLS, chunk_size=3))
    events = await speaker.ask()
    calls = of_type(events, ToolCall)
    assert [(call.id, call.name, call.parsed()) for call in calls] == [
        ("call_a", "weather", {"city": "Paris", "days": 3}),
        ("call_b", "clock", {}),
    ]
    assert done_of(events).finish_reason == "tool_calls"


async def test_the_same_counts_are_the_same_from_every_provider(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("Hello", usage=COUNTS))
    usage = usage_of(await speaker.ask())
    known = COUNTS if speaker.api != "gemini" else COUNTS.model_copy(update={"cache_write_tokens": None})
    assert usage == known


RAW: dict[API, dict[str, Any]] = {
    "anthropic": {
        "input_tokens": 15,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 25,
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 30},
    },
    "openai": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 25},
        "output_tokens": 40,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 140,
    },
    "openai_chat": {
        "prompt_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 25},
        "completion_tokens": 40,
        "completion_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 140,
    },
    "gemini": {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "candidatesTokenCount": 10,
        "thoughtsTokenCount": 30,
        "totalTokenCount": 140,
    },
}


async def test_an_answer_without_tokens_has_0_and_not_an_unknown_number(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("", usage=Usage(input_tokens=5, output_tokens=0)))
    assert usage_of(await speaker.ask()).output_tokens == 0


async def test_the_providers_own_counts_are_kept(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("Hello", usage=COUNTS))
    assert done_of(await speaker.ask()).raw_usage == RAW[speaker.api]


async def test_what_tools_gave_to_geminis_prompt_is_input_too(gemini: Speaker) -> None:
    counted = {"promptTokenCount": 10, "toolUsePromptTokenCount": 5, "thoughtsTokenCount": 3}
    assert gemini.adapter.answer().usage(counted) == Usage(input_tokens=15, output_tokens=3, reasoning_tokens=3)


async def test_counts_that_say_nothing_new_are_not_told_again(server: LLMServer, gemini: Speaker) -> None:
    server.script(Answer("0123456789", chunk_size=1, usage=Usage(input_tokens=7, output_tokens=5)))
    counts = of_type(await gemini.ask(), Usage)
    assert counts == [Usage(input_tokens=7), Usage(input_tokens=7, output_tokens=5)]


async def test_what_comes_after_the_end_spoils_nothing(openai: Speaker) -> None:
    answer = openai.adapter.answer()
    response = Response.construct(id="r", model="m", status="completed", output=[])
    answer.hear(ResponseCompletedEvent.construct(type="response.completed", response=response))
    answer.hear(ResponseErrorEvent.construct(type="error", code="server_error", message="too late"))
    assert answer.done().finish_reason == "stop"


async def test_counts_come_while_the_answer_does(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("Hello", ending="early_end", usage=Usage(input_tokens=7)))
    heard, _ = await speaker.ask_and_fail()
    counts = of_type(heard, Usage)
    if speaker.api in {"anthropic", "gemini"}:
        assert counts[-1].input_tokens == 7
    else:  # OpenAI counts in the end alone
        assert counts == []


REASONS: list[tuple[API, str, FinishReason]] = [
    ("anthropic", "stop_sequence", "stop"),
    ("anthropic", "max_tokens", "length"),
    ("anthropic", "model_context_window_exceeded", "length"),
    ("anthropic", "tool_use", "tool_calls"),
    ("anthropic", "pause_turn", "paused"),
    ("anthropic", "something_new", "other"),
    ("openai", "max_output_tokens", "length"),
    ("openai", "something_new", "other"),
    ("openai_chat", "length", "length"),
    ("openai_chat", "tool_calls", "tool_calls"),
    ("openai_chat", "something_new", "other"),
    ("gemini", "MAX_TOKENS", "length"),
    ("gemini", "MALFORMED_FUNCTION_CALL", "other"),
    ("gemini", "CONTINUATION", "paused"),
]


@pytest.mark.parametrize(("api", "reason", "meaning"), REASONS)
async def test_the_reason_to_end_is_told_in_our_word_and_in_the_providers(
    server: LLMServer, speakers: dict[API, Speaker], api: API, reason: str, meaning: FinishReason
) -> None:
    server.script(Answer("Hello", stop_reason=reason))
    done = done_of(await speakers[api].ask())
    assert (done.finish_reason, done.provider_reason) == (meaning, reason)
    assert len(server.requests) == 1


WITHHELD: list[tuple[API, str]] = [
    ("anthropic", "refusal"),
    ("openai", "content_filter"),
    ("openai_chat", "content_filter"),
    ("gemini", "SAFETY"),
    ("gemini", "PROHIBITED_CONTENT"),
]


@pytest.mark.parametrize(("api", "reason"), WITHHELD)
async def test_an_answer_that_was_withheld_is_none_but_its_tokens_are_known(
    server: LLMServer, speakers: dict[API, Speaker], api: API, reason: str
) -> None:
    server.script(Answer("I can", stop_reason=reason, usage=Usage(output_tokens=9)))
    heard, error = await speakers[api].ask_and_fail()
    assert (error.category, error.retryable, error.code) == ("content_filtered", False, reason)
    assert usage_of(heard).output_tokens == 9
    assert error.raw_usage  # it is paid for, by counts that only the provider's own words may have


WHOLE: dict[API, Any] = {
    "anthropic": Message,
    "openai": Response,
    "openai_chat": ChatCompletion,
    "gemini": GenerateContentResponse,
}


async def test_a_whole_response_reads_like_a_streamed_one(server: LLMServer, speaker: Speaker) -> None:
    script = Answer("The answer", reasoning="Let me see", tool_calls=CALLS, usage=COUNTS)
    server.script(script, script)
    streamed = await speaker.ask()
    whole = await speaker.ask_whole()
    assert isinstance(whole, WHOLE[speaker.api])
    answer = speaker.adapter.answer()
    events = answer.read(whole)
    assert text_of(events) == "The answer"
    assert without_names(of_type(events, Reasoning)) == without_names(of_type(streamed, Reasoning))
    assert [call.parsed() for call in of_type(events, ToolCall)] == [
        call.parsed() for call in of_type(streamed, ToolCall)
    ]
    assert usage_of(events) == usage_of(streamed)
    first, second = answer.done(), done_of(streamed)
    assert (first.finish_reason, first.provider_reason, first.raw_usage) == (
        second.finish_reason,
        second.provider_reason,
        second.raw_usage,
    )


def without_names(events: list[Reasoning]) -> str:
    return "".join(event.text for event in events)


async def test_a_refusal_of_openais_models_is_no_answer(openai: Speaker, openai_chat: Speaker) -> None:
    part = {"type": "refusal", "refusal": "I will not."}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
    response = {"id": "r", "model": "m", "status": "completed", "output": [message]}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "refusal": "I will not."}}
    completion = {"id": "c", "model": "m", "choices": [choice]}
    for speaker, whole in (
        (openai, Response.construct(**response)),
        (openai_chat, ChatCompletion.construct(**completion)),
    ):
        answer = speaker.adapter.answer()
        assert text_of(answer.read(whole)) == "I will not."
        with pytest.raises(ProviderError) as refused:
            answer.done()
        assert (refused.value.category, refused.value.code) == ("content_filtered", "refusal")


SHELL = {"name": "shell", "input": "ls -l"}
SHELL_CALL = ToolCall(id="call_a", name="shell", arguments="ls -l")
NAMELESS = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "", "arguments": ""}}
COUNTED = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


async def test_a_call_of_a_custom_tool_is_one_too(openai: Speaker) -> None:
    item = {"type": "custom_tool_call", "id": "i", "call_id": "call_a", **SHELL}
    whole = Response.construct(id="r", model="m", status="completed", output=[item])
    streamed = [
        ResponseOutputItemDoneEvent.construct(type="response.output_item.done", item=item),
        ResponseCompletedEvent.construct(type="response.completed", response=whole),
    ]
    first, second = openai.adapter.answer(), openai.adapter.answer()
    for answer, events in (first, first.read(whole)), (second, hear_all(second, streamed)):
        assert of_type(events, ToolCall) == [SHELL_CALL]
        assert answer.done().finish_reason == "tool_calls"


async def test_so_it_is_in_chats_and_calls_without_a_name_are_none(openai_chat: Speaker) -> None:
    end = {"index": 0, "finish_reason": "tool_calls"}
    said: dict[str, Any] = {"id": "c", "model": "m", "usage": COUNTED}
    calls = [{"id": "call_a", "type": "custom", "custom": SHELL}, NAMELESS]
    whole = ChatCompletion.construct(**said, choices=[{**end, "message": {"tool_calls": calls}}])
    begun = {"index": 0, "id": "call_a", "type": "custom", "custom": {"name": "shell", "input": ""}}
    deltas = [{"tool_calls": [begun, NAMELESS]}, {"tool_calls": [{"index": 0, "custom": {"input": "ls -l"}}]}]
    streamed = [ChatCompletionChunk.construct(id="c", choices=[{"index": 0, "delta": delta}]) for delta in deltas]
    streamed.append(ChatCompletionChunk.construct(**said, choices=[{**end, "delta": {}}]))
    first, second = openai_chat.adapter.answer(), openai_chat.adapter.answer()
    for answer, events in (first, first.read(whole)), (second, hear_all(second, streamed)):
        assert of_type(events, ToolCall) == [SHELL_CALL]
        assert (answer.done().finish_reason, usage_of(events).output_tokens) == ("tool_calls", 2)


def hear_all(answer: AdapterAnswer, said: Iterable[object]) -> list[Event]:
    return [heard for event in said for heard in answer.hear(event)]


async def test_a_prompt_that_gemini_blocks_has_no_answer(gemini: Speaker) -> None:
    answer = gemini.adapter.answer()
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 4}}
    assert answer.hear(GenerateContentResponse.model_validate(blocked)) == [Usage(input_tokens=4)]
    with pytest.raises(ProviderError) as refused:
        answer.done()
    assert (refused.value.category, refused.value.code) == ("content_filtered", "PROHIBITED_CONTENT")


async def test_what_gemini_wants_back_with_a_call_goes_there_and_back(gemini: Speaker) -> None:
    part = {"functionCall": {"name": "clock", "args": {"zone": "CET"}}, "thoughtSignature": "c2lnbmVk"}
    response = {"candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}]}
    [call] = of_type(gemini.adapter.answer().hear(GenerateContentResponse.model_validate(response)), ToolCall)
    assert call == ToolCall(id="call-1", name="clock", arguments='{"zone": "CET"}', signature="c2lnbmVk")


@pytest.mark.parametrize(
    "event",
    [Reasoning(PRIVATE), ToolCall(id="i", name="n", arguments=PRIVATE), Done("stop", "stop", raw_usage={PRIVATE: 1})],
)
def test_no_text_shows_in_the_repr_of_an_event(event: Event) -> None:
    assert PRIVATE not in repr(event)
