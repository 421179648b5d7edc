"""The official SDKs' clients, as the environment says: keys, and base URLs if they are not the providers' own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jobstore.aio import in_thread
from jobstore.errors import InvalidArgument
from jobstore.providers.registry import NAMES, adapter_for

VARIABLES = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}
"""Where each provider's SDK looks for its key."""


def provider_of(api_type: str) -> str:
    """Return whose API an API type is; see `adapter_for`.

    Raises:
        InvalidArgument: No adapter goes by this name.
        ImportError: Its SDK is not installed; it says what to install.
    """
    return adapter_for(api_type).provider


def api_types_of(provider: str) -> list[str]:
    """Return the API types that a provider's client serves.

    Example:
        >>> api_types_of("openai")
        ['openai', 'openai_chat']
    """
    return [name for name, adapter in NAMES.items() if adapter.partition("_")[0] == provider]


@asynccontextmanager
async def client_from_environment(provider: str) -> AsyncIterator[Any]:
    """Make a provider's client, without retries of its own, and close it in the end.

    Raises:
        InvalidArgument: The SDK cannot make one, as when the environment has no key.

    Example:
        >>> async with client_from_environment("anthropic") as client:
        ...     worker.handles_llm(api_type="claude", client=client)
    """
    try:
        client = await in_thread(_MAKERS[provider])  # it reads certificates
    except Exception as error:  # noqa: BLE001 - each SDK has its own
        kind, variable = type(error).__name__, VARIABLES[provider]
        raise InvalidArgument("providers", f"no client for {provider} can be made ({kind}): set {variable}") from None
    try:
        yield client
    finally:
        await _close(client)


def _anthropic() -> object:
    from anthropic import AsyncAnthropic  # noqa: PLC0415 - only for those who ask

    return AsyncAnthropic(max_retries=0)


def _openai() -> object:
    from openai import AsyncOpenAI  # noqa: PLC0415 - the same

    return AsyncOpenAI(max_retries=0)


def _gemini() -> object:
    from google import genai  # noqa: PLC0415 - the same

    return genai.Client()  # its adapter lets it try once


_MAKERS = {"anthropic": _anthropic, "openai": _openai, "gemini": _gemini}


async def _close(client: Any) -> None:  # noqa: ANN401 - each SDK has its own
    if hasattr(client, "aio"):
        await client.aio.aclose()
    await (in_thread(client.close) if hasattr(client, "aio") else client.close())
