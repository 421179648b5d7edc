"""What answers cost: as genai-prices has it, and nothing where it has no price."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import genai_prices
import pytest
from genai_prices import calc_price, extract_usage

from jobstore import Usage
from jobstore.providers.cost import Price, price
from jobstore.testing import Answer, LLMServer
from jobstore.testing.llm_answers import API
from tests.providers.support import MODELS, Speaker, done_of, usage_of

WHEN = datetime(2026, 11, 1, tzinfo=UTC)
COUNTS = Usage(input_tokens=10_000, cache_read_tokens=6000, output_tokens=4000, reasoning_tokens=3000)
ROOTS: dict[API, str] = {"anthropic": "usage", "openai": "usage", "openai_chat": "usage", "gemini": "usageMetadata"}


async def test_the_price_is_genai_prices_own_for_each_provider(server: LLMServer, speaker: Speaker) -> None:
    server.script(Answer("Hello", usage=COUNTS))
    events = await speaker.ask()
    usage, raw, provider = usage_of(events), done_of(events).raw_usage, speaker.adapter.provider
    flavor = speaker.adapter.flavor
    extracted = extract_usage({ROOTS[speaker.api]: raw}, provider_id=provider, api_flavor=flavor).usage
    theirs = calc_price(extracted, speaker.model, provider_id=provider, genai_request_timestamp=WHEN)
    ours = price(provider, speaker.model, usage, WHEN, raw_usage=raw, flavor=flavor)
    assert ours == Price(float(theirs.total_price), f"genai-prices {genai_prices.__version__}")
    assert ours == price(provider, speaker.model, usage, WHEN)
    assert ours.usd > 0


def test_the_raw_counts_know_what_the_others_do_not() -> None:
    usage = Usage(input_tokens=1000, cache_write_tokens=1000, cache_read_tokens=0, output_tokens=10)
    raw: dict[str, Any] = {"input_tokens": 0, "cache_creation_input_tokens": 1000, "output_tokens": 10}
    known = price("anthropic", MODELS["anthropic"], usage, WHEN)
    longer = raw | {"cache_creation": {"ephemeral_1h_input_tokens": 1000}}
    searched = raw | {"server_tool_use": {"web_search_requests": 2}}
    assert known is not None
    for more in (longer, searched):
        full = price("anthropic", MODELS["anthropic"], usage, WHEN, raw_usage=more)
        assert full is not None
        assert full.usd > known.usd


@pytest.mark.parametrize(
    ("provider", "model", "usage"),
    [
        ("anthropic", "a-model-of-tomorrow", Usage(input_tokens=10, output_tokens=5)),
        ("nobody", "claude-opus-5-5", Usage(input_tokens=10, output_tokens=5)),
        ("anthropic", "claude-opus-5-5", Usage()),
        ("anthropic", "claude-opus-5-5", Usage(input_tokens=10)),
        ("anthropic", "claude-opus-5-5", Usage(input_tokens=10, output_tokens=5, cache_read_tokens=20)),
        ("google", "gemma-3", Usage(input_tokens=10, output_tokens=5)),
    ],
)
def test_what_has_no_price_costs_nothing_that_is_known(provider: str, model: str, usage: Usage) -> None:
    assert price(provider, model, usage, WHEN) is None
    assert price(provider, model, usage, WHEN, raw_usage={"nonsense": 1}) is None


def test_googles_long_names_of_models_are_known() -> None:
    usage = Usage(input_tokens=10, output_tokens=5)
    short, long = (price("google", name, usage, WHEN) for name in ("gemini-3.8-flash", "models/gemini-3.8-flash"))
    assert short == long
    assert short is not None
