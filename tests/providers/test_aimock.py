"""The adapters against another's stand-in server, @copilotkit/aimock: what both servers say must mean the same.

It is installed from npm into a folder of the test's own, and needs Node.js 20 or newer.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobstore import Usage
from jobstore.providers import Reasoning, ToolCall
from tests.providers.support import APIS, Speaker, done_of, of_type, speaking, text_of, usage_of

pytestmark = pytest.mark.full

PACKAGE = "@copilotkit/aimock@1.43.0"
ANSWER = "The quick brown fox jumps over the lazy dog."
COUNTS = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}
FIXTURES: dict[str, dict[str, Any]] = {
    "tell": {"response": {"content": ANSWER, "reasoning": "Let me see."}, "chunkSize": 7},
    "count": {"response": {"content": ANSWER, "usage": COUNTS | {"input_tokens": 100, "output_tokens": 40}}},
    "call": {"response": {"toolCalls": [{"id": "call_1", "name": "clock", "arguments": '{"zone": "CET"}'}]}},
    "limit": {
        "response": {"error": {"message": "slow down", "type": "rate_limit_error"}, "status": 429, "retryAfter": 7}
    },
    "break": {"response": {"error": {"message": "broken", "type": "server_error"}, "status": 500}},
    "truncate": {"response": {"content": ANSWER}, "chunkSize": 7, "truncateAfterChunks": 4},
    "disconnect": {"response": {"content": ANSWER}, "chunkSize": 7, "latency": 20, "disconnectAfterMs": 70},
}
SERVER = """
const { LLMock } = require("@copilotkit/aimock");
const mock = new LLMock({ port: 0, host: "127.0.0.1" });
for (const [userMessage, { response, ...options }] of Object.entries(JSON.parse(process.argv[2])))
    mock.on({ userMessage }, response, options);
mock.start().then(() => console.log(mock.url));
process.stdin.on("end", () => process.exit()).resume();
"""


@pytest.fixture(scope="module")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a running aimock; it ends with its standard input."""
    folder = tmp_path_factory.mktemp("aimock")
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", PACKAGE], cwd=folder, check=True)  # noqa: S607
    Path(folder, "server.cjs").write_text(SERVER, encoding="utf-8")
    command = ["node", "server.cjs", json.dumps(FIXTURES)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, **pipes) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


@pytest.fixture(params=APIS)
async def mocked(request: pytest.FixtureRequest, aimock: str) -> AsyncIterator[Speaker]:
    async with speaking(request.param, aimock, version="v1beta") as speaker:
        yield speaker


async def test_an_answer(mocked: Speaker) -> None:
    events = await mocked.ask("tell")
    assert text_of(events) == ANSWER
    assert done_of(events).finish_reason == "stop"
    assert "".join(event.text for event in of_type(events, Reasoning)) == "Let me see."


async def test_counts(mocked: Speaker) -> None:
    usage = usage_of(await mocked.ask("count"))
    assert (usage.input_tokens, usage.output_tokens) == (100, 40)


@pytest.mark.filterwarnings("ignore:FUNCTION_CALL is not a valid FinishReason")
async def test_a_call_of_a_tool(mocked: Speaker) -> None:
    events = await mocked.ask("call")
    [call] = of_type(events, ToolCall)
    assert (call.name, call.parsed()) == ("clock", {"zone": "CET"})
    # aimock has a reason of its own here, where Google's API says STOP.
    assert done_of(events).finish_reason == ("other" if mocked.api == "gemini" else "tool_calls")


async def test_too_many_requests(mocked: Speaker) -> None:
    _, error = await mocked.ask_and_fail("limit")
    assert (error.category, error.retry_after, error.http_status) == ("rate_limited", 7.0, 429)


async def test_a_server_that_fails(mocked: Speaker) -> None:
    _, error = await mocked.ask_and_fail("break")
    assert (error.category, error.retryable, error.http_status) == ("server_error", True, 500)


@pytest.mark.parametrize("prompt", ["truncate", "disconnect"])
async def test_an_answer_that_ends_too_early(mocked: Speaker, prompt: str) -> None:
    heard, error = await mocked.ask_and_fail(prompt)
    assert ANSWER.startswith(text_of(heard))
    assert text_of(heard) != ANSWER
    assert error.category in {"truncated", "connection"}
    assert not [event for event in of_type(heard, Usage) if event.output_tokens == 40]
