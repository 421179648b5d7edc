"""Reads a write-ahead log: the newest committed version of each page in it, and whether something of it is lost.

SQLite never locks the log itself, so opening it here drops none of its locks, as opening the database would.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEADER, FRAME_HEADER = 32, 24
_MAGIC = 0x377F0682
"""The last bit says in which order the checksum reads its words."""


class Frame(NamedTuple):
    """A page in the log."""

    page: int
    size_after_commit: int
    """Pages of the database if this frame ends a transaction, else 0."""
    offset: int
    """Of the page's content in the file."""
    salts: bytes
    """What all frames since the log was last begun anew have in common."""
    checksum: tuple[int, int]


class Log(NamedTuple):
    """What a log holds."""

    page_size: int = 0
    """0 if there is no log, or an empty one."""
    pages: dict[int, int] = {}  # noqa: RUF012 - never changed
    """Where in the file the newest committed content of each page is."""
    page_count: int = 0
    """Pages of the database after the last commit; 0 if there is none."""
    uncommitted: int = 0
    """Whole frames behind the last commit."""
    lost_commits: int = 0
    """Commits behind a frame that is damaged."""
    is_cut: bool = False
    """Whether it ends within a page, as no killed program leaves it."""

    @classmethod
    def read(cls, path: Path) -> Log:
        """Read a log.

        Raises:
            OSError: It cannot be read.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls()
        return _read(data)


def _read(data: bytes) -> Log:
    if len(data) < HEADER:
        return Log(is_cut=len(data) > 0)
    magic, _, size, _, *_ = struct.unpack(">8I", data[:HEADER])
    order = ">" if magic & 1 else "<"
    start = _checksum(order, data[: HEADER - 8], (0, 0))
    if magic & ~1 != _MAGIC or start != struct.unpack(">2I", data[HEADER - 8 : HEADER]):
        return Log(lost_commits=_commits_in_any(data))
    frames = _frames(data, size)
    valid = _valid(data, size, order, frames, start)
    committed = max((n for n, frame in enumerate(valid, 1) if frame.size_after_commit), default=0)
    salts = data[16:24]
    behind = [frame for frame in frames[len(valid) :] if frame.salts == salts]
    return Log(
        page_size=size,
        pages={frame.page: frame.offset for frame in valid[:committed]},
        page_count=valid[committed - 1].size_after_commit if committed else 0,
        uncommitted=len(valid) - committed,
        lost_commits=sum(frame.size_after_commit > 0 for frame in behind),
        is_cut=_is_cut(data, size, salts),
    )


def _frames(data: bytes, size: int) -> list[Frame]:
    """Return all frames that are there in full, those of earlier rounds as well."""
    step = FRAME_HEADER + size
    return [_frame(data, at) for at in range(HEADER, len(data) - step + 1, step)]


def _frame(data: bytes, at: int) -> Frame:
    page, after, salts, first, second = struct.unpack_from(">II8sII", data, at)
    return Frame(page, after, at + FRAME_HEADER, salts, (first, second))


def _valid(data: bytes, size: int, order: str, frames: list[Frame], start: tuple[int, int]) -> list[Frame]:
    """Return the frames from the first on that follow each other without a break."""
    return list(_unbroken(data, size, order, frames, start))


def _unbroken(data: bytes, size: int, order: str, frames: list[Frame], start: tuple[int, int]) -> Iterator[Frame]:
    salts, checksum = data[16:24], start
    for frame in frames:
        header = frame.offset - FRAME_HEADER
        checksum = _checksum(order, data[header : header + 8], checksum)
        checksum = _checksum(order, data[frame.offset : frame.offset + size], checksum)
        if frame.salts != salts or frame.checksum != checksum or frame.page == 0:
            return
        yield frame


def _checksum(order: str, data: bytes, start: tuple[int, int]) -> tuple[int, int]:
    """Return SQLite's cumulative checksum (section 4.2 of the file format)."""
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _is_cut(data: bytes, size: int, salts: bytes) -> bool:
    """Whether the last frame, of this round, is there in part: a killed program may leave its header alone."""
    rest = (len(data) - HEADER) % (FRAME_HEADER + size)
    begins = len(data) - rest
    return rest > FRAME_HEADER and data[begins + 8 : begins + 16] == salts


def _commits_in_any(data: bytes) -> int:
    """Return how many commits seem to be in a log whose header is damaged: at least one, if it has any content."""
    return 1 if any(data[HEADER:]) else 0
