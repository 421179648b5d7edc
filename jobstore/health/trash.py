"""Puts files of large texts aside, into a folder beside that of the outputs: nothing is ever deleted by a repair."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jobstore.files import refusal, sync_folder
from jobstore.outputs import FolderOutputs


def trash_of(outputs: FolderOutputs) -> Path:
    """Return the folder in which the files of an outputs folder are put aside."""
    return outputs.folder.with_name(f"{outputs.folder.name}.trash")


def put_aside(outputs: FolderOutputs, paths: Iterable[str]) -> int:
    """Move files into the trash, each under the path that it had; return how many were there.

    Raises:
        DatabaseError: One cannot be moved.
    """
    moved = 0
    for path in paths:
        if outputs.size(path) is None:
            continue
        source, target = outputs.folder / path, trash_of(outputs) / path
        try:
            _make_folders(trash_of(outputs), target.parent)
            source.replace(target)
            sync_folder(target.parent)
            sync_folder(source.parent)
        except OSError as error:
            raise refusal(target, error) from error
        moved += 1
    return moved


def _make_folders(trash: Path, folder: Path) -> None:
    for made in [trash, *(trash / part for part in reversed(folder.relative_to(trash).parents[:-1])), folder]:
        made.mkdir(mode=0o700, exist_ok=True)
