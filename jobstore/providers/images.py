"""Images that go with a prompt: read from their files when a request is sent."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jobstore.aio import in_thread
from jobstore.errors import InvalidArgument
from jobstore.providers.request import Message

LARGEST = 32 * 2**20
"""Bytes: so that a path by mistake costs no memory. What the providers take is mostly less, and theirs to say."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the providers want it: encoded when it is read, away from the event loop."""

    media_type: str
    data: bytes = field(repr=False)
    base64: str = field(repr=False)

    @property
    def url(self) -> str:
        """The whole image as a URL."""
        return f"data:{self.media_type};base64,{self.base64}"


async def read_images(conversation: Iterable[Message]) -> dict[str, Image]:
    """Return the images of a conversation by their paths.

    Raises:
        InvalidArgument: One cannot be read, is larger than 32 MiB, or is no PNG, JPEG, GIF or WebP file.
    """
    paths = dict.fromkeys(path for message in conversation for path in message.images)
    return {path: await in_thread(_read_image, path) for path in paths}


def _read_image(path: str) -> Image:
    try:
        if not Path(path).is_file():  # a pipe would never end
            raise InvalidArgument("images", f"{path!r} is no file")
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise InvalidArgument("images", f"{path!r} cannot be read: {type(error).__name__}") from error
    if len(data) > LARGEST:
        raise InvalidArgument("images", f"{path!r} is larger than {LARGEST // 2**20} MiB")
    return Image(_media_type(path, data), data, base64.b64encode(data).decode())


def _media_type(path: str, data: bytes) -> str:
    """Look at the content: nothing but an image is ever sent, whatever a job names."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    for signature, media_type in _SIGNATURES:
        if data.startswith(signature):
            return media_type
    raise InvalidArgument("images", f"{path!r} is no PNG, JPEG, GIF or WebP file")
