"""`jobstore why`, `lanes`, `pause`, `resume` and `workers`: what an operator asks and does at night."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import JobStore
from jobstore.operations import registering
from jobstore.operations.registering import Registration

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Act = Callable[..., Any]

NASTY = "red \x1b[31m\x07 [bold]\nnext"


def rows_of(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines()]


# why


def test_why_says_it_in_a_sentence(command: Command) -> None:
    job_id = command.enqueue("secret prompt")
    sentence = "It waits: no live worker is registered for task type task or API api, and none for anything else.\n"
    assert command.ok("why", job_id) == sentence
    assert command.ok("why", job_id[-6:]) == sentence
    document = command.json("why", job_id)
    assert (document["job_id"], document["reason"], document["text"]) == (job_id, "no_worker", sentence.strip())
    command.ok("pause", "--api-type", "api", "--reason", "new key")
    assert command.ok("why", job_id) == "It waits: API api is paused until someone resumes it (new key).\n"


# lanes, pause, resume


def test_lanes_are_shown_with_their_depth_and_pauses(command: Command, act: Act) -> None:
    command.enqueue("p", task_type="plan")
    command.enqueue("p", "--run-at", "+1h", task_type="plan")
    command.enqueue("p")
    act(lambda store: store.jobs.claim("w", task_types=["task"]))
    heading, *rows = rows_of(command.ok("lanes"))
    assert heading == ["LANE", "IDLE", "SCHEDULED", "RUNNING", "OLDEST", "PAUSED"]
    assert [row[:4] for row in rows] == [["plan/api", "1", "1", "0"], ["task/api", "0", "0", "1"]]
    command.ok("pause", "--task-type", "plan", "--reason", "new key")
    shown = command.ok("lanes")
    assert "until resumed new key" in shown
    assert "task type plan" in shown.split("pauses")[1]
    document = command.json("lanes")
    assert [(lane["task_type"], lane["paused"]) for lane in document["lanes"]] == [("plan", True), ("task", False)]
    assert [pause["reason"] for pause in document["pauses"]] == ["new key"]


def test_without_jobs_lanes_are_a_heading(command: Command) -> None:
    assert len(command.ok("lanes").splitlines()) == 1
    assert command.json("lanes") == {"lanes": [], "pauses": []}


def test_a_pause_holds_up_claims_until_it_is_resumed(command: Command, act: Act) -> None:
    command.enqueue("p")
    assert command.ok("pause") == "everything is paused until resumed\n"
    assert act(lambda store: store.jobs.claim("w")) == []
    assert command.ok("resume") == "everything is resumed\n"
    assert command.ok("resume") == "nothing was paused\n"
    assert len(act(lambda store: store.jobs.claim("w"))) == 1


def test_a_pause_can_last_for_a_time(command: Command) -> None:
    held = command.json("pause", "--api-type", "claude", "--for", "10m")
    length = datetime.fromisoformat(held["until"]) - datetime.fromisoformat(held["paused_at"])
    assert length == timedelta(minutes=10)
    assert (held["task_type"], held["api_type"]) == (None, "claude")


def test_resuming_tells_what_still_pauses_the_same(command: Command) -> None:
    command.ok("pause", "--task-type", "plan")
    command.ok("pause", "--reason", "maintenance")
    result = command("resume", "--task-type", "plan")
    assert result.stdout == "task type plan is resumed\n"
    assert "still, everything is paused until resumed (maintenance)" in result.stderr
    document = command.json("resume", "--task-type", "plan")
    assert document["resumed"] == []
    assert [pause["reason"] for pause in document["still_paused"]] == ["maintenance"]


@pytest.mark.parametrize("options", [["--for", "10"], ["--for", "soon"], ["--for", "-5m"]])
def test_a_duration_that_is_none_is_refused(command: Command, options: list[str]) -> None:
    assert "is no time" in command.misused("pause", *options)
    assert command.json("lanes")["pauses"] == []


@pytest.mark.parametrize("options", [["--for", "0s"], ["--task-type", ""]])
def test_a_pause_of_nothing_is_refused(command: Command, options: list[str]) -> None:
    command.misused("pause", *options)
    assert command.json("lanes")["pauses"] == []


# workers


def test_workers_are_listed_with_what_they_do(command: Command, act: Act) -> None:
    worker = Registration("host:7:1", "host", 7, "2026.1", ["plan", "title"], 16)
    act(lambda store: store.run(registering.register, worker, 3, 3_600_000))
    heading, row = command.ok("workers").splitlines()
    assert heading.split() == [
        "WORKER",
        "HOST",
        "PID",
        "VERSION",
        "RUNNING",
        "TASK",
        "TYPES",
        "APIS",
        "STARTED",
        "SEEN",
    ]
    assert row.split()[:5] == ["host:7:1", "host", "7", "2026.1", "3/16"]
    assert "plan, title" in row
    [document] = command.json("workers")["items"]
    assert (document["id"], document["task_types"], document["running"]) == ("host:7:1", ["plan", "title"], 3)


def test_without_workers_there_is_a_heading(command: Command) -> None:
    assert len(command.ok("workers").splitlines()) == 1
    assert command.json("workers") == {"items": []}


def test_names_and_reasons_that_would_drive_a_terminal_are_written_out(command: Command, act: Act) -> None:
    job_id = command.enqueue("p", task_type=NASTY)

    async def prepare(store: JobStore) -> None:
        await store.lanes.pause(NASTY, reason=NASTY)
        await store.run(registering.register, Registration(NASTY, NASTY, 7, NASTY, [NASTY], 1), 0, 3_600_000)

    act(prepare)
    for shown in (command.ok("lanes"), command.ok("workers"), command.ok("why", job_id), command.ok("pause")):
        assert not {"\x1b", "\x07"} & set(shown)
    assert "[bold]" in command.ok("lanes")
    assert not {"\x1b", "\x07"} & set(command.ok("resume"))
