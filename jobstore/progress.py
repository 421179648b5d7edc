"""How far a long piece of work has come, as it tells whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """How far one stage has come."""

    stage: str
    done: int
    total: int


Tell = Callable[[Progress], None]
