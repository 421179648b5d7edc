"""What goes out: a request in words that fit all providers, made of a job, and put in each provider's own."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobstore import InvalidArgument, Job, JobStore
from jobstore.providers import Message, Request, Tool, ToolCall
from jobstore.providers.images import LARGEST
from jobstore.testing import LLMServer
from jobstore.testing.llm_answers import API
from tests.providers.support import APIS, Speaker

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
IMAGE = base64.b64encode(PNG).decode()
CALL = ToolCall(id="call_1", name="weather", arguments='{"city": "Paris"}', signature="c2lnbmVk")
HISTORY = [
    Message(role="user", content="What is the weather?"),
    Message(role="assistant", content="I look.", tool_calls=[CALL]),
    Message(role="tool", content="18 °C", tool_call_id="call_1"),
]


async def body_of(server: LLMServer, speaker: Speaker, prompt: str = "Hello", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what arrives at the server when this is asked."""
    await speaker.ask(prompt, **fields)
    body: dict[str, Any] = server.requests[-1].body
    return in_camel_case(body) if speaker.api == "gemini" else body


def in_camel_case(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return what Google reads it as: its SDK sends names in both ways, and schemas as they are."""
    if isinstance(value, list):
        return [in_camel_case(each) for each in value]
    if isinstance(value, dict):
        return {
            re.sub("_(.)", lambda found: found[1].upper(), name): in_camel_case(each) for name, each in value.items()
        }
    return value


async def test_each_provider_gets_what_was_asked(server: LLMServer, speaker: Speaker) -> None:
    stop = {} if speaker.api == "openai" else {"stop": ["END"]}
    body = await body_of(server, speaker, "Explain\nthis", system="Be brief.", temperature=0.5, **stop)
    request = server.requests[-1]
    assert (request.api, request.model, request.prompt) == (speaker.api, speaker.model, "Explain\nthis")
    assert (request.system, request.max_tokens, request.stream) == ("Be brief.", 1000, True)
    settings = body.get("generationConfig", body)
    assert settings["temperature"] == 0.5
    stops = {"anthropic": "stop_sequences", "openai_chat": "stop", "gemini": "stopSequences"}
    assert all(settings[stops[speaker.api]] == words for words in stop.values())


TOOLS: dict[API, Any] = {
    "anthropic": [{"name": "weather", "description": "Tells it", "input_schema": SCHEMA}],
    "openai": [
        {"type": "function", "strict": False, "name": "weather", "description": "Tells it", "parameters": SCHEMA}
    ],
    "openai_chat": [
        {"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": SCHEMA}}
    ],
    "gemini": [
        {"functionDeclarations": [{"name": "weather", "description": "Tells it", "parametersJsonSchema": SCHEMA}]}
    ],
}


async def test_tools_are_described_in_each_providers_way(server: LLMServer, speaker: Speaker) -> None:
    body = await body_of(server, speaker, tools=[Tool(name="weather", description="Tells it", parameters=SCHEMA)])
    assert body["tools"] == TOOLS[speaker.api]


CONVERSATIONS: dict[API, Any] = {
    "anthropic": [
        {"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "18 °C"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}},
                {"type": "text", "text": "And this?"},
            ],
        },
    ],
    "openai": [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "18 °C"},
        {
            "role": "user",
            "content": [
                {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{IMAGE}"},
                {"type": "input_text", "text": "And this?"},
            ],
        },
    ],
    "openai_chat": [
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "type": "function",
                    "id": "call_1",
                    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "18 °C"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
                {"type": "text", "text": "And this?"},
            ],
        },
    ],
    "gemini": [
        {"role": "user", "parts": [{"text": "What is the weather?"}]},
        {
            "role": "model",
            "parts": [
                {"text": "I look."},
                {
                    "functionCall": {"id": "call_1", "name": "weather", "args": {"city": "Paris"}},
                    "thoughtSignature": "c2lnbmVk",
                },
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "call_1", "name": "weather", "response": {"result": "18 °C"}}},
                {"inlineData": {"mimeType": "image/png", "data": IMAGE}},
                {"text": "And this?"},
            ],
        },
    ],
}


async def test_a_conversation_with_tools_and_an_image_is_put_in_each_providers_way(
    server: LLMServer, speaker: Speaker, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(PNG)
    body = await body_of(server, speaker, "And this?", images=[str(picture)], messages=HISTORY)
    assert body[{"openai": "input", "gemini": "contents"}.get(speaker.api, "messages")] == CONVERSATIONS[speaker.api]


OPTIONS: dict[API, dict[str, Any]] = {
    "anthropic": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "extra_body": {"temperature": 1.0}},
    "openai": {"reasoning": {"effort": "low"}, "temperature": 1.0},
    "openai_chat": {"reasoning_effort": "low", "temperature": 1.0},
    "gemini": {"thinking_config": {"include_thoughts": True}, "temperature": 1.0},
}


async def test_options_go_to_the_sdk_as_they_are_and_win(server: LLMServer, speaker: Speaker) -> None:
    body = await body_of(server, speaker, temperature=0.2, options=OPTIONS[speaker.api])
    settings = body.get("generationConfig", body)
    assert settings["temperature"] == 1.0
    if speaker.api == "gemini":
        assert settings["thinkingConfig"] == {"includeThoughts": True}
    else:
        sent = {name: value for name, value in OPTIONS[speaker.api].items() if name != "extra_body"}
        assert sent.items() <= settings.items()


async def test_a_temperature_goes_to_anthropic_beside_what_else_the_body_is_to_have(
    server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    options: dict[str, Any] = {"extra_body": {"top_k": 3}}
    body = await body_of(server, speakers["anthropic"], temperature=0.5, options=options)
    assert (body["temperature"], body["top_k"]) == (0.5, 3)


async def test_a_request_is_streamed_whatever_the_options_say(server: LLMServer, openai_chat: Speaker) -> None:
    assert (await body_of(server, openai_chat, options={"stream": False}))["stream"] is True


async def test_anthropic_is_told_how_long_an_answer_may_become_as_it_must_be(
    server: LLMServer, speakers: dict[API, Speaker]
) -> None:
    lengths = {}
    for api, speaker in speakers.items():
        await speaker.ask(max_tokens=None)
        lengths[api] = server.requests[-1].max_tokens
    assert lengths == {"anthropic": 8192, "openai": 0, "openai_chat": 0, "gemini": 0}


@pytest.mark.parametrize(
    ("api", "fields", "named"),
    [
        ("openai", {"stop": ["END"]}, "stop"),
        ("gemini", {"options": {"http_options": {"base_url": "http://elsewhere"}}}, "options"),
        ("gemini", {"options": {"httpOptions": {"baseUrl": "http://elsewhere"}}}, "options"),
        ("gemini", {"options": {"temprature": "a secret"}}, "options"),
        (
            "anthropic",
            {"messages": [Message(role="assistant", tool_calls=[CALL.model_copy(update={"arguments": "["})])]},
            "tool_calls",
        ),
        (
            "gemini",
            {"messages": [Message(role="assistant", tool_calls=[CALL.model_copy(update={"arguments": "[]"})])]},
            "tool_calls",
        ),
    ],
)
async def test_what_cannot_be_put_to_an_api_is_refused_before_anything_is_sent(
    server: LLMServer, speakers: dict[API, Speaker], api: API, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await anext(speakers[api].stream(**fields))
    assert refused.value.field == named
    assert "secret" not in str(refused.value)
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0JFIF", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
    ],
)
async def test_an_image_is_known_by_its_content(
    server: LLMServer, openai: Speaker, tmp_path: Path, content: bytes, media_type: str
) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(content)
    body = await body_of(server, openai, images=[str(picture)])
    assert body["input"][0]["content"][0]["image_url"].startswith(f"data:{media_type};base64,")


def make_no_image(folder: Path, kind: str) -> str:
    path = folder / kind
    match kind:
        case "text":
            path.write_text("RIFF, a secret")
        case "large":
            path.write_bytes(PNG)
            os.truncate(path, LARGEST + 1)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "nul":
            return f"{path}\0"
        case "long":
            return f"{path}{'x' * 5000}"
    return str(path)


@pytest.mark.parametrize("kind", ["text", "large", "pipe", "folder", "missing", "nul", "long"])
async def test_what_is_no_image_is_refused_and_nothing_is_sent(
    server: LLMServer, openai: Speaker, tmp_path: Path, kind: str
) -> None:
    path = await asyncio.to_thread(make_no_image, tmp_path, kind)
    with pytest.raises(InvalidArgument) as refused:
        await openai.ask(images=[path])
    assert refused.value.field == "images"
    assert "secret" not in str(refused.value)
    assert server.requests == []


METADATA: dict[str, Any] = {
    "system": "Be brief.",
    "max_tokens": 77,
    "temperature": 1,
    "stop": ["END"],
    "tools": [{"name": "weather", "parameters": SCHEMA}],
    "images": ["a.png"],
    "messages": [{"role": "user", "content": "before"}],
    "options": {"top_p": 0.9},
    "target": "of no concern",
}


async def job_with(store: JobStore, metadata: dict[str, Any], model: str | None = "m", prompt: str = "Explain") -> Job:
    await store.jobs.enqueue(prompt, task_type="t", api_type="claude", model_used=model, metadata=metadata)
    [claim] = await store.jobs.claim("worker")
    return claim.job


async def test_a_job_says_what_to_ask(store: JobStore) -> None:
    request = Request.of(await job_with(store, METADATA), max_tokens=5, model="another")
    assert request == Request(
        model="m",
        prompt="Explain",
        system="Be brief.",
        max_tokens=77,
        temperature=1.0,
        stop=["END"],
        tools=[Tool(name="weather", parameters=SCHEMA)],
        images=["a.png"],
        messages=[Message(role="user", content="before")],
        options={"top_p": 0.9},
    )
    assert [message.content for message in request.conversation] == ["before", "Explain"]


async def test_what_a_job_does_not_say_is_as_the_defaults_have_it(store: JobStore) -> None:
    request = Request.of(
        await job_with(store, {"system": None}, model=None), model="m", system="Be kind.", max_tokens=5
    )
    assert request == Request(model="m", prompt="Explain", system="Be kind.", max_tokens=5)


async def test_a_prompt_that_lies_in_a_file_is_asked_whole(store: JobStore) -> None:
    large = "large " * 20_000
    job = await job_with(store, {}, prompt=large)
    assert Request.of(job).prompt == large
    with pytest.raises(InvalidArgument, match="prompt: lies in a file"):
        Request.of(await store.jobs.get(job.id))


@pytest.mark.parametrize(
    ("model", "metadata", "named"),
    [
        (None, {}, "model"),
        ("m", {"temperature": "a secret"}, "temperature"),
        ("m", {"temperature": -1}, "temperature"),
        ("m", {"max_tokens": 0}, "max_tokens"),
        ("m", {"max_tokens": True}, "max_tokens"),
        ("m", {"messages": [{"role": "a secret"}]}, "role"),
        ("m", {"tools": [{"name": ""}]}, "name"),
        ("m", {"images": "a secret"}, "images"),
        ("m", {"options": ["a secret"]}, "options"),
        ("m", {"messages": [{"role": "tool", "content": "a secret"}]}, "tool_call_id"),
        ("m", {"messages": [{"role": "user", "tool_call_id": "a secret"}]}, "tool_call_id"),
        ("m", {"messages": [{"role": "assistant", "images": ["a secret"]}]}, "images"),
        ("m", {"messages": [{"role": "user", "tool_calls": [CALL.model_dump()]}]}, "tool_calls"),
    ],
)
async def test_a_job_that_cannot_be_asked_is_refused_and_names_the_field(
    store: JobStore, model: str | None, metadata: dict[str, Any], named: str
) -> None:
    job = await job_with(store, metadata, model)
    with pytest.raises(InvalidArgument) as refused:
        Request.of(job)
    assert refused.value.field == named
    assert "secret" not in str(refused.value)
    assert refused.value.__context__ is None


async def test_a_job_that_asks_nothing_is_refused(store: JobStore) -> None:
    job = await job_with(store, {}, prompt="")
    with pytest.raises(InvalidArgument, match="prompt: is empty"):
        Request.of(job)


def test_a_lone_surrogate_is_refused_as_it_could_not_be_sent() -> None:
    with pytest.raises(InvalidArgument, match="prompt"):
        Request(model="m", prompt="\ud800")
    with pytest.raises(InvalidArgument, match="content"):
        Message(role="user", content="\ud800")


def test_only_an_empty_prompt_is_left_out_of_the_conversation() -> None:
    assert Request(model="m", messages=HISTORY).conversation == HISTORY
    assert Request(model="m", messages=HISTORY, prompt="more").conversation[:3] == HISTORY


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
messages = st.builds(Message, role=st.sampled_from(["user", "assistant"]), content=texts)


@given(
    st.builds(
        Request,
        model=texts.filter(bool),
        prompt=texts.filter(bool),
        messages=st.lists(messages, max_size=3),
        system=st.none() | texts,
        max_tokens=st.none() | st.integers(1, 10**6),
        temperature=st.none() | st.floats(0, 2),
        options=st.dictionaries(texts, st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts, max_size=3),
    )
)
def test_a_request_is_json_both_ways(request: Request) -> None:  # type: ignore[misc]
    assert Request.model_validate_json(request.model_dump_json()) == request
    assert Request(**json.loads(request.model_dump_json())) == request


def test_no_text_shows_in_the_repr_of_a_request() -> None:
    request = Request(model="m", prompt="a secret", system="a secret", options={"a": "a secret"}, messages=HISTORY)
    assert "secret" not in f"{request!r} {request}"
    assert "Paris" not in repr(HISTORY[1])


def test_every_api_has_its_way_in_these_tests() -> None:
    assert set(TOOLS) == set(CONVERSATIONS) == set(OPTIONS) == set(APIS)
