"""What every place of large texts can do: the one interface that the rest of the store knows."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

from jobstore.errors import OutputError
from jobstore.models import Text
from jobstore.outputs.reading import check_whole

Kind = Literal["prompts", "responses"]

MAX_OUTPUT_BYTES = 2**30
"""Of one answer, by default: far more than any model gives, and less than a runaway loop."""
SWEEP_AGE = 24 * 3600
"""Seconds. Younger files may be about to be named; a path is never recorded after half of that."""


class OutputFile(Protocol):
    """A text that is appended to. Its methods block."""

    path: str
    """The text's, relative to the place."""
    size: int
    """How many bytes a reader finds there by now."""

    def append(self, data: bytes | bytearray) -> None:
        """Append bytes.

        Raises:
            DiskFull: There is no room.
            OutputError: The place refuses.
        """

    def sync(self) -> None:
        """Make what was appended durable, and readable everywhere.

        Raises:
            DiskFull: There is no room.
            OutputError: The place refuses. The file cannot be trusted to take more.
        """

    def close(self) -> None:
        """Let go of it, without blocking. Doing it twice is fine."""


class Outputs(Protocol):
    """Where one store's large texts lie. Its methods block: call them in a thread.

    A text is complete and durable before its row is written, and removed after its row was. A crash leaves texts
    that no row names, never rows that name a text which is not whole.
    """

    tail_seconds: float
    """Between looks at a text that is being written."""

    @abstractmethod
    def check(self) -> bool:
        """Check that the place, if anything lies there, belongs to this store; return whether anything does.

        Raises:
            OutputError: It is another store's, and each would take the other's texts for orphans; or it cannot be
                reached.
        """

    @abstractmethod
    def check_there(self, path: str) -> None:
        """Check that it is not the whole place that is away when a text in it cannot be read.

        Raises:
            OutputError: It is.
        """

    @abstractmethod
    def write(self, kind: Kind, job_id: str, text: bytes) -> Text:
        """Write a text to a path of its own, durably.

        Raises:
            DiskFull: There is no room.
            OutputError: It cannot be written.
        """

    @abstractmethod
    def copy_in(self, path: str, chunks: Iterable[bytes]) -> Text:
        """Write a text at the path that another place has it at, durably: all of it is there, or nothing.

        What is there already is replaced. No other may write to the same path at the same time.

        Raises:
            DiskFull: There is no room.
            OutputError: It cannot be written, or the path leads elsewhere.
        """

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Return how many bytes a text has; None if it is not there.

        Raises:
            OutputError: Its path leads elsewhere, or it cannot be looked at.
        """

    @abstractmethod
    def create(self, job_id: str) -> tuple[Text, OutputFile]:
        """Create an empty text to stream a response into, durably.

        Raises:
            DiskFull: There is no room.
            OutputError: It cannot be created.
        """

    @abstractmethod
    def chunks(self, path: str, offset: int) -> Iterator[bytes]:
        """Read a text in parts of at most 1 MiB, from an offset in bytes to its present end.

        Raises:
            OutputError: It is missing, its path leads elsewhere, or it cannot be read.
        """

    @abstractmethod
    def remove(self, paths: list[str]) -> int:
        """Remove texts that no row names any more, as far as they are there; return how many were.

        What cannot be removed now is left for a sweep.
        """

    @abstractmethod
    def old_files(self, age: float = SWEEP_AGE) -> Iterator[list[str]]:
        """Yield the paths of the texts that were last written at least `age` seconds ago, page by page.

        Raises:
            OutputError: The place cannot be listed.
        """

    def read(self, path: str, size: int | None = None, sha256: str | None = None) -> bytes:
        """Read a whole text, and compare it with what its row says, if that is known.

        Raises:
            OutputError: It is missing, damaged, or its path leads elsewhere.
        """
        data = b"".join(self.chunks(path, 0))
        check_whole(path, len(data), hashlib.sha256(data).hexdigest(), size, sha256)
        return data

    def read_part(self, path: str, offset: int) -> bytes:
        """Read some bytes from an offset on; none at the end.

        Raises:
            OutputError: They cannot be read.
        """
        return next(self.chunks(path, offset), b"")

    def measure(self, path: str, least: int = 0) -> Text:
        """Return what a row has to say of a text that was streamed: its size and hash, as they are read back.

        Args:
            path: The text's.
            least: Bytes that have reached it.

        Raises:
            OutputError: It cannot be read, or something of it is lost.
        """
        digest, measured = hashlib.sha256(), 0
        for chunk in self.chunks(path, 0):
            digest.update(chunk)
            measured += len(chunk)
        if measured < least:
            raise OutputError(f"{path} has {measured} bytes instead of {least}: give the answer, or fail the job", path)
        return Text(None, path, measured, digest.hexdigest())
