"""The commands on a PostgreSQL database: named by its URL, they do what they do on a file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from jobstore.databases import find_database
from jobstore.migrate import POSTGRES_STEPS, load_steps
from tests.postgres import in_schema

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Run = Callable[..., subprocess.CompletedProcess[bytes]]
NAMES = [step.name for step in load_steps(POSTGRES_STEPS)]
NOTHING_ELSE = {"backup": None, "adoption": None, "not_compacted": None}


@pytest.fixture
def migrated(fresh_database: str) -> str:
    """Return what `command` names in JOBSTORE_URL."""
    find_database(fresh_database).migrator().run()
    return fresh_database


@pytest.fixture
def empty(migrated: str) -> Iterator[str]:
    """Return the URL of a schema without any table."""
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA empty")
    return in_schema(migrated, "empty")


def name_of(url: str) -> str:
    return find_database(url).name


def test_migrating_names_each_step(command: Command, empty: str) -> None:
    name = name_of(empty)
    lines = command.ok("migrate", "--db", empty).splitlines()
    assert lines == [*(f"applying {step}" for step in NAMES), f"{name} is up to date"]
    assert command.ok("migrate", "--db", empty) == f"{name} is up to date\n"
    assert command.json("migrate", "--db", empty) == {"database": name, "applied": [], **NOTHING_ELSE}


def test_status_and_dry_run_tell_what_is_pending_and_change_nothing(command: Command, empty: str) -> None:
    for _ in range(2):
        _, *rows = command.ok("migrate", "--status", "--db", empty).splitlines()
        assert [row.split() for row in rows] == [[step, "pending"] for step in NAMES]
        assert command.ok("migrate", "--dry-run", "--db", empty).splitlines() == [f"would apply {s}" for s in NAMES]
        document = command.json("migrate", "--dry-run", "--db", empty)
        assert document == {"database": name_of(empty), "pending": NAMES, "backup": False, "adoption": None}
        document = command.json("migrate", "--status", "--db", empty)
        assert document == {"database": name_of(empty), "applied": [], "pending": NAMES}
    document = command.json("migrate", "--status")
    assert [record["name"] for record in document["applied"]] == NAMES


def test_the_module_is_the_same_command(run_process: Run, empty: str) -> None:
    made = run_process("--db", empty, "--json", module="jobstore.migrate")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {"database": name_of(empty), "applied": NAMES, **NOTHING_ELSE}
    status = run_process("--status", "--db", empty, module="jobstore.migrate")
    assert (status.returncode, status.stderr) == (0, b"")


def test_jobs_are_enqueued_listed_shown_counted_canceled_and_retried(command: Command) -> None:
    url = command.database
    job_id = command.enqueue("Say hello", "--priority", "7", "--db", url, task_type="plan")
    assert [job["id"] for job in command.json("list", "--db", url)["items"]] == [job_id]
    assert job_id in command.ok("list", "--status", "idle")
    assert command.json("show", job_id[-8:], "--db", url)["priority"] == 7
    assert command.ok("show", job_id, "--prompt") == "Say hello"
    assert "plan" in command.ok("stats", "--db", url)
    command.ok("cancel", job_id, "--db", url)
    assert command.json("show", job_id)["status"] == "canceled"
    command.ok("retry", job_id[-8:], "--db", url)
    assert command.json("show", job_id)["status"] == "idle"
    assert "no job" in command.refused("show", "0" * 36)


def test_a_large_text_needs_a_folder(command: Command, tmp_path: Path) -> None:
    large = ("enqueue", "--task-type", "t", "--api-type", "a", "--", "x" * 100_000)
    assert "outputs" in command.refused(*large)
    assert command.json("list")["items"] == []
    folder = ("--outputs", tmp_path / "texts")
    job_id = command.ok(large[0], *folder, *large[1:]).strip()
    assert command.ok("show", job_id, "--prompt", *folder) == "x" * 100_000


def test_a_schema_that_is_not_migrated_is_told_in_one_line(command: Command, run_process: Run, empty: str) -> None:
    said = command.refused("stats", "--db", empty)
    assert f"run `python -m jobstore.migrate --db '{name_of(empty)}'`" in said
    assert run_process("stats", "--db", empty).stderr.decode() == said


@pytest.mark.parametrize("command_name", ["stats", "migrate"])
def test_a_server_that_is_not_there_is_told_in_one_line(command: Command, command_name: str) -> None:
    said = command.refused(command_name, "--db", "postgresql://me:s3cret@127.0.0.1:1/jobs")
    assert said.startswith("jobstore: no database at postgresql://me@127.0.0.1:1/jobs: ")
    assert "s3cret" not in said


@pytest.mark.parametrize("url", ["postgresql://me:s3/cret@host/jobs", "postgresql:me:s3cret@host/jobs"])
def test_a_url_that_is_none_is_a_wrong_usage(command: Command, url: str) -> None:
    said = command.misused("stats", "--db", url)
    assert "postgresql://user" in said
    assert "cret" not in said
