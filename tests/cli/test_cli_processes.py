"""The command as the shell sees it: pipes that close, signals, terminals, and jobs that run meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import JobStatus, JobStore

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Act = Callable[..., Any]
Run = Callable[..., subprocess.CompletedProcess[bytes]]
InTerminal = Callable[..., tuple[int, str]]

TASKS = '''
import asyncio
import gc
import os
from pathlib import Path

from jobstore import JobStore
from jobstore.workers import Worker

worker = Worker(JobStore(os.environ["JOBSTORE_URL"]))


@worker.handles("task")
async def answer(job):
    return job.prompt.upper()


@worker.handles("long")
async def never(job):
    await job.write("begun ")
    Path("started").touch()
    try:
        await asyncio.sleep(3600)
    finally:
        Path("ended").touch()


def make(store):
    """Make a worker of a store that somebody else has opened."""
    made = Worker(store, concurrency=1)

    @made.handles("task")
    def answer(job):
        return f"{made.concurrency} {store.path.name}"

    return made


def spared(store):
    made = Worker(store)

    @made.handles("task")
    async def answer(job):
        return f"{gc.get_freeze_count() > 10_000}"

    return made


def broken(store):
    return 3


number = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of workers."""
    path = tmp_path / "project"
    path.mkdir()
    (path / "tasks_of_mine.py").write_text(TASKS, encoding="utf-8")
    return path


@asynccontextmanager
async def started(
    environment: dict[str, str],
    *args: object,
    **options: Any,  # noqa: ANN401
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the command, and kill it if the test ends before it does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobstore", *map(str, args),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def read(stream: asyncio.StreamReader | None, expected: bytes) -> bytes:
    """Read until something expected has come."""
    assert stream is not None
    data = b""
    async with asyncio.timeout(60):
        while expected not in data:
            part = await stream.read(65536)
            assert part, data
            data += part
    return data


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, bytes, bytes]:
    """Return the exit code, and what is left of the output and of the errors."""
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return process.returncode, output, errors


# Pipes


def test_a_reader_that_has_had_enough_ends_the_command_quietly(
    command: Command, act: Act, environment: dict[str, str]
) -> None:
    job_id = command.enqueue("p")

    async def complete(store: JobStore) -> None:
        [claim] = await store.jobs.claim("w")
        await store.jobs.complete(claim, "x" * 5_000_000)

    act(complete)
    for arguments in (["show", job_id, "--response"], ["show", job_id, "--response", "--json"], ["tail", job_id]):
        process = subprocess.Popen(
            [sys.executable, "-m", "jobstore", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (141, b"")


@pytest.mark.parametrize("arguments", [["list"], ["--help"]])
def test_a_reader_that_never_reads_ends_the_command_quietly(
    command: Command, environment: dict[str, str], arguments: list[str]
) -> None:
    command.enqueue("p")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "jobstore", *arguments],
        env=environment, stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode in {1, 141}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("arguments", ["check --quick", "dump sessions --format csv"])
def test_an_output_that_cannot_be_written_is_told_in_one_line(environment: dict[str, str], arguments: str) -> None:
    command = [sys.executable, "-m", "jobstore", *arguments.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"jobstore: the output cannot be written: No space left on device\n")


def test_a_terminal_gets_colours_and_a_pipe_does_not(
    command: Command, environment: dict[str, str], run_process: Run, in_terminal: InTerminal
) -> None:
    job_id = command.enqueue("p", "--run-at", "+1h", task_type="a_task_type_that_is_" + "much_" * 10 + "too_long")
    environment["FORCE_COLOR"] = environment["TTY_COMPATIBLE"] = "1"
    assert b"\x1b[" not in run_process("list").stdout
    code, shown = in_terminal("list")
    assert code == 0
    assert "\x1b[34mscheduled" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert job_id in plain
    assert "…" in plain
    assert all(len(line) <= 90 for line in plain.splitlines())


def test_a_narrow_terminal_shows_what_jobs_are_and_the_ends_of_their_ids(
    command: Command, environment: dict[str, str], in_terminal: InTerminal
) -> None:
    job_id = command.enqueue("p", task_type="implementation_plan", api_type="openai_chat")
    environment["COLUMNS"] = "80"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", in_terminal("list")[1])
    assert plain.splitlines()[1].split()[:4] == [f"…{job_id[-12:]}", "idle", "implementation_plan", "openai_chat"]
    assert job_id[-12:] in command.ok("show", job_id[-12:])


def test_a_terminal_is_not_driven_by_texts(command: Command, act: Act, in_terminal: InTerminal) -> None:
    job_id = command.enqueue("p")

    async def complete(store: JobStore) -> None:
        [claim] = await store.jobs.claim("w")
        await store.jobs.complete(claim, "one\r\ntwo \x1b]0;title\x07")

    act(complete)
    expected = "one\r\ntwo \\x1b]0;title\\x07\r\n"  # a terminal turns a new line into two characters
    assert in_terminal("show", job_id, "--response") == (0, expected)
    assert in_terminal("tail", job_id) == (0, expected)
    _, shown = in_terminal("show", job_id)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "  two \\x1b]0;title\\x07" in plain
    assert "\x1b" not in plain
    assert "completed" in plain


# tail


async def test_a_running_response_is_followed_to_its_end(migrated: Path, environment: dict[str, str]) -> None:
    async with JobStore(migrated) as store:
        job = await store.jobs.enqueue("p", task_type="t", api_type="a")
        [claim] = await store.jobs.claim("w")
        async with store.jobs.output(claim) as output:
            await output.write("one 🚀 ")
            async with started(environment, "tail", job.id[-6:]) as tail:
                heard = await read(tail.stdout, "one 🚀 ".encode())
                await output.write("two ")
                heard += await read(tail.stdout, b"two ")
                await output.write("three")
                await output.close()
                await store.jobs.complete(claim)
                code, rest, errors = await ended(tail)
    assert (heard + rest).decode() == "one 🚀 two three"
    assert (code, errors) == (0, b"")


async def test_a_waiting_job_is_waited_for_and_its_attempts_are_followed(
    migrated: Path, environment: dict[str, str]
) -> None:
    async with JobStore(migrated) as store:
        job = await store.jobs.enqueue("p", task_type="t", api_type="a")
        async with started(environment, "tail", job.id) as tail:
            assert b"is idle: waiting for a worker" in await read(tail.stderr, b"\n")
            [claim] = await store.jobs.claim("w")
            async with store.jobs.output(claim) as output:
                await output.write("half")
                await read(tail.stdout, b"half")
            await store.jobs.fail(claim, "no luck", error_type="bad_luck", retry_in=0.001)
            told = await read(tail.stderr, b"\n")
            while not (claims := await store.jobs.claim("w")):
                await store.jobs.wake(since=-1)
            await store.jobs.complete(claims[0], "whole")
            code, rest, _ = await ended(tail)
    assert b"the job is scheduled (bad_luck): waiting for the next attempt" in told
    assert (code, rest) == (0, b"whole")


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELED])
def test_following_a_job_that_did_not_complete_is_no_success(command: Command, act: Act, status: JobStatus) -> None:
    job_id = command.enqueue("p")

    async def end(store: JobStore) -> None:
        [claim] = await store.jobs.claim("w")
        async with store.jobs.output(claim) as output:
            await output.write("half")
        if status is JobStatus.CANCELED:
            await store.jobs.cancel(job_id)
        await store.jobs.fail(claim, "secret", error_type="timeout")

    act(end)
    result = command("tail", job_id)
    assert (result.exit_code, result.stdout) == (1, "half")
    assert f"job {job_id} is {status} (timeout)" in result.stderr
    assert "secret" not in result.stderr


async def test_an_attempt_that_takes_over_unseen_is_told(migrated: Path, environment: dict[str, str]) -> None:
    async with JobStore(migrated) as store:
        job = await store.jobs.enqueue("p", task_type="t", api_type="a")
        [claim] = await store.jobs.claim("w")
        async with started(environment, "tail", job.id) as tail:
            async with store.jobs.output(claim) as output:
                await output.write("half")
                await read(tail.stdout, b"half")
                tail.send_signal(signal.SIGSTOP)
            await store.jobs.release(claim)
            [claim] = await store.jobs.claim("w")
            tail.send_signal(signal.SIGCONT)
            told = await read(tail.stderr, b"\n")
            await store.jobs.complete(claim, "whole")
            code, rest, _ = await ended(tail)
    assert b"what attempt 1 wrote does not count: the response begins anew" in told
    assert (code, rest) == (0, b"whole")


def test_following_a_completed_job_prints_its_response(command: Command, act: Act) -> None:
    job_id = command.enqueue("p")

    async def complete(store: JobStore) -> None:
        [claim] = await store.jobs.claim("w")
        await store.jobs.complete(claim, "answer\n" * 50_000)

    act(complete)
    assert command.ok("tail", job_id) == "answer\n" * 50_000


async def test_an_interrupt_ends_following_quietly(migrated: Path, environment: dict[str, str]) -> None:
    async with JobStore(migrated) as store:
        job = await store.jobs.enqueue("p", task_type="t", api_type="a")
        [claim] = await store.jobs.claim("w")
        async with store.jobs.output(claim) as output:
            await output.write("half")
            async with started(environment, "tail", job.id) as tail:
                await read(tail.stdout, b"half")
                tail.send_signal(signal.SIGINT)
                assert await ended(tail) == (130, b"", b"")


# work


def test_a_worker_drains_its_own_store(command: Command, run_process: Run, folder: Path) -> None:
    ids = [command.enqueue(f"prompt {number}") for number in range(3)]
    done = run_process("work", "tasks_of_mine", "--drain", cwd=folder)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"works on" in done.stderr
    assert b"prompt" not in done.stderr
    assert [command.ok("show", job_id, "--response") for job_id in ids] == ["PROMPT 0", "PROMPT 1", "PROMPT 2"]


def test_a_function_makes_a_worker_for_the_store_that_is_named(
    command: Command, run_process: Run, folder: Path
) -> None:
    one, other = command.enqueue("p"), command.enqueue("p", "--run-at", "+1h")
    quiet = ("--drain", "--log-level", "warning", "--db", command.database)
    assert run_process("work", "tasks_of_mine:make", *quiet, cwd=folder).stderr == b""
    assert command.ok("show", one, "--response") == "1 jobs.db"
    command.ok("cancel", other)
    command.ok("retry", other)
    assert run_process("work", "tasks_of_mine:make", *quiet, "--concurrency", 5, cwd=folder).returncode == 0
    assert command.ok("show", other, "--response") == "5 jobs.db"
    command.ok("retry", other)
    assert run_process("work", "tasks_of_mine:make", *quiet, "--max-output-bytes", 3, cwd=folder).returncode == 0
    assert "OutputTooLarge" in command.ok("show", other)


def test_what_a_worker_has_loaded_is_spared_by_garbage_collections(
    command: Command, run_process: Run, folder: Path
) -> None:
    job_id = command.enqueue("p")
    run_process("work", "tasks_of_mine:spared", "--drain", "--db", command.database, cwd=folder)
    assert command.ok("show", job_id, "--response") == "True"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_worker_and_gives_its_jobs_back(
    migrated: Path, environment: dict[str, str], folder: Path, number: signal.Signals
) -> None:
    async with JobStore(migrated) as store:
        job = await store.jobs.enqueue("p", task_type="long", api_type="a")
        async with started(environment, "work", "tasks_of_mine:worker", "--grace", 0, cwd=folder) as worker:
            async for text in store.jobs.tail(job.id):
                assert text == "begun "
                break
            worker.send_signal(number)
            code, output, errors = await ended(worker)
        assert (code, output) == (0, b"")
        assert b"Traceback" not in errors
        assert (await store.jobs.get(job.id)).status is JobStatus.IDLE
    assert (folder / "ended").exists()


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("nowhere", "there is no module nowhere"),
        ("tasks_of_mine.deeper", "there is no module tasks_of_mine.deeper"),
        (":worker", "there is no module"),
        ("..", "there is no module"),
        ("tasks_of_mine:nothing", "tasks_of_mine has no nothing"),
        ("tasks_of_mine:number", "neither a Worker nor a function"),
        ("tasks_of_mine:broken", "returned int, not a Worker"),
    ],
)
def test_a_worker_that_is_not_there_is_a_wrong_usage(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, target: str, complaint: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert complaint in command.misused("work", target, "--drain")


@pytest.mark.parametrize("options", [["--db", "x.db"], ["--outputs", "x"], ["--min-free-bytes", "0"]])
def test_a_worker_with_a_store_of_its_own_is_given_no_other(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("JOBSTORE_URL", str(command.database))
    assert "brings its own store" in command.misused("work", "tasks_of_mine", "--drain", *options)


def test_an_error_in_a_users_module_is_shown_with_its_place(run_process: Run, folder: Path) -> None:
    (folder / "lacking.py").write_text("import no_such_dependency\n")
    done = run_process("work", "lacking", cwd=folder)
    assert done.returncode == 1
    assert b'lacking.py", line 1' in done.stderr
    assert b"No module named 'no_such_dependency'" in done.stderr


def test_a_database_that_fails_a_worker_is_told_in_one_line(command: Command, run_process: Run, folder: Path) -> None:
    with closing(sqlite3.connect(command.database)) as connection:
        connection.execute("DROP TABLE lanes")
    done = run_process("work", "tasks_of_mine", "--log-level", "error", cwd=folder)
    assert (done.returncode, done.stderr) == (1, b"jobstore: no such table: lanes\n")


def test_metrics_without_their_extra_are_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.prometheus", None)  # the API comes with other packages
    assert 'pip install "jobstore[otel]"' in command.misused("work", "tasks", "--metrics-port", "9464")


def test_ports_that_do_not_exist_are_refused(command: Command) -> None:
    assert "no 3 ports from 65534 on" in command.misused("work", "tasks", "--metrics-port", "65534", "--processes", "3")


def test_a_port_that_is_taken_is_told(folder: Path, run_process: Run) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_process("work", "tasks_of_mine:make", "--metrics-port", port, cwd=folder)
    assert done.returncode == 2
    assert f"port {port} cannot be had: Address already in use".encode() in done.stderr
