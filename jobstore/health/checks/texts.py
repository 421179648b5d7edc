"""Checks of the large texts: that each is where its row says, whole, and that none lies there that no row names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from jobstore.errors import JobStoreError, OutputError
from jobstore.health.report import Finding, bad, good, some
from jobstore.health.subject import Subject
from jobstore.operations import jobs, promotion
from jobstore.operations.promotion import FILES, TextFile
from jobstore.outputs import Outputs
from jobstore.outputs.paths import is_inside
from jobstore.outputs.reading import check_whole
from jobstore.progress import Progress


class Damage(NamedTuple):
    """A large text that is not what its row says."""

    path: str
    problem: str


def folder(subject: Subject) -> Finding:
    """Check that the place of large texts is there, if any are named, and that it is this store's."""
    if subject.texts is None:
        return good("outputs", "not looked at: say with --outputs where large texts lie")
    try:
        is_there = subject.texts.check()
    except OutputError as error:
        return bad("outputs", str(error), "name the right place with --outputs")
    if not is_there and _names_any(subject):
        return bad(
            "outputs",
            "rows name large texts, but their place is not there",
            "mount its disk, or name it with --outputs, or restore it from a backup",
        )
    return good("outputs", "it is this store's own" if is_there else "there are no large texts")


def whole(subject: Subject) -> Finding:
    """Check every large text that a row names against its size and hash."""
    if subject.texts is None:
        return good("texts", "not looked at: say with --outputs where large texts lie")
    if not is_usable(subject.texts) and _names_any(subject):
        return bad("texts", "not looked at: their place cannot be used", "see `outputs`")
    damaged = list(damaged_texts(subject, subject.texts))
    if damaged:
        lines = [f"{damage.path}: {damage.problem}" for damage in damaged]
        return bad(
            "texts",
            f"large texts that are missing or damaged: {len(damaged):,}",
            "restore them from a backup; else `jobstore check --repair` notes their loss in the rows",
            *some(lines, 20),
        )
    return good("texts", f"large texts, each of them whole: {subject.read(promotion.count_files):,}")


def orphans(subject: Subject) -> Finding:
    """Check for large texts that no row names."""
    if subject.texts is None or not is_usable(subject.texts):
        return good("orphans", "there is no place to look at")
    found = [path for paths in orphaned_texts(subject, subject.texts) for path in paths]
    if found:
        return bad(
            "orphans",
            f"large texts of more than a day ago that no row names: {len(found):,}",
            "run `jobstore check --repair`, which moves them into a trash folder, or call `store.sweep()`",
            *some(found),
        )
    return good("orphans", "every large text of more than a day ago is named by a row")


def damaged_texts(subject: Subject, texts: Outputs) -> Iterator[Damage]:
    """Yield the large texts that are not what their rows say."""
    total, done = subject.read(promotion.count_files), 0
    for number in range(len(FILES)):
        after = ""
        while found := subject.read(promotion.files, number, after):
            for file in found:
                problem = _problem(texts, file)
                if problem is not None and _is_named(subject, file):
                    yield Damage(file.path, problem)
                done += 1
                subject.tell(Progress("texts", min(done, total), total))
            after = found[-1].path


def orphaned_texts(subject: Subject, texts: Outputs) -> Iterator[list[str]]:
    """Yield the old texts that no row names, page by page: listed first, then looked for in the rows."""
    for paths in texts.old_files():
        named = subject.read(jobs.file_paths_named, paths)
        if alone := [path for path in paths if path not in named]:
            yield alone


def _problem(texts: Outputs, file: TextFile) -> str | None:
    if not is_inside(file.path):
        return "its path leads out of the place of large texts"
    try:
        if file.size is None and file.sha256 is None:
            return None if texts.size(file.path) is not None else "it is missing"
        size, digest = 0, hashlib.sha256()
        for chunk in texts.chunks(file.path, 0):
            digest.update(chunk)
            size += len(chunk)
        check_whole(file.path, size, digest.hexdigest(), file.size, file.sha256)
    except JobStoreError as error:
        return str(error)
    return None


def _is_named(subject: Subject, file: TextFile) -> bool:
    """Whether a row still names a text: it may have been pruned, or moved into its row, while it was looked at."""
    return file.path in subject.read(jobs.file_paths_named, [file.path])


def _names_any(subject: Subject) -> bool:
    return subject.read(promotion.count_files) > 0


def is_usable(texts: Outputs) -> bool:
    """Whether the place is there, and this store's own."""
    try:
        return texts.check()
    except OutputError:
        return False
