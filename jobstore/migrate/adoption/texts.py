"""Texts on their way to the outputs: what was too large for its row, and files anywhere that old rows name."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from jobstore.errors import OutputError
from jobstore.migrate.adoption.values import NotUTF8, Raw
from jobstore.models import Text
from jobstore.operations.jobs import INLINE_LIMIT
from jobstore.outputs import Kind, Outputs
from jobstore.outputs.paths import path_of

CHUNK_BYTES = 256 * 1024

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_PSEUDO = ("/proc/", "/sys/", "/dev/")


class NotCopied(OutputError):
    """A file that an old row names is not copied; the message says why."""


class CopiedFile(NamedTuple):
    """A file that was copied."""

    text: Text
    """Its bytes."""
    readable: Text
    """The same, unless it is not UTF-8: then a copy in which such bytes are written out."""


class Destination(Protocol):
    """Where texts go."""

    def put(self, path: str, chunks: Iterable[bytes]) -> Text:
        """Write a text, durably, or make it out as it would be."""


class OutputsOnDemand:
    """The outputs of the store that the database becomes, opened when the first text comes."""

    def __init__(self, open_outputs: Callable[[], Outputs]) -> None:
        self._open_outputs = open_outputs
        self._outputs: Outputs | None = None

    def put(self, path: str, chunks: Iterable[bytes]) -> Text:
        """Write a text, durably."""
        if self._outputs is None:
            self._outputs = self._open_outputs()
        return self._outputs.copy_in(path, chunks)


class Nowhere:
    """Writes nothing: for rehearsals."""

    def put(self, path: str, chunks: Iterable[bytes]) -> Text:
        """Read a text, and return what it would be."""
        digest, size = hashlib.sha256(), 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
        return Text(None, path, size, digest.hexdigest())


class Texts:
    """Puts texts where they belong, each at a path that the same text of the same row has every time.

    So an adoption that was killed and is run again writes the same files anew, and leaves none behind.

    Args:
        destination: Where they go.
        database: The old database, which is never read as a file: to close it would drop its locks.
    """

    def __init__(self, destination: Destination, database: Path) -> None:
        self.moved = 0
        self._destination = destination
        self._own = frozenset(_identities(database))

    def place(self, kind: Kind, job_id: str, text: str) -> Text:
        """Return a text as it is to be stored: in its row, or as a file if it is too large for that."""
        data = text.encode()
        if len(data) <= INLINE_LIMIT:
            return Text(text, size=len(data))
        self.moved += 1
        return self._destination.put(_path(kind, job_id, "row"), [data])

    def copy(self, job_id: str, named: Raw) -> CopiedFile:
        """Copy the file that an old row names, in bounded memory.

        Raises:
            NotCopied: It is missing, or no regular file, or cannot be read.
            DiskFull: There is no room.
            OutputError: The outputs cannot be written.
        """
        path = _path_of(named)
        check = _Check()
        with _opened(path, self._own) as chunks:
            text = self._destination.put(_path("responses", job_id, "file"), check.passed(chunks))
        if check.is_text:
            return CopiedFile(text, text)
        with _opened(path, self._own) as chunks:
            return CopiedFile(text, self._destination.put(_path("responses", job_id, "readable"), _readable(chunks)))


class _Check:
    """Finds out whether what passes by is UTF-8."""

    def __init__(self) -> None:
        self.is_text = True

    def passed(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for chunk in chunks:
            self._decode(decoder, chunk, last=False)
            yield chunk
        self._decode(decoder, b"", last=True)

    def _decode(self, decoder: codecs.IncrementalDecoder, data: bytes, *, last: bool) -> None:
        try:
            if self.is_text:
                decoder.decode(data, last)
        except UnicodeDecodeError:
            self.is_text = False


def _readable(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for chunk in chunks:
        yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


def _path(kind: Kind, job_id: str, source: str) -> str:
    unique = hashlib.sha256(f"{kind}\0{job_id}\0{source}".encode()).hexdigest()[:16]
    return path_of(kind, job_id, unique)


def _path_of(named: Raw) -> str:
    """Return the path that a row names.

    Raises:
        NotCopied: It names none.
    """
    path = os.fsdecode(named) if isinstance(named, NotUTF8) else named
    if not isinstance(path, str):
        raise NotCopied("names no path")
    if not Path(path).is_absolute():
        raise NotCopied("names a path that is not absolute")
    return path


@contextlib.contextmanager
def _opened(path: str, own: frozenset[tuple[int, int]]) -> Iterator[Iterator[bytes]]:
    """Open a regular file, which lies on a disk, and yield its parts; what is written meanwhile is left out.

    Raises:
        NotCopied: It is none, or cannot be read.
    """
    with _refusals():
        descriptor = _open(path, own)
    try:
        yield _chunks(descriptor)
    finally:
        os.close(descriptor)


def _open(path: str, own: frozenset[tuple[int, int]]) -> int:
    status = os.lstat(path)  # before it is opened: to open a device may do something
    if stat.S_ISLNK(status.st_mode):
        raise NotCopied("names a link: it is not followed")
    if not stat.S_ISREG(status.st_mode) or os.path.realpath(path).startswith(_PSEUDO):
        raise NotCopied("names no regular file")
    if (status.st_dev, status.st_ino) in own:
        raise NotCopied("names the database itself")
    return os.open(path, _READ)


def _chunks(descriptor: int) -> Iterator[bytes]:
    with _refusals():
        remaining = os.fstat(descriptor).st_size
        while remaining > 0 and (chunk := os.read(descriptor, min(remaining, CHUNK_BYTES))):
            remaining -= len(chunk)
            yield chunk


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say in our words why a file could not be read."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotCopied("names a file that is missing") from error
    except OSError as error:
        raise NotCopied(f"names a file that cannot be read ({error.strerror})") from error
    except ValueError as error:  # it holds a NUL
        raise NotCopied("names no path") from error


def _identities(database: Path) -> Iterator[tuple[int, int]]:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(OSError):
            status = os.stat(f"{database}{suffix}")  # noqa: PTH116 - by path, as all that looks at these files
            yield status.st_dev, status.st_ino
