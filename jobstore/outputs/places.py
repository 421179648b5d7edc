"""Where large texts lie, as the user names it: a folder, or a URL of object storage."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from jobstore.clock import Clock
from jobstore.errors import InvalidArgument, OutputError
from jobstore.outputs.base import Outputs
from jobstore.outputs.folder import FolderOutputs

SCHEMES = ("s3", "gs", "az")

_CREDENTIALS = (
    "takes no credentials and no options: they come from the environment, such as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY"
)


class Bucket(NamedTuple):
    """A part of a bucket. It holds no secret: it may stand in any message."""

    scheme: str
    name: str
    prefix: str

    def __str__(self) -> str:
        """Return its URL."""
        return f"{self.scheme}://{self.name}/{self.prefix}".rstrip("/")


Place = Path | Bucket


def place_of(outputs: str | os.PathLike[str]) -> Place:
    """Return the place that a path or a URL names.

    Raises:
        InvalidArgument: It names none. What was given is not repeated: it may hold a password.
    """
    if not isinstance(outputs, str | os.PathLike):
        raise InvalidArgument("outputs", f"must be a path or a URL, not {type(outputs).__name__}")
    text = os.fspath(outputs)
    if not isinstance(text, str):
        raise InvalidArgument("outputs", "must be a str, not bytes")
    if "\0" in text:
        raise InvalidArgument("outputs", "must be a path or a URL: neither holds a NUL")
    if not isinstance(outputs, str) and re.match(r"(s3|gs|az|file):", text):
        raise InvalidArgument("outputs", "give a URL as a str: a path has lost one of its slashes")
    if "://" not in text:
        return Path(text).absolute()
    try:
        parts = urlsplit(text)
    except ValueError:
        raise InvalidArgument("outputs", "must be a path or a URL such as s3://bucket/prefix") from None
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidArgument("outputs", _CREDENTIALS)
    if parts.scheme == "file":
        return _folder(parts.netloc, unquote(parts.path))
    if parts.scheme not in SCHEMES:
        raise InvalidArgument("outputs", "must be a path, or a URL that begins with s3://, gs://, az:// or file:///")
    return _bucket(parts.scheme, parts.netloc, parts.path)


def _folder(host: str, path: str) -> Path:
    """Return the folder of a `file://` URL: the library of object storage does not sync the files that it writes."""
    if host or not path.strip("/") or "\0" in path:
        raise InvalidArgument("outputs", "write three slashes before an absolute path: file:///shared/folder")
    return Path(path)


def _bucket(scheme: str, name: str, path: str) -> Bucket:
    prefix = path.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InvalidArgument("outputs", f"must name a bucket: {scheme}://bucket/prefix")
    if prefix and not re.fullmatch(r"[A-Za-z0-9._=/-]+", prefix):
        raise InvalidArgument("outputs", "may have letters, digits and . _ = - / behind its bucket")
    if prefix and any(part in {"", ".", ".."} for part in prefix.split("/")):
        raise InvalidArgument("outputs", "may have no empty part, no . and no .. behind its bucket")
    return Bucket(scheme, name, prefix)


def open_outputs(place: Place, store_id: str, clock: Clock) -> Outputs:
    """Return what reads and writes at a place, after checking whose it is. It blocks.

    Args:
        place: From `place_of`.
        store_id: What the database calls itself; the place is marked with it.
        clock: The present time in milliseconds.

    Raises:
        OutputError: The place is another store's, or cannot be reached, or the library for it is missing.
    """
    outputs = unchecked_outputs(place, store_id, clock)
    outputs.check()
    return outputs


def unchecked_outputs(place: Place, store_id: str, clock: Clock) -> Outputs:
    """Return what reads and writes at a place, whosoever it is; `check` tells.

    Raises:
        OutputError: The library for it is missing.
    """
    return FolderOutputs(place, store_id, clock) if isinstance(place, Path) else _objects(place, store_id, clock)


def _objects(bucket: Bucket, store_id: str, clock: Clock) -> Outputs:
    try:
        from jobstore.outputs.objects import ObjectOutputs  # noqa: PLC0415 - an extra, needed for such URLs alone
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "obstore":
            raise
        message = f'{bucket} needs a library that is not installed: run `pip install "jobstore[objects]"`'
        raise OutputError(message) from error
    return ObjectOutputs(str(bucket), store_id, clock)
