"""What the providers' own errors mean: codes before statuses, whatever form they come in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from anthropic import AsyncAnthropic, CredentialsError
from anthropic.lib.credentials import AccessToken

from jobstore import Usage
from jobstore.providers import Category, Sending, adapter_of
from jobstore.testing import Answer, LLMServer, Refusal
from jobstore.testing.llm_answers import API, Ending
from tests.providers.support import (
    APIS,
    EVENT_STREAM,
    PRIVATE,
    Speaker,
    chunk,
    done_of,
    of_type,
    raw_server,
    speaking,
    text_of,
)

GOOGLE = "type.googleapis.com/google.rpc."


def details(kind: str, **fields: object) -> dict[str, Any]:
    return {"@type": f"{GOOGLE}{kind}", **fields}


def violation(quota: str) -> dict[str, Any]:
    return details("QuotaFailure", violations=[{"quotaId": quota}])


REFUSALS: list[tuple[API, Refusal, Category, bool]] = [
    ("anthropic", Refusal(429, headers={"x-should-retry": "false"}), "rate_limited", False),
    ("anthropic", Refusal(429, error_code="contract_spend_limit_reached"), "quota_exhausted", False),
    ("anthropic", Refusal(402), "quota_exhausted", False),
    ("anthropic", Refusal(404), "invalid_request", False),
    ("anthropic", Refusal(413), "context_too_long", False),
    ("anthropic", Refusal(400, "input length and max_tokens exceed context limit"), "context_too_long", False),
    ("anthropic", Refusal(400, "Output blocked by content filtering policy"), "content_filtered", False),
    ("anthropic", Refusal(403), "authentication", False),
    ("anthropic", Refusal(408, error_type="unheard_of"), "timeout", True),
    ("anthropic", Refusal(409, error_type="unheard_of"), "server_error", True),
    ("anthropic", Refusal(422, error_type="unheard_of"), "invalid_request", False),
    ("anthropic", Refusal(502, error_type="unheard_of"), "server_error", True),
    ("openai", Refusal(429, error_code="credit_balance_exhausted"), "quota_exhausted", False),
    ("openai", Refusal(429, error_type="insufficient_quota"), "quota_exhausted", False),
    ("openai", Refusal(429, error_code="project_spend_limit_exceeded"), "quota_exhausted", False),
    ("openai", Refusal(429, headers={"x-should-retry": "false"}), "rate_limited", False),
    ("openai", Refusal(400, error_code="image_content_policy_violation"), "content_filtered", False),
    ("openai", Refusal(400, error_code="string_above_max_length"), "context_too_long", False),
    ("openai", Refusal(404, error_code="model_not_found"), "invalid_request", False),
    ("openai", Refusal(403), "authentication", False),
    ("openai", Refusal(503, error_code="slow_down"), "overloaded", True),
    ("openai", Refusal(503, error_type="server_error"), "overloaded", True),
    ("openai", Refusal(502), "server_error", True),
    ("openai_chat", Refusal(429, error_code="insufficient_quota"), "quota_exhausted", False),
    ("openai_chat", Refusal(529, error_code="529"), "overloaded", True),
    ("openai_chat", Refusal(422), "invalid_request", False),
    (
        "gemini",
        Refusal(429, details=(violation("GenerateRequestsPerDayPerProject-FreeTier"),)),
        "quota_exhausted",
        False,
    ),
    ("gemini", Refusal(429, details=(violation("GenerateRequestsPerMinutePerProject"),)), "rate_limited", True),
    ("gemini", Refusal(400, "API key not valid. Please pass a valid API key."), "authentication", False),
    ("gemini", Refusal(400, error_type="FAILED_PRECONDITION"), "invalid_request", False),
    ("gemini", Refusal(403), "authentication", False),
    ("gemini", Refusal(404), "invalid_request", False),
    ("gemini", Refusal(408, error_type="unheard_of"), "timeout", True),
    ("gemini", Refusal(418, error_type="unheard_of"), "invalid_request", False),
    ("gemini", Refusal(502, error_type="unheard_of"), "server_error", True),
]


@pytest.mark.parametrize(
    ("api", "refusal", "category", "retryable"),
    [pytest.param(*each, id=f"{each[0]}-{each[1].status}-{each[2]}-{number}") for number, each in enumerate(REFUSALS)],
)
async def test_an_error_response_has_its_category(
    server: LLMServer, api: API, refusal: Refusal, category: Category, *, retryable: bool
) -> None:
    server.script(refusal)
    async with speaking(api, server.url) as speaker:
        heard, error = await speaker.ask_and_fail()
    assert heard == [Sending()]
    assert (error.category, error.retryable, error.http_status) == (category, retryable, refusal.status)
    assert error.provider_message == refusal.words
    assert error.request_id == (None if api == "gemini" else f"req_{1:024d}")


MIDWAY: list[tuple[API, Ending, str, Category]] = [
    ("anthropic", "error", "rate_limit_error", "rate_limited"),
    ("anthropic", "error", "brand_new_error", "server_error"),
    ("anthropic", "error", "invalid_request_error", "invalid_request"),
    ("openai", "error", "rate_limit_exceeded", "rate_limited"),
    ("openai", "error", "insufficient_quota", "quota_exhausted"),
    ("openai", "error", "brand_new", "server_error"),
    ("openai", "failed", "server_error", "server_error"),
    ("openai", "failed", "rate_limit_exceeded", "rate_limited"),
    ("openai", "failed", "invalid_prompt", "invalid_request"),
    ("openai", "failed", "bio_policy", "content_filtered"),
    ("openai", "failed", "vector_store_timeout", "timeout"),
    ("openai", "failed", "image_too_large", "invalid_request"),
    ("openai_chat", "error", "insufficient_quota", "quota_exhausted"),
    ("openai_chat", "error", "brand_new", "server_error"),
    ("gemini", "error", "RESOURCE_EXHAUSTED", "rate_limited"),
    ("gemini", "error", "INTERNAL", "server_error"),
    ("gemini", "error", "DEADLINE_EXCEEDED", "timeout"),
]


@pytest.mark.parametrize(("api", "ending", "code", "category"), MIDWAY)
async def test_an_error_in_mid_stream_has_its_category_by_its_code(
    server: LLMServer, api: API, ending: Ending, code: str, category: Category
) -> None:
    server.script(Answer("first half second half", ending=ending, error_type=code))
    async with speaking(api, server.url) as speaker:
        heard, error = await speaker.ask_and_fail()
    assert text_of(heard) == "first half "
    assert (error.category, error.code, error.http_status) == (category, code, 200)
    assert error.provider_message == "an error in mid-stream"
    assert error.request_id is not None


async def test_an_error_event_that_the_sdk_of_openai_raises_is_understood_too() -> None:
    said = b'event: error\ndata: {"type": "error", "error": {"message": "no", "code": "insufficient_quota"}}\n\n'
    async with raw_server(EVENT_STREAM, chunk(said)) as url, speaking("openai", url) as speaker:
        _, error = await speaker.ask_and_fail()
    assert (error.category, error.http_status, error.provider_message) == ("quota_exhausted", 200, "no")


@pytest.mark.parametrize(
    "said",
    [
        b'{"error": {"message": "no code"}}',
        b'{"error": {"code": "503", "status": "UNAVAILABLE"}}',
        b'{"error": "no object"}',
        b'{"error": {"code": 503, "details": "no list", "message": ["no", "text"]}}',
    ],
)
async def test_an_error_of_gemini_may_take_any_form(said: bytes) -> None:
    async with raw_server(EVENT_STREAM, chunk(b"data: " + said + b"\n\n")) as url, speaking("gemini", url) as speaker:
        _, error = await speaker.ask_and_fail()
    assert error.category in {"server_error", "overloaded"}


async def test_what_the_server_says_may_quote_the_prompt_and_stays_out_of_messages(
    server: LLMServer, speaker: Speaker
) -> None:
    server.script(Refusal(400, f"messages.0: {PRIVATE}", error_type=PRIVATE, error_code=PRIVATE))
    _, error = await speaker.ask_and_fail()
    assert error.provider_message == f"messages.0: {PRIVATE}"
    assert error.code is None
    assert "HTTP 400" in str(error)


@pytest.mark.parametrize("api", APIS)
async def test_an_error_page_instead_of_json_is_understood_by_its_status(api: API) -> None:
    page = b"<html>Bad gateway</html>"
    said = b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%s" % (len(page), page)
    async with raw_server(said) as url, speaking(api, url) as speaker:
        _, error = await speaker.ask_and_fail()
    assert (error.category, error.retryable, error.http_status) == ("server_error", True, 502)


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
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
    ],
)
async def test_retry_after_is_understood_in_all_its_forms(
    server: LLMServer, speakers: Mapping[API, Speaker], headers: dict[str, str], seconds: float | None
) -> None:
    for speaker in speakers.values():
        server.script(Refusal(429, headers=headers))
        _, error = await speaker.ask_and_fail()
        assert error.retry_after == seconds, speaker.api


async def test_retry_after_may_be_a_date_ahead(server: LLMServer, speaker: Speaker) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.script(Refusal(429, retry_after=date))
    _, error = await speaker.ask_and_fail()
    assert error.retry_after is not None
    assert 3000 < error.retry_after <= 3600


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("34.074824224s", 34.074824224), ("0s", 0.0), ("99999999s", 86_400.0), ("soon", 7.0), (None, 7.0)],
)
async def test_gemini_tells_in_its_details_how_long_to_wait(
    server: LLMServer, gemini: Speaker, delay: str | None, seconds: float
) -> None:
    server.script(Refusal(429, details=(details("RetryInfo", retryDelay=delay),), headers={"Retry-After": "7"}))
    _, error = await gemini.ask_and_fail()
    assert error.retry_after == seconds


async def test_credentials_that_cannot_be_loaded_are_an_authentication_error(server: LLMServer) -> None:
    async def credentials(*, force_refresh: bool = False) -> AccessToken:
        raise CredentialsError(f"no token to be had, refreshed: {force_refresh}")

    async with AsyncAnthropic(credentials=credentials, base_url=server.url) as client:
        _, error = await Speaker("anthropic", adapter_of(client), client).ask_and_fail()
    assert (error.category, error.retryable, error.code) == ("authentication", False, "CredentialsError")
    assert server.requests == []


class Keyless(AsyncAnthropic):
    """A kind that looks for no credentials in files."""


async def test_a_client_without_a_key_is_an_authentication_error(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    async with Keyless(base_url=server.url) as client:
        _, error = await Speaker("anthropic", adapter_of(client), client).ask_and_fail()
    assert (error.category, error.retryable, server.requests) == ("authentication", False, [])


@pytest.mark.parametrize("api", ["anthropic", "openai", "openai_chat"])
async def test_options_that_the_sdk_does_not_take_are_an_invalid_request(server: LLMServer, api: API) -> None:
    async with speaking(api, server.url) as speaker:
        heard, error = await speaker.ask_and_fail(options={"temprature": 1})
    assert heard == [Sending()]
    assert (error.category, error.retryable) == ("invalid_request", False)
    assert "temprature" in str(error.provider_message)
    assert server.requests == []


COMPLETE: dict[API, bytes] = {
    "anthropic": b'event: message_delta\ndata: {"type": "message_delta", "delta": {"stop_reason": "end_turn"},'
    b' "usage": {"output_tokens": "many"}}\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n',
    "openai": b'event: response.completed\ndata: {"type": "response.completed", "response": {"id": "r", "model": "m",'
    b' "status": "completed", "output": []}}\n\n',
    "openai_chat": b'data: {"id": "c", "model": "m", "choices":'
    b' [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n',
    "gemini": b'data: {"candidates": [{"finishReason": "STOP"}]}\n\n',
}


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_that_was_complete_counts_though_the_connection_breaks_after_it(api: API) -> None:
    async with raw_server(EVENT_STREAM, chunk(COMPLETE[api])) as url, speaking(api, url) as speaker:
        events = await speaker.ask()
    assert events[-1] == done_of(events)
    assert all(usage == Usage() for usage in of_type(events, Usage))  # a count that is none is unknown
