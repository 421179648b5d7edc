"""Keeping some room on the disk for what is under way: nothing new is begun once less of it is free."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from jobstore.aio import in_thread
from jobstore.errors import DiskLow

LEAST_FREE_BYTES = 64 * 2**20
LEAST_FREE_SHARE = 0.02
"""By default that many bytes, or on a small disk that share of it."""
LOOK_SECONDS = 1.0


class DiskGuard:
    """Knows whether the disks of a store have room for new work. It looks once a second at most, and off the loop.

    Args:
        folders: What lies on the disks; it need not exist yet.
        least: Bytes that are to stay free; None is the default, 0 looks at nothing.
    """

    def __init__(self, folders: Sequence[Path], least: int | None) -> None:
        self._folders = folders if least != 0 else ()
        self._least = least
        self._look_at = 0.0
        self._low: DiskLow | None = None

    async def require_room(self) -> None:
        """Refuse to begin anything new while a disk is nearly full.

        Raises:
            DiskLow: One is.
        """
        if self._folders and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._low = await in_thread(self._look)
        if self._low is not None:
            raise DiskLow(self._low.folder, self._low.free, self._low.least)

    def _look(self) -> DiskLow | None:
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
