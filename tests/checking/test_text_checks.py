"""Large texts that are missing, damaged, outside, or named by no row: told, noted in the rows, put aside."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from jobstore import JobStatus, JobStore
from jobstore.aio import in_thread
from jobstore.health import Finding, check, repair
from tests.checking.support import execute, rows_of

LARGE = "large " * 20_000
A_DAY_AGO = 25 * 3600


@pytest.fixture
async def texts(database: Path) -> dict[str, str]:
    """The paths of a waiting job's prompt and of a completed job's response, both in files."""
    async with JobStore(database, migrate=True) as store:
        waiting = await store.jobs.enqueue(LARGE, task_type="waiting", api_type="a", metadata={"n": 1})
        await store.jobs.enqueue("short", task_type="done", api_type="a")
        [claim] = await store.jobs.claim("w", task_types=["done"])
        done = await store.jobs.complete(claim, LARGE)
    return {"prompt": waiting.prompt_file_path or "", "response": done.output_file_path or ""}


def outputs_of(database: Path) -> Path:
    return Path(f"{database}.outputs")


def trash_of(database: Path) -> Path:
    return Path(f"{database}.outputs.trash")


def failed(database: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(database).failed}


def metadata(database: Path, task_type: str) -> dict[str, Any]:
    [(text,)] = rows_of(database, "SELECT metadata FROM background_jobs WHERE task_type = ?", (task_type,))
    found: dict[str, Any] = json.loads(text)
    return found


def test_texts_that_are_whole_are_fine(database: Path, texts: dict[str, str]) -> None:
    assert failed(database) == {}
    done = repair(database)
    assert done.done == ()
    assert not trash_of(database).exists()
    assert texts["prompt"]


async def test_a_response_that_is_missing_is_noted_in_its_row(database: Path, texts: dict[str, str]) -> None:
    (outputs_of(database) / texts["response"]).unlink()
    found = (await in_thread(failed, database))["texts"]
    assert texts["response"] in found.details[0]
    assert "missing" in found.details[0]

    done = await in_thread(repair, database)

    assert done.report.ok
    lost = metadata(database, "done")["lost_response"]
    assert lost["path"] == texts["response"]
    assert "missing" in lost["problem"]
    async with JobStore(database) as store:
        [job] = (await store.jobs.list(task_type="done")).items
        assert job.status is JobStatus.COMPLETED
        assert await store.jobs.read_response(job.id) is None


@pytest.mark.parametrize("content", [LARGE[:-1], LARGE[:-1] + "!"], ids=["truncated", "changed"])
def test_a_response_that_is_damaged_is_put_aside(database: Path, texts: dict[str, str], content: str) -> None:
    (outputs_of(database) / texts["response"]).write_text(content)
    assert texts["response"] in failed(database)["texts"].details[0]
    assert repair(database).report.ok
    assert metadata(database, "done")["lost_response"]["path"] == texts["response"]
    assert (trash_of(database) / texts["response"]).read_text() == content  # it may still be worth something


def test_a_job_whose_prompt_is_lost_has_failed(database: Path, texts: dict[str, str]) -> None:
    (outputs_of(database) / texts["prompt"]).unlink()
    assert repair(database).report.ok
    [row] = rows_of(database, "SELECT status, error_type FROM background_jobs WHERE task_type = 'waiting'")
    assert row == ("failed", "prompt_lost")
    assert metadata(database, "waiting").keys() == {"n", "lost_prompt"}


def test_a_path_that_leads_outside_is_told_and_nothing_there_is_touched(
    database: Path, tmp_path: Path, texts: dict[str, str]
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not ours")
    execute(database, "UPDATE background_jobs SET output_file_path = '../secret.txt' WHERE task_type = 'done'")
    assert "leads out" in failed(database)["texts"].details[0]
    assert repair(database).report.ok
    assert secret.read_text() == "not ours"
    assert texts["response"]


def test_orphans_of_more_than_a_day_ago_are_put_aside(database: Path, texts: dict[str, str]) -> None:
    folder = outputs_of(database) / "responses" / "ab"
    folder.mkdir(exist_ok=True)
    old, young = folder / "old.txt", folder / "young.txt"
    for file in (old, young):
        file.write_text("orphan")
    then = time.time() - A_DAY_AGO
    os.utime(old, (then, then))
    for path in texts.values():  # old as well, but named
        os.utime(outputs_of(database) / path, (then, then))
    assert failed(database)["orphans"].details == ("responses/ab/old.txt",)

    done = repair(database)

    assert done.report.ok
    assert (trash_of(database) / "responses/ab/old.txt").read_text() == "orphan"
    assert young.exists()
    assert trash_of(database).stat().st_mode & 0o777 == 0o700
    assert (outputs_of(database) / texts["response"]).exists()


def test_a_file_that_an_attempt_owns_is_no_orphan(database: Path, texts: dict[str, str]) -> None:
    execute(
        database,
        "UPDATE background_jobs SET output_file_path = NULL, output_bytes = NULL, output_sha256 = NULL;"
        f"UPDATE job_attempts SET output_file_path = '{texts['response']}'",
    )
    file = outputs_of(database) / texts["response"]
    os.utime(file, (time.time() - A_DAY_AGO,) * 2)
    assert repair(database).report.ok
    assert file.exists()


def test_a_folder_that_is_not_there_costs_no_row_its_text(database: Path, texts: dict[str, str]) -> None:
    outputs_of(database).rename(f"{database}.elsewhere")
    assert {"outputs", "texts"} <= failed(database).keys()
    done = repair(database)
    assert {finding.name for finding in done.report.failed} == {"outputs", "texts"}
    assert rows_of(database, "SELECT output_file_path FROM background_jobs WHERE task_type = 'done'") == [
        (texts["response"],)
    ]


def test_another_stores_folder_is_told(database: Path, texts: dict[str, str]) -> None:
    (outputs_of(database) / "store_id").write_text("other\n")
    assert "another store" in failed(database)["outputs"].summary
    assert repair(database).done == ()
    assert (outputs_of(database) / texts["response"]).exists()


def test_the_folder_tells_a_salvaged_store_which_it_is(database: Path, texts: dict[str, str]) -> None:
    [identity] = rows_of(database, "SELECT store_id FROM store_identity")
    execute(database, "DELETE FROM store_identity")
    assert repair(database).report.ok
    assert rows_of(database, "SELECT store_id FROM store_identity") == [identity]
    assert texts["prompt"]


def test_what_others_can_read_is_told_and_closed(database: Path, texts: dict[str, str]) -> None:
    database.chmod(0o644)
    outputs_of(database).chmod(0o755)
    details = failed(database)["permissions"].details
    assert details == (f"{database} (644)", f"{outputs_of(database)} (755)")
    assert repair(database).report.ok
    assert database.stat().st_mode & 0o777 == 0o600
    assert texts["prompt"]


def test_no_text_stands_in_a_report(database: Path, texts: dict[str, str]) -> None:
    execute(database, "UPDATE background_jobs SET metadata = 'secret {' || prompt, status = 'odd', prompt = 'secret'")
    shutil.rmtree(outputs_of(database) / "responses")
    report = check(database)
    assert not report.ok
    assert "secret" not in report.model_dump_json()
    assert texts["prompt"]
