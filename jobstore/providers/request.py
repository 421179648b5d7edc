"""What to ask a model, in words that fit every provider; and how a job says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError

from jobstore.encoding import encode_text, first_problem
from jobstore.errors import InvalidArgument
from jobstore.models import Job, Model
from jobstore.providers.events import ToolCall

Role = Literal["user", "assistant", "tool"]

_NO_PARAMETERS: dict[str, JsonValue] = {"type": "object", "properties": {}}


class _Asked(Model):
    """What users make themselves, or write into a job's metadata."""

    def __init__(self, **fields: Any) -> None:  # noqa: ANN401 - pydantic validates them
        try:
            self.__pydantic_validator__.validate_python(fields, self_instance=self)
        except ValidationError as error:
            problem = first_problem(error)
        else:
            self._check()
            return
        raise InvalidArgument(*problem)  # out here, because that error quotes its input

    def _check(self) -> None:
        """Check what the fields' types do not tell: what cannot be encoded cannot be sent."""


class Tool(_Asked):
    """A function that the model may ask to be called."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=lambda: dict(_NO_PARAMETERS))
    """The JSON schema of its arguments, which is that of an object."""


class Message(_Asked):
    """A part of the conversation so far.

    Example:
        >>> [call] = [event for event in events if isinstance(event, ToolCall)]
        >>> history = [
        ...     Message(role="user", content="What is the weather in Paris?"),
        ...     Message(role="assistant", tool_calls=[call]),
        ...     Message(role="tool", content="18 °C", tool_call_id=call.id),
        ... ]
    """

    role: Role
    """`tool`: the result of a tool's call, for `tool_call_id`."""
    content: str = Field(default="", repr=False)
    images: list[str] = Field(default_factory=list)
    """Paths of PNG, JPEG, GIF or WebP files, of a message of the role `user`."""
    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False)
    """What a message of the role `assistant` asked for."""
    tool_call_id: str | None = None

    def _check(self) -> None:
        encode_text("content", self.content, InvalidArgument)
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise InvalidArgument("tool_call_id", "goes with the result of a tool's call, and only with that")
        if self.images and self.role != "user":
            raise InvalidArgument("images", f"cannot go with a message of the role {self.role}")
        if self.tool_calls and self.role != "assistant":
            raise InvalidArgument("tool_calls", f"cannot go with a message of the role {self.role}")


class Request(_Asked):
    """What to ask a model. It is frozen, and JSON both ways: `model_dump_json()`, `Request.model_validate_json(…)`.

    Raises:
        InvalidArgument: A field cannot be accepted; it names the field.

    Example:
        >>> Request(model="claude-opus-5-5", prompt="Say hello", system="Be brief.", max_tokens=100)
    """

    model: Annotated[str, Field(min_length=1)]
    """Its name, as the provider writes it."""
    prompt: str = Field(default="", repr=False)
    """What the user says now, after all `messages`; empty if they say it all."""
    images: list[str] = Field(default_factory=list)
    """Paths of PNG, JPEG, GIF or WebP files that go with the prompt; they are read when it is sent."""
    messages: list[Message] = Field(default_factory=list, repr=False)
    """The conversation so far."""
    system: str | None = Field(default=None, repr=False)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """How long the answer may become, reasoning included; None is as the provider has it, or 8,192 where it must
    be said."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    stop: list[str] = Field(default_factory=list)
    """Texts at which the answer ends."""
    tools: list[Tool] = Field(default_factory=list)
    options: dict[str, JsonValue] = Field(default_factory=dict, repr=False)
    """Whatever else the SDK's call takes, in its own words; where it says the same thing, it wins."""

    def _check(self) -> None:
        encode_text("prompt", self.prompt, InvalidArgument)
        encode_text("system", self.system or "", InvalidArgument)
        if not self.conversation:
            raise InvalidArgument("prompt", "is empty, and there are no messages to go on from")

    @property
    def conversation(self) -> list[Message]:
        """The messages, the prompt as the last of them."""
        if not self.prompt and not self.images:
            return self.messages
        return [*self.messages, Message(role="user", content=self.prompt, images=self.images)]

    @classmethod
    def of(cls, job: Job, **defaults: Any) -> Self:  # noqa: ANN401 - the fields above
        """Return what a job asks for: its prompt, its `model_used`, and from its metadata the fields of a request.

        What else the metadata has is of no concern here.

        Args:
            job: With its prompt loaded, as in a claim.
            **defaults: Fields that hold where the job says nothing.

        Raises:
            InvalidArgument: The job names no model, its prompt was not loaded, or a field cannot be accepted; it names
                the field.

        Example:
            >>> job = await store.jobs.enqueue("Explain", …, model_used="gpt-6-luna", metadata={"system": "Be brief."})
            >>> Request.of(job, max_tokens=1000).system
            'Be brief.'
        """
        fields: dict[str, Any] = {**defaults, **_chosen(job.metadata)}
        if job.model_used is not None:
            fields["model"] = job.model_used
        if "model" not in fields:
            raise InvalidArgument("model", "the job names none: enqueue it with model_used=…, or give a default")
        if job.prompt is None:
            raise InvalidArgument("prompt", "lies in a file: take a claim's job, or job.with_prompt(…)")
        return cls(**{**fields, "prompt": job.prompt})


_FROM_METADATA = frozenset(Request.model_fields) - {"model", "prompt"}


def _chosen(metadata: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: value for name, value in metadata.items() if name in _FROM_METADATA and value is not None}
