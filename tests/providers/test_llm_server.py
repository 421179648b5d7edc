"""The local LLM server itself: its scripts, its protocol without streaming, its start and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import APIConnectionError, AsyncAnthropic, NotFoundError, OverloadedError, RateLimitError
from google import genai
from google.genai.errors import ServerError

from jobstore import InvalidArgument, JobStoreError
from jobstore.providers import ToolCall
from jobstore.testing import Answer, LLMRequest, LLMServer, Refusal, default_answer
from jobstore.testing.llm_answers import LONG_PLAN_BYTES, Ending
from tests.providers.support import Speaker

MODEL = "claude-haiku-5-5"


async def ask(client: AsyncAnthropic, prompt: str = "Say hello") -> str:
    """Ask without streaming."""
    message = await client.with_options(max_retries=0).messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": prompt}]
    )
    return "".join(block.text for block in message.content if block.type == "text")


async def test_replies_are_taken_in_order_and_then_the_standing_answer(
    client: AsyncAnthropic, server: LLMServer
) -> None:
    server.answer = "standing"
    server.script("first", Answer("second"), lambda request: f"third: {request.prompt}")
    assert [await ask(client) for _ in range(5)] == ["first", "second", "third: Say hello", "standing", "standing"]
    assert [request.model for request in server.requests] == [MODEL] * 5


async def test_a_script_may_wait_so_that_a_test_decides_when_the_answer_comes(
    client: AsyncAnthropic, server: LLMServer
) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(request: LLMRequest) -> Answer:
        asked.set()
        await may_answer.wait()
        return Answer(request.prompt.upper())

    server.script(answer)
    waiting = asyncio.create_task(ask(client))
    await asked.wait()
    assert not waiting.done()
    may_answer.set()
    assert await waiting == "SAY HELLO"


async def test_the_sdks_own_stream_helper_understands_the_stream(client: AsyncAnthropic, server: LLMServer) -> None:
    server.script(Answer("Hello, world", chunk_size=5, stop_reason="max_tokens"))
    async with client.messages.stream(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": [{"type": "text", "text": "Greet"}]}]
    ) as events:
        message = await events.get_final_message()
    assert [block.text for block in message.content if block.type == "text"] == ["Hello, world"]
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)
    assert server.requests[0].prompt == "Greet"


async def test_an_answer_that_is_not_streamed_fails_in_the_same_ways(client: AsyncAnthropic, server: LLMServer) -> None:
    server.script(Answer("lost", ending="error"), Refusal(429, retry_after=3))
    with pytest.raises(OverloadedError):
        await ask(client)
    with pytest.raises(RateLimitError) as limited:
        await ask(client)
    assert limited.value.response.headers["retry-after"] == "3"
    endings: tuple[Ending, ...] = ("abort", "early_end")
    for ending in endings:
        server.script(Answer("lost", ending=ending))
        with pytest.raises(APIConnectionError):
            await ask(client)


@pytest.mark.parametrize("ending", ["error", "failed"])
async def test_an_answer_of_another_api_that_is_not_streamed_fails_too(
    server: LLMServer, speaker: Speaker, ending: Ending
) -> None:
    server.script(Answer("lost", ending=ending))
    with pytest.raises((anthropic.APIStatusError, openai.APIStatusError, ServerError)) as failed:
        await speaker.ask_whole()
    assert speaker.adapter.translate(failed.value).category == "overloaded"


async def test_the_helpers_of_openais_sdk_understand_the_streams(server: LLMServer, openai: Speaker) -> None:
    call = ToolCall(id="call_1", name="clock", arguments='{"zone": "CET"}')
    script = Answer("Hello, world", reasoning="Let me see", chunk_size=5, tool_calls=(call,))
    server.script(script, script)
    async with openai.client.responses.stream(model=openai.model, input="Greet") as events:
        async for _ in events:
            pass
        response = await events.get_final_response()
    assert response.output_text == "Hello, world"
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.usage is not None
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Greet"}]
    async with openai.client.chat.completions.stream(model=openai.model, messages=messages) as chunks:
        completion = await chunks.get_final_completion()
    [choice] = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello, world", "tool_calls")
    assert choice.message.tool_calls[0].function.arguments == call.arguments
    assert completion.usage is None  # nobody asked for it
    assert [(asked.prompt, asked.system) for asked in server.requests] == [("Greet", None), ("Greet", "Be brief.")]


async def test_the_chats_of_geminis_sdk_understand_the_stream_at_both_versions(server: LLMServer) -> None:
    for version in ("v1", "v1beta"):
        server.script(Answer("Hello, world", chunk_size=5))
        client = genai.Client(api_key="any", http_options={"base_url": server.url, "api_version": version})
        chat = client.aio.chats.create(model="gemini-3.8-flash")
        parts = [part.text async for part in await chat.send_message_stream("Greet")]
        assert "".join(part or "" for part in parts) == "Hello, world"
        await client.aio.aclose()
        client.close()
    assert [request.prompt for request in server.requests] == ["Greet", "Greet"]


REFUSED = [
    ("/v1/messages", {"model": ""}, "model"),
    ("/v1/messages", {"model": "m", "max_tokens": 0}, "max_tokens"),
    ("/v1/messages", {"model": "m", "messages": [{}]}, "max_tokens"),
    ("/v1/messages", {"model": "m", "max_tokens": 1, "messages": []}, "messages"),
    ("/v1/messages", {"model": "m", "max_tokens": 1, "messages": "Say hello"}, "messages"),
    ("/v1/responses", {"input": "Greet"}, "model"),
    ("/v1/responses", {"model": "m", "input": ""}, "input"),
    ("/v1/responses", {"model": "m", "input": [7]}, "input"),
    ("/v1/responses", {"model": "m", "input": "Greet", "max_output_tokens": -1}, "max_output_tokens"),
    ("/v1/chat/completions", {"messages": [{}]}, "model"),
    ("/v1/chat/completions", {"model": "m"}, "messages"),
    ("/v1/chat/completions", {"model": "m", "messages": [{}], "max_completion_tokens": 0}, "max_completion_tokens"),
    ("/v1/models/m:generateContent", {}, "contents"),
    ("/v1beta/models/m:embedContent", {"contents": [{}]}, "there is no method embedContent"),
    ("/v1beta/models/m:streamGenerateContent", {"contents": []}, "contents"),
]


@pytest.mark.parametrize(("path", "body", "named"), REFUSED)
async def test_a_request_that_the_real_service_would_refuse_is_refused(
    server: LLMServer, path: str, body: dict[str, object], named: str
) -> None:
    async with httpx2.AsyncClient(base_url=server.url) as http:
        response = await http.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(named)
    assert server.requests == []


async def test_what_is_no_json_object_is_refused_and_other_paths_are_not_found(server: LLMServer) -> None:
    async with httpx2.AsyncClient(base_url=server.url) as http:
        for path in ("/v1/messages", "/v1/responses", "/v1/chat/completions", "/v1/models/m:generateContent"):
            for body in (b"oh dear", b"[]", b"\xff"):
                assert (await http.post(path, content=body)).status_code == 400
    async with AsyncAnthropic(api_key="any", base_url=server.url) as client:
        with pytest.raises(NotFoundError):
            await client.models.list()


async def test_it_is_idle_when_all_answers_have_ended(server: LLMServer, client: AsyncAnthropic) -> None:
    await server.idle()
    asked = asyncio.Event()

    async def answer(_: LLMRequest) -> Answer:
        asked.set()
        return Answer("never", ending="stall")

    server.script(answer)
    waiting = asyncio.create_task(ask(client))
    await asked.wait()
    idle = asyncio.create_task(server.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    waiting.cancel()
    await asyncio.wait_for(idle, 30)


async def test_a_connection_on_which_nothing_was_asked_for_long_is_kept(
    server: LLMServer, client: AsyncAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a request that comes just then would fail, by chance."""
    await ask(client)
    loop = asyncio.get_running_loop()
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + 600)
    for _ in range(10):
        await asyncio.sleep(0)
    assert server._server is not None
    assert len(server._server.server_state.connections) == 1


async def test_leaving_cuts_off_what_is_being_answered_and_frees_the_port() -> None:
    asked = asyncio.Event()

    async def never(_: LLMRequest) -> str:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with LLMServer(never) as server:
        url = server.url
        async with AsyncAnthropic(api_key="any", base_url=url) as client:
            waiting = asyncio.create_task(ask(client))
            await asked.wait()
            await server.__aexit__()
            with pytest.raises(APIConnectionError):
                await waiting
            with pytest.raises(APIConnectionError):
                await ask(client)
    with pytest.raises(JobStoreError, match="does not run"):
        _ = server.url


async def test_leaving_in_mid_stream_breaks_the_stream() -> None:
    async with (
        LLMServer(Answer("x" * 10_000_000)) as server,
        AsyncAnthropic(api_key="any", base_url=server.url) as client,
    ):
        events = await client.messages.create(
            model=MODEL, max_tokens=100, stream=True, messages=[{"role": "user", "content": "Say much"}]
        )
        await anext(events)
        await server.__aexit__()
        with pytest.raises(httpx2.TransportError):
            async for _ in events:
                pass


async def test_several_servers_run_side_by_side_and_signals_stay_with_the_program() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with LLMServer("one") as one, LLMServer("two") as two:
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        assert one.url != two.url
        async with AsyncAnthropic(api_key="any", base_url=two.url) as client:
            assert await ask(client) == "two"
        assert one.requests == []


async def test_pieces_leave_as_they_come(server: LLMServer, client: AsyncAnthropic) -> None:
    """Small ones would be held back otherwise, until the client acknowledges those before: that takes it 40 ms."""
    server.script(Answer("hello", ending="stall"))
    stream = await client.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "any"}], stream=True
    )
    assert server._server is not None
    [connection] = server._server.server_state.connections
    held_by = connection.transport.get_extra_info("socket")
    assert held_by.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await stream.close()


async def test_a_server_may_be_entered_again(client: AsyncAnthropic) -> None:
    assert "stand-in" in await ask(client)
    server = LLMServer("again")
    for _ in range(2):
        async with server, AsyncAnthropic(api_key="any", base_url=server.url) as another:
            assert await ask(another) == "again"


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InvalidArgument, match="chunk_size"):
        LLMServer(chunk_size=0)
    with pytest.raises(InvalidArgument, match="delay"):
        LLMServer(delay=-1.0)
    misspelt: Any = "aborted"
    with pytest.raises(InvalidArgument, match="ending"):
        Answer("text", ending=misspelt)
    with pytest.raises(InvalidArgument, match="status"):
        Refusal(misspelt)


def test_only_a_first_line_that_asks_for_a_long_plan_gets_one() -> None:
    def size(prompt: str) -> int:
        return len(default_answer(LLMRequest(MODEL, prompt)).text.encode())

    assert size("Write a LONG, detailed plan for this:\ncode") >= LONG_PLAN_BYTES
    assert size("Explain this:\n# write a long plan") < 10_000
    assert size("") < 10_000


def test_no_text_shows_in_the_repr_of_a_request_or_an_answer() -> None:
    assert "private" not in repr(LLMRequest(MODEL, "private", "private"))
    assert "private" not in repr(Answer("private"))


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_nothing_of_an_extra_is_imported_before_it_is_used() -> None:
    code = "import sys, jobstore.testing, jobstore.providers; print(*sys.modules)"
    assert not {"starlette", "uvicorn", "anthropic", "openai", "google.genai"} & set(_run(code).split())


@pytest.mark.parametrize(
    ("missing", "statement", "advice"),
    [
        ("starlette.applications", "from jobstore.testing import LLMServer", "pip install 'jobstore[testing]'"),
        ("uvicorn", "import jobstore.testing; jobstore.testing.LLMServer", "pip install 'jobstore[testing]'"),
    ],
)
def test_without_its_extra_the_import_says_what_to_install(missing: str, statement: str, advice: str) -> None:
    lines = ["import sys", f"sys.modules[{missing!r}] = None"]
    lines += ["try:", f"    {statement}", "except ImportError as error:", "    print(error)"]
    assert advice in _run("\n".join(lines))


def test_other_names_of_the_testing_package_are_unknown() -> None:
    import jobstore.testing

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = jobstore.testing.Nothing
