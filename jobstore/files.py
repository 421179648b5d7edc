"""Making files that only their owner can read, and making their names durable."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from jobstore.errors import DatabaseError, DiskFailed, DiskFull, ReadOnlyDatabase


def create_private(path: Path) -> bool:
    """Create an empty file that only its owner can read, unless there is one; SQLite's own files inherit that.

    Returns:
        Whether it was created.

    Raises:
        ReadOnlyDatabase: The folder cannot be written.
        DatabaseError: It cannot be created for another reason.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise refusal(path, error) from error
    return True


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read: after a crash it is there as a whole, or as it was before.

    No other may write it at the same time.

    Raises:
        ReadOnlyDatabase: The folder cannot be written.
        DatabaseError: It cannot be written for another reason.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # of a process that was killed
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise refusal(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows cannot, and its file systems log them themselves."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refusal(path: Path, error: OSError) -> DatabaseError:
    """Return what says why the operating system refused to make, move or write a file."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"no room to create {path}: free some space and try again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ReadOnlyDatabase(f"{path} cannot be created ({error.strerror}): check the permissions of its folder")
    return DiskFailed(f"{path} cannot be created: {error.strerror}")
