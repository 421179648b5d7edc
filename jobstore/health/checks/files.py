"""Checks of the file and of what it lies on: SQLite's version, permissions, room on the disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from jobstore.disk import LEAST_FREE_BYTES, LEAST_FREE_SHARE
from jobstore.engines.sqlite import MINIMUM_SQLITE
from jobstore.health.filesystems import filesystem_of
from jobstore.health.report import Finding, bad, good
from jobstore.health.subject import SQLiteSubject
from jobstore.outputs import FolderOutputs

_DEFECT_BEGINS, _DEFECT_ENDS = (3, 7, 0), (3, 51, 3)
_MENDED = {(3, 44): 6, (3, 50): 7}
"""Where the mend of the WAL-reset defect was brought to older lines (https://sqlite.org/wal.html)."""


def library(_subject: SQLiteSubject) -> Finding:
    """Check which SQLite this is."""
    version, text = sqlite3.sqlite_version_info, f"SQLite {sqlite3.sqlite_version}"
    if version < MINIMUM_SQLITE:
        needed = ".".join(map(str, MINIMUM_SQLITE))
        return bad("library", f"{text} is too old", f"install a Python with SQLite {needed} or newer")
    if has_reset_defect(version):
        return good(
            "library",
            f"{text} has the WAL-reset defect; jobstore keeps clear of it, as one process at a time checkpoints",
            "let no other program checkpoint this file while jobstore has it open",
        )
    return good("library", f"{text}, without the WAL-reset defect")


def has_reset_defect(version: tuple[int, ...]) -> bool:
    """Whether a version of SQLite can damage a database when two checkpoints race with a commit."""
    if not _DEFECT_BEGINS <= version < _DEFECT_ENDS:
        return False
    mended = _MENDED.get((version[0], version[1]))
    return mended is None or version[2] < mended


def permissions(subject: SQLiteSubject) -> Finding:
    """Check who else may read the prompts and answers."""
    open_to_others = [f"{path} ({mode:03o})" for path, mode in exposed(subject.path, subject.texts)]
    if os.name == "nt":
        return good("permissions", "not looked at: Windows keeps them in another way")
    if open_to_others:
        return bad(
            "permissions",
            f"files and folders that others than the owner may use: {len(open_to_others)}",
            "run `jobstore check --repair`, or chmod files to 600 and folders to 700",
            *open_to_others,
        )
    return good("permissions", "only the owner may read and write")


def exposed(path: Path, texts: object) -> Iterator[tuple[Path, int]]:
    """Yield the files and folders of a store that others may use, and their permissions."""
    for place in _places(path, texts):
        try:
            mode = stat.S_IMODE(place.stat().st_mode)
        except OSError:
            continue  # it is not there
        if mode & 0o077:
            yield place, mode
    folder = path.parent
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # anyone could put another file in the place of this one
        yield folder, mode


def _places(path: Path, texts: object) -> Iterator[Path]:
    yield from (Path(f"{path}{end}") for end in ("", "-wal", "-shm"))
    if isinstance(texts, FolderOutputs):
        yield texts.folder
        yield from (texts.folder / kind for kind in ("prompts", "responses"))


def filesystem(subject: SQLiteSubject) -> Finding:
    """Check that the database lies on a disk whose locks hold."""
    found = filesystem_of(subject.path)
    if found is None:
        return good("filesystem", "it cannot be told which it is")
    if found.is_network:
        return bad(
            "filesystem",
            f"{found.mounted_at} is {found.kind}, shared with other hosts: SQLite's locks do not hold there",
            "move the database to a local disk, or the store to PostgreSQL with `jobstore promote`",
        )
    return good("filesystem", f"{found.kind}, mounted at {found.mounted_at}")


def disk(subject: SQLiteSubject) -> Finding:
    """Check how much room there is."""
    places = [subject.path.parent]
    if isinstance(subject.texts, FolderOutputs) and subject.texts.folder.is_dir():
        places.append(subject.texts.folder)
    disks = [shutil.disk_usage(place) for place in places]
    free, size = min(disk.free for disk in disks), subject.path.stat().st_size
    room = f"{free / 1e9:.1f} GB are free, the database has {size / 1e6:,.1f} MB"
    if any(disk.free < min(LEAST_FREE_BYTES, int(disk.total * LEAST_FREE_SHARE)) for disk in disks):
        return bad("disk", f"nothing new is begun: {room}", "free some space, or move the store")
    if free < size:
        return good("disk", room, "too little for a backup on the same disk")
    return good("disk", room)
