"""Writing to the terminal, or to whatever the standard output is: styled there, plain and exact elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Container, Iterator, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobstore import OutputError

Cell = str | Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
"""What drives a terminal; and what stands in a path for bytes that are no UTF-8, which cannot be written as such."""


def is_terminal() -> bool:
    """Whether a person is looking at the standard output."""
    return sys.stdout.isatty()


def visible(text: str) -> str:
    """Return a text whose control characters are written out, so that it cannot drive the terminal."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return a text as one line that is safe to show."""
    return visible(" ".join(text.split()))


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Write to the standard output.

    Raises:
        OutputError: It cannot be written, such as when it goes to a file on a full disk.
        BrokenPipeError: Its reader has had enough.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_output()
        raise OutputError(f"the output cannot be written: {error.strerror}") from error


def flush() -> None:
    """Write what is still buffered to the standard output.

    Raises:
        OutputError: As `writing` tells.
        BrokenPipeError: As `writing` tells.
    """
    with writing():
        sys.stdout.flush()


def forget_output() -> None:
    """Send what is still buffered nowhere, or the interpreter would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def note(text: str) -> None:
    """Write a line to the standard error."""
    flush()
    sys.stderr.write(f"jobstore: {one_line(text)}\n")
    sys.stderr.flush()


def say(line: str) -> None:
    """Write a line to the standard output."""
    _write(f"{visible(line)}\n")


def write_styled(mark: Text, line: str) -> None:
    """Write a line behind a mark that has a colour where a terminal shows it."""
    if is_terminal():
        _console().print(Text.assemble(mark, visible(line)), soft_wrap=True)
    else:
        say(f"{mark.plain}{line}")


def write_exactly(text: str) -> None:
    """Write a text of a user: exactly, unless a terminal shows it."""
    if is_terminal():
        _write(visible(text))
    else:
        _write_bytes(text.encode())
    flush()


def write_json(document: object) -> None:
    """Write a JSON document, models and paths in it included."""
    text = json.dumps(document, ensure_ascii=False, indent=2, default=_as_json)
    safe = _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    _write_bytes(f"{safe}\n".encode())


def write_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], may_be_cut: Container[str] = ()) -> None:
    """Write rows in columns; in a terminal that is too narrow, those columns are cut that may be."""
    cleaned = [[_clean(cell) for cell in row] for row in rows]
    titles = [heading.upper() for heading in headings]
    if not is_terminal():
        _write_plain([titles, *([cell.plain for cell in row] for row in cleaned)])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, heading in enumerate(headings):
        texts = [row[number].plain for row in cleaned]
        table.add_column(
            Text(titles[number], no_wrap=True, overflow="ellipsis"),
            no_wrap=heading not in may_be_cut,  # those that may be wrapped give way, and their cells are cut instead
            min_width=None if heading in may_be_cut else max(map(cell_len, [heading, *texts])),
            justify="right" if texts and all(map(_is_number, texts)) else "left",
        )
    for row in cleaned:
        table.add_row(*row)
    _console().print(table)


def write_facts(facts: Sequence[tuple[str, Cell]]) -> None:
    """Write names and values below each other."""
    if not is_terminal():
        _write_plain([[name, _clean(value).plain] for name, value in facts])
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, one_line(value) if isinstance(value, str) else value)
    _console().print(grid)


def write_heading(text: str) -> None:
    """Write a line that begins a new part."""
    if is_terminal():
        _console().print(Text(f"\n{text}", style="bold"))
    else:
        _write(f"\n{text}\n")


def ago(moment: datetime) -> str:
    """Return about how long ago a moment was; it is negative if the clock stepped back meanwhile."""
    distance = (datetime.now(UTC) - moment).total_seconds()
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
        if abs(distance) >= seconds:
            return f"{distance / seconds:.0f}{unit}"
    return f"{distance:.0f}s"


def local(moment: datetime | None) -> str:
    """Return a moment in the local time zone, to the second."""
    return "" if moment is None else moment.astimezone().isoformat(" ", "seconds")


def size_of(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} byte{'' if count == 1 else 's'}"


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def _is_number(text: str) -> bool:
    return text.replace(",", "").isdigit()


def _clean(cell: Cell) -> Text:
    text = Text(one_line(cell)) if isinstance(cell, str) else cell
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _write_plain(rows: Sequence[Sequence[str]]) -> None:
    """Write rows in columns without cutting anything; an empty cell is a dash, so that columns can be counted."""
    filled = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*filled, strict=True)]
    for row in filled:
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        _write("  ".join(padded).rstrip() + "\n")


def _write(text: str) -> None:
    _write_bytes(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def _write_bytes(data: bytes) -> None:
    """Write all of it: an unbuffered output takes only a part when its reader goes away in the middle."""
    remaining = memoryview(data)
    with writing():
        sys.stdout.flush()
        while remaining:
            remaining = remaining[sys.stdout.buffer.write(remaining) :]


def _as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)
