"""`jobstore migrate`, the command that is run by hand."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobstore.migrate import load_steps

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Run = Callable[..., subprocess.CompletedProcess[bytes]]
NAMES = [step.name for step in load_steps()]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "foreign file.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    return path


def traces_of(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in folder.iterdir()
    }


def test_it_creates_a_database_and_names_each_step(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    lines = command.ok("migrate", "--db", path).splitlines()
    assert lines == [*(f"applying {name}" for name in NAMES), f"{path} is up to date"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_with_nothing_pending_it_says_so(command: Command) -> None:
    assert command.ok("migrate") == f"{command.database} is up to date\n"
    assert command.ok("migrate", "--dry-run") == f"{command.database} is up to date\n"
    document = {"database": str(command.database), "applied": [], "backup": None}
    assert command.json("migrate") == document | {"adoption": None, "not_compacted": None}


def test_it_prints_where_the_backup_is(command: Command, foreign: Path) -> None:
    lines = command.ok("migrate", "--db", foreign).splitlines()
    [backup] = foreign.parent.glob("*.backup-*")
    assert lines[0] == f"backed up to {backup}"
    assert lines[1] == f"applying {NAMES[0]}"


def test_its_document_names_the_steps_and_the_backup(command: Command, foreign: Path) -> None:
    result = command("migrate", "--db", foreign, "--json")
    [backup] = foreign.parent.glob("*.backup-*")
    document = {"database": str(foreign), "applied": NAMES, "backup": str(backup)}
    assert json.loads(result.stdout) == document | {"adoption": None, "not_compacted": None}
    assert f"applying {NAMES[0]}" in result.stderr


def test_status_lists_what_is_applied_and_what_is_pending(command: Command, foreign: Path) -> None:
    heading, *rows = command.ok("migrate", "--status").splitlines()
    assert heading.split() == ["STEP", "APPLIED"]
    assert [row.split()[0] for row in rows] == NAMES
    assert "pending" not in "".join(rows)
    _, *rows = command.ok("migrate", "--status", "--db", foreign).splitlines()
    assert [row.split() for row in rows] == [[name, "pending"] for name in NAMES]


def test_the_document_of_the_status_has_times_and_checksums(command: Command, foreign: Path) -> None:
    document = command.json("migrate", "--status")
    assert document["pending"] == []
    assert [(record["name"], record["checksum"]) for record in document["applied"]] == [
        (step.name, step.checksum) for step in load_steps()
    ]
    assert all(record["applied_at"].endswith("Z") for record in document["applied"])
    document = command.json("migrate", "--status", "--db", foreign)
    assert document == {"database": str(foreign), "applied": [], "pending": NAMES}


def test_a_dry_run_says_what_would_be_done(command: Command, foreign: Path) -> None:
    lines = command.ok("migrate", "--dry-run", "--db", foreign).splitlines()
    assert lines == [f"would back up {foreign}", *(f"would apply {name}" for name in NAMES)]
    document = command.json("migrate", "--dry-run", "--db", foreign)
    assert document == {"database": str(foreign), "pending": NAMES, "backup": True, "adoption": None}


@pytest.mark.parametrize("option", ["--status", "--dry-run"])
def test_looking_changes_nothing_not_even_times(command: Command, foreign: Path, option: str) -> None:
    for path in (foreign, command.database):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    before = traces_of(foreign.parent)
    for path in (foreign, command.database, foreign.with_name("none.db")):
        command.ok("migrate", option, "--db", path)
    assert traces_of(foreign.parent) == before


def test_a_dry_run_of_a_new_database_makes_no_backup(command: Command, tmp_path: Path) -> None:
    lines = command.ok("migrate", "--dry-run", "--db", tmp_path / "new.db").splitlines()
    assert lines == [f"would apply {name}" for name in NAMES]


@pytest.mark.parametrize("options", [[], ["--status"], ["--dry-run"], ["--json"]])
@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("folder", "it is a folder"),
        ("no database", "not an SQLite database"),
        ("nowhere", "does not exist"),
        ("newer", "install that version"),
        ("changed", f"what was applied as {', '.join(NAMES)} was changed"),
        ("another program's", "use another file"),
    ],
)
def test_what_cannot_be_migrated_is_told_in_one_line(
    command: Command, foreign: Path, kind: str, complaint: str, options: list[str]
) -> None:
    path = {"folder": foreign.parent, "nowhere": foreign.parent / "nowhere" / "jobs.db"}.get(kind, command.database)
    if kind == "no database":
        path.write_bytes(b"no database " * 1000)
    if kind == "another program's":
        path = foreign
    with closing(sqlite3.connect(command.database)) as connection:
        if kind == "newer":
            connection.execute("INSERT INTO migrations VALUES ('9999_newer', 'c', 1)")
        if kind == "changed":
            connection.execute("UPDATE migrations SET checksum = 'other'")
        connection.commit()
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE migrations (id INTEGER)")
    assert complaint in command.refused("migrate", "--db", path, *options)


def test_a_step_that_fails_is_named_after_the_backup(command: Command, foreign: Path) -> None:
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE sessions (x)")
    result = command("migrate", "--db", foreign)
    assert result.exit_code == 1
    assert result.stdout.startswith("backed up to ")
    assert result.stderr == f"jobstore: step {NAMES[0]} failed and was undone: table sessions already exists\n"


def test_status_and_dry_run_exclude_each_other(command: Command) -> None:
    assert "give one of them" in command.misused("migrate", "--status", "--dry-run")


def test_the_module_is_the_same_command(run_process: Run, tmp_path: Path) -> None:
    path = tmp_path / "it's new.db"
    made = run_process("--db", path, module="jobstore.migrate")
    assert (made.returncode, made.stderr) == (0, b"")
    assert made.stdout.decode().splitlines()[-1] == f"{path} is up to date"
    assert run_process("--status", "--db", path, module="jobstore.migrate").stdout == (
        run_process("migrate", "--status", "--db", path).stdout
    )
    assert run_process("--nonsense", module="jobstore.migrate").returncode == 2
    assert run_process("--db", tmp_path, module="jobstore.migrate").returncode == 1
