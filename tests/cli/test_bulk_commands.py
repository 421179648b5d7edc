"""`jobstore cancel`, `retry` and `clear` by the options of a list, instead of by ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import JobStore

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Act = Callable[..., Any]


def statuses(command: Command) -> dict[str, str]:
    return {job["id"]: job["status"] for job in command.json("list", "--all")["items"]}


def fail_all(act: Act) -> None:
    async def work(store: JobStore) -> None:
        for claim in await store.jobs.claim("worker-1", limit=10):
            await store.jobs.fail(claim, "no")

    act(work)


def test_canceling_by_options_cancels_those_alone(command: Command, act: Act) -> None:
    session = act(lambda store: store.sessions.create(name="s", project_directory="/src")).id
    plan = command.enqueue("p", task_type="plan")
    gemini = command.enqueue("p", api_type="gemini")
    of_session = command.enqueue("p", "--session", session)
    later = command.enqueue("p", "--run-at", "+1h")
    other = command.enqueue("p")
    for options, job_id in (
        (["--task-type", "plan"], plan),
        (["--api-type", "gemini"], gemini),
        (["--session", session], of_session),
        (["--status", "scheduled"], later),
    ):
        assert command.ok("cancel", *options) == "1 job is canceled, or asked to end\n"
        assert statuses(command)[job_id] == "canceled"
    assert statuses(command)[other] == "idle"
    assert command.json("cancel", "--created-after", "+1h") == {"changed": 0}
    assert command.json("cancel", "--created-before", "+1h") == {"changed": 1}
    assert command.ok("cancel", "--everything") == "0 jobs are canceled, or asked to end\n"


def test_retrying_by_options_means_failed_jobs_unless_they_say_otherwise(command: Command, act: Act) -> None:
    failed = command.enqueue("p")
    fail_all(act)
    canceled = command.enqueue("p")
    command.ok("cancel", canceled)
    assert command.ok("retry", "--task-type", "task") == "1 job is idle again\n"
    assert statuses(command) == {failed: "idle", canceled: "canceled"}
    assert command.ok("retry", "--task-type", "task", "--status", "canceled") == "1 job is idle again\n"
    assert statuses(command) == {failed: "idle", canceled: "idle"}


def test_clearing_by_ids_or_options_hides_from_lists(command: Command) -> None:
    first, second, third = (command.enqueue("p") for _ in range(3))
    assert command.ok("clear", first) == f"{first} is hidden\n"
    assert {job["id"] for job in command.json("list")["items"]} == {second, third}
    assert command.ok("clear", "--everything") == "2 jobs are hidden\n"
    assert command.json("list")["items"] == []
    assert set(statuses(command)) == {first, second, third}


@pytest.mark.parametrize("verb", ["cancel", "retry", "clear"])
def test_without_ids_or_options_nothing_is_done(command: Command, verb: str) -> None:
    job_id = command.enqueue("p")
    assert "everything" in command("--db", command.database, verb, "--json").stderr
    assert "Usage" in command(verb).output
    assert "either ids or options" in command.misused(verb, job_id, "--status", "idle")
    assert "either ids or options" in command.misused(verb, job_id, "--everything")
    assert statuses(command) == {job_id: "idle"}


@pytest.mark.parametrize(("verb", "status"), [("cancel", "failed"), ("retry", "idle")])
def test_a_status_that_cannot_be_changed_so_is_refused(command: Command, verb: str, status: str) -> None:
    assert "status" in command.misused(verb, "--status", status)


def test_canceling_a_hidden_job_says_that_it_is_canceled(command: Command) -> None:
    job_id = command.enqueue("p")
    command.ok("clear", job_id)
    assert command.ok("cancel", job_id) == f"{job_id} is canceled\n"
