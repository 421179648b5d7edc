"""`jobstore dump` and `jobstore load`: whole tables as files, and back."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, cast

import typer

from jobstore import DiskFull, InvalidArgument, JobStore, OutputError
from jobstore.cli import stores
from jobstore.cli.options import AsJson, Db, Outputs
from jobstore.cli.screen import note, say, write_json, writing
from jobstore.files import sync_folder
from jobstore.formats import FORMATS, Format
from jobstore.repositories.tables import NAMES

STANDARD = Path("-")
"""The standard output or input."""

_OPTIONS = {"table": "TABLE", "texts": "--texts", "existing": "--skip-existing' / '--replace", "format": "--format"}
"""What the arguments of the store are called here."""

FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}; by the file's name, or jsonl.")
]


def dump(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", show_default=False, help="Which; without any, all.")
    ] = None,
    *,
    target: Annotated[
        Path,
        typer.Option("--to", metavar="FOLDER|FILE", show_default=False, help="A folder, or for one table a file."),
    ] = STANDARD,
    format_name: FormatOption = None,
    texts: Annotated[
        str, typer.Option(metavar="HOW", help="Large texts: reference names them, inline puts them into the dump.")
    ] = "reference",
    db: Db = "",
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Write whole tables to files, as of one moment.

    Values are what the database holds; times are milliseconds since the Unix epoch. Only you can read the files, and
    each has its name once it is whole. One table goes to the standard output without `--to`.

    `jobstore dump background_jobs --texts inline > jobs.jsonl`
    """
    name = _format(format_name, [target])
    paths = _targets(target, tables or NAMES, name)
    with contextlib.ExitStack() as stack:
        files = {table: stack.enter_context(written(path)) for table, path in paths.items()}
        how = cast("Literal['reference', 'inline']", texts)
        counts = _run(db, lambda store: store.tables.dump(files, format=name, texts=how), outputs)
    if target == STANDARD:
        for table, count in counts.items():
            note(f"{table}: {_rows(count)}")
    else:
        _tell(counts, as_json=as_json)


def load(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER|FILE", show_default=False, help="Made by dump; - is the standard input."),
    ],
    *,
    table: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Of which one file is; by its name, if not.")
    ] = None,
    format_name: FormatOption = None,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave out rows that are there.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Let rows take the place of those there.")] = False,
    db: Db = "",
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Put dumped tables back, into empty ones, on either engine.

    All files are read to their ends before anything is written. If the database refuses a row, its line is named, and
    those before it stay: mend the file, and go on with `--skip-existing`.

    `jobstore load dump/ --db postgresql://me@db.example/jobs`
    """
    if skip_existing and replace:
        raise typer.BadParameter("give one of them", param_hint="'--skip-existing' / '--replace'")
    existing: Literal["refuse", "skip", "replace"] = "skip" if skip_existing else "replace" if replace else "refuse"

    found = _sources(sources, table)
    name = _format(format_name, list(found.values()))
    with contextlib.ExitStack() as stack:
        files = {of: stack.enter_context(_read(path)) for of, path in found.items()}
        counts = _run(db, lambda store: store.tables.load(files, format=name, existing=existing), outputs)
    _tell(counts, as_json=as_json)


def _format(given: str | None, paths: Sequence[Path]) -> Format:
    """Return the format that is named, or else that of the files' names, which must have one in common.

    Raises:
        BadParameter: They have not.
    """
    names = {given} if given else {path.suffix[1:] for path in paths if path.suffix[1:] in FORMATS} or {"jsonl"}
    if len(names) > 1 or not names <= set(FORMATS):
        raise typer.BadParameter(f"must be one of {', '.join(FORMATS)}, of all files", param_hint="'--format'")
    return cast("Format", names.pop())


def _targets(target: Path, tables: Sequence[str], name: Format) -> dict[str, Path]:
    """Return where each table is to be written."""
    is_one = len(tables) == 1
    if target == STANDARD and (not is_one or name == "parquet"):
        raise InvalidArgument("--to", "name a folder: only one table fits the standard output, and no Parquet")
    if target == STANDARD or (is_one and target.suffix == f".{name}" and not target.is_dir()):
        return dict.fromkeys(tables, target)
    return {table: target / f"{table}.{name}" for table in tables}


def _sources(given: Sequence[Path], table: str | None) -> dict[str, Path]:
    """Return from where each table is to be read.

    Raises:
        InvalidArgument: There is nothing, or it cannot be told of which table a file is.
    """
    paths = [inner for path in given for inner in (_dumps_in(path) if path.is_dir() else [path])]
    if table is not None and len(paths) != 1:
        raise InvalidArgument("--table", "one table is in one file")
    found = {table or path.stem: path for path in paths}
    if not found or len(found) < len(paths):
        raise InvalidArgument("FOLDER|FILE", "must have one file for each table, called TABLE.jsonl, .csv or .parquet")
    if unknown := [name for name in found if name not in NAMES]:
        raise InvalidArgument("--table", f"of which table is {found[unknown[0]]}? It must be of {', '.join(NAMES)}")
    return found


def _dumps_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.stem in NAMES and path.suffix[1:] in FORMATS]


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name once it is whole and durable.

    Raises:
        InvalidArgument: It is there already.
        OutputError: It cannot be written.
    """
    if path == STANDARD:
        with writing():
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    if os.path.lexists(path):
        raise InvalidArgument("--to", f"{path} is there already: choose another name, or remove it")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # not that of another dump, which may go on meanwhile
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part.unlink(missing_ok=True)  # of one that was killed, as this process is called now
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:  # of this file or another that is written beside it
        raise _refusal(error, path.parent) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there, or nothing can be: that was told
            part.unlink()


@contextlib.contextmanager
def _read(path: Path) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _refusal(error, path) from error


def _refusal(error: OSError, path: Path) -> DiskFull | OutputError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return DiskFull(f"no room in {path}: free some space and try again")
    return OutputError(f"{path} cannot be used: {error.strerror}")


def _run(db: str, act: Callable[[JobStore], Awaitable[dict[str, int]]], outputs: str | None) -> dict[str, int]:
    try:
        return stores.run(db, act, outputs)
    except InvalidArgument as error:
        raise InvalidArgument(_OPTIONS.get(error.field, error.field), error.reason) from None


def _tell(counts: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        write_json({"tables": counts})
        return
    for table, count in counts.items():
        say(f"{table}: {_rows(count)}")


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
