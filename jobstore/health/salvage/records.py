"""Takes pages of a b-tree apart into cells, and cells into values. What does not fit together raises `Unreadable`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from jobstore.health.salvage.pages import Pages
from jobstore.sql import Value

INDEX_INNER, TABLE_INNER, INDEX_LEAF, TABLE_LEAF = 2, 5, 10, 13
_HEADER = {INDEX_INNER: 12, TABLE_INNER: 12, INDEX_LEAF: 8, TABLE_LEAF: 8}
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""Bytes of an integer, by its serial type."""
_REAL, _ZERO, _ONE, _FIRST_BLOB = 7, 8, 9, 12


class Unreadable(Exception):
    """A page or a cell of it is damaged."""


class Node(NamedTuple):
    """A page of a b-tree."""

    number: int
    kind: int
    data: bytes
    cells: list[int]
    """Where its cells begin."""
    children: list[int]
    """The pages below, of an inner page."""

    @property
    def is_table(self) -> bool:
        """Whether it belongs to a table with rowids, not to an index or a table without."""
        return self.kind in {TABLE_INNER, TABLE_LEAF}


class Cell(NamedTuple):
    """A row, or an entry of an index."""

    rowid: int | None
    values: list[Value]


def read_node(pages: Pages, number: int) -> Node:
    """Return a page as one of a b-tree.

    Raises:
        Unreadable: It is none, or damaged.
    """
    data = pages.read(number)
    start = 100 if number == 1 else 0
    kind = data[start]
    if kind not in _HEADER:
        raise Unreadable
    count = struct.unpack_from(">H", data, start + 3)[0]
    first = start + _HEADER[kind]
    if first + 2 * count > pages.usable:
        raise Unreadable
    cells = list(struct.unpack_from(f">{count}H", data, first))
    if any(not first + 2 * count <= cell < pages.usable for cell in cells):
        raise Unreadable
    children = []
    if kind in {INDEX_INNER, TABLE_INNER}:
        children = [struct.unpack_from(">I", data, at)[0] for at in (*cells, start + 8) if at + 4 <= len(data)]
        if any(not 1 < child <= pages.count for child in children):
            raise Unreadable
    return Node(number, kind, data, cells, children)


def read_cells(pages: Pages, node: Node) -> Iterator[Cell | None]:
    """Yield what the cells of a page hold; None for one that is damaged. An inner page of a table holds no rows."""
    if node.kind == TABLE_INNER:
        return
    for at in node.cells:
        try:
            yield _read_cell(pages, node, at)
        except (Unreadable, IndexError, struct.error, UnicodeDecodeError):
            yield None


def _read_cell(pages: Pages, node: Node, at: int) -> Cell:
    if node.kind == INDEX_INNER:
        at += 4
    length, at = _varint(node.data, at)
    rowid = None
    if node.kind == TABLE_LEAF:
        rowid, at = _varint(node.data, at)
        rowid -= (rowid >> 63) << 64
    return Cell(rowid, _read_record(_payload(pages, node, at, length), pages.encoding))


def _payload(pages: Pages, node: Node, at: int, length: int) -> bytes:
    """Return the whole content of a cell: what does not fit goes on in pages of its own."""
    here = _length_here(pages.usable, length, is_table=node.is_table)
    if length < 2 or at + here > pages.usable:  # noqa: PLR2004 - no record is shorter
        raise Unreadable
    content = [node.data[at : at + here]]
    missing = length - here
    if missing > pages.count * pages.size:
        raise Unreadable
    following = struct.unpack_from(">I", node.data, at + here)[0] if missing else 0
    while missing > 0:
        if not 1 < following <= pages.count:
            raise Unreadable
        page = pages.read(following)
        if not any(page):  # no text is so: it was wiped, or is not there, and zeros would pass for it
            raise Unreadable
        content.append(page[4 : min(pages.usable, 4 + missing)])
        missing -= len(content[-1])
        following = struct.unpack_from(">I", page)[0]
    if following and length > here:  # the last one names no other
        raise Unreadable
    return b"".join(content)


def _length_here(usable: int, length: int, *, is_table: bool) -> int:
    """Return how many bytes of a content lie in its cell (section 1.6 of the file format)."""
    most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
    if length <= most:
        return length
    least = (usable - 12) * 32 // 255 - 23
    wanted = least + (length - least) % (usable - 4)
    return wanted if wanted <= most else least


def _read_record(data: bytes, encoding: str) -> list[Value]:
    header, at = _varint(data, 0)
    if header > len(data):
        raise Unreadable
    kinds = []
    while at < header:
        kind, at = _varint(data, at)
        kinds.append(kind)
    lengths = [_length_of(kind) for kind in kinds]
    if at != header or header + sum(lengths) != len(data):
        raise Unreadable
    values: list[Value] = []
    for kind, length in zip(kinds, lengths, strict=True):
        values.append(_read_value(kind, data[at : at + length], encoding))
        at += length
    return values


def _length_of(kind: int) -> int:
    if kind >= _FIRST_BLOB:
        return (kind - _FIRST_BLOB) // 2
    if kind in {10, 11}:
        raise Unreadable
    return 8 if kind == _REAL else _INTEGERS.get(kind, 0)


def _read_value(kind: int, data: bytes, encoding: str) -> Value:
    if kind >= _FIRST_BLOB:
        return data.decode(encoding) if kind % 2 else data
    if kind in _INTEGERS:
        return int.from_bytes(data, "big", signed=True)
    if kind == _REAL:
        real: float = struct.unpack(">d", data)[0]
        return real
    return {_ZERO: 0, _ONE: 1}.get(kind)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer of one to nine bytes, and where it ends."""
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004 - its highest bit says that it goes on
            return value, at + index + 1
    return value << 8 | data[at + 8], at + 9
