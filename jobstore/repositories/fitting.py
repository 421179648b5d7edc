"""Fitting rows of one database into another: what one holds in a row may have to lie beside it in the other."""

from __future__ import annotations

import hashlib

from jobstore.outputs.paths import path_of
from jobstore.sql import Row

_TEXT_COLUMNS = (
    ("prompts", "prompt", "", ("prompt_file_path", "prompt_bytes", "prompt_sha256")),
    ("responses", "response", None, ("output_file_path", "output_bytes", "output_sha256")),
)
"""Of a job's texts: their kind, their column, what it holds when they lie elsewhere, and what then says where."""


def fitted(row: Row, *, holds_nul: bool) -> tuple[Row, dict[str, bytes]]:
    """Return a job's row as a database can hold it, and the texts that it then has outside of it, by path."""
    if holds_nul:
        return row, {}
    changed, texts = dict(row), {}
    for kind, column, moved, names in _TEXT_COLUMNS:
        text = row.get(column)
        if isinstance(text, str) and "\0" in text:
            data = text.encode()
            digest = hashlib.sha256(data).hexdigest()
            path = path_of(kind, row["id"], digest[:16])
            changed |= {column: moved, **dict(zip(names, (path, len(data), digest), strict=True))}
            texts[path] = data
    return changed, texts
