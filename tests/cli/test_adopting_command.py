"""`jobstore migrate` on a database of the old system: what it says before, meanwhile and after."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobstore.migrate import load_steps
from tests.adoption.old_system import newest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Command

NAMES = [step.name for step in load_steps()]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database of the old system, with 100 jobs and two answers in files, one of which is gone."""
    path = tmp_path / "old" / "old.db"
    path.parent.mkdir()
    newest(100, path.parent).write(path)
    return path


def traces_of(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in folder.iterdir()
    }


def test_it_tells_what_was_adopted_changed_and_noted(command: Command, old: Path) -> None:
    lines = command.ok("migrate", "--db", old).splitlines()
    [backup] = old.parent.glob("*.backup-*")
    assert lines[:2] == [f"backed up to {backup}", f"applying {NAMES[0]}"]
    assert lines[-1] == f"{old} is up to date"
    assert ["background_jobs", "100", "100", "100"] in [line.split() for line in lines]
    assert "1 output files, 2.2 kB; 1 large texts of rows are files now" in lines
    assert "kept as it was: migrations, now called old_migrations" in lines
    assert "kept as it was: meta" in lines
    assert "let go with the old tables: CREATE INDEX idx_background_jobs_status ON background_jobs (status)" in lines
    text = "\n".join(lines)
    assert "its worker is gone: the next claim rescues it" in text
    assert "output_file_path names a file that is missing" in text
    assert "and 9 more: jobstore migrate --report --json names a thousand" in lines


def test_its_document_holds_the_report(command: Command, old: Path) -> None:
    document = command.json("migrate", "--db", old)
    assert document["applied"] == NAMES
    assert document["not_compacted"] is None
    assert document["adoption"]["tables"]["background_jobs"] == {"rows": 100, "adopted": 100, "left_over": 100}
    assert command.json("migrate", "--db", old, "--report") == {
        "database": str(old), "adoption": document["adoption"],
    }  # fmt: skip


def test_the_report_can_be_read_later(command: Command, old: Path) -> None:
    told = command.ok("migrate", "--db", old)
    assert command.ok("migrate", "--db", old, "--report") in told
    assert command.ok("migrate", "--report") == f"{command.database} was not adopted from the old system\n"
    assert "give one of them" in command.misused("migrate", "--report", "--status")


def test_a_dry_run_tells_the_same_and_changes_nothing(command: Command, old: Path) -> None:
    before = traces_of(old.parent)
    lines = command.ok("migrate", "--db", old, "--dry-run").splitlines()
    document = command.json("migrate", "--db", old, "--dry-run")
    assert traces_of(old.parent) == before
    foretold = [f"would back up {old}", *(f"would apply {name}" for name in NAMES), f"would adopt {old}"]
    assert lines[: len(foretold)] == foretold
    report = command.ok("migrate", "--db", old).partition(f"applying {NAMES[-1]}\n")[2].splitlines()
    assert lines[len(foretold) :] == report[:-1]
    assert document["adoption"]["tables"]["background_jobs"]["rows"] == 100
    assert document["backup"] is True


def test_the_status_of_an_old_database_is_that_all_is_pending(command: Command, old: Path) -> None:
    assert command.json("migrate", "--db", old, "--status")["pending"] == NAMES


def test_other_commands_name_the_one_that_adopts(command: Command, old: Path) -> None:
    assert f"run `python -m jobstore.migrate --db {old}`" in command.refused("list", "--db", old)


def test_answers_go_where_they_are_to_lie(command: Command, old: Path, tmp_path: Path) -> None:
    command.ok("migrate", "--db", old, "--outputs", tmp_path / "texts")
    [answer] = (tmp_path / "texts" / "responses").rglob("*.txt")
    assert answer.read_text(encoding="utf-8").startswith("<answer>")
    assert not Path(f"{old}.outputs").exists()
    jobs = command.json("list", "--db", old, "--status", "completed", "--limit", "100")["items"]
    [job_id] = [job["id"] for job in jobs if job["output_file_path"]]
    assert command.ok("tail", "--db", old, "--outputs", tmp_path / "texts", job_id).startswith("<answer>")


def test_jobs_are_found_by_the_end_of_their_old_ids(command: Command, old: Path) -> None:
    command.ok("migrate", "--db", old)
    [job, *_] = command.json("list", "--db", old)["items"]
    assert job["id"].startswith("job_")
    for typed in (job["id"], job["id"][-8:], job["id"][-35:], job["id"].removeprefix("job_")):
        assert command.json("show", "--db", old, typed)["id"] == job["id"]


def test_a_terminal_shows_the_report_in_tables(in_terminal: Callable[..., tuple[int, str]], old: Path) -> None:
    code, shown = in_terminal("migrate", "--db", old)
    assert code == 0
    for text in ("TABLE", "ADOPTED", "Changed", "Noted", "background_jobs", "is up to date"):
        assert text in shown
