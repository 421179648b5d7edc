"""Adapters for LLM SDKs: each turns its SDK's stream into the same few events, and its failures into `ProviderError`.

One module per API, imported only when it is asked for: `import jobstore.providers` loads no SDK.

Example:
    >>> from anthropic import AsyncAnthropic
    >>> from jobstore.providers import Request, Text, adapter_of
    >>> client = AsyncAnthropic()
    >>> async for event in adapter_of(client).stream(client, Request(model="…", prompt="Say hello", max_tokens=100)):
    ...     if isinstance(event, Text):
    ...         print(event.text, end="")
"""

from jobstore.providers.base import Adapter, Answer
from jobstore.providers.errors import Category, ProviderError
from jobstore.providers.events import (
    Done,
    Event,
    FinishReason,
    Reasoning,
    Responded,
    Sending,
    Started,
    Text,
    ToolCall,
)
from jobstore.providers.recorded_clients import recorded, unrecorded
from jobstore.providers.registry import adapter_for, adapter_of
from jobstore.providers.request import Message, Request, Tool

__all__ = [
    "Adapter",
    "Answer",
    "Category",
    "Done",
    "Event",
    "FinishReason",
    "Message",
    "ProviderError",
    "Reasoning",
    "Request",
    "Responded",
    "Sending",
    "Started",
    "Text",
    "Tool",
    "ToolCall",
    "adapter_for",
    "adapter_of",
    "recorded",
    "unrecorded",
]
