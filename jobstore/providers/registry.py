"""Adapters by their names, by jobs' API types, and by the clients that they work with."""

from __future__ import annotations

from importlib import import_module

from jobstore.errors import InvalidArgument
from jobstore.providers.base import Adapter

NAMES = {
    "anthropic": "anthropic",
    "claude": "anthropic",
    "openai": "openai",
    "openai_chat": "openai_chat",
    "gemini": "gemini",
    "google": "gemini",
}
"""API types, and the adapter of each."""

_CLIENTS = {
    ("anthropic", "AsyncAPIClient"): "anthropic",
    ("openai", "AsyncAPIClient"): "openai",
    ("google.genai", "Client"): "gemini",
    ("google.genai", "AsyncClient"): "gemini",
}
"""Packages and their classes that clients are, or descend from."""


def adapter_for(api_type: str) -> Adapter:
    """Return the adapter for a job's API type. To import its SDK takes a moment: ask before work begins.

    Args:
        api_type: "claude" or "anthropic"; "openai" (its Responses API), "openai_chat" (chat completions, which many
            others offer too); "gemini" or "google".

    Raises:
        InvalidArgument: No adapter goes by this name.
        ImportError: Its SDK is not installed; it says what to install.

    Example:
        >>> adapter_for("claude").provider
        'anthropic'
    """
    name = NAMES.get(api_type)
    if name is None:
        raise InvalidArgument("api_type", f"there is no adapter for {api_type!r}: use one of {', '.join(NAMES)}")
    adapter: Adapter = import_module(f"jobstore.providers.{name}").ADAPTER
    return adapter


def adapter_of(client: object) -> Adapter:
    """Return the adapter that works with a client of an official SDK: it is known by its class.

    For OpenAI's clients that is the adapter for the Responses API; `adapter_for("openai_chat")` takes them too.

    Raises:
        InvalidArgument: It is none of `AsyncAnthropic`, `AsyncOpenAI`, and `genai.Client` or its `aio`,
            nor of their subclasses.

    Example:
        >>> adapter_of(AsyncOpenAI()).name
        'openai'
    """
    for kind in type(client).__mro__:
        for (package, name), adapter in _CLIENTS.items():
            if kind.__name__ == name and f"{kind.__module__}.".startswith(f"{package}."):
                return adapter_for(adapter)
    raise InvalidArgument(
        "client", f"must be an AsyncAnthropic, an AsyncOpenAI or a genai.Client, not {type(client).__qualname__}"
    )


def recorder_of(client: object) -> object | None:
    """Return what records the calls of a client that `recorded` made; None for any other."""
    aio = getattr(client, "aio", client)
    http = getattr(getattr(aio, "_api_client", None), "_async_httpx_client", getattr(aio, "_client", None))
    return getattr(http, "recorder", None)
