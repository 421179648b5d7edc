"""Finds out which pages of a damaged file belong to which table or index, and which are damaged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from jobstore.health.salvage.pages import Pages
from jobstore.health.salvage.records import (
    INDEX_INNER,
    INDEX_LEAF,
    TABLE_INNER,
    TABLE_LEAF,
    Node,
    Unreadable,
    read_cells,
    read_node,
)
from jobstore.sql import Value

SCHEMA = "sqlite_schema"

_ROOT, _FREE, _BELOW = 1, 2, 5
"""What the map of pages says of one: the root of a tree, free, or below another page of its tree."""
_DEEPEST = 32
"""Levels of a tree. With four children a page that would be more pages than a file can have."""


class Entry(NamedTuple):
    """A row of the schema's table."""

    kind: str
    name: str
    table: str
    root: int
    sql: str | None


class Survey:
    """Which pages belong to what.

    Args:
        pages: Of the file.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.damaged: dict[str, set[int]] = {}
        """Pages that cannot be read although a table or an index refers to them, by its name."""
        self._owned: dict[str, list[int]] = {}
        self._seen: set[int] = {pages.lock_page}
        self._free = set(self._free_pages())
        self._walk(SCHEMA, 1)
        self._adopted: dict[int, list[int]] = {}
        self.unknown: list[int] = []
        """Pages of rows whose tree is not known."""
        self._sort_orphans()
        self.schema = self._read_schema()
        self._walk_schema()

    def numbers(self, name: str) -> list[int]:
        """Return the pages of a table or an index that can be read."""
        return self._owned.get(name, [])

    def node(self, number: int) -> Node:
        """Return one of these pages."""
        return read_node(self.pages, number)

    def rows(self, name: str) -> Iterator[list[Value]]:
        """Yield the rows of a table, or the entries of an index, that can be read."""
        for number in self.numbers(name):
            for cell in read_cells(self.pages, self.node(number)):
                if cell is not None:
                    yield cell.values

    def claim(self, name: str, number: int) -> None:
        """Note that a page belongs to a table."""
        self._owned.setdefault(name, []).append(number)

    def _walk(self, name: str, root: int) -> None:
        """Note all pages below a root, as far as they can be read."""
        waiting, is_table = [root], None
        while waiting:
            number = waiting.pop()
            if number in self._seen:
                continue
            try:
                node = read_node(self.pages, number)
            except Unreadable:
                self._seen.add(number)
                self.damaged.setdefault(name, set()).add(number)
                continue
            if is_table not in {None, node.is_table}:
                continue  # another tree's: what refers to it is wrong
            is_table = node.is_table
            self._seen.add(number)
            self.claim(name, number)
            waiting += reversed(node.children)

    def _walk_schema(self) -> None:
        """Walk all trees, then give each the pages that only the map knows to be its own."""
        names = {entry.root: entry.name for entry in self.schema if entry.root > 1}
        for root, name in names.items():
            self._walk(name, root)
        for root, numbers in self._adopted.items():
            for number in numbers:
                if number in self._seen:
                    continue
                if root in names:
                    self.claim(names[root], number)
                else:
                    self.unknown.append(number)
        self.unknown = [number for number in self.unknown if number not in self._seen]

    def _sort_orphans(self) -> None:
        """Sort the pages of rows below no known root by the root that the map names."""
        for number in range(2, self.pages.count + 1):
            if number in self._seen or number in self._free or self._is_map(number):
                continue
            try:
                kind = read_node(self.pages, number).kind
            except Unreadable:
                continue
            if kind == TABLE_INNER:
                continue  # it holds no rows
            root = self._root_of(number)
            if root == 1:
                self._seen.add(number)
                self.claim(SCHEMA, number)
            elif root:
                self._adopted.setdefault(root, []).append(number)
            elif kind in {TABLE_LEAF, INDEX_LEAF, INDEX_INNER}:
                self.unknown.append(number)

    def _read_schema(self) -> list[Entry]:
        if SCHEMA not in self._owned:  # not even its map is left
            self._find_schema()
        entries = {}
        for values in self.rows(SCHEMA):
            if (entry := _entry(values)) is not None:
                entries[(entry.kind, entry.name)] = entry
        return list(entries.values())

    def _find_schema(self) -> None:
        """Find the pages of the schema's table by what stands in them."""
        for number in list(self.unknown):
            node = read_node(self.pages, number)
            found = [cell for cell in read_cells(self.pages, node) if cell is not None]
            if node.kind == TABLE_LEAF and found and all(_entry(cell.values) is not None for cell in found):
                self.unknown.remove(number)
                self.claim(SCHEMA, number)

    def _free_pages(self) -> Iterator[int]:
        """Yield the pages that are not in use: what stands in them was deleted."""
        if self.pages.has_map:
            for number in range(3, self.pages.count + 1):
                if self._mapped(number)[0] == _FREE:
                    yield number
        trunk, seen = self.pages.first_free, set()
        while 1 < trunk <= self.pages.count and trunk not in seen:
            seen.add(trunk)
            yield trunk
            page = self.pages.read(trunk)
            trunk, count = struct.unpack_from(">II", page)
            if count <= len(page) // 4 - 2:
                yield from struct.unpack_from(f">{count}I", page, 8)

    def _root_of(self, number: int) -> int:
        """Return the root of the tree that a page belongs to, as the map says; 0 if it does not."""
        for _ in range(_DEEPEST):
            if number == 1:
                return 1
            kind, parent = self._mapped(number)
            if kind == _ROOT:
                return number
            if kind != _BELOW or not 1 <= parent <= self.pages.count:
                return 0
            number = parent
        return 0

    def _mapped(self, number: int) -> tuple[int, int]:
        """Return what the map says of a page (section 1.8 of the file format)."""
        if not self.pages.has_map or number < 3:  # noqa: PLR2004 - the first page of the map is the second
            return 0, 0
        page = self._map_of(number)
        if page == number:
            return 0, 0
        kind, parent = struct.unpack_from(">BI", self.pages.read(page), 5 * (number - page - 1))
        return kind, parent

    def _map_of(self, number: int) -> int:
        step = self.pages.usable // 5 + 1
        page = (number - 2) // step * step + 2
        return page + 1 if page == self.pages.lock_page else page

    def _is_map(self, number: int) -> bool:
        return self.pages.has_map and self._map_of(number) == number


def _entry(values: list[Value]) -> Entry | None:
    """Return a row of the schema's table, if it can be one."""
    match values:
        case [("table" | "index" | "trigger" | "view") as kind, str(name), str(table), root, (str() | None) as sql]:
            return Entry(str(kind), name, table, root if isinstance(root, int) else 0, sql)
    return None
