"""Where a handler failed: the types of errors and the frames they went through, and nothing that a user has said."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

MAX_FRAMES = 20
"""Of each error: the innermost."""
MAX_ERRORS = 10
"""Of a chain or a group."""


def describe(error: BaseException) -> str:
    """Return types and frames of an error and of those behind it, without their messages, which may quote texts.

    Example:
        >>> print(describe(error))
        ValueError
          /app/handlers.py:12 in parse
        which came of KeyError
          /app/handlers.py:8 in look_up
    """
    lines: list[str] = []
    for number, (relation, one) in enumerate(_chain(error, "")):
        if number == MAX_ERRORS:
            lines.append("and others")
            break
        lines.append(f"{relation}{type(one).__module__}.{type(one).__qualname__}".replace("builtins.", ""))
        # Not `traceback.extract_tb`, which reads the sources of all frames: in the event loop.
        frames = list(traceback.walk_tb(one.__traceback__))
        if len(frames) > MAX_FRAMES:
            lines.append(f"  … {len(frames) - MAX_FRAMES} frames")
        codes = ((frame.f_code, line) for frame, line in frames[-MAX_FRAMES:])
        lines += [f"  {code.co_filename}:{line} in {code.co_name}" for code, line in codes]
    return "\n".join(lines)


def _chain(error: BaseException, relation: str) -> Iterator[tuple[str, BaseException]]:
    """Yield an error, what it came of, and what it groups, each once."""
    seen: set[int] = set()
    waiting = [(relation, error)]
    while waiting:
        relation, one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield relation, one
        behind = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if behind is not None:
            waiting.append(("which came of ", behind))
        if isinstance(one, BaseExceptionGroup):
            waiting += [("which groups ", member) for member in one.exceptions]
