"""`jobstore prune`, `retention`, `vacuum` and `clear --older-than`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import JobStore

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Act = Callable[..., Any]


def canceled(command: Command, count: int = 1) -> list[str]:
    ids = [command.enqueue("p") for _ in range(count)]
    command.ok("cancel", *ids)
    return ids


def ids_of(command: Command) -> set[str]:
    return {job["id"] for job in command.json("list", "--all")["items"]}


def test_a_dry_run_tells_and_deletes_nothing(command: Command) -> None:
    ids = canceled(command, 3)
    assert command.ok("prune", "--keep", 1, "--dry-run") == "would delete 2 ended jobs, with all texts\n"
    assert command.json("prune", "--older-than", "0s", "--dry-run") == {"jobs": 3}
    texts = command.ok("prune", "--older-than", "0s", "--texts-only", "--dry-run")
    assert texts == "would delete the texts of 3 ended jobs\n"
    assert ids_of(command) == set(ids)


def test_what_the_options_find_is_deleted(command: Command) -> None:
    _, second, third = canceled(command, 3)
    waiting = command.enqueue("p")
    assert command.ok("prune", "--keep", 2, "--yes") == "deleted 1 ended job, with all texts\n"
    assert ids_of(command) == {second, third, waiting}
    assert command.json("prune", "--keep", 0, "--status", "failed", "--yes") == {"jobs": 0}
    assert command.json("prune", "--keep", 0, "--task-type", "other", "--yes") == {"jobs": 0}
    assert command.json("prune", "--older-than", "1h", "--yes") == {"jobs": 0}
    assert command.json("prune", "--older-than", "0s", "--texts-only", "--yes") == {"jobs": 2}
    shown = command.ok("show", third)
    assert "pruned at" in shown
    assert "were pruned at" in command.refused("show", third, "--prompt")
    assert command.json("prune", "--older-than", "0s", "--api-type", "api", "--secure", "--yes") == {"jobs": 2}
    assert ids_of(command) == {waiting}


def test_nobody_is_asked_where_nobody_is_and_nothing_is_deleted(command: Command) -> None:
    ids = canceled(command)
    assert "--dry-run" in command.misused("prune", "--older-than", "0s")
    assert ids_of(command) == set(ids)
    assert command.ok("prune", "--older-than", "1h") == "deleted 0 ended jobs, with all texts\n"


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_who_is_there_is_asked(command: Command, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    canceled(command)
    monkeypatch.setattr("jobstore.cli.pruning._is_someone_there", lambda: True)
    result = command("prune", "--older-than", "0s", stdin=f"{answer}\n".encode())
    assert "Delete 1 ended job, with all texts, for good?" in result.stderr
    assert result.exit_code == code
    assert len(ids_of(command)) == code


def test_without_options_the_policies_are_applied(command: Command) -> None:
    canceled(command, 3)
    assert "no retention policies" in command("prune", "--dry-run").stderr
    command.ok("retention", "few", "--keep", 1)
    assert command.json("prune", "--dry-run") == {"policies": {"few": 2}}
    assert command.ok("prune", "--dry-run") == "would delete what policy few finds, of 2 ended jobs\n"
    assert command.json("prune", "--yes") == {"policies": {"few": 2}}
    assert len(ids_of(command)) == 1


def test_policies_are_set_listed_and_removed(command: Command) -> None:
    options = ["--older-than", "30d", "--texts-only", "--status", "failed", "--task-type", "plan"]
    text = command.ok("retention", "old", *options)
    assert text.splitlines()[1].split() == ["old", "texts", "30d", "-", "failed", "plan", "any"]
    command.ok("retention", "few", "--keep", 100, "--older-than", "90s")
    [few, old] = command.json("retention")["items"]
    assert (few["keep"], few["older_than"], few["removes"]) == (100, 90, "jobs")
    assert (old["older_than"], old["statuses"], old["task_type"]) == (30 * 86400, ["failed"], "plan")
    assert "few" not in command.ok("retention", "few", "--remove")
    assert "there is no policy 'few'" in command.misused("retention", "few", "--remove")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "--texts-only"], "--older-than"),
        (["prune", "--secure"], "--older-than"),
        (["prune", "--status", "failed", "--yes"], "--older-than"),
        (["prune", "--keep", "1", "--status", "running"], "--status"),
        (["prune", "--keep", "-1"], "--keep"),
        (["prune", "--older-than", "soon"], "write 90s, 10m, 2h or 1d"),
        (["retention", "--keep", "1"], "NAME"),
        (["retention", "x"], "--older-than"),
        (["retention", "x", "--remove", "--keep", "1"], "--remove"),
        (["clear", "--older-than", "1d", "--status", "failed"], "--older-than"),
        (["clear", "--older-than", "1d", "some-id"], "--older-than"),
    ],
)
def test_what_cannot_be_meant_is_refused(command: Command, arguments: list[str], said: str) -> None:
    canceled(command)
    assert said in command.misused(*arguments)
    assert len(ids_of(command)) == 1


def test_clearing_by_age_hides_what_has_ended_so_long_ago(command: Command) -> None:
    [job_id] = canceled(command)
    assert command.ok("clear", "--older-than", "1h") == "0 jobs are hidden\n"
    assert command.ok("clear", "--older-than", "0s") == "1 job is hidden\n"
    assert command.json("list")["items"] == []
    assert ids_of(command) == {job_id}


def test_a_vacuum_tells_what_it_gave_back(command: Command, act: Act) -> None:
    async def work(store: JobStore) -> None:
        for _ in range(30):
            job = await store.jobs.enqueue("x" * 60_000, task_type="t", api_type="a")
            await store.jobs.cancel(job.id)
        await store.jobs.prune(older_than=0)

    act(work)
    done = command.json("vacuum", "--secure")
    assert done["before"]["free"] > 1_000_000
    assert done["after"]["free"] == 0
    assert done["after"]["total"] == Path(command.database).stat().st_size
    before, after = command.ok("vacuum").splitlines()
    assert before.startswith("before: ")
    assert after.endswith("of which 0 bytes are free")


def test_a_full_vacuum_writes_the_file_anew(command: Command) -> None:
    done = command.json("vacuum", "--full")
    assert done["after"]["total"] == Path(command.database).stat().st_size
    assert "give one of them" in command.misused("vacuum", "--full", "--secure")
