"""Adapters for LLM SDKs: each turns its SDK's stream into the same few events, and its failures into `ProviderError`.

One module per SDK, imported only by who uses it: `import jobstore.providers` loads none of them.

Example:
    >>> from anthropic import AsyncAnthropic
    >>> from jobstore.providers import Done, Text, anthropic
    >>> async for event in anthropic.stream(AsyncAnthropic(), model="…", prompt="Say hello", max_tokens=100):
    ...     if isinstance(event, Text):
    ...         print(event.text, end="")
"""

from jobstore.providers.errors import Category, ProviderError
from jobstore.providers.events import Done, Event, FinishReason, Text

__all__ = ["Category", "Done", "Event", "FinishReason", "ProviderError", "Text"]
