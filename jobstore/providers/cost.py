"""What an answer costs, by the prices that genai-prices brings along: dated, tiered, and without a network."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from pydantic import JsonValue

from jobstore.models import Usage

try:
    import genai_prices
except ImportError as error:
    raise ImportError("jobstore.providers.cost needs genai-prices: pip install 'jobstore[cost]'") from error


class Price(NamedTuple):
    """A cost, and which prices it was reckoned with."""

    usd: float
    version: str
    """For example "genai-prices 0.2.3"; with the time of its update, where the program lets it update itself."""


def price(
    provider: str,
    model: str,
    usage: Usage,
    when: datetime,
    *,
    raw_usage: Mapping[str, JsonValue] | None = None,
    flavor: str = "default",
) -> Price | None:
    """Return what an answer costs, or None if nobody knows: it is never 0 for tokens without a price.

    Args:
        provider: An adapter's `provider`.
        model: Which model answered; failing that, which was asked.
        usage: The answer's tokens.
        when: When it was asked: prices change, and some depend on the time of day.
        raw_usage: A `Done`'s, which knows more: web searches, and how long caches last.
        flavor: An adapter's `flavor`, which says how to read that.

    Example:
        >>> price("anthropic", "claude-opus-5-5", Usage(input_tokens=1000, output_tokens=10), datetime.now(UTC)).usd
        0.0042
    """
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    counted = _read(provider, raw_usage, flavor) if raw_usage else None
    name = model.removeprefix("models/")  # as Google also writes it
    try:
        found = genai_prices.calc_price(
            counted or _converted(usage), name, provider_id=provider, genai_request_timestamp=when
        )
    except (LookupError, ValueError):  # an unknown model; counts of which a part is more than the whole
        return None
    if not found.total_price and (usage.input_tokens or usage.output_tokens):
        return None  # a model that is known, but whose tokens have no price
    version = f"genai-prices {genai_prices.__version__}"
    if found.auto_update_timestamp is not None:
        version = f"{version}, updated {found.auto_update_timestamp:%Y-%m-%d %H:%M}"
    return Price(float(found.total_price), version)


def _read(provider: str, raw_usage: Mapping[str, JsonValue], flavor: str) -> genai_prices.Usage | None:
    response = {"usage": raw_usage, "usageMetadata": raw_usage}  # the providers' names for it
    try:
        return genai_prices.extract_usage(response, provider_id=provider, api_flavor=flavor).usage
    except (LookupError, ValueError):  # an unknown provider; cut off before all was counted
        return None


def _converted(usage: Usage) -> genai_prices.Usage:
    return genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )
