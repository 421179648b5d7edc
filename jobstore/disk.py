"""Keeping some room on the disk for what is under way: nothing new is begun once less of it is free."""

from __future__ import annotations

import shutil
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from jobstore.aio import in_thread
from jobstore.errors import DiskLow

LEAST_FREE_BYTES = 64 * 2**20
LEAST_FREE_SHARE = 0.02
"""By default that many bytes, or on a small disk that share of it."""
LOOK_SECONDS = 1.0


class DiskGuard:
    """Knows whether the disks of a store had room for new work when it last looked.

    Args:
        folders: What lies on the disks; it need not exist yet.
        least: Bytes that are to stay free; None is the default, 0 looks at nothing.
    """

    def __init__(self, folders: Sequence[Path], least: int | None) -> None:
        self._folders = folders if least != 0 else ()
        self._least = least
        self._look_at = 0.0
        self._low: DiskLow | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time to look again: once a second at most."""
        return bool(self._folders) and time.monotonic() >= self._look_at

    def look(self) -> Coroutine[Any, Any, None]:
        """Look, off the loop."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        return self._note()

    def require_room(self) -> None:
        """Refuse to begin anything new while a disk is nearly full.

        Raises:
            DiskLow: One was, at the last look.
        """
        if self._low is not None:
            raise DiskLow(self._low.folder, self._low.free, self._low.least)

    async def _note(self) -> None:
        self._low = await in_thread(self._find_low)

    def _find_low(self) -> DiskLow | None:
        for folder in self._folders:
            place = next((path for path in (folder, *folder.parents) if path.exists()), folder)
            try:
                total, _, free = shutil.disk_usage(place)
            except OSError:
                continue  # whoever writes there is told what is wrong
            least = min(LEAST_FREE_BYTES, int(total * LEAST_FREE_SHARE)) if self._least is None else self._least
            if free < least:
                return DiskLow(str(place), free, least)
        return None
