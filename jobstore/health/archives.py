"""A whole copy in one compressed file: a database, and the large texts that it names."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from jobstore.clock import system_clock
from jobstore.errors import DatabaseCorrupt, DiskFailed
from jobstore.files import create_private, refusal, sync_folder
from jobstore.outputs.folder import CHUNK_BYTES, FolderOutputs
from jobstore.outputs.paths import MARKER, is_inside

ENDING = ".tar.gz"
DATABASE, OUTPUTS = "database", "outputs/"
_DAMAGED = (tarfile.TarError, zlib.error, EOFError, OSError)


def pack(database: Path, outputs: Path, target: Path) -> None:
    """Write a database and its texts into a new archive, durably, and compare what is read back.

    Raises:
        DatabaseError: It cannot be written. What was begun is removed.
    """
    create_private(target)
    try:
        written = _write(database, outputs, target)
        _compare(target, written)
    except BaseException:
        target.unlink()
        raise


def unpack(archive: Path, database: Path, outputs: Path, store_id: Callable[[Path], str]) -> None:
    """Write what an archive holds to where nothing is yet, durably.

    Args:
        archive: From `pack`.
        database: Where the database goes.
        outputs: Where the texts go.
        store_id: Reads from the database what its store calls itself.

    Raises:
        DatabaseCorrupt: The archive is damaged, or none.
        DatabaseError: It cannot be written.
    """
    texts: FolderOutputs | None = None
    try:
        for name, chunks in _members(archive):
            if name == DATABASE:
                _write_file(database, chunks)
                texts = FolderOutputs(outputs, store_id(database), system_clock)
            elif texts is None or not is_inside(path := name.removeprefix(OUTPUTS)) or path == name:
                raise DatabaseCorrupt(f"{archive} holds {name!r}: it is no backup of ours")
            else:
                texts.copy_in(path, chunks)
    except _DAMAGED as error:
        raise DatabaseCorrupt(f"{archive} is no archive, or is damaged ({error}): choose another backup") from error
    if texts is None:
        raise DatabaseCorrupt(f"{archive} holds no database: it is no backup of ours")


def _write(database: Path, outputs: Path, target: Path) -> dict[str, str]:
    """Write an archive; return the hash of each of its members."""
    written: dict[str, str] = {}
    try:
        with target.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, path in _files(database, outputs):
                    written[name] = _add(archive, name, path)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(target.parent)
    except OSError as error:
        raise refusal(target, error) from error
    return written


def _files(database: Path, outputs: Path) -> Iterator[tuple[str, Path]]:
    yield DATABASE, database
    for path in sorted(outputs.glob("*/*/*")):
        yield f"{OUTPUTS}{path.relative_to(outputs).as_posix()}", path


def _add(archive: tarfile.TarFile, name: str, path: Path) -> str:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = path.stat().st_size, 0o600, path.stat().st_mtime
    with path.open("rb") as file:
        hashing = _Hashing(file)
        archive.addfile(member, hashing)
    return hashing.digest.hexdigest()


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _compare(target: Path, written: dict[str, str]) -> None:
    """Read an archive back.

    Raises:
        DiskFailed: It is not what was written.
    """
    found: dict[str, str] = {}
    try:
        for name, chunks in _members(target):
            digest = hashlib.sha256()
            for chunk in chunks:
                digest.update(chunk)
            found[name] = digest.hexdigest()
    except _DAMAGED:
        found = {}
    if found != written:
        raise DiskFailed(f"{target} is not what was written: check the disk, and try again")


def _members(archive: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    with tarfile.open(archive, "r|gz") as stream:
        for member in stream:
            file = stream.extractfile(member) if member.isreg() else None
            if file is None or member.name == f"{OUTPUTS}{MARKER}":
                raise tarfile.TarError(f"{member.name!r} is no regular file")
            yield member.name, iter(lambda file=file: file.read(CHUNK_BYTES), b"")  # type: ignore[misc]


def _write_file(path: Path, chunks: Iterator[bytes]) -> None:
    create_private(path)
    try:
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except tarfile.TarError:
        raise
    except OSError as error:
        raise refusal(path, error) from error
