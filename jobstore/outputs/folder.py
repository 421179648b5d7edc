"""Large texts in files: made durable before a row names them, opened only below their own folder.

Files lie in `prompts/` and `responses/`, each in 256 folders, readable by their owner alone. A name is made of
the job's id and chance, so no two writes share a file. A crash leaves files that no row names, never rows that
name a file which is not whole; `sweep` takes the former away when they are old.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from jobstore.clock import Clock
from jobstore.errors import DiskFull, JobStoreError, OutputError
from jobstore.files import sync_folder
from jobstore.models import Text
from jobstore.outputs.base import SWEEP_AGE, Kind, Outputs
from jobstore.outputs.paths import MARKER, is_inside, new_path, parts

CHUNK_BYTES = 256 * 1024

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a planted pipe must not block us
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)


class FolderOutputs(Outputs):
    """The folder of one store's large texts.

    Args:
        folder: Where it is or will be; made when first needed.
        store_id: What the database calls itself; the folder is marked with it.
        clock: The present time in milliseconds.
    """

    tail_seconds = 0.0

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
            owner = (self.folder / MARKER).read_text(encoding="utf-8").strip()
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
        if is_inside(path) and not self.check():
            raise OutputError(f"the outputs folder {self.folder} is not there: is its disk mounted, or is it another?")

    def write(self, kind: Kind, job_id: str, text: bytes) -> Text:
        """Write a text to a file of its own, durably; if that fails, remove what was begun.

        Raises:
            DiskFull: There is no room.
            OutputError: The file cannot be written.
        """
        return self.copy_in(new_path(kind, job_id), [text])

    def copy_in(self, path: str, chunks: Iterable[bytes]) -> Text:
        """Write a text at a path, durably; if that fails, remove what was begun.

        Raises:
            DiskFull: There is no room.
            OutputError: The file cannot be written.
        """
        began = self._clock()
        part = f"{path}.part"
        digest = hashlib.sha256()
        try:
            with _refusals(path):
                self.remove([part])  # of a process that was killed
                with self._create(part) as file:
                    for chunk in chunks:
                        digest.update(chunk)
                        file.append(chunk)
                    file.sync()
                self._absolute(part).replace(self._absolute(path))
                sync_folder(self._absolute(path).parent)
        except JobStoreError:
            self.remove([part, path])
            raise
        return Text(None, path, file.size, digest.hexdigest(), began)

    def link_in(self, path: str, source: FolderOutputs) -> bool:
        """Give a text of another folder, which never changes any more, a second name here; it takes no room.

        Returns:
            Whether it has one now: not where the file systems cannot do it. `sync` makes it durable.

        Raises:
            DiskFull: There is no room for a name.
            OutputError: There is no such text.
        """
        with _refusals(path):
            self._make_folders(path)
            try:
                with source._parent(path) as (name, folder), self._parent(path) as (own_name, own_folder):
                    os.link(name, own_name, src_dir_fd=folder, dst_dir_fd=own_folder, follow_symlinks=False)
            except FileNotFoundError:
                raise
            except (OSError, NotImplementedError):
                return False
        return True

    def sync(self) -> None:
        """Make the names of all texts durable.

        Raises:
            DiskFull: There is no room for them.
            OutputError: The disk refuses.
        """
        if not self.folder.is_dir():
            return  # nothing was written
        with _refusals("."):
            for folder in [self.folder, *self.folder.glob("*/"), *self.folder.glob("*/*/")]:
                sync_folder(folder)

    def size(self, path: str) -> int | None:
        """Return how many bytes a file has; None if it is not there.

        Raises:
            OutputError: Its path leads elsewhere, or it cannot be looked at.
        """
        with _refusals(path):
            try:
                with self._parent(path) as (name, folder):
                    return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
            except FileNotFoundError:
                return None

    def create(self, job_id: str) -> tuple[Text, FolderFile]:
        """Create an empty file to stream a response into, durably.

        Raises:
            DiskFull: There is no room.
            OutputError: The file cannot be created.
        """
        began = self._clock()
        path = new_path("responses", job_id)
        file = self._create(path)
        try:
            with _refusals(path):
                sync_folder(self._absolute(path).parent)
        except JobStoreError:
            file.close()
            self.remove([path])
            raise
        return Text(None, path, 0, None, began), file

    def chunks(self, path: str, offset: int) -> Iterator[bytes]:
        """Read a file in parts from an offset to its present end.

        Raises:
            OutputError: It cannot be read.
        """
        descriptor = self._open(path, _READ)
        try:
            with _refusals(path):
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OutputError(f"{path} is no regular file: it is not read", path)
                os.lseek(descriptor, offset, os.SEEK_SET)
                while chunk := os.read(descriptor, CHUNK_BYTES):
                    yield chunk
        finally:
            os.close(descriptor)

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

    def _create(self, path: str) -> FolderFile:
        with _refusals(path):
            self._make_folders(path)
        return FolderFile(path.removesuffix(".part"), self._open(path, _CREATE))

    def _make_folders(self, path: str) -> None:
        """Make the folders of a path, each durable before it is used."""
        parent = path.rpartition("/")[0]
        if parent in self._made and self._absolute(parent).is_dir():
            return
        if not self.folder.is_dir():
            self._make_folder()
            sync_folder(self.folder.parent)
        self._mark()
        folder = self.folder
        for part in parent.split("/"):
            folder = folder / part
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)
        self._made.add(parent)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError as error:  # not with its parents: a disk may not be mounted
            raise OutputError(f"the outputs folder cannot be made: there is no folder {self.folder.parent}") from error

    def _mark(self) -> None:
        """Write whose folder it is, unless that stands there."""
        self.check()
        marker = self.folder / MARKER
        if marker.exists():
            return
        part = self.folder / f"{MARKER}.{secrets.token_hex(8)}"
        with FolderFile(part.name, os.open(part, _CREATE, 0o600)) as file:
            file.append(f"{self._store_id}\n".encode())
            file.sync()
        part.replace(marker)
        sync_folder(self.folder)

    def _absolute(self, path: str) -> Path:
        return self.folder.joinpath(*parts(path))

    def _open(self, path: str, flags: int) -> int:
        """Open a file below the folder."""
        with _refusals(path), self._parent(path) as (name, folder):
            return os.open(name, flags | _NO_FOLLOW, 0o600, dir_fd=folder)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[str, int | None]]:
        """Open the folder of a file, following no link on the way to it; yield the file's name and the folder.

        Where folders cannot be opened, the name is the whole path.
        """
        *folders, name = parts(path)
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


class FolderFile:
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
        """Append bytes, for every reader of the folder to see.

        Raises:
            DiskFull: There is no room.
            OutputError: The disk refuses.
        """
        view = memoryview(data)
        while view:
            with _refusals(self.path):
                written = os.write(self._descriptor, view[:CHUNK_BYTES])
            self.size += written
            view = view[written:]

    def sync(self) -> None:
        """Make what was appended durable.

        Raises:
            DiskFull: There is no room.
            OutputError: The disk refuses. The file cannot be trusted any more.
        """
        with _refusals(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close it. Doing it twice is fine."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


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


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Say in our words what the operating system refused to do with the file at a path."""
    try:
        yield
    except OSError as error:
        raise _failure(error, path) from error
