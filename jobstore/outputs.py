"""Large texts in files: made durable before a row names them, opened only below their own folder.

Files lie in `prompts/` and `responses/`, each in 256 folders, readable by their owner alone. A name is made of
the job's id and chance, so no two writes share a file. A crash leaves files that no row names, never rows that
name a file which is not whole; `sweep` takes the former away when they are old.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
import hashlib
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from jobstore.aio import finish, in_thread
from jobstore.clock import Clock
from jobstore.errors import DiskFull, OutputError
from jobstore.models import Text, encode_text

Kind = Literal["prompts", "responses"]

CHUNK_BYTES = 256 * 1024
SWEEP_AGE = 24 * 3600
"""Seconds. Younger files may be about to be named; a path is never recorded after half of that."""
FLUSH_SECONDS, FLUSH_BYTES = 0.25, 8 * 1024
"""What is written to an output reaches its file after this long or this much, whichever is first."""
SYNC_SECONDS = 1.0
MAX_BUFFERED = 1024 * 1024
"""Bytes; a writer that is ahead of the disk by more than this waits."""

_MARKER = "store_id"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a planted pipe must not block us
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)


class Outputs:
    """The folder of one store's large texts. Its methods block: call them in a thread.

    Args:
        folder: Where it is or will be; made when first needed.
        store_id: What the database calls itself; the folder is marked with it.
        clock: The present time in milliseconds.
    """

    def __init__(self, folder: Path, store_id: str, clock: Clock) -> None:
        self.folder = folder
        self._store_id = store_id
        self._clock = clock
        self._made: set[str] = set()

    def check(self) -> bool:
        """Check that the folder, if there is one, belongs to this store; return whether there is one.

        Raises:
            OutputError: It is another store's: each would take the other's files for orphans.
        """
        try:
            owner = (self.folder / _MARKER).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return False
        except UnicodeDecodeError:
            owner = ""
        except OSError as error:
            raise OutputError(f"the outputs folder {self.folder} cannot be read: {error.strerror}") from error
        if owner != self._store_id:
            raise OutputError(f"the outputs folder {self.folder} belongs to another store: choose another folder")
        return True

    def check_there(self, path: str) -> None:
        """Check that it is not the whole folder that is away when a file in it cannot be read.

        Raises:
            OutputError: It is: perhaps its disk is not mounted, or there are too many open files.
        """
        if _is_inside(path) and not self.check():
            raise OutputError(f"the outputs folder {self.folder} is not there: is its disk mounted, or is it another?")

    def write(self, kind: Kind, job_id: str, text: bytes) -> Text:
        """Write a text to a file of its own, durably.

        Raises:
            DiskFull: There is no room. What was begun is removed.
            OutputError: The file cannot be written.
        """
        began = self._clock()
        path = self._new_path(kind, job_id)
        part = f"{path}.part"
        try:
            with self._create(part) as file:
                file.append(text)
                file.sync()
            os.rename(self._absolute(part), self._absolute(path))  # noqa: PTH104 - beside its kin
            _sync_folder(self._absolute(path).parent)
        except OSError as error:
            self.remove([part, path])
            raise _failure(error, path) from error
        return Text(None, path, len(text), hashlib.sha256(text).hexdigest(), began)

    def create(self, job_id: str) -> tuple[Text, OutputFile]:
        """Create an empty file to stream a response into, durably.

        Raises:
            DiskFull: There is no room.
            OutputError: The file cannot be created.
        """
        began = self._clock()
        path = self._new_path("responses", job_id)
        try:
            file = self._create(path)
            try:
                _sync_folder(self._absolute(path).parent)
            except OSError:
                file.close()
                self.remove([path])
                raise
        except OSError as error:
            raise _failure(error, path) from error
        return Text(None, path, 0, None, began), file

    def read(self, path: str, size: int | None = None, sha256: str | None = None) -> bytes:
        """Read a whole file, and compare it with what its row says, if that is known.

        Raises:
            OutputError: It is missing, damaged, or its path leads elsewhere.
        """
        data = b"".join(self.chunks(path, 0))
        check_whole(path, len(data), hashlib.sha256(data).hexdigest(), size, sha256)
        return data

    def measure(self, path: str) -> Text:
        """Return what a row has to say of a file that was streamed into: its size and hash.

        Raises:
            OutputError: It cannot be read.
        """
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(path, 0):
            digest.update(chunk)
            size += len(chunk)
        return Text(None, path, size, digest.hexdigest())

    def chunks(self, path: str, offset: int) -> Iterator[bytes]:
        """Read a file in parts from an offset to its present end.

        Raises:
            OutputError: It cannot be read.
        """
        descriptor = self._open(path, _READ)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OutputError(f"{path} is no regular file: it is not read", path)
            os.lseek(descriptor, offset, os.SEEK_SET)
            while chunk := os.read(descriptor, CHUNK_BYTES):
                yield chunk
        except OSError as error:
            raise _failure(error, path) from error
        finally:
            os.close(descriptor)

    def read_part(self, path: str, offset: int) -> bytes:
        """Read up to `CHUNK_BYTES` bytes from an offset on; none at the end.

        Raises:
            OutputError: It cannot be read.
        """
        return next(self.chunks(path, offset), b"")

    def remove(self, paths: list[str]) -> int:
        """Remove files that no row names any more, as far as they are there; return how many were."""
        removed = 0
        for path in paths:
            with contextlib.suppress(OSError, OutputError), self._parent(path) as (name, folder):
                os.unlink(name, dir_fd=folder)
                removed += 1
        return removed

    def old_files(self, age: float = SWEEP_AGE) -> Iterator[list[str]]:
        """Yield the paths of the files that were last written at least `age` seconds ago, folder by folder."""
        latest = time.time() - age
        for kind in ("prompts", "responses"):
            for folder in sorted(self.folder.glob(f"{kind}/??")):
                if folder.is_symlink():
                    continue  # none of ours
                paths = [f"{kind}/{folder.name}/{name}" for name in _names_before(folder, latest)]
                for start in range(0, len(paths), 500):
                    yield paths[start : start + 500]

    def _new_path(self, kind: Kind, job_id: str) -> str:
        unique = secrets.token_hex(8)
        readable = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:64]
        return f"{kind}/{unique[:2]}/{readable}.{unique}.txt"

    def _create(self, path: str) -> OutputFile:
        self._make_folders(path)
        return OutputFile(path, self._open(path, _CREATE))

    def _make_folders(self, path: str) -> None:
        """Make the folders of a path, each durable before it is used."""
        parent = path.rpartition("/")[0]
        if parent in self._made and self._absolute(parent).is_dir():
            return
        if not self.folder.is_dir():
            self._make_folder()
            _sync_folder(self.folder.parent)
        self._mark()
        folder = self.folder
        for part in parent.split("/"):
            folder = folder / part
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(folder.parent)
        self._made.add(parent)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError as error:  # not with its parents: a disk may not be mounted
            raise OutputError(f"the outputs folder cannot be made: there is no folder {self.folder.parent}") from error

    def _mark(self) -> None:
        """Write whose folder it is, unless that stands there."""
        self.check()
        marker = self.folder / _MARKER
        if marker.exists():
            return
        part = self.folder / f"{_MARKER}.{secrets.token_hex(8)}"
        with OutputFile(part.name, os.open(part, _CREATE, 0o600)) as file:
            file.append(f"{self._store_id}\n".encode())
            file.sync()
        part.replace(marker)
        _sync_folder(self.folder)

    def _absolute(self, path: str) -> Path:
        return self.folder.joinpath(*_parts(path))

    def _open(self, path: str, flags: int) -> int:
        """Open a file below the folder."""
        try:
            with self._parent(path) as (name, folder):
                return os.open(name, flags | _NO_FOLLOW, 0o600, dir_fd=folder)
        except OSError as error:
            raise _failure(error, path) from error

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[str, int | None]]:
        """Open the folder of a file, following no link on the way to it; yield the file's name and the folder.

        Where folders cannot be opened, the name is the whole path.
        """
        *folders, name = _parts(path)
        if os.open not in os.supports_dir_fd:
            yield str(self._absolute(path)), None
            return
        directory = os.open(self.folder, _DIRECTORY)
        try:
            for folder in folders:
                inner = os.open(folder, _DIRECTORY | _NO_FOLLOW, dir_fd=directory)
                os.close(directory)
                directory = inner
            yield name, directory
        finally:
            os.close(directory)


class OutputFile:
    """An open file that is appended to. Its methods block."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.size = 0
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, data: bytes | bytearray) -> None:
        """Append bytes. Raises OSError if the disk refuses."""
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view[:CHUNK_BYTES])
            self.size += written
            view = view[written:]

    def sync(self) -> None:
        """Make what was appended durable. Raises OSError, after which the file cannot be trusted."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close it. Doing it twice is fine."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class OutputWriter:
    """Streams text into a file: in the file within 250 ms or 8 KB, on the disk within a second.

    Example:
        >>> async with store.jobs.output(claim) as output:
        ...     await output.write("one piece")
    """

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self._buffer = bytearray()
        self._error: BaseException | None = None
        self._something = asyncio.Event()  # there is something to write, or it is the end
        self._enough = asyncio.Event()  # there is enough to write at once, or it is the end
        self._drained = asyncio.Event()
        self._closing = False
        self._flusher = asyncio.get_running_loop().create_task(self._flush_until_closed())

    @property
    def path(self) -> str:
        """Where the file lies, relative to the outputs folder."""
        return self._file.path

    @property
    def size(self) -> int:
        """How many bytes have reached the file."""
        return self._file.size

    async def write(self, text: str) -> None:
        """Add a piece of text; return when it is buffered.

        Raises:
            InvalidJob: It holds a lone surrogate; nothing of it was taken.
            DiskFull: The disk has no room for what was written before.
            OutputError: It could not be written for another reason, or the output is closed.
        """
        data = encode_text("text", text)
        self._raise_if_failed()
        if self._closing:
            raise OutputError("this output is closed", self._file.path)
        self._buffer += data
        self._something.set()
        if len(self._buffer) >= FLUSH_BYTES:
            self._enough.set()
        while len(self._buffer) > MAX_BUFFERED:
            self._drained.clear()
            await self._drained.wait()
            self._raise_if_failed()

    async def close(self) -> None:
        """Write the rest, make it durable and close the file, also when cancelled.

        Raises:
            DiskFull: There is no room for it.
            OutputError: It could not be written for another reason.
        """
        self._closing = True
        self._something.set()
        self._enough.set()
        await finish(self._wait_for_flusher())
        self._raise_if_failed()

    async def _wait_for_flusher(self) -> None:
        await asyncio.wait([self._flusher])

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    async def _flush_until_closed(self) -> None:
        try:
            await self._flush_loop()
        except OSError as error:
            self._error = _failure(error, self._file.path)
        except BaseException:
            self._error = OutputError("the output was interrupted: its last piece may be missing", self._file.path)
            raise
        finally:
            self._drained.set()
            self._file.close()

    async def _flush_loop(self) -> None:
        synced_at, dirty = time.monotonic(), False
        while True:
            until_sync = max(0.0, synced_at + SYNC_SECONDS - time.monotonic())
            await _wait(self._something, until_sync if dirty else None)
            await _wait(self._enough, min(FLUSH_SECONDS, until_sync) if dirty else FLUSH_SECONDS)
            closing = self._closing
            data, self._buffer = self._buffer, bytearray()
            if not closing:
                self._something.clear()
                self._enough.clear()
            if data:
                await in_thread(self._file.append, data)
                dirty = True
            self._drained.set()
            if dirty and (closing or time.monotonic() >= synced_at + SYNC_SECONDS):
                await in_thread(self._file.sync)
                synced_at, dirty = time.monotonic(), False
            if closing:
                return


class TextDecoder:
    """Decodes a text that comes in parts; a character that is cut off at the end of a part waits for the next."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def decode(self, data: bytes, path: str, *, last: bool = False) -> str:
        """Decode the next part, of the file at a path; after the last part no character may be cut off.

        Raises:
            OutputError: It is no text.
        """
        with contextlib.suppress(UnicodeDecodeError):  # which quotes what it could not read
            return self._decoder.decode(data, last)
        raise OutputError(f"{path} is not what was written (it is no text): restore it from a backup", path)


def check_whole(path: str, size: int, sha256: str, expected_size: int | None, expected_sha256: str | None) -> None:
    """Compare a file that was read with what its row says.

    Raises:
        OutputError: They differ.
    """
    if expected_size is not None and size != expected_size:
        raise OutputError(f"{path} has {size} bytes instead of {expected_size}: restore it from a backup", path)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise OutputError(f"{path} is not what was written (its SHA-256 differs): restore it from a backup", path)


async def _wait(event: asyncio.Event, timeout: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()


def _parts(path: str) -> list[str]:
    """Split a recorded path, refusing any that could lead out of the folder."""
    if not _is_inside(path):
        raise OutputError(f"{path!r} leads out of the outputs folder: it is not opened", path)
    return path.split("/")


def _is_inside(path: str) -> bool:
    """Whether a recorded path is one of a text of the folder, links aside."""
    strange = path == _MARKER or any(character in path for character in "\0\\:")
    return not strange and not any(part in {"", ".", ".."} for part in path.split("/"))


def _names_before(folder: Path, latest: float) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if _modified(entry) <= latest]
    except FileNotFoundError:
        return []


def _modified(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # someone removed it just now
        return math.inf


def _failure(error: OSError, path: str) -> OutputError | DiskFull:
    if isinstance(error, FileNotFoundError):
        return OutputError(f"the file {path} is missing from the outputs folder: restore it from a backup", path)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return DiskFull(f"no room to write {path}: free some space and try again")
    if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}:
        return OutputError(f"{path} leads over a link out of the outputs folder: it is not opened", path)
    return OutputError(f"the file {path} cannot be used: {error.strerror}", path)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows cannot, and its file systems log them themselves."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
