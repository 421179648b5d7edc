"""Clients of official SDKs that record every call of a model, and are otherwise what they were."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

from jobstore.encoding import check_identifier
from jobstore.errors import InvalidArgument
from jobstore.providers.registry import adapter_of, recorder_of

if TYPE_CHECKING:
    from jobstore.providers.sdk_calls import Recorder
    from jobstore.store import JobStore

C = TypeVar("C")

_OWN_PROTOCOLS = ("Bedrock", "Vertex")
"""Kinds of Anthropic's client that speak other protocols than its API."""


def recorded(
    client: C,
    store: JobStore,
    *,
    task_type: str,
    session_id: str | None = None,
    strict: bool = False,
) -> C:
    """Return a client that does what another does, and records every call of a model as a job.

    These are Anthropic's `messages`, OpenAI's `responses` and `chat.completions`, and Gemini's `generate_content`,
    streamed or not, also through helpers, raw responses and copies made by `with_options`. Each has a job with its
    prompt, its answer and what it took, and each HTTP request, should the SDK try again, a row in `store.calls`. The
    job is the program's: no worker repeats it. The answer is completed only if the provider said so; if the program
    leaves a stream, or is cancelled, the job is canceled, and what came until then is kept.

    The prompt of a request that says one thing is its text, and its other fields are in the metadata as `request`; of
    any other it is the whole request, as JSON.

    Args:
        client: An `AsyncAnthropic`, an `AsyncOpenAI`, or a `genai.Client` (whose `aio` is recorded) or its `aio`. It
            stays as it is; connections are shared, and closing the recorded one closes them.
        store: Where to record. It is open while the client is used, in the same event loop. When it closes, it records
            first what came until then of streams that nobody has closed, and nothing later.
        task_type: Of the jobs.
        session_id: Of the jobs.
        strict: Whether a call that cannot be recorded fails with what went wrong. Otherwise that is logged, and counted
            by `unrecorded`, and the call goes on.

    Raises:
        InvalidArgument: The client is of no kind that can be recorded.
        ImportError: Its SDK is not installed.

    Example:
        >>> client = recorded(AsyncAnthropic(), store, task_type="chat")
        >>> message = await client.messages.create(model="claude-opus-5-5", max_tokens=100, messages=[…])
        >>> [job] = (await store.jobs.list(task_type="chat")).items
    """
    adapter = adapter_of(client)
    check_identifier("task_type", task_type)
    if any(name in type(client).__name__ for name in _OWN_PROTOCOLS):
        raise InvalidArgument("client", f"of the kind {type(client).__name__} cannot be recorded: use record()")
    from jobstore.providers.sdk_calls import Recorder  # noqa: PLC0415 - it loads the SDKs' own HTTP client

    recorder = Recorder(store, task_type, session_id, strict)
    twin: Any = _gemini_twin(client, recorder) if adapter.name == "gemini" else _tapped(client, recorder)
    return twin  # type: ignore[no-any-return]


def unrecorded(client: object) -> int:
    """Return how many calls through a recorded client, or its copies, could not be recorded whole.

    Raises:
        InvalidArgument: It is none that `recorded` returned.
    """
    recorder: Any = recorder_of(client)
    if recorder is None:
        raise InvalidArgument("client", "is not recorded: use what recorded() returned")
    troubles: int = recorder.troubles
    return troubles


def _tapped(client: Any, recorder: Recorder) -> Any:  # noqa: ANN401 - of either SDK
    """Return a copy of a client of Anthropic's or OpenAI's, whose HTTP client is tapped."""
    from jobstore.providers.exchanges import TappedClient  # noqa: PLC0415

    http = client._client  # noqa: SLF001 - the one that its copies share; there is no public name for it
    if isinstance(http, TappedClient):
        raise InvalidArgument("client", "is recorded already")
    return _attentive(client.with_options(http_client=TappedClient(http, recorder)), recorder)


def _attentive(client: Any, recorder: Recorder) -> Any:  # noqa: ANN401 - of either SDK
    """Let a client tell when a call of its begins and ends, whatever is tried between; and its copies do the same."""
    request, duplicate = client.request, client.copy

    async def recorded_request(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - as the SDK calls it
        return await recorder.record(lambda: request(*args, **options))

    def recorded_copy(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - as the SDK takes it
        return _attentive(duplicate(*args, **options), recorder)

    client.request = recorded_request
    client.copy = client.with_options = recorded_copy
    return client


def _gemini_twin(client: Any, recorder: Recorder) -> Any:  # noqa: ANN401 - a genai.Client or its aio
    """Return a copy of a client of Google's, whose asynchronous side is recorded; the other side is the original's."""
    from google.genai.client import AsyncClient  # noqa: PLC0415 - it is there, as there is a client

    aio = AsyncClient(_gemini_api(client._api_client, recorder))  # noqa: SLF001 - there is no public way to copy
    if isinstance(client, AsyncClient):
        return aio
    twin = copy.copy(client)
    twin._api_client = aio._api_client  # noqa: SLF001 - the same
    twin._aio = aio  # noqa: SLF001 - the same
    twin._original = client  # noqa: SLF001 - or its end would close what the twin shares
    return twin


def _gemini_api(api: Any, recorder: Recorder) -> Any:  # noqa: ANN401 - google.genai's BaseApiClient
    """Return a copy of what the parts of Google's client send requests by."""
    import httpx2  # noqa: PLC0415 - the SDK's own

    from jobstore.providers.exchanges import TappedClient  # noqa: PLC0415

    http = api._async_httpx_client  # noqa: SLF001 - no public name
    if isinstance(http, TappedClient):
        raise InvalidArgument("client", "is recorded already")
    if not isinstance(http, httpx2.AsyncClient) or api._use_aiohttp():  # noqa: SLF001 - the same
        needed = "must speak through httpx2: give genai.Client an httpx_async_client in its http_options"
        raise InvalidArgument("client", needed)
    twin = copy.copy(api)
    tapped = TappedClient(http, recorder)
    twin._async_httpx_client = tapped  # noqa: SLF001 - the same
    # As if the program had given them: the twin's own end closes nothing.
    given = {"httpx_client": api._httpx_client, "httpx_async_client": tapped}  # noqa: SLF001 - the same
    twin._http_options = api._http_options.model_copy(update=given)  # noqa: SLF001 - the same
    twin.aclose = api.aclose
    request = twin._async_request  # noqa: SLF001 - the same

    async def recorded_request(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - as the SDK calls it
        return await recorder.record(lambda: request(*args, **options))

    twin._async_request = recorded_request  # noqa: SLF001 - the same
    return twin
