"""The prices of models, if the extra `cost` is installed: loaded once, and not on the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from pydantic import JsonValue

from jobstore.aio import in_thread
from jobstore.models import Usage


class _Price(Protocol):
    @property
    def usd(self) -> float: ...
    @property
    def version(self) -> str: ...


class PriceOf(Protocol):
    """Tells what an answer costs; see `jobstore.providers.cost.price`."""

    def __call__(
        self,
        provider: str,
        model: str,
        usage: Usage,
        when: datetime,
        *,
        raw_usage: Mapping[str, JsonValue] | None = None,
        flavor: str = "default",
    ) -> _Price | None:
        """Return the price, or None if nobody knows it."""


_loaded: list[PriceOf | None] = []


async def load_prices() -> PriceOf | None:
    """Return what knows the prices; None if it is not installed."""
    if not _loaded:
        _loaded.append(await in_thread(_load))
    return _loaded[0]


def _load() -> PriceOf | None:
    try:
        from jobstore.providers.cost import price  # noqa: PLC0415 - an extra, and it takes a quarter of a second
    except ImportError:
        return None
    # The first of all takes a hundred times as long as the others.
    price("anthropic", "claude-opus-5-5", Usage(input_tokens=1, output_tokens=1), datetime.now(UTC))
    return price
