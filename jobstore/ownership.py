"""Who has a database's file open: several programs that share it, or one that has it to itself.

The lock is `flock` on a small file beside the database, `<database>.owner`, which is never removed. The operating
system ends it with its process, however that ends; taking it costs about 5 µs (measured). An open store holds it
shared. Restoring and the like hold it alone, so that no program goes on writing into a file that was put aside.

Windows has no `flock`, and needs none: a file that any program has open can be neither moved nor removed there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple
from weakref import WeakSet

from jobstore.errors import DatabaseCorrupt, DatabaseError, DatabaseInUse, DatabaseNotFound, DiskFailed
from jobstore.files import refusal, sync_folder, write_private

with contextlib.suppress(ModuleNotFoundError):  # Windows
    import fcntl

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that an opening store waits for whoever has the database to itself."""
RETRY_SECONDS = 0.05
MAX_DESCRIPTION = 200
DATABASE_FILES = ("", "-wal", "-shm", "-journal")
"""What SQLite's own files are called behind the database's path. The log belongs to the database: moved together."""

Rename = tuple[Path, Path]
"""From where a file or folder is moved, and to where."""


class Share:
    """A share of a database's file, held while it is open. It ends with its process; forked children have none.

    Args:
        path: The database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: _Lock | None = None
        self._found: os.stat_result | None = None
        self._refused_at: float | None = None

    def take(self) -> bool:
        """Try once; return False if it is to be tried again in `RETRY_SECONDS`. It blocks for no longer than that.

        What an exclusive owner had begun to swap when it was killed is finished first. Without the lock's file nobody
        has it alone, and it is had at once, to be kept by `keep`: a database that is refused is left without a trace.

        Raises:
            DatabaseInUse: Somebody has had it to itself for `PATIENCE` seconds.
            DatabaseError: A swap cannot be finished.
        """
        path = real(self._path)
        lock = self._lock = self._lock or _Lock(path)
        while lock.acquire(shared=True, create=False):
            if not os.path.lexists(_plan_of(path)):
                self._found = _status(path)
                return True
            lock.release()
            with contextlib.suppress(DatabaseInUse), exclusive(path, "finish a swap"):
                pass  # which finishes it
        now = time.monotonic()
        self._refused_at = self._refused_at or now
        if now - self._refused_at >= PATIENCE:
            raise _in_use(path, lock, PATIENCE)
        return False

    def keep(self) -> None:
        """Make the lock's file if there was none, now that the database is known to be one of ours. It blocks.

        In a folder that cannot be written, where nobody can have it alone either, there is none.

        Raises:
            DatabaseInUse: Somebody came to have it alone meanwhile.
        """
        path, lock = real(self._path), self._lock
        if lock is None or lock.is_open:
            return
        if not lock.acquire(shared=True, create=True):
            raise _in_use(path, lock, 0.0)
        found = _status(path)
        if self._found and found and not os.path.samestat(found, self._found):
            lock.release()
            raise DatabaseInUse(str(path), "it was replaced just now", (), 0.0)

    def release(self) -> None:
        """Give it back. Doing it twice is fine."""
        if self._lock is not None:
            self._lock.release()


@contextlib.contextmanager
def shared(path: Path) -> Iterator[Share]:
    """Hold a share of a database's file, and wait for it. It blocks.

    Raises:
        DatabaseInUse: Somebody has had it to itself for `PATIENCE` seconds.
    """
    share = Share(path)
    while not share.take():
        time.sleep(RETRY_SECONDS)
    try:
        yield share
    finally:
        share.release()


class Owner:
    """Who has a database's file to itself; from `exclusive`.

    Args:
        path: The database, links resolved.
        operation: What it does, in a word.
    """

    def __init__(self, path: Path, operation: str) -> None:
        self.path = path
        self._operation = operation

    def swap(self, renames: Sequence[Rename]) -> None:
        """Move files and folders, all or none of them: killed in between, the next to open the database goes on.

        Args:
            renames: In this order, within a file system. Each source exists; no target does, unless an earlier one
                moves it away.

        Raises:
            DatabaseError: One cannot be moved, and those before it were moved back.
        """
        try:
            moves = [_Move(str(source), str(target), source.lstat().st_ino) for source, target in renames]
        except OSError as error:
            raise refusal(self.path, error) from error
        plan = {"operation": self._operation, "moves": moves}
        write_private(_plan_of(self.path), json.dumps(plan).encode())
        try:
            _make_all(self.path, moves)
        except DatabaseError:
            for move in reversed(moves):
                move.undo()
            _forget_plan(self.path, moves)
            raise

    @property
    def is_swapping(self) -> bool:
        """Whether a swap was interrupted, and is still to be finished: then what it moves has to stay."""
        return os.path.lexists(_plan_of(self.path))

    def aside(self, kept: Path) -> list[Rename]:
        """Return the renames that put the database, with its log, aside as `kept`; none if there is no database."""
        files = [(Path(f"{self.path}{end}"), Path(f"{kept}{end}")) for end in DATABASE_FILES]
        return [(source, target) for source, target in files if source.exists()]


@contextlib.contextmanager
def exclusive(path: Path, operation: str) -> Iterator[Owner]:
    """Have a database's file to itself: nobody has it open, and who wants to open it waits. It blocks, but not long.

    Args:
        path: The database, which need not exist.
        operation: What for, in a word or two; those who wait are told.

    Raises:
        DatabaseInUse: A program has it open, or to itself.
        DatabaseNotFound: There is no such folder.
        DatabaseError: The lock cannot be made, or an interrupted swap cannot be finished.

    Example:
        >>> with exclusive(Path("jobs.db"), "restore") as owner:
        ...     owner.swap([*owner.aside(Path("jobs.db.old")), (Path("new.db"), owner.path)])
    """
    path = real(path)
    if not path.parent.is_dir():
        raise DatabaseNotFound(str(path), f"the folder {path.parent} does not exist")
    lock = _Lock(path)
    if not lock.acquire(shared=False, create=True):
        raise _in_use(path, lock, 0.0)
    try:
        lock.describe(f"{operation}, process {os.getpid()}")
        _finish_swap(path)
        yield Owner(path, operation)
    finally:
        lock.describe("")
        lock.release()


def real(path: Path) -> Path:
    """Return where a database's file really lies: whoever opens it over a link shares it with the others."""
    return Path(os.path.realpath(path))


class _Lock:
    """One hold of the lock, open for itself: several in one process are as apart as in several."""

    _all: ClassVar[WeakSet[_Lock]] = WeakSet()

    def __init__(self, database: Path) -> None:
        self.path = Path(f"{database}.owner")
        self._database = database
        self._descriptor = -1
        self._all.add(self)

    def __del__(self) -> None:
        self.release()

    @property
    def is_open(self) -> bool:
        """Whether its file is open."""
        return self._descriptor >= 0

    def acquire(self, *, shared: bool, create: bool) -> bool:
        """Try to take it; return whether it is had.

        A share is had without a lock where its file does not exist and is not to be made, or cannot be.
        """
        if os.name == "nt":
            return True
        while self._open(shared=shared, create=create):
            try:
                fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self._is_current():
                return True
            self.release()  # somebody has removed the file: the lock is on nothing
        return True

    def release(self) -> None:
        """Let go of it. Doing it twice is fine."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def describe(self, text: str) -> None:
        """Write what the database is held for into the lock's file. Nothing depends on it but a message."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode()[:MAX_DESCRIPTION], 0)

    def description(self) -> str:
        """Return what the exclusive owner does."""
        with contextlib.suppress(OSError):
            return os.pread(self._descriptor, MAX_DESCRIPTION, 0).decode(errors="replace")
        return ""

    def is_shared(self) -> bool:
        """Whether nobody has it alone, now that it was refused."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            return True
        return False

    def holders(self) -> list[int]:
        """Return the processes that hold it, as far as the operating system tells."""
        status = os.fstat(self._descriptor)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        try:
            lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        except OSError:
            return []
        found = [line.split() for line in lines]
        return sorted({int(words[-4]) for words in found if words[-3] == place and "->" not in words})

    @classmethod
    def forget_all(cls) -> None:
        """Let go of what a forked child has inherited: it would hold its parent's locks past its parent's end."""
        for lock in cls._all:
            lock.release()

    def _open(self, *, shared: bool, create: bool) -> bool:
        """Open the file; return False if there is none, and none is needed."""
        if self._descriptor >= 0:
            return True
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(self.path, flags | os.O_RDWR | (os.O_CREAT if create else 0), self._mode())
        except FileNotFoundError:
            return False
        except OSError as error:
            if not shared:
                raise refusal(self.path, error) from error
            with contextlib.suppress(OSError):  # a folder that cannot be written
                self._descriptor = os.open(self.path, flags | os.O_RDONLY)
        return self._descriptor >= 0

    def _mode(self) -> int:
        """Return the permissions of the database: who may write it must be able to lock it."""
        with contextlib.suppress(OSError):
            return self._database.stat().st_mode & 0o666
        return 0o600

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))  # noqa: PTH116 - beside fstat
        except OSError:
            return False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Lock.forget_all)


def _in_use(path: Path, lock: _Lock, waited: float) -> DatabaseInUse:
    """Return what says who stands in the way; `lock` was refused just now."""
    try:
        if lock.is_shared():
            return DatabaseInUse(str(path), None, tuple(lock.holders()), waited)
        return DatabaseInUse(str(path), lock.description() or "an operation", tuple(lock.holders()), waited)
    finally:
        lock.release()


class _Move(NamedTuple):
    """A step of a swap, as its plan records it."""

    source: str
    target: str
    inode: int
    """The source's: so it can be told whether it was moved already."""

    def make(self) -> None:
        """Move it, unless it was."""
        if self._is_at(self.source):
            if os.path.lexists(self.target):
                raise DiskFailed(f"{self.target} is in the way of {self.source}: move it away and try again")
            self._rename(self.source, self.target)

    def undo(self) -> None:
        """Move it back, if it was moved."""
        if self._is_at(self.target):
            self._rename(self.target, self.source)

    def _is_at(self, path: str) -> bool:
        try:
            return os.lstat(path).st_ino == self.inode
        except FileNotFoundError:
            return False

    def _rename(self, source: str, target: str) -> None:
        try:
            os.rename(source, target)  # noqa: PTH104 - as the plan has them
        except OSError as error:
            raise refusal(Path(target), error) from error


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return path.stat()
    return None


def _plan_of(path: Path) -> Path:
    return Path(f"{path}.swap")


def _finish_swap(path: Path) -> None:
    """Finish what an exclusive owner had begun to swap when it was killed."""
    try:
        plan = json.loads(_plan_of(path).read_text(encoding="utf-8"))
        operation, moves = plan["operation"], [_Move(*move) for move in plan["moves"]]
    except FileNotFoundError:
        return
    except OSError as error:
        raise refusal(_plan_of(path), error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatabaseCorrupt(f"{_plan_of(path)} is no plan of a swap: look at what it is, and move it away") from error
    _make_all(path, moves)
    logger.warning("finished the %s of %s that was interrupted", operation, path)


def _make_all(path: Path, moves: Sequence[_Move]) -> None:
    for move in moves:
        move.make()
    _forget_plan(path, moves)


def _forget_plan(path: Path, moves: Sequence[_Move]) -> None:
    """Remove the plan once every move is durable."""
    try:
        for folder in {Path(name).parent for move in moves for name in (move.source, move.target)}:
            sync_folder(folder)
        _plan_of(path).unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise refusal(_plan_of(path), error) from error
