"""`jobstore enqueue`: prompts come in exactly, and what cannot be accepted is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import JobStore

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Act = Callable[..., Any]
REQUIRED = ("--task-type", "task", "--api-type", "api")
AWKWARD = "One\r\ntwo\rthree\n\ttab\0NUL \x1b[31m 🚀 \u2028 end\n\n"


def test_it_prints_the_id_and_nothing_else(command: Command) -> None:
    job_id = command.enqueue("Say hello")
    assert command.ok("show", job_id, "--prompt") == "Say hello"


def test_every_option_reaches_the_job(command: Command, act: Act) -> None:
    session = act(lambda store: store.sessions.create(name="s", project_directory="/src"))
    options = {
        "--model": "m-1",
        "--session": session.id,
        "--priority": -7,
        "--run-at": "2999-12-31T23:59:59Z",
        "--max-attempts": 5,
        "--timeout": 2.5,
        "--metadata": '{"a": [1, {"b": null}]}',
        "--idempotency-key": "key",
    }
    job_id = command.enqueue(
        "p", *(part for pair in options.items() for part in pair), task_type="plan", api_type="claude"
    )
    job = command.json("show", job_id)
    expected = {
        "task_type": "plan",
        "api_type": "claude",
        "model_used": "m-1",
        "session_id": session.id,
        "priority": -7,
        "run_at": "2999-12-31T23:59:59Z",
        "max_attempts": 5,
        "timeout": 2.5,
        "metadata": {"a": [1, {"b": None}]},
        "idempotency_key": "key",
        "status": "scheduled",
    }
    assert {name: job[name] for name in expected} == expected


def test_a_prompt_from_the_standard_input_is_kept_exactly(command: Command, act: Act) -> None:
    job_id = command.ok("enqueue", "-", *REQUIRED, stdin=AWKWARD.encode()).strip()
    assert act(lambda store: store.jobs.read_prompt(job_id)) == AWKWARD


def test_a_prompt_from_a_file_is_kept_exactly(command: Command, act: Act, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(AWKWARD.encode() * 5000)
    job_id = command.ok("enqueue", "--file", path, *REQUIRED).strip()
    assert act(lambda store: store.jobs.read_prompt(job_id)) == AWKWARD * 5000


def test_an_empty_prompt_and_one_that_looks_like_an_option_are_prompts(command: Command) -> None:
    assert command.ok("show", command.enqueue(""), "--prompt") == ""
    assert command.ok("show", command.enqueue("--help"), "--prompt") == "--help"
    assert command.json("show", command.ok("enqueue", "-", *REQUIRED, stdin=b"").strip())["prompt"] == ""


def test_a_key_used_before_names_the_first_job(command: Command) -> None:
    first = command.enqueue("one", "--idempotency-key", "k")
    assert command.enqueue("two", "--idempotency-key", "k") == first
    assert len(command.json("list")["items"]) == 1


def test_the_document_is_the_job_without_its_texts(command: Command) -> None:
    job = command.json("enqueue", "secret", *REQUIRED)
    assert job["status"] == "idle"
    assert datetime.fromisoformat(job["created_at"]) <= datetime.now(UTC)
    assert {"prompt", "response"}.isdisjoint(job)


@pytest.mark.parametrize(
    ("typed", "seconds"), [("+90s", 90), ("+15m", 900), ("+2h", 7200), ("+1.5d", 129_600), ("-1d", -86_400)]
)
def test_a_time_may_be_a_distance_from_now(command: Command, typed: str, seconds: float) -> None:
    before = datetime.now(UTC)
    job = command.json("show", command.enqueue("p", "--run-at", typed))
    after = datetime.now(UTC)
    run_at = datetime.fromisoformat(job["run_at"]) - timedelta(seconds=seconds)
    assert before - timedelta(milliseconds=1) <= run_at <= after


def test_a_time_without_a_zone_is_local(command: Command) -> None:
    job = command.json("show", command.enqueue("p", "--run-at", "2999-01-31T08:00"))
    assert datetime.fromisoformat(job["run_at"]) == datetime(2999, 1, 31, 8, 0).astimezone()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--run-at", "soon"], "'soon' is no time"),
        (["--run-at", "+99999999999d"], "is no time"),
        (["--run-at", "0001-01-01T00:00"], "'--run-at'"),
        (["--metadata", "{"], "it is not JSON"),
        (["--metadata", "[" * 100_000], "it is not JSON"),
        (["--metadata", "[1]"], "it must be a JSON object"),
        (["--metadata", '{"a": NaN}'], "'--metadata'"),
        (["--priority", "9999999999"], "'--priority'"),
        (["--priority", "high"], "--priority"),
        (["--max-attempts", "0"], "'--max-attempts'"),
        (["--timeout", "0"], "'--timeout'"),
        (["--timeout", "nan"], "'--timeout'"),
        (["--idempotency-key", ""], "'--idempotency-key'"),
        (["--task-type", ""], "'--task-type'"),
        (["--file", "/nowhere/prompt.txt"], "--file"),
        (["--file", "/"], "--file"),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(command: Command, options: list[str], complaint: str) -> None:
    prompt = [] if "--file" in options else ["p"]
    assert complaint in command.misused("enqueue", *prompt, *REQUIRED, *options)
    assert command.json("list")["items"] == []


def test_a_prompt_must_be_given_once(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("p")
    for arguments in ([], ["p", "--file", path], ["-", "--file", path]):
        assert "give a prompt" in command.misused("enqueue", *arguments, *REQUIRED)


def test_task_type_and_api_type_must_be_given(command: Command) -> None:
    assert "--task-type" in command.misused("enqueue", "p", "--api-type", "a")
    assert "--api-type" in command.misused("enqueue", "p", "--task-type", "t")


def test_a_prompt_that_is_not_utf8_is_refused_without_being_shown(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"secret \xff")
    for arguments in (["-"], ["--file", path]):
        said = command.misused("enqueue", *arguments, *REQUIRED, stdin=b"secret \xff")
        assert "it is not UTF-8 (byte 7)" in said
        assert "secret" not in said


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that fails to be read is hard to find here")
def test_a_file_that_fails_to_be_read_is_refused(command: Command) -> None:
    assert "it cannot be read" in command.misused("enqueue", "--file", "/proc/self/mem", *REQUIRED)


def test_an_unknown_session_is_refused(command: Command) -> None:
    said = command.refused("enqueue", "p", *REQUIRED, "--session", "none")
    assert "no session 'none'" in said
    assert command.json("list")["items"] == []


def test_a_large_prompt_goes_to_the_folder_that_is_named(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    job_id = command.ok("enqueue", "-", *REQUIRED, "--outputs", folder, stdin=b"x" * 100_000).strip()
    assert list(folder.glob("prompts/*/*.txt"))
    assert command.ok("show", job_id, "--prompt", "--outputs", folder) == "x" * 100_000
    assert "missing" in command.refused("show", job_id, "--prompt")


def test_the_store_sees_what_was_enqueued(command: Command, act: Act) -> None:
    command.enqueue("hello", task_type="greeting")

    async def answer(store: JobStore) -> str:
        [claim] = await store.jobs.claim("w", task_types=["greeting"])
        await store.jobs.complete(claim, claim.prompt.upper())
        return claim.job_id

    assert command.ok("show", act(answer), "--response") == "HELLO"
