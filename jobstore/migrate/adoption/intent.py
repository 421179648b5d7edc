"""Whose outputs an adoption is filling, beside the database until that is committed.

The outputs are marked with the store's id, but until the commit no database has it. So it is written down first:
when a killed adoption is run again, it knows the outputs that it began for its own.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from jobstore.errors import DiskFailed
from jobstore.files import write_private

_STORE_ID = re.compile(r"[0-9a-f]{32}")


class Intent:
    """The file that holds the id of the store which a database is becoming."""

    def __init__(self, database: Path) -> None:
        self._path = Path(f"{database}.adopting")

    def read(self) -> str | None:
        """Return the id that an earlier adoption has written down; None if none has, or was killed at it.

        Raises:
            DiskFailed: It cannot be read.
        """
        try:
            text = self._path.read_bytes().decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskFailed(f"{self._path} cannot be read: {error.strerror}") from error
        return text if _STORE_ID.fullmatch(text) else None

    def write(self, store_id: str) -> None:
        """Write an id down, durably.

        Raises:
            DatabaseError: There is no room, or the folder cannot be written.
        """
        write_private(self._path, store_id.encode())

    def forget(self) -> None:
        """Remove the file: the database has the id. If it stays, it does no harm."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
