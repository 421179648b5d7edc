"""`jobstore backup`: a copy of a database and of every large text that it names, made beside running programs."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from jobstore.clock import system_clock
from jobstore.databases import find_database
from jobstore.errors import DatabaseBusy, InvalidArgument
from jobstore.files import create_private, refusal, sync_folder
from jobstore.health import archives, copies
from jobstore.migrate.files import copy_database
from jobstore.outputs import Outputs, Place, open_outputs, place_of
from jobstore.outputs.folder import FolderOutputs
from jobstore.ownership import shared
from jobstore.promotion.pair import Report

ROUNDS = 20
"""Tries at a copy none of whose texts was removed while it was made. What was copied stays for the next."""
STALE_SECONDS = 24 * 3600
"""After this long what a killed backup has left behind is removed by the next."""
PART = ".part"


class Backup(BaseModel):
    """A copy that was made, and read back."""

    model_config = ConfigDict(frozen=True)

    path: Path
    """The copy: a database, whose texts lie in `<path>.outputs`, or an archive of both."""
    texts: int
    bytes: int
    """Of the large texts."""
    damaged: list[str]
    """Paths of large texts that are missing or damaged in the store itself; the copy lacks them."""
    removed: list[Path]
    """Older copies that were removed, to keep as many as was asked for."""


def backup(
    url: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    outputs: str | os.PathLike[str] | None = None,
    compress: bool = False,
    keep: int | None = None,
    report: Report = lambda _progress: None,
) -> Backup:
    """Copy a database as of one moment, and every large text that it names then; others may go on using it.

    The copy is a store of its own, which can be opened. Its texts are second names of the same files where the file
    system allows it, else copies; from object storage they are copied down. It is read back before it gets its name.

    Args:
        url: The database, as for `JobStore`.
        destination: The folder for the copy, made if it is not there; by default the database's own.
        outputs: Where the large texts lie, as for `JobStore`.
        compress: Put all of it into one file, `….tar.gz`.
        keep: Remove all but so many of the copies of this database in that folder that `backup` has made.
        report: Called as it goes on.

    Raises:
        InvalidArgument: It is on PostgreSQL; the message names the commands for that. Or another argument is wrong.
        DatabaseCorrupt: The database is damaged.
        DatabaseError: It cannot be read, or the copy cannot be written; nothing is left of it.
        OutputError: The place of the large texts is away, or belongs to another store.

    Example:
        >>> backup("jobs.db", "/backups", keep=7).path
        PosixPath('/backups/jobs.db.backup-20300131T080000Z')
    """
    database = find_database(url)
    path = copies.file_of(database, "back up")
    if keep is not None and keep < 1:
        raise InvalidArgument("keep", "must be at least 1")
    place = outputs or database.outputs
    folder = path.parent if destination is None else _folder(Path(destination).absolute())
    with shared(path) as share:
        copies.store_id(path)  # refused before anything is made, if it is no store of ours
        share.keep()
        made = make_backup(
            path, place_of(place or ""), folder, f"{path.name}.backup-", compress=compress, report=report
        )
    return made.model_copy(update={"removed": _remove_old(folder, path.name, keep)})


def make_backup(
    path: Path, place: Place, folder: Path, prefix: str, *, compress: bool = False, report: Report
) -> Backup:
    """Copy a database of which the caller holds a share, or which it has to itself.

    Args:
        path: The database.
        place: Where its large texts lie.
        folder: Where the copy goes.
        prefix: What its name begins with; the time follows.
        compress: Put all of it into one file.
        report: Called as it goes on.

    Raises:
        DatabaseError: As `backup` tells.
        OutputError: As `backup` tells.
    """
    source = open_outputs(place, copies.store_id(path), system_clock)
    copy = _reserve(folder, prefix)
    try:
        found = _fill(copy, path, source, report)
        target = _publish_packed(copy) if compress else _publish(copy)
    finally:
        shutil.rmtree(copy.part, ignore_errors=True)
    return Backup(path=target, texts=found.texts, bytes=found.bytes, damaged=found.damaged, removed=[])


class _Copy(NamedTuple):
    """A copy in the making: a folder that gets its final names when it is whole."""

    target: Path

    @property
    def part(self) -> Path:
        return Path(f"{self.target}{PART}")

    @property
    def database(self) -> Path:
        return self.part / archives.DATABASE

    @property
    def outputs(self) -> Path:
        return self.part / "outputs"


def _folder(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        raise InvalidArgument("destination", f"{path} is a file: name a folder") from None
    except FileNotFoundError:
        raise InvalidArgument("destination", f"the folder {path.parent} does not exist") from None
    except OSError as error:
        raise refusal(path, error) from error
    return path


def _reserve(folder: Path, prefix: str) -> _Copy:
    """Make the folder of a copy whose name is not taken."""
    name, number = f"{prefix}{copies.moment()}", 0
    while True:
        copy = _Copy(folder / (f"{name}-{number}" if number else name))
        number += 1
        try:
            copy.part.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise refusal(copy.part, error) from error
        if not any(os.path.lexists(f"{copy.target}{end}") for end in ("", ".outputs", archives.ENDING)):
            return copy
        copy.part.rmdir()


def _fill(copy: _Copy, path: Path, source: Outputs, report: Report) -> copies.Found:
    """Copy the database, then what it names, until nothing that it names was removed in between."""
    for _ in range(ROUNDS):
        copies.remove_database(copy.database)
        create_private(copy.database)
        copy_database(path, copy.database, copies.telling(report))
        texts = FolderOutputs(copy.outputs, copies.store_id(copy.database), system_clock)
        missing = copies.copy_texts(copy.database, source, texts, report)
        if copies.named_of(path, missing) == set(missing):
            break  # nobody has removed their rows: they are lost
    else:
        raise DatabaseBusy(0.0)
    _remove_unnamed(copy.database, texts)
    copies.check_integrity(copy.database, path)
    return copies.check_texts(copy.database, texts, report)


def _remove_unnamed(database: Path, texts: FolderOutputs) -> None:
    """Remove what an earlier round has copied, and no row of the last one names."""
    for paths in texts.old_files(age=0):
        named = copies.named_of(database, paths)
        texts.remove([path for path in paths if path not in named])


def _publish(copy: _Copy) -> Path:
    """Give a copy its names; the database's is the last, so what has it is whole."""
    try:
        if copy.outputs.exists():
            copy.outputs.rename(f"{copy.target}.outputs")
        copy.database.rename(copy.target)
        sync_folder(copy.target.parent)
    except OSError as error:
        raise refusal(copy.target, error) from error
    return copy.target


def _publish_packed(copy: _Copy) -> Path:
    packed, target = copy.part / "packed", Path(f"{copy.target}{archives.ENDING}")
    archives.pack(copy.database, copy.outputs, packed)
    try:
        packed.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise refusal(target, error) from error
    return target


def _remove_old(folder: Path, name: str, keep: int | None) -> list[Path]:
    """Remove what killed backups have left behind, and of the copies all but the newest; return those."""
    pattern = re.compile(
        rf"({re.escape(name)}\.backup-(\d{{8}}T\d{{6}}Z)(?:-(\d+))?)(\.tar\.gz|\.outputs|{re.escape(PART)}|)"
    )
    found = [(match, path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    for match, path in found:
        if match[4] == PART and _age(path) > STALE_SECONDS:
            copies.remove(path)
    whole = sorted({_order(match) for match, _ in found if match[4] in {"", archives.ENDING}})
    if keep is None or len(whole) <= keep:
        return []
    oldest = whole[-keep]
    removed = [path for match, path in found if match[4] != PART and _order(match) < oldest]
    for path in sorted(removed, key=lambda path: path.name.endswith(".outputs")):  # a database is gone before its texts
        copies.remove_database(path)
    return sorted(path for path in removed if not path.name.endswith(".outputs"))


def _order(match: re.Match[str]) -> tuple[str, int]:
    return match[2], int(match[3] or 0)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # another has removed it just now
        return 0.0
