"""What all adapters are: a request goes out through the SDK's client, and its stream comes back as events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import JsonValue

from jobstore.models import Usage
from jobstore.providers.common import presentable
from jobstore.providers.errors import Category, ProviderError
from jobstore.providers.events import Done, Event, FinishReason, Responded, Sending, Started, ToolCall
from jobstore.providers.request import Request


@dataclass(frozen=True, slots=True)
class Opened:
    """A successful response whose events are still to come."""

    events: AsyncIterator[Any]
    close: Callable[[], Awaitable[None]]
    http_status: int
    request_id: str | None


class Answer(ABC):
    """What has been heard of one answer: it takes what the SDK yields and returns what that means.

    Attributes:
        request_id: What the provider's support asks for, once the response has come.
        response_id: The answer's name at the provider.
        model: Which model answers.
        reason: Why the answer ended, in the provider's own word; None until it has.
        raw_usage: The token counts in the provider's own terms.
        error: What went wrong, if the SDK's events told of a failure.
        withheld: Why there is no answer though all went well, in the provider's own word.
    """

    provider: ClassVar[str]
    finish_reasons: ClassVar[Mapping[str, FinishReason]]
    filtered: ClassVar[frozenset[str]]
    """Reasons to end that mean that the answer was withheld."""

    def __init__(self) -> None:
        self.request_id: str | None = None
        self.response_id: str | None = None
        self.model: str | None = None
        self.reason: str | None = None
        self.raw_usage: dict[str, JsonValue] = {}
        self.error: ProviderError | None = None
        self.withheld: str | None = None
        self._calls = 0

    @property
    def is_complete(self) -> bool:
        """Whether the provider said that the answer has ended."""
        return self.reason is not None

    @abstractmethod
    def hear(self, event: Any) -> list[Event]:  # noqa: ANN401 - each SDK has its own
        """Take in the next event of the SDK's stream and return what it means; a failure is noted as `error`."""

    @abstractmethod
    def read(self, response: Any) -> list[Event]:  # noqa: ANN401 - each SDK has its own
        """Take in a whole response of the SDK, one that was not streamed, and return what it means."""

    def done(self) -> Done:
        """Return the end of the answer.

        Raises:
            ProviderError: It failed, did not come to its end, or was withheld.
        """
        if not self.is_complete or self.reason is None:
            raise self.error or self.failure("truncated")
        if self.withheld is not None or self.reason in self.filtered:
            raise self.failure("content_filtered", code=self.withheld or self.reason)
        finish_reason = self.finish_reasons.get(self.reason, "other")
        return Done(
            finish_reason="tool_calls" if self._calls and finish_reason == "stop" else finish_reason,
            provider_reason=self.reason,
            model=self.model,
            response_id=self.response_id,
            request_id=self.request_id,
            raw_usage=self.raw_usage,
        )

    def failure(self, category: Category, *, code: str | None = None, message: str | None = None) -> ProviderError:
        """Return an error that came inside a response which had begun well."""
        return ProviderError(
            self.provider,
            category,
            http_status=200,
            request_id=self.request_id,
            code=code,
            provider_message=message,
            raw_usage=self.raw_usage,
        )

    def start(self, response_id: str | None, model: str | None) -> list[Event]:
        """Note what the provider calls the answer and its model; tell it the first time."""
        if self.response_id is not None or response_id is None:
            return []
        self.response_id, self.model = response_id, model
        return [Started(response_id, model)]

    def call(self, call_id: str | None, name: str, arguments: str, signature: str | None = None) -> ToolCall:
        """Return a call of a tool; where the provider gives it no id, it is told by its number."""
        self._calls += 1
        return ToolCall(
            id=call_id or f"call-{self._calls}", name=name, arguments=arguments or "{}", signature=signature
        )

    def count(self, raw: Mapping[str, JsonValue]) -> list[Event]:
        """Merge counts into what was known, and tell all of it if it says more than before."""
        known, self.raw_usage = self.raw_usage, {**self.raw_usage, **raw}
        return [] if self.raw_usage == known else [self.usage(self.raw_usage)]

    @staticmethod
    @abstractmethod
    def usage(raw: Mapping[str, Any]) -> Usage:
        """Return the provider's counts in this package's terms: inclusive, with their parts."""


class Adapter(ABC):
    """Speaks to one API of one provider through its official SDK.

    Attributes:
        name: What it is found by, for example "openai_chat".
        provider: Whose API it is, for example "openai": what errors and prices go by.
        flavor: What genai-prices calls the form of this API's counts.
    """

    name: ClassVar[str]
    provider: ClassVar[str]
    flavor: ClassVar[str] = "default"

    async def stream(
        self,
        client: Any,  # noqa: ANN401 - each SDK has its own
        request: Request,
        *,
        sdk_retries: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Ask a model and yield its answer as it comes; the last event is always `Done`.

        The SDK's own retries are off: who calls this decides whether and when to try again. Who may leave it before
        its end closes it with `contextlib.aclosing`, so that the connection ends at once.

        Args:
            client: The SDK's asynchronous client, which stays the caller's.
            request: What to ask.
            sdk_retries: Leave it to the client how often it tries, which may take minutes.

        Yields:
            `Sending`, `Responded` and `Started`, the pieces of the answer with its counts, then `Done`.

        Raises:
            InvalidArgument: The request cannot be put to this API, or an image cannot be read; nothing was sent.
            ProviderError: There is no complete answer. What was yielded before is a part of one.

        Example:
            >>> async for event in adapter_of(client).stream(client, Request(model="…", prompt="Say hello")):
            ...     match event:
            ...         case Text(text):
            ...             await job.write(text)
            ...         case Usage():
            ...             await job.progress(usage=event)
        """
        arguments = await self.arguments(request)
        answer = self.answer()
        yield Sending()
        try:
            opened = await self.open(client, arguments, sdk_retries=sdk_retries)
            answer.request_id = opened.request_id
            try:
                yield Responded(opened.http_status, opened.request_id)
                async for event in opened.events:
                    for heard in answer.hear(event):
                        yield heard
                    if answer.error is not None and not answer.is_complete:
                        raise answer.error
            finally:
                await opened.close()
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - SDKs let through whatever an unexpected response leads to
            if not answer.is_complete:  # after its end, nothing can spoil an answer that is paid for
                raise self.translate(error, answer.request_id) from presentable(error)
        yield answer.done()

    @abstractmethod
    def answer(self) -> Answer:
        """Return what will listen to one answer: to this adapter's stream, or to one that the caller opened."""

    @abstractmethod
    def translate(self, error: Exception, request_id: str | None = None) -> ProviderError:
        """Return the error of this package that an error of the SDK or of the network stands for."""

    @abstractmethod
    async def arguments(self, request: Request) -> dict[str, Any]:
        """Return a request in the SDK's terms.

        Raises:
            InvalidArgument: It cannot be put to this API, or an image cannot be read.
        """

    @abstractmethod
    async def open(self, client: Any, arguments: dict[str, Any], *, sdk_retries: bool) -> Opened:  # noqa: ANN401
        """Send a request and return its response when its headers have come.

        Raises:
            Exception: Whatever the SDK raises; `translate` knows what it means.
        """
