"""The pages of a database file as its readers would see them: out of the log where that has a newer one."""

from __future__ import annotations

import struct
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from jobstore.health.salvage.log import Log

MAGIC = b"SQLite format 3\x00"
MOST_RESERVED = 32
"""Bytes at the end of a page that extensions keep for themselves, at most: 480 of 512 are always used."""
DEFAULT = 4096
"""SQLite's size of a page, if nobody asks for another."""
FEW = 20
"""Fewer pages do not tell how large they are."""
MOST_FRAGMENTS = 60
"""Bytes between cells that are too few to be used: with more, SQLite tidies the page up."""
SAMPLE = 20_000
"""Pages that are looked at to find out how large they are."""
LOCK_BYTE = 0x40000000
"""The page with this byte is never used."""

_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_INNER_KINDS, _KINDS = b"\x02\x05", b"\x02\x05\x0a\x0d"
_ENCODINGS = {1: "utf-8", 2: "utf-16-le", 3: "utf-16-be"}


class Pages:
    """The pages of a database, numbered from 1. The file must not be open in any other way in this process.

    Args:
        path: The database, which nobody may write to.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._log = Log.read(Path(f"{path}-wal"))
        self._log_file = open(f"{path}-wal", "rb") if self._log.pages else None  # noqa: PTH123, SIM115 - closed in __exit__
        self._file = FileIO(path)
        self._length = path.stat().st_size
        self.size = self._find_size()
        header = self.read(1)[:100]
        is_whole = _is_header(header)
        self.usable = self.size - (header[20] if is_whole else 0)
        """Bytes of a page that hold content."""
        self.encoding = _ENCODINGS.get(struct.unpack(">I", header[56:60])[0], "utf-8") if is_whole else "utf-8"
        self.first_free = struct.unpack(">I", header[32:36])[0] if is_whole else 0
        """The beginning of the list of free pages; 0 if there are none, or nobody knows."""
        self.has_map = struct.unpack(">I", header[52:56])[0] > 0 if is_whole else self._seems_mapped()
        """Whether there are pages that say what the others are for (auto_vacuum)."""
        self.count = self._log.page_count or -(-self._length // self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log_file is not None:
            self._log_file.close()
        self._file.close()

    def read(self, number: int) -> bytes:
        """Return a page; of one that is cut off, not there, or on a bad place of the disk, nothing but zeros."""
        if self._log_file is not None and number in self._log.pages:
            self._log_file.seek(self._log.pages[number])
            return self._log_file.read(self.size)
        found = self._bytes((number - 1) * self.size, self.size)
        return found if len(found) == self.size else bytes(self.size)

    @property
    def lock_page(self) -> int:
        """The page that is never used."""
        return LOCK_BYTE // self.size + 1

    def _bytes(self, start: int, count: int) -> bytes:
        try:
            self._file.seek(start)
            return self._file.read(count) or b""
        except OSError:
            return b""

    def _find_size(self) -> int:
        """Return the size of a page, as the log or the header says, or else as most pages seem to have it."""
        if self._log.page_size:
            return self._log.page_size
        if said := _size_in(self._bytes(0, 100)):
            return said
        shares = {size: share for size in _SIZES if (share := self._plausible(size)) is not None}
        likely = (size for size, share in shares.items() if share >= 0.7 * max(shares.values()))
        return next(likely, DEFAULT)

    def _plausible(self, size: int) -> float | None:
        """Return which share of the pages begins as one does if a page has this size; None of too few to tell.

        At a multiple of the true size it is about the same; at a part of it, half as many do at the most.
        """
        starts = range(size, min(self._length, SAMPLE * size), size)
        seeming = sum(self._begins_page(start, size) for start in starts)
        return seeming / len(starts) if seeming >= FEW else None

    def _begins_page(self, start: int, size: int) -> bool:
        """Whether a page of a b-tree begins here: its cells lie behind the list of them, and within the page."""
        kind, free, cells, content, fragments = struct.unpack(">BHHHB", self._bytes(start, 8).ljust(8, b"\0"))
        first, content = 12 if kind in _INNER_KINDS else 8, content or 65536
        if kind not in _KINDS or not first + 2 * cells <= content <= size or free >= size or fragments > MOST_FRAGMENTS:
            return False
        listed = self._bytes(start + first, 2 * cells)
        if not cells or len(listed) < 2 * cells:
            return not cells and content == size
        return all(content <= cell < size for (cell,) in struct.iter_unpack(">H", listed))

    def _seems_mapped(self) -> bool:
        """Whether the second page is one of the map: entries of a kind and a page each."""
        page = self.read(2)
        kinds = [page[at] for at in range(0, 50, 5)]
        return 1 <= kinds[0] <= 5 and all(kind <= 5 for kind in kinds)  # noqa: PLR2004 - there are five kinds


def _size_in(header: bytes) -> int:
    """Return the size of a page as a header says it; 0 if it says none that there can be."""
    if not _is_header(header):
        return 0
    size = struct.unpack(">H", header[16:18])[0]
    size = 65536 if size == 1 else size
    return size if size in _SIZES else 0


def _is_header(header: bytes) -> bool:
    """Whether the first bytes of a file can be those of a database (section 1.3 of the file format)."""
    if len(header) < 100 or not header.startswith(MAGIC):  # noqa: PLR2004 - its length
        return False
    encoding = struct.unpack(">I", header[56:60])[0]
    return header[21:24] == b"\x40\x20\x20" and header[20] <= MOST_RESERVED and encoding in {0, *_ENCODINGS}
