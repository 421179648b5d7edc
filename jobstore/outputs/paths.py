"""The names of large texts: relative POSIX paths, made of the job's id and chance, that lead nowhere else."""

from __future__ import annotations

import re
import secrets

from jobstore.errors import OutputError

MARKER = "store_id"
"""What lies beside the texts and says whose they are."""


def new_path(kind: str, job_id: str) -> str:
    """Return a path that no other text has."""
    return path_of(kind, job_id, secrets.token_hex(8))


def path_of(kind: str, job_id: str, unique: str) -> str:
    """Return the path of a text; `unique` are 16 hexadecimal digits that no other text of the job has."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:64]
    return f"{kind}/{unique[:2]}/{readable}.{unique}.txt"


def parts(path: str) -> list[str]:
    """Split a recorded path.

    Raises:
        OutputError: It could lead elsewhere.
    """
    if not is_inside(path):
        raise OutputError(f"{path!r} leads out of the outputs folder: it is not opened", path)
    return path.split("/")


def is_inside(path: str) -> bool:
    """Whether a recorded path is one of a text of the store, links aside."""
    strange = path == MARKER or any(character in path for character in "\0\\:")
    return not strange and not any(part in {"", ".", ".."} for part in path.split("/"))
