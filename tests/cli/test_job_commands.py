"""`jobstore list`, `show`, `cancel`, `retry` and `stats`, and what all commands have in common."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import Claim, JobStore, Usage
from jobstore.cli import screen
from jobstore.cli.screen import ago, size_of

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Act = Callable[..., Any]
Run = Callable[..., subprocess.CompletedProcess[bytes]]

ALL = [
    "migrate", "enqueue", "list", "show", "why", "tail", "cancel", "retry", "clear", "lanes", "pause", "resume",
    "workers", "stats", "work",
]  # fmt: skip
WITHOUT_ARGUMENTS = ["list", "stats", "lanes", "pause", "resume", "workers"]
NASTY = "red \x1b[31m\x9b31m\x07 🚀\nnext"


async def claim(store: JobStore, task_type: str = "task") -> Claim:
    [claimed] = await store.jobs.claim("worker-1", task_types=[task_type])
    return claimed


def complete(act: Act, response: str | None, task_type: str = "task", **fields: Any) -> None:  # noqa: ANN401
    async def work(store: JobStore) -> None:
        await store.jobs.complete(await claim(store, task_type), response, **fields)

    act(work)


def fail(act: Act, error: str, task_type: str = "task", *, streamed: str = "") -> None:
    async def work(store: JobStore) -> None:
        claimed = await claim(store, task_type)
        async with store.jobs.output(claimed) as output:
            await output.write(streamed)
        await store.jobs.fail(claimed, error, error_type="timeout")

    act(work)


def ids_of(document: Any) -> list[str]:  # noqa: ANN401
    return [job["id"] for job in document["items"]]


# list


def test_a_list_shows_the_newest_first_in_columns(command: Command, act: Act) -> None:
    old = command.enqueue("secret prompt", task_type="plan", api_type="claude")
    new = command.enqueue("p", "--run-at", "+1h")
    fail(act, "secret error", "plan")
    heading, *rows = command.ok("list").splitlines()
    assert heading.split("  ")[0] == "ID"
    assert [row.split()[:6:5] for row in rows] == [[new, "0/3"], [old, "1/3"]]
    assert [row.split()[1:4] for row in rows] == [["scheduled", "task", "api"], ["failed", "plan", "claude"]]
    assert "timeout" in rows[1]
    assert "secret" not in "".join(rows)


def test_an_empty_list_is_its_heading(command: Command) -> None:
    assert len(command.ok("list").splitlines()) == 1
    assert command.json("list") == {"items": [], "next_cursor": None}


def test_a_list_can_be_narrowed(command: Command, act: Act) -> None:
    session = act(lambda store: store.sessions.create(name="s", project_directory="/src")).id
    ids = {
        "plain": command.enqueue("p"),
        "session": command.enqueue("p", "--session", session),
        "plan": command.enqueue("p", task_type="plan"),
        "gpt": command.enqueue("p", api_type="gpt"),
        "done": command.enqueue("p", task_type="done"),
        "hidden": command.enqueue("p", task_type="hidden"),
    }
    complete(act, "r", "done")
    act(lambda store: store.jobs.clear([ids["hidden"]]))

    def listed(*options: str) -> set[str]:
        found = ids_of(command.json("list", *options))
        return {name for name, job_id in ids.items() if job_id in found}

    everything = set(ids)
    assert listed() == everything - {"hidden"}
    assert listed("--all") == everything
    assert listed("--cleared") == {"hidden"}
    assert listed("--session", session) == {"session"}
    assert listed("--task-type", "plan") == {"plan"}
    assert listed("--api-type", "gpt") == {"gpt"}
    assert listed("--status", "completed") == {"done"}
    assert listed("--status", "completed", "--status", "idle") == everything - {"hidden"}
    assert listed("--created-after", "-1h") == everything - {"hidden"}
    assert listed("--created-after", "+1h") == set()
    assert listed("--created-before", "+1h") == everything - {"hidden"}
    assert listed("--created-before", "2001-01-31") == set()
    assert listed("--session", "none") == set()


def test_a_list_can_begin_with_what_is_active(command: Command, act: Act) -> None:
    running = command.enqueue("p", task_type="running")
    finished, waiting = command.enqueue("p"), command.enqueue("p", task_type="waiting")
    complete(act, "r")
    act(lambda store: claim(store, "running"))
    assert ids_of(command.json("list", "--order", "active")) == [running, waiting, finished]
    assert ids_of(command.json("list", "--order", "newest")) == [waiting, finished, running]


def test_a_list_goes_on_where_it_ended(command: Command) -> None:
    ids = [command.enqueue("p") for _ in range(3)]
    first = command("list", "--limit", 2)
    assert len(first.stdout.splitlines()) == 3
    document = command.json("list", "--limit", 2)
    assert f"--cursor {document['next_cursor']}\n" in first.stderr
    rest = command.json("list", "--limit", 2, "--cursor", document["next_cursor"])
    assert ids_of(document) + ids_of(rest) == ids[::-1]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--status", "lost"], "'lost' is not one of"),
        (["--order", "oldest"], "'oldest' is not one of"),
        (["--limit", "0"], "'--limit'"),
        (["--limit", "1001"], "'--limit'"),
        (["--cursor", "x"], "'--cursor'"),
        (["--created-after", "yesterday"], "'yesterday' is no time"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(command: Command, options: list[str], complaint: str) -> None:
    assert complaint in command.misused("list", *options)


def test_the_document_of_a_list_has_no_texts(command: Command, act: Act) -> None:
    command.enqueue("secret")
    complete(act, "secret")
    assert "secret" not in command.ok("list", "--json")


# show


def test_showing_a_job_tells_all_that_is_known(command: Command, act: Act) -> None:
    job_id = command.enqueue("Say hello", "--model", "m-1", "--metadata", '{"target": "plan"}', "--priority", 3)
    fail(act, "no luck today", streamed="half an ans")
    command.ok("retry", job_id)
    complete(act, "Hello!", usage=Usage(input_tokens=1200, output_tokens=3400, cost=0.12))
    shown = command.ok("show", job_id)
    for fact in (job_id, "completed", "m-1", '{"target": "plan"}', "1,200 in, 3,400 out", "$0.1200", "1 of 3"):
        assert fact in shown
    for part in ("ATTEMPT", "timeout: no luck today", "worker-1", "prompt (9 bytes)\n  Say hello\n", "  Hello!\n"):
        assert part in shown


def test_previews_are_cut(command: Command, act: Act) -> None:
    job_id = command.enqueue("\n".join(map(str, range(20))))
    complete(act, "x" * 2000)
    shown = command.ok("show", job_id)
    assert "\n  9\n  … (--prompt prints all of it)" in shown
    assert f"\n  {'x' * 800}\n  … (--response prints all of it)" in shown


def test_a_text_in_a_file_is_previewed_with_its_path(command: Command, act: Act) -> None:
    job_id = command.enqueue("p")
    complete(act, "y" * 100_000)
    path = command.json("show", job_id)["output_file_path"]
    assert f"response (100.0 kB, {path})\n  yyy" in command.ok("show", job_id)


@pytest.mark.parametrize("text", ["", "plain", "a\r\nb\n\n", "NUL \0 and \x1b[31m and 🚀", "long " * 50_000])
def test_texts_are_printed_exactly(command: Command, act: Act, text: str) -> None:
    job_id = command.ok("enqueue", "-", "--task-type", "task", "--api-type", "a", stdin=text.encode()).strip()
    complete(act, text)
    assert command("show", job_id, "--prompt").stdout_bytes.decode() == text
    assert command("show", job_id, "--response").stdout_bytes.decode() == text
    document = command.json("show", job_id, "--prompt", "--response")
    assert (document["prompt"], document["response"]) == (text, text)


def test_the_partial_response_of_a_failed_job_can_be_printed(command: Command, act: Act) -> None:
    job_id = command.enqueue("p")
    fail(act, "e", streamed="half an ans")
    assert command.ok("show", job_id, "--response") == "half an ans"
    assert command.json("show", job_id, "--response")["response"] == "half an ans"


def test_without_an_answer_nothing_is_printed(command: Command) -> None:
    job_id = command.enqueue("p")
    assert command.ok("show", job_id, "--response") == ""
    assert command.json("show", job_id, "--response")["response"] is None
    assert "response" not in command.ok("show", job_id)


def test_the_document_has_the_job_and_its_attempts(command: Command, act: Act) -> None:
    job_id = command.enqueue("p")
    complete(act, "r")
    document = command.json("show", job_id)
    assert (document["id"], document["status"], document["prompt"], document["response"]) == (
        job_id,
        "completed",
        "p",
        "r",
    )
    [attempt] = document["attempts"]
    assert (attempt["attempt"], attempt["outcome"], attempt["worker_id"]) == (1, "completed", "worker-1")
    assert datetime.fromisoformat(attempt["started_at"]).tzinfo is not None


def test_prompt_and_response_exclude_each_other_without_a_document(command: Command) -> None:
    assert "give one of them" in command.misused("show", command.enqueue("p"), "--prompt", "--response")


def test_a_job_whose_file_is_missing_is_shown_all_the_same(command: Command, act: Act) -> None:
    job_id = command.enqueue("p")
    complete(act, "y" * 100_000)
    path = command.json("show", job_id)["output_file_path"]
    (Path(f"{command.database}.outputs") / path).unlink()
    result = command("show", job_id)
    assert result.exit_code == 1
    assert "completed" in result.stdout
    assert path in result.stderr
    assert result.stderr.count("\n") == 1
    assert path in command.refused("show", job_id, "--response")
    assert command.json("show", job_id)["status"] == "completed"


def test_a_job_whose_prompt_is_missing_is_shown_all_the_same(command: Command, tmp_path: Path) -> None:
    arguments = ("enqueue", "-", "--task-type", "t", "--api-type", "a", "--outputs", tmp_path / "elsewhere")
    job_id = command.ok(*arguments, stdin=b"x" * 100_000).strip()
    result = command("show", job_id)
    assert result.exit_code == 1
    assert "prompt (100.0 kB, prompts/" in result.stdout
    assert "jobstore: the prompt: " in result.stderr


def test_ages_and_sizes_are_written_as_people_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)

    class Standing(datetime):
        @classmethod
        def now(cls, _zone: object = None) -> datetime:
            return now

    monkeypatch.setattr(screen, "datetime", Standing)
    ages = {0: "0s", 59: "59s", 61: "1m", 3599: "60m", 7200: "2h", 86_400 * 3: "3d"}
    assert {seconds: ago(now - timedelta(seconds=seconds)) for seconds in ages} == ages
    sizes = {0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1.0 kB", 1_250_000: "1.2 MB", 3 * 10**9: "3.0 GB"}
    assert {count: size_of(count) for count in sizes} == sizes


def test_a_path_that_leads_out_of_the_folder_is_not_opened(command: Command, act: Act, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    job_id = command.enqueue("p")
    complete(act, "y" * 100_000)
    with closing(sqlite3.connect(command.database)) as connection, connection:
        connection.execute("UPDATE background_jobs SET output_file_path = '../secret.txt'")
    assert "it is not opened" in command.refused("show", job_id, "--response")


# Ids


@pytest.mark.parametrize("verb", ["show", "why", "tail", "cancel", "retry", "clear"])
def test_an_unknown_id_is_told(command: Command, verb: str) -> None:
    for job_id in ("none", "abcdef", "01a206e1-fefa-775c-a724-413f9d99e716", "' OR 1=1 --", "%abcdef"):
        assert f"no job {job_id!r}" in command.refused(verb, "--", job_id)


def test_the_end_of_an_id_names_the_job(command: Command) -> None:
    job_id = command.enqueue("p")
    for length in (6, 7, 12, 20, 35):
        assert command.json("show", job_id[-length:])["id"] == job_id
    assert command.ok("cancel", job_id[-6:]) == f"{job_id} is canceled\n"
    assert command.ok("retry", job_id[-6:]) == f"{job_id} is idle\n"
    command.refused("show", job_id[-5:])
    command.refused("show", job_id[:20])


def test_the_end_of_several_ids_names_none(command: Command) -> None:
    ids = ["1-abcdef", "2-abcdef", "abcdef", "fabcdef"]
    with closing(sqlite3.connect(command.database)) as connection, connection:
        connection.executemany(
            "INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)"
            " VALUES (?, 't', 'a', 'idle', 1, 1, 1, 'p')",
            [(job_id,) for job_id in ids],
        )
    assert command.json("show", "abcdef")["id"] == "abcdef"
    assert "several jobs end in -abcdef" in command.misused("show", "--", "-abcdef")
    assert "several jobs end in -abcdef" in command.refused("cancel", "--", "-abcdef")


# cancel and retry


def test_canceling_tells_what_became_of_each_job(command: Command, act: Act) -> None:
    running, waiting = command.enqueue("p", task_type="running"), command.enqueue("p")
    act(lambda store: claim(store, "running"))
    assert command.ok("cancel", running, waiting) == f"{running} is asked to end\n{waiting} is canceled\n"


def test_a_job_that_refuses_does_not_hold_up_the_others(command: Command, act: Act) -> None:
    done, other = command.enqueue("p"), command.enqueue("p")
    complete(act, "r")
    result = command("cancel", done, "none", other)
    assert result.exit_code == 1
    assert result.stdout == f"{other} is canceled\n"
    assert result.stderr.splitlines() == [
        f"jobstore: job {done} is completed: it cannot become canceled",
        "jobstore: no job 'none': it was never enqueued here, or it was pruned",
    ]


def test_the_document_of_a_change_has_jobs_and_errors(command: Command) -> None:
    job_id = command.enqueue("secret")
    result = command("cancel", job_id, "none", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [(job["id"], job["status"]) for job in document["items"]] == [(job_id, "canceled")]
    assert [error["id"] for error in document["errors"]] == ["none"]
    assert "secret" not in result.output
    assert command.json("retry", job_id)["items"][0]["status"] == "idle"


def test_retrying_what_has_not_ended_is_refused(command: Command) -> None:
    assert "is idle: it cannot become idle" in command.refused("retry", command.enqueue("p"))


# stats


def test_stats_count_by_lane_and_status(command: Command, act: Act) -> None:
    command.enqueue("p", task_type="plan", api_type="claude")
    command.enqueue("p")
    command.enqueue("p")
    complete(act, "r")
    heading, *rows = [line.split() for line in command.ok("stats").splitlines()]
    assert heading == ["LANE", "IDLE", "SCHEDULED", "RUNNING", "COMPLETED", "FAILED", "CANCELED"]
    assert rows == [
        ["plan/claude", "1", "0", "0", "0", "0", "0"],
        ["task/api", "1", "0", "0", "1", "0", "0"],
        ["all", "2", "0", "0", "1", "0", "0"],
    ]
    document = command.json("stats")
    assert document["counts"] == {
        "idle": 2, "scheduled": 0, "running": 0, "completed": 1, "failed": 0, "canceled": 0,
    }  # fmt: skip
    assert {(lane["task_type"], lane["api_type"]) for lane in document["lanes"]} == {
        ("plan", "claude"),
        ("task", "api"),
    }


# What all commands have in common


@pytest.mark.parametrize("verb", [*WITHOUT_ARGUMENTS, "show", "why", "tail", "cancel", "retry", "enqueue"])
@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "python -m jobstore.migrate --db"),
        ("pending", "python -m jobstore.migrate --db"),
        ("folder", "it is a folder"),
        ("no database", "not an SQLite database"),
    ],
)
def test_an_unusable_database_is_told_in_one_line(
    command: Command, tmp_path: Path, verb: str, kind: str, complaint: str
) -> None:
    path = tmp_path / "other.db"
    if kind == "pending":
        sqlite3.connect(path).close()
    if kind == "folder":
        path.mkdir()
    if kind == "no database":
        path.write_bytes(b"no database " * 1000)
    arguments = ["p", "--task-type", "t", "--api-type", "a"] if verb == "enqueue" else ["abcdef"]
    arguments = [] if verb in WITHOUT_ARGUMENTS else arguments
    assert complaint in command.refused(verb, *arguments, "--db", path)


def test_the_database_can_be_named_on_either_side(command: Command, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    command.ok("--db", other, "migrate")
    job_id = command.ok("--db", other, "enqueue", "p", "--task-type", "t", "--api-type", "a").strip()
    assert ids_of(command.json("list", "--db", other)) == [job_id]
    assert ids_of(command.json("--db", other, "list")) == [job_id]
    assert ids_of(command.json("--db", command.database, "list", "--db", f"sqlite://{other}")) == [job_id]
    assert ids_of(command.json("list")) == []


def test_an_unknown_kind_of_database_is_refused(command: Command) -> None:
    assert "'--db': mysql:// is not supported" in command.misused("list", "--db", "mysql://host/x")


def test_texts_that_would_drive_a_terminal_are_written_out(command: Command, act: Act) -> None:
    job_id = command.enqueue(NASTY)

    async def work(store: JobStore) -> None:
        claimed = await claim(store)
        await store.jobs.progress(claimed, status_message=NASTY)
        await store.jobs.complete(claimed, NASTY)

    act(work)
    for shown in (command.ok("list"), command.ok("show", job_id)):
        assert "red \\x1b[31m\\x9b31m\\x07 🚀" in shown
        assert not {"\x1b", "\x9b", "\x07"} & set(shown)
    document = command("show", job_id, "--json").stdout
    assert not {"\x1b", "\x9b", "\x07"} & set(document)
    assert json.loads(document)["response"] == NASTY


def test_markup_in_texts_is_text(command: Command, act: Act) -> None:
    job_id = command.enqueue("[red]:rocket: [/nothing]")
    complete(act, "[bold]")
    shown = command.ok("show", job_id)
    assert "[red]:rocket: [/nothing]" in shown
    assert "[bold]" in shown


def test_the_version_is_printed(command: Command) -> None:
    assert command.ok("--version").startswith("jobstore ")


def test_the_help_tells_each_command_in_one_line_of_a_narrow_terminal(command: Command) -> None:
    from jobstore.cli import app

    command.environment["COLUMNS"] = "80"
    rows = [line for line in command.ok("--help").partition("─ Jobs ─")[2].splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in rows] == [one.name for one in app.registered_commands]


@pytest.mark.parametrize("verb", ALL)
def test_every_command_explains_itself_in_any_width(command: Command, verb: str) -> None:
    assert verb in command.ok("--help")
    for width in ("40", "80", "200"):
        command.environment["COLUMNS"] = width
        text = command.ok(verb, "--help")
        assert text == command.ok(verb, "-h")
        assert "Usage: jobstore" in text
        assert "--db" in text


@pytest.mark.parametrize(
    "arguments", [[], ["shwo"], ["--nonsense"], ["show"], ["cancel"], ["list", "extra"], ["enqueue"]]
)
def test_a_wrong_usage_has_its_own_exit_code(command: Command, arguments: list[str]) -> None:
    assert command(*arguments).exit_code == 2


def test_an_interruption_before_the_command_is_reached_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobstore import cli

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 130


def test_a_command_misspelt_is_guessed(command: Command) -> None:
    assert "Did you mean 'show'?" in command.misused("shwo")


def test_any_encoding_of_the_terminal_will_do(
    act: Act, command: Command, run_process: Run, environment: dict[str, str]
) -> None:
    job_id = command.enqueue("🚀 größer")
    complete(act, "🚀 größer")
    environment |= {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert run_process("show", job_id).stdout.isascii()
    assert run_process("show", job_id, "--response").stdout == "🚀 größer".encode()
    assert json.loads(run_process("show", job_id, "--json").stdout)["response"] == "🚀 größer"
    assert run_process("--help").returncode == 0


def test_without_a_name_the_database_is_the_one_in_the_current_folder(
    run_process: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    del environment["JOBSTORE_URL"]
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run_process("migrate", cwd=folder).returncode == 0
    assert run_process("list", cwd=folder).returncode == 0
    assert sorted(folder.iterdir()) == [folder / "jobs.db", folder / "jobs.db.owner"]
