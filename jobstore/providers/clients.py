"""The official SDKs' clients, as the environment says: keys, and base URLs if they are not the providers' own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jobstore.aio import in_thread
from jobstore.errors import InvalidArgument
from jobstore.providers.registry import NAMES, adapter_for

_VARIABLES = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}
"""Where each SDK looks for its key."""


def api_types_beside(api_type: str) -> list[str]:
    """Return the API types that the same client serves as an API type's, that one included.

    Raises:
        InvalidArgument: No adapter goes by this name.
        ImportError: Its SDK is not installed; it says what to install.

    Example:
        >>> api_types_beside("openai")
        ['openai', 'openai_chat']
    """
    adapter_for(api_type)
    return [name for name in NAMES if _sdk(name) == _sdk(api_type)]


@asynccontextmanager
async def client_from_environment(api_type: str) -> AsyncIterator[Any]:
    """Make the client for an API type, without retries of its own, and close it in the end.

    Raises:
        InvalidArgument: The SDK cannot make one, as when the environment has no key.

    Example:
        >>> async with client_from_environment("claude") as client:
        ...     worker.handles_llm(api_type="claude", client=client)
    """
    sdk = _sdk(api_type)
    try:
        client = await in_thread(_MAKERS[sdk])  # it reads certificates
    except Exception as error:  # noqa: BLE001 - each SDK has its own
        kind = type(error).__name__
        raise InvalidArgument("client", f"for {api_type} cannot be made ({kind}): set {_VARIABLES[sdk]}") from None
    try:
        yield client
    finally:
        await _close(client)


def _sdk(api_type: str) -> str:
    """Return which SDK serves an API type: OpenAI's serves two."""
    return NAMES[api_type].removesuffix("_chat")


def _anthropic() -> object:
    from anthropic import AsyncAnthropic  # noqa: PLC0415 - only for those who ask

    client = AsyncAnthropic(max_retries=0)
    sent = {name.lower() for name in client.default_headers}
    if client.credentials is None and not sent & {"authorization", "x-api-key"}:
        raise LookupError("no credentials")  # the SDK would tell with the first request
    return client


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
