"""The quickstart as a stranger runs it: a process of its own, in an empty folder, without a key."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from jobstore.testing import LLMServer, Refusal

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


def quickstart(where: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # COVERAGE_: traced, CPython 3.11 misses exception handlers when tasks are cancelled (cpython#106749).
    ours = ("ANTHROPIC_", "COVERAGE_", "JOBSTORE_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *arguments],
        cwd=where,
        env=inherited | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(where: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(where / "quickstart.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_all_jobs_are_completed_and_the_plan_lies_in_a_file_that_matches_its_row_twice(tmp_path: Path) -> None:
    for runs in (1, 2):
        result = quickstart(tmp_path)
        assert result.returncode == 0, result.stderr + result.stdout
        assert result.stderr == ""
        assert "LOCAL STAND-IN" in result.stdout
        assert "matches its row" in result.stdout

        jobs = rows(tmp_path, "SELECT status, task_type, output_tokens > 0 FROM background_jobs")
        assert {job[0] for job in jobs} == {"completed"}
        assert [job[1] for job in jobs].count("write_plan") == runs
        assert [job[1] for job in jobs].count("explain_file") >= 5 * runs
        assert all(job[2] for job in jobs)

        files = rows(
            tmp_path,
            "SELECT output_file_path, output_bytes, output_sha256 FROM background_jobs WHERE output_file_path NOTNULL",
        )
        assert len(files) == runs
        for path, size, sha256 in files:
            data = (tmp_path / "quickstart.db.outputs" / str(path)).read_bytes()
            assert len(data) == size
            assert len(data) >= 2**20
            assert hashlib.sha256(data).hexdigest() == sha256
            assert str(path) in result.stdout or runs == 2

    [answer] = rows(tmp_path, "SELECT min(length(response)) FROM background_jobs WHERE output_file_path IS NULL")
    assert int(str(answer[0])) > 0


def test_it_reads_the_folder_it_is_given_and_no_more_than_it_should(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "secrets.txt").write_text("hidden")
    (folder / "picture.bin").write_bytes(b"\x00\x01\xff")
    (folder / "empty.txt").write_text("")
    (folder / "[notes].md").write_text("Grüße 🌍", encoding="utf-8")
    (folder / "large.txt").write_text("x" * 100_000)
    result = quickstart(tmp_path, str(folder))
    assert result.returncode == 0, result.stderr + result.stdout
    named = rows(tmp_path, "SELECT metadata ->> 'name' FROM background_jobs ORDER BY id")
    assert named == [("the plan",), ("[notes].md",), ("large.txt",)]
    [longest] = rows(tmp_path, "SELECT max(length(prompt)) FROM background_jobs")
    assert int(str(longest[0])) < 25_000
    assert "[notes].md" in result.stdout


def test_a_folder_without_text_is_refused_in_one_line(tmp_path: Path) -> None:
    result = quickstart(tmp_path, str(tmp_path / "nowhere"))
    assert result.returncode == 2
    assert "there are no text files in" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "quickstart.db").exists()


async def test_with_a_key_the_service_is_called_and_a_passing_refusal_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("notes")
    async with LLMServer("the answer") as service:
        service.script(Refusal(429, retry_after=0))
        result = await asyncio.to_thread(
            quickstart, tmp_path, ".", ANTHROPIC_API_KEY="any", ANTHROPIC_BASE_URL=service.url
        )
    assert result.returncode == 0, result.stderr + result.stdout
    assert "STAND-IN" not in result.stdout
    assert len(service.requests) == 3
    assert rows(tmp_path, "SELECT DISTINCT status, response FROM background_jobs") == [("completed", "the answer")]


async def test_a_job_that_gets_no_answer_makes_it_fail_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("notes")
    async with LLMServer(Refusal(401)) as service:
        result = await asyncio.to_thread(
            quickstart, tmp_path, ".", ANTHROPIC_API_KEY="wrong", ANTHROPIC_BASE_URL=service.url
        )
    assert result.returncode == 1
    assert "failed: authentication" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
