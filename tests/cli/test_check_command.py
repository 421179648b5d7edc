"""`jobstore check`: a line for each check, a remedy for each that failed, and exit codes for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.checking.support import execute

if TYPE_CHECKING:
    from tests.cli.conftest import Command


def test_a_sound_store_is_all_well(command: Command) -> None:
    lines = command.ok("check").splitlines()
    assert "✓ integrity: every page, row and index is whole" in lines
    assert lines[-1] == f"{command.database}: all is well"
    assert not any(line.startswith("✗") for line in lines)


def test_what_is_wrong_has_a_remedy_and_an_exit_code(command: Command) -> None:
    execute(command.database, "DROP INDEX background_jobs_claim; DROP TABLE pauses")
    result = command("check")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    start = lines.index("✗ schema: missing or changed, of what the migrations made: 2")
    assert lines[start + 1 : start + 4] == [
        "    table pauses is missing",
        "    index background_jobs_claim of background_jobs is missing",
        "  → run `jobstore check --repair`",
    ]
    assert lines[-1].startswith(f"{command.database}: 1 of ")


def test_a_repair_prints_its_backup_what_it_did_and_the_check_afterwards(command: Command) -> None:
    execute(command.database, "DROP INDEX background_jobs_claim")
    lines = command.ok("check", "--repair").splitlines()
    backup = Path(lines[0].removeprefix("backup: "))
    assert backup.exists()
    assert "backup" in backup.name
    assert "mended: index background_jobs_claim: made anew, as it is missing" in lines
    assert lines[-1].endswith("all is well")


def test_a_salvage_prints_the_rows_saved_and_lost(command: Command) -> None:
    command.enqueue("hello")
    with command.database.open("r+b") as file:
        file.write(b"\0" * 100)
    output = command.ok("check", "--repair")
    assert any(line.split()[:3] == ["background_jobs", "1", "0"] for line in output.splitlines())
    assert len(command.json("list")["items"]) == 1


def test_as_json(command: Command) -> None:
    found = command.json("check")
    assert found["ok"] is True
    assert {finding["name"] for finding in found["findings"]} >= {"integrity", "schema", "jobs"}
    execute(command.database, "DROP TABLE pauses")
    result = command("check", "--json")
    assert result.exit_code == 1
    [schema] = [finding for finding in json.loads(result.stdout)["findings"] if not finding["ok"]]
    assert schema["name"] == "schema"
    assert schema["remedy"]
    done = command.json("check", "--repair")
    assert done["report"]["ok"] is True
    assert Path(done["backup"]).exists()


def test_quick_says_less(command: Command) -> None:
    assert "integrity" not in command.ok("check", "--quick")
    assert "'--quick' / '--repair'" in command.misused("check", "--quick", "--repair")


def test_no_database_is_refused(command: Command, tmp_path: Path) -> None:
    assert "no database at" in command.refused("check", "--db", tmp_path / "none.db")


def test_the_module_is_the_command(run_process: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = run_process(module="jobstore.check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().endswith("all is well\n")
    assert done.stderr == b""


def test_a_terminal_is_shown_colours(in_terminal: Callable[..., tuple[int, str]]) -> None:
    code, shown = in_terminal("check")
    assert code == 0
    assert "\x1b[32m✓\x1b[0m integrity" in shown


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file systems refuse such names")
def test_a_path_that_is_no_text_can_be_worked_with(command: Command, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.db")
    command.ok("migrate", "--db", path)
    assert command.json("check", "--db", path)["database"] == path
    command.ok("stats", "--db", path)
