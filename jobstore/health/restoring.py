"""`jobstore restore`: puts a backup in a database's place, and keeps what was there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from jobstore.clock import system_clock
from jobstore.databases import find_database
from jobstore.engines.sqlite import is_there
from jobstore.errors import DatabaseNotFound, InvalidArgument, OutputError
from jobstore.files import create_private
from jobstore.health import archives, copies
from jobstore.migrate.files import copy_into, look
from jobstore.outputs import Outputs, Place, open_outputs, place_of
from jobstore.outputs.folder import FolderOutputs
from jobstore.ownership import Owner, exclusive, real
from jobstore.promotion.pair import Report


class Restored(BaseModel):
    """What was put back, and where what was there is now."""

    model_config = ConfigDict(frozen=True)

    path: Path
    """The database."""
    texts: int
    bytes: int
    """Of the large texts."""
    damaged: list[str]
    """Paths of large texts that are missing or damaged in the backup, and so in the database."""
    kept: Path | None
    """The database that was there; None if there was none."""
    kept_outputs: Path | None
    """The folder of its large texts, if there was one."""


def restore(
    source: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    outputs: str | os.PathLike[str] | None = None,
    leave_damaged: bool = False,
    report: Report = lambda _progress: None,
) -> Restored:
    """Put a backup in a database's place, with its large texts. What was there is kept under another name.

    The backup is copied and read through before anything is moved; the backup itself stays. Then all is swapped at
    once: killed in the middle, the next program to open the database finishes it before it reads a row.

    Args:
        source: What `backup` has made, also compressed; or any database of jobstore.
        url: The database, as for `JobStore`; it need not exist.
        outputs: Where its large texts are to lie, as for `JobStore`. A folder is swapped as well. In object storage
            the backup's texts are put beside what is there.
        leave_damaged: Go on although large texts are missing or damaged in the backup.
        report: Called as it goes on.

    Raises:
        DatabaseInUse: A program has the database open.
        InvalidArgument: It is on PostgreSQL; the message names the commands for that.
        DatabaseNotFound: There is no such backup.
        DatabaseCorrupt: The backup is damaged.
        DatabaseError: It cannot be read, or what it holds cannot be written. Nothing was changed.
        OutputError: Large texts are missing or damaged in it, or their place cannot be used. Nothing was changed.

    Example:
        >>> restore("jobs.db.backup-20300131T080000Z", "jobs.db").kept
        PosixPath('/srv/jobs.db.backup-before-restore-20300201T093000Z')
    """
    database = find_database(url)
    path, backup = copies.file_of(database, "restore"), real(Path(source))
    if not is_there(backup):
        raise DatabaseNotFound(str(source), "name a file that `jobstore backup` has made")
    if backup == path:
        raise InvalidArgument("source", "is the database itself: name a backup of it")
    place = place_of(outputs or database.outputs or "")
    with exclusive(path, "restore") as owner, staging(Staged(path, place, "restoring"), owner) as staged:
        found = _stage(staged, backup, report)
        if not leave_damaged:
            copies.refuse_damaged(found.damaged, "the backup")
        kept = staged.swap_in(owner, staged.name_kept("before-restore"))
    return Restored(path=path, texts=found.texts, bytes=found.bytes, damaged=found.damaged, **kept._asdict())


class Kept(NamedTuple):
    """Where what was replaced is now."""

    kept: Path | None
    kept_outputs: Path | None


@contextlib.contextmanager
def staging(staged: Staged, owner: Owner) -> Iterator[Staged]:
    """Begin with nothing staged, and leave nothing that was not swapped in."""
    staged.clear()
    try:
        yield staged
    finally:
        if not owner.is_swapping:
            staged.clear()


class Staged:
    """A database and its texts that are to take the place of others, beside these.

    Args:
        path: The database that they replace, of which the caller is the owner.
        place: Where its large texts lie.
        ending: What is put behind names meanwhile. Only an owner uses it, so what is there is left from one killed.
    """

    def __init__(self, path: Path, place: Place, ending: str) -> None:
        self.database = Path(f"{path}.{ending}")
        self.place = place
        self.folder = real(place) if isinstance(place, Path) else None
        """The folder that is swapped; None in object storage."""
        self.outputs = Path(f"{self.folder or f'{path}.outputs'}.{ending}")
        """The texts: also for object storage they are unpacked here first."""
        self.old = Path(f"{self.database}.old")
        """Where what was there may be put, not to be kept."""
        self._path = path

    def clear(self) -> None:
        """Remove what was staged, and what was put aside not to be kept."""
        copies.remove_database(self.database)
        copies.remove_database(self.old)
        copies.remove(self.outputs, *filter(None, [self._aside(self.old)]))

    def name_kept(self, reason: str) -> Path:
        """Return a name that says why what was there was put aside, and that is not taken."""
        name, number = f"{self._path}.backup-{reason}-{copies.moment()}", 0
        while os.path.lexists(kept := Path(f"{name}-{number}" if number else name)):
            number += 1
        return kept

    def swap_in(self, owner: Owner, kept: Path) -> Kept:
        """Put it in its place, all at once; return where what was there is now.

        Raises:
            DatabaseError: It cannot be moved; nothing was.
            OutputError: The folder of texts cannot be moved.
        """
        renames = owner.aside(kept)
        found = Kept(kept if renames else None, self._outputs_to_move(kept))
        if self.folder is not None and found.kept_outputs is not None:
            renames.append((self.folder, found.kept_outputs))
        renames.append((self.database, owner.path))
        if self.folder is not None and self.outputs.exists():
            renames.append((self.outputs, self.folder))
        owner.swap(renames)
        return found

    def _outputs_to_move(self, kept: Path) -> Path | None:
        """Return where the folder of texts goes; None if there is none to be moved."""
        if self.folder is None or not os.path.lexists(self.folder):
            return None
        if self.folder.is_mount():
            raise OutputError(f"{self.folder} is where a disk is mounted, and cannot be moved: use a folder in it")
        return self._aside(kept)

    def _aside(self, kept: Path) -> Path | None:
        """Return where the folder of texts of a database goes that is put aside as `kept`."""
        if self.folder is None:
            return None
        if self.folder == Path(f"{self._path}.outputs"):
            return Path(f"{kept}.outputs")  # so that what is kept can be opened
        return self.folder.with_name(f"{self.folder.name}{kept.name.removeprefix(self._path.name)}")


def _stage(staged: Staged, backup: Path, report: Report) -> copies.Found:
    """Write the backup's database and texts beside their places, and read them back."""
    if backup.name.endswith(archives.ENDING):
        archives.unpack(backup, staged.database, staged.outputs, copies.store_id)
    else:
        _copy(staged, backup, report)
    copies.check_integrity(staged.database, backup)
    texts = FolderOutputs(staged.outputs, copies.store_id(staged.database), system_clock)
    if staged.folder is not None:
        return copies.check_texts(staged.database, texts, report)
    place = open_outputs(staged.place, copies.store_id(staged.database), system_clock)
    _put_beside(staged.database, texts, place, report)
    return copies.check_texts(staged.database, place, report)


def _copy(staged: Staged, backup: Path, report: Report) -> None:
    create_private(staged.database)
    look(backup, lambda source: copy_into(source, staged.database, copies.telling(report)))  # leaves no trace beside it
    store_id, folder = copies.store_id(staged.database), Path(f"{backup}.outputs")
    if folder.exists():
        source = FolderOutputs(folder, store_id, system_clock)
        source.check()
        copies.copy_texts(staged.database, source, FolderOutputs(staged.outputs, store_id, system_clock), report)


def _put_beside(database: Path, texts: FolderOutputs, place: Outputs, report: Report) -> None:
    if texts.check():
        copies.copy_texts(database, texts, place, report)
