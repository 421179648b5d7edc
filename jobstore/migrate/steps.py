"""The steps that this version of jobstore knows, and how they compare with those a database records."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jobstore import migrations
from jobstore.errors import SchemaMismatch
from jobstore.migrate.adoption import Adoption
from jobstore.models import AppliedMigration

SQLITE_STEPS = Path(migrations.__file__).parent / "sqlite"
POSTGRES_STEPS = Path(migrations.__file__).parent / "postgres"

_NAME = re.compile(r"\d{4}_\w+\.(?:sql|py)")
_NOTHING = re.compile(r"(?:\s|--[^\n]*|/\*.*?(?:\*/|\Z))*", re.DOTALL)
"""Space and comments."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the schema."""

    name: str
    """The file's name without its ending; steps are applied in the order of their names."""
    path: Path
    checksum: str
    """SHA-256 of the file, in hexadecimal, with line ends as on Unix."""

    def apply(self, connection: Any, split: Callable[[str], Iterable[str]]) -> None:  # noqa: ANN401 - of its database
        """Make the change, in the transaction that is open; `split` takes an SQL script apart."""
        if self.path.suffix == ".py":
            self._run_python(connection)
            return
        for statement in split(self.path.read_text(encoding="utf-8")):
            connection.execute(statement)

    def _run_python(self, connection: object) -> None:
        loader = SourceFileLoader(f"jobstore_step_{self.name}", str(self.path))
        module = ModuleType(loader.name)
        loader.exec_module(module)
        module.upgrade(connection)


class Status(NamedTuple):
    """How a database compares with this version."""

    applied: list[AppliedMigration]
    pending: list[Step]
    holds_anything: bool
    """Whether there is anything that a migration would back up first."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a migration did."""

    applied: list[str]
    """Names of the steps that it applied."""
    backup: Path | None
    """The copy that it made before, of a database that held anything."""
    adoption: Adoption | None = None
    """What it found and did in a database of the old system."""
    not_compacted: str | None = None
    """Why such a database, though adopted, still has the room that the old tables took, and no auto_vacuum."""


def load_steps(folder: Path = SQLITE_STEPS) -> list[Step]:
    """Return the steps of a folder, files named `NNNN_what_it_does`, in the order in which they are applied."""
    files = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    return [
        Step(path.stem, path, hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()) for path in files
    ]


def check_applied(steps: Sequence[Step], applied: Sequence[AppliedMigration]) -> None:
    """Compare what a database records with what is known here.

    Raises:
        SchemaMismatch: A step was changed after it was applied, or a newer version applied one unknown here.
    """
    known = {step.name: step.checksum for step in steps}
    unknown = tuple(record.name for record in applied if record.name not in known)
    if unknown:
        raise SchemaMismatch(
            f"the database was migrated by a newer jobstore ({', '.join(unknown)}): install that version", unknown
        )
    changed = tuple(record.name for record in applied if known[record.name] != record.checksum)
    if changed:
        raise SchemaMismatch(
            f"what was applied as {', '.join(changed)} was changed afterwards: restore its file and write a new step",
            changed,
        )


def pending_steps(steps: Sequence[Step], applied: Sequence[AppliedMigration]) -> list[Step]:
    """Return the steps that were not applied, in order."""
    done = {record.name for record in applied}
    return [step for step in steps if step.name not in done]


def split_statements(script: str) -> Iterator[str]:
    """Yield the statements of an SQL script, triggers whole.

    `executescript` would commit first, and splitting at semicolons would cut triggers, texts and comments apart.

    Raises:
        ValueError: The script ends within a statement.
    """
    statement = ""
    *parts, rest = script.split(";")
    for part in parts:
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    if not _NOTHING.fullmatch(statement + rest):
        raise ValueError("the script ends within a statement: end each with a semicolon")
