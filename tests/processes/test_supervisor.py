"""`jobstore work --processes`: real processes that crash, are stopped, killed and started anew."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest

from jobstore import Job, JobStatus, JobStore, WorkerInfo
from jobstore.workers.supervisor import Restarts, Supervisor
from tests.conformance.support import eventually

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no signals")

Database: TypeAlias = Path | str

TASKS = """
import asyncio
from pathlib import Path

from jobstore.workers import Worker


def worker(store):
    worker = Worker(store, concurrency=4)

    @worker.handles("quick")
    async def quick(job):
        return "first code"

    @worker.handles("held")
    async def held(job):
        Path(f"begun-{job.job.id}").touch()
        while not Path("release").exists():
            await asyncio.sleep(0.01)
        return "released"

    return worker
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks_of_mine.py").write_text(TASKS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Return what a test names by `on_both`, else a file."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return tmp_path / "jobs.db"
    url: str = request.getfixturevalue("fresh_database")
    return url


on_both = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
async def store(database: Database) -> AsyncIterator[JobStore]:
    async with JobStore(database, migrate=True) as store:
        yield store


class Running:
    """A supervisor in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    async def ends(self) -> int:
        return await asyncio.to_thread(self.process.wait, 120)


@asynccontextmanager
async def working(
    folder: Path, database: Database, *options: object, python: tuple[str, ...] = ("-m", "jobstore")
) -> AsyncIterator[Running]:
    """Run the command; what is left of it at the end is killed."""
    command = [sys.executable, *python, "work", "tasks_of_mine", *map(str, options)]
    environment = {**os.environ, "JOBSTORE_URL": str(database)}
    log = folder / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(  # noqa: ASYNC220 - at once
            command, cwd=folder, env=environment, stdout=errors, stderr=errors
        ) as process,
    ):
        try:
            yield Running(process, log)
        finally:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()


async def live(store: JobStore, count: int, *, other_than: frozenset[int] = frozenset()) -> list[WorkerInfo]:
    """Return the workers once so many live."""
    found: list[WorkerInfo] = []

    async def enough() -> bool:
        nonlocal found
        found = [worker for worker in await store.workers.list() if worker.pid not in other_than]
        return len(found) >= count

    await eventually(enough)
    return found


async def enqueue(store: JobStore, task_type: str, count: int = 1) -> list[Job]:
    return [await store.jobs.enqueue("secret prompt", task_type=task_type, api_type="a") for _ in range(count)]


async def all_are(store: JobStore, jobs: list[Job], status: JobStatus) -> bool:
    return {(await store.jobs.get(job.id)).status for job in jobs} == {status}


async def begun(folder: Path, jobs: list[Job]) -> None:
    """Wait for the handlers: a job that is running in the database may still be given back, if its process stops."""
    await eventually(lambda: all((folder / f"begun-{job.id}").exists() for job in jobs))


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# Work


@on_both
async def test_several_processes_share_the_work_and_end_when_it_is_done(
    store: JobStore, folder: Path, database: Database
) -> None:
    jobs = await enqueue(store, "quick", 50)
    async with working(folder, database, "--processes", 2, "--drain") as supervisor:
        assert await supervisor.ends() == 0
    assert await all_are(store, jobs, JobStatus.COMPLETED)
    assert {(await store.jobs.get(job.id)).attempt for job in jobs} == {1}
    assert await store.workers.list() == []


async def test_options_reach_every_process(store: JobStore, folder: Path, database: Database) -> None:
    options = ("--processes", 2, "--concurrency", 7, "--db", database, "--min-free-bytes", 2**50)
    async with working(folder, database, *options) as supervisor:
        workers = await live(store, 2)
        assert {worker.concurrency for worker in workers} == {7}
        assert len({worker.pid for worker in workers}) == 2
        await eventually(lambda: supervisor.log.count("cannot claim, trying again") == 2)
        supervisor.process.terminate()
        assert await supervisor.ends() == 0


# Stopping


@pytest.mark.parametrize(
    ("database", "number"), [("sqlite", signal.SIGINT), ("postgres", signal.SIGTERM)], indirect=["database"]
)
async def test_a_signal_lets_what_runs_end_in_all_processes(
    store: JobStore, folder: Path, database: Database, number: int
) -> None:
    jobs = await enqueue(store, "held", 6)
    async with working(folder, database, "--processes", 2, "--grace", 60) as supervisor:
        await begun(folder, jobs)
        supervisor.process.send_signal(number)
        (folder / "release").touch()
        assert await supervisor.ends() == 0
    assert await all_are(store, jobs, JobStatus.COMPLETED)
    assert await store.workers.list() == []


async def test_a_service_manager_that_signals_every_process_takes_nothing_of_the_grace(
    store: JobStore, folder: Path, database: Database
) -> None:
    jobs = await enqueue(store, "held", 6)
    async with working(folder, database, "--processes", 2, "--grace", 60) as supervisor:
        await begun(folder, jobs)
        for worker in await live(store, 2):
            os.kill(worker.pid, signal.SIGTERM)
        supervisor.process.terminate()
        await eventually(lambda: "stopping 2 worker processes" in supervisor.log)
        assert await all_are(store, jobs, JobStatus.RUNNING)
        (folder / "release").touch()
        assert await supervisor.ends() == 0
    assert await all_are(store, jobs, JobStatus.COMPLETED)


@on_both
async def test_what_runs_longer_than_the_grace_is_given_back_and_not_counted(
    store: JobStore, folder: Path, database: Database
) -> None:
    jobs = await enqueue(store, "held", 6)
    async with working(folder, database, "--processes", 2, "--grace", 0) as supervisor:
        await begun(folder, jobs)
        supervisor.process.terminate()
        assert await supervisor.ends() == 0
    assert await all_are(store, jobs, JobStatus.IDLE)
    assert {(await store.jobs.get(job.id)).attempts_used for job in jobs} == {0}


async def test_a_second_signal_ends_the_grace(store: JobStore, folder: Path, database: Database) -> None:
    jobs = await enqueue(store, "held", 6)
    async with working(folder, database, "--processes", 2, "--grace", 3600) as supervisor:
        await begun(folder, jobs)
        supervisor.process.terminate()
        await eventually(lambda: "stopping 2 worker processes" in supervisor.log)
        supervisor.process.terminate()
        assert await supervisor.ends() == 0
    assert await all_are(store, jobs, JobStatus.IDLE)


async def test_a_signal_while_the_processes_start_ends_them(store: JobStore, folder: Path, database: Database) -> None:
    async with working(folder, database, "--processes", 2) as supervisor:
        await eventually(lambda: supervisor.log.count("started: pid") == 1 or "process 2 started" in supervisor.log)
        supervisor.process.terminate()
        assert await supervisor.ends() == 0
    assert await store.workers.list() == []


@on_both
async def test_the_processes_end_when_the_supervisor_is_killed(
    store: JobStore, folder: Path, database: Database
) -> None:
    jobs = await enqueue(store, "held", 6)
    async with working(folder, database, "--processes", 2, "--grace", 0) as supervisor:
        await begun(folder, jobs)
        pids = [worker.pid for worker in await live(store, 2)]
        supervisor.process.kill()
        await eventually(lambda: all(map(gone, pids)))
    assert await all_are(store, jobs, JobStatus.IDLE)
    assert await store.workers.list() == []


# Crashing


@pytest.mark.parametrize(
    ("database", "processes", "number"),
    [("sqlite", 1, signal.SIGSEGV), ("postgres", 2, signal.SIGKILL)],
    indirect=["database"],
)
async def test_a_process_that_crashes_is_started_again(
    store: JobStore, folder: Path, database: Database, processes: int, number: int
) -> None:
    async with working(folder, database, "--processes", processes) as supervisor:
        crashing, *others = await live(store, processes)
        os.kill(crashing.pid, number)
        [after] = await live(store, 1, other_than=frozenset(worker.pid for worker in [crashing, *others]))
        assert after.started_at > crashing.started_at
        assert f"was ended by {signal.Signals(number).name}: it starts again in 0.5 s" in supervisor.log
        jobs = await enqueue(store, "quick", 10)
        await eventually(lambda: all_are(store, jobs, JobStatus.COMPLETED))
        assert not any(gone(other.pid) for other in others)
        supervisor.process.terminate()
        assert await supervisor.ends() == 0


async def test_a_crash_loop_ends_with_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    crashing = [sys.executable, "-c", "open('tries', 'a').write('x'); raise SystemExit(3)"]
    steady = [sys.executable, "-c", "import sys; sys.stdin.read(1)"]
    runs = 4
    restarts = Restarts(first_pause=0.01, steady=3600, most=runs)  # however slowly they crash
    supervisor = Supervisor([crashing, steady], restarts=restarts)
    assert await supervisor.run() == 1
    assert (tmp_path / "tries").read_text() == "x" * runs
    assert supervisor.pids == []


async def test_crashes_that_lie_apart_are_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    crashing = [sys.executable, "-c", "open('tries', 'a').write('x'); raise SystemExit(3)"]
    supervisor = Supervisor([crashing], restarts=Restarts(first_pause=0.01, steady=0, most=2))
    running = asyncio.ensure_future(supervisor.run())
    tries = tmp_path / "tries"
    await eventually(lambda: tries.exists() and len(tries.read_text()) >= 4)
    supervisor.stop()
    assert await running == 0


def test_pauses_double_up_to_a_bound() -> None:
    restarts = Restarts()
    assert [restarts.pause(crashes) for crashes in (1, 2, 3, 4, 7, 1000)] == [0.5, 1, 2, 4, 30, 30]


async def test_a_wrong_target_is_told_once_and_ends_with_exit_code_2(
    folder: Path, database: Database, store: JobStore
) -> None:
    (folder / "tasks_of_mine.py").write_text("", encoding="utf-8")
    async with working(folder, database, "--processes", 2) as supervisor:
        assert await supervisor.ends() == 2
        assert "has no worker" in supervisor.log
    assert await store.workers.list() == []


async def test_a_command_that_is_not_there_is_raised(tmp_path: Path) -> None:
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read(1)"]
    supervisor = Supervisor([waiting, [str(tmp_path / "nothing")]])
    with pytest.raises(FileNotFoundError):
        await supervisor.run()
    assert supervisor.pids == []


async def test_a_process_that_does_not_end_is_killed() -> None:
    deaf = [sys.executable, "-c", "import time; time.sleep(3600)"]
    supervisor = Supervisor([deaf, deaf], grace=0, kill_after=0)
    running = asyncio.ensure_future(supervisor.run())
    await eventually(lambda: len(supervisor.pids) == 2)
    pids = supervisor.pids
    supervisor.stop()
    supervisor.stop()
    assert await running == 0
    assert all(map(gone, pids))


async def test_cancelling_the_supervisor_ends_its_processes() -> None:
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read(1)"]
    supervisor = Supervisor([waiting, waiting])
    running = asyncio.ensure_future(supervisor.run())
    await eventually(lambda: len(supervisor.pids) == 2)
    pids = supervisor.pids
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert all(map(gone, pids))


async def test_stopping_before_it_runs_starts_nothing() -> None:
    supervisor = Supervisor([[sys.executable, "-c", "raise SystemExit(3)"]])
    supervisor.stop()
    assert await supervisor.run() == 0


# Reloading


async def test_sighup_starts_the_workers_anew_with_new_code(store: JobStore, folder: Path, database: Database) -> None:
    async with working(folder, database, "--processes", 2, "--reload", "--grace", 0) as supervisor:
        before = frozenset(worker.pid for worker in await live(store, 2))
        (folder / "tasks_of_mine.py").write_text(TASKS.replace("first code", "second code"), encoding="utf-8")
        supervisor.process.send_signal(signal.SIGHUP)
        await live(store, 2, other_than=before)
        [job] = await enqueue(store, "quick")
        await eventually(lambda: all_are(store, [job], JobStatus.COMPLETED))
        assert await store.jobs.read_response(job.id) == "second code"
        assert all(map(gone, before))
        supervisor.process.terminate()
        assert await supervisor.ends() == 0


async def test_broken_code_waits_for_the_next_reload(store: JobStore, folder: Path, database: Database) -> None:
    async with working(folder, database, "--reload") as supervisor:
        before = frozenset(worker.pid for worker in await live(store, 1))
        (folder / "tasks_of_mine.py").write_text("this is no Python", encoding="utf-8")
        supervisor.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "it starts again in" in supervisor.log)
        (folder / "tasks_of_mine.py").write_text(TASKS, encoding="utf-8")
        supervisor.process.send_signal(signal.SIGHUP)
        await live(store, 1, other_than=before)
        supervisor.process.terminate()
        assert await supervisor.ends() == 0


# Metrics


async def test_each_process_serves_its_metrics_at_a_port_of_its_own(
    store: JobStore, folder: Path, database: Database
) -> None:
    jobs = await enqueue(store, "quick", 20)
    first = free_ports(2)
    where = "--metrics-port", first, "--metrics-host", "localhost"
    async with working(folder, database, "--processes", 2, *where) as supervisor:
        await live(store, 2)
        await eventually(lambda: all_are(store, jobs, JobStatus.COMPLETED))
        await eventually(lambda: supervisor.log.count("serves its metrics at http://localhost:") == 2)
        scraped = [await asyncio.to_thread(scrape, f"http://localhost:{first + n}/metrics") for n in range(2)]
        counted = [line.split() for text in scraped for line in text.splitlines() if "jobs_completed_total{" in line]
        assert sum(float(count) for _, count in counted) == 20
        supervisor.process.terminate()
        assert await supervisor.ends() == 0


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own
        text: str = answer.read().decode()
        return text


def free_ports(count: int) -> int:
    """Return the first of some ports in a row that are free now, and that no system gives to whoever wants any."""
    while True:
        first = random.randrange(10_000, 32_000)  # noqa: S311 - no secret
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(closing(socket.socket())).bind(("127.0.0.1", port))
            return first


# Logs


async def test_json_logs_are_an_object_a_line_with_ids_and_no_texts(
    store: JobStore, folder: Path, database: Database
) -> None:
    [job] = await enqueue(store, "quick")
    async with working(folder, database, "--processes", 2, "--drain", "--log-format", "json") as supervisor:
        assert await supervisor.ends() == 0
        records = [json.loads(line) for line in supervisor.log.splitlines()]
    assert all({"time", "level", "logger", "process", "message"} <= set(record) for record in records)
    of_job = [record for record in records if record.get("job_id") == job.id]
    assert [record["event"] for record in of_job] == ["begin", "end"]
    assert {record["task_type"] for record in of_job} == {"quick"}
    assert {record["attempt"] for record in of_job} == {1}
    assert (of_job[1]["status"], of_job[1]["error_type"]) == ("completed", None)
    assert of_job[0]["worker_id"] == of_job[1]["worker_id"]
    assert "secret prompt" not in supervisor.log
    assert "first code" not in supervisor.log


# What goes on while processes start, are stuck, or are told twice


async def test_a_reload_while_jobs_are_drained_goes_on_with_the_rest(
    store: JobStore, folder: Path, database: Database
) -> None:
    jobs = await enqueue(store, "held", 12)
    async with working(folder, database, "--drain", "--reload", "--concurrency", 2, "--grace", 60) as supervisor:
        before = frozenset(worker.pid for worker in await live(store, 1))
        await eventually(lambda: some_run(store))
        supervisor.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "starting the workers anew" in supervisor.log)
        (folder / "release").touch()
        assert await supervisor.ends() == 0
    assert await all_are(store, jobs, JobStatus.COMPLETED)
    assert len(before) == 1


async def some_run(store: JobStore) -> bool:
    return await store.jobs.count(status="running") == 2


async def test_a_process_that_does_not_end_for_a_reload_is_killed_and_replaced(tmp_path: Path) -> None:
    deaf = [sys.executable, "-c", "import time; time.sleep(3600)"]
    supervisor = Supervisor([deaf], grace=0, kill_after=0, reloads=True)
    running = asyncio.ensure_future(supervisor.run())
    await eventually(lambda: len(supervisor.pids) == 1)
    [before] = supervisor.pids
    supervisor.reload()
    await eventually(lambda: supervisor.pids not in ([before], []))
    assert gone(before)
    supervisor.stop()
    assert await running == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_reload_while_a_process_starts_reaches_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noting = [sys.executable, "-c", "import sys; open('starts', 'a').write('x'); sys.stdin.read(1)"]
    spawn, spawned, told = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()

    async def spawn_slowly(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        process = await spawn(*arguments, **options)
        spawned.set()
        await told.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn_slowly)
    supervisor = Supervisor([noting], reloads=True)
    running = asyncio.ensure_future(supervisor.run())
    await spawned.wait()
    assert supervisor.pids == []
    supervisor.reload()
    told.set()
    starts = tmp_path / "starts"
    await eventually(lambda: starts.exists() and starts.read_text() == "xx")
    supervisor.stop()
    assert await running == 0


async def test_a_process_that_cannot_be_started_again_for_now_is_no_reason_to_end_the_others(tmp_path: Path) -> None:
    program, began = tmp_path / "program", tmp_path / "began"
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read(1)"]
    program.write_text(f"#!/bin/sh\ntouch '{began}'\nexit 1\n")
    program.chmod(0o755)
    supervisor = Supervisor([[str(program)], waiting], restarts=Restarts(first_pause=0.3, steady=3600, most=3))
    running = asyncio.ensure_future(supervisor.run())
    await eventually(began.exists)  # or the shell might not find its script any more
    program.unlink()
    assert await running == 1  # after it was tried as often as one that crashes


async def test_a_hangup_stops_what_does_not_reload(store: JobStore, folder: Path, database: Database) -> None:
    for options in (["--processes", 2], []):
        jobs = await enqueue(store, "held", 2)
        async with working(folder, database, *options, "--grace", 0) as program:
            await begun(folder, jobs)
            program.process.send_signal(signal.SIGHUP)
            assert await program.ends() == 0
        assert await all_are(store, jobs, JobStatus.IDLE)
        await store.jobs.cancel_all(everything=True)


STUBBORN = """
import asyncio
import subprocess
from pathlib import Path

from jobstore.workers import Worker


def worker(store):
    worker = Worker(store, cancel_grace=0.1)

    @worker.handles("deaf")
    async def deaf(job):
        print("what a handler has printed")
        Path(f"begun-{job.job.id}").touch()
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    @worker.handles("reading")
    async def reading(job):
        await asyncio.to_thread(subprocess.run, ["cat"], check=True)
        return "the end of its input"

    return worker
"""


async def test_a_handler_that_swallows_its_cancellation_does_not_keep_its_process(
    store: JobStore, folder: Path, database: Database
) -> None:
    (folder / "tasks_of_mine.py").write_text(STUBBORN, encoding="utf-8")
    jobs = await enqueue(store, "deaf")
    async with working(folder, database, "--processes", 1, "--grace", 0) as program:
        await begun(folder, jobs)
        program.process.terminate()
        assert await program.ends() == 0
        assert "the process ends without them" in program.log
        assert "what a handler has printed" in program.log
    assert await all_are(store, jobs, JobStatus.IDLE)
    assert await store.workers.list() == []


async def test_nor_does_it_once_the_database_has_failed_for_good(
    store: JobStore, folder: Path, database: Database
) -> None:
    (folder / "tasks_of_mine.py").write_text(STUBBORN, encoding="utf-8")
    jobs = await enqueue(store, "deaf")
    async with working(folder, database) as program:
        await begun(folder, jobs)
        await store.execute("ALTER TABLE lanes RENAME TO lost")  # which wakes it
        assert await program.ends() == 1
        assert "the process ends without them after this: no such table: lanes" in program.log


async def test_a_program_that_a_handler_starts_does_not_read_the_orders(
    store: JobStore, folder: Path, database: Database
) -> None:
    (folder / "tasks_of_mine.py").write_text(STUBBORN, encoding="utf-8")
    jobs = await enqueue(store, "reading")
    async with working(folder, database, "--processes", 2) as supervisor:
        await eventually(lambda: all_are(store, jobs, JobStatus.COMPLETED))
        supervisor.process.terminate()
        assert await supervisor.ends() == 0


async def test_a_module_that_cannot_be_imported_is_told_by_its_own_frames(
    store: JobStore, folder: Path, database: Database
) -> None:
    (folder / "tasks_of_mine.py").write_text("import helper_of_mine", encoding="utf-8")
    (folder / "helper_of_mine.py").write_text("int('no number')", encoding="utf-8")
    async with working(folder, database, "--log-format", "json") as program:
        assert await program.ends() == 1
    [record] = map(json.loads, program.log.splitlines())
    assert record["message"] == "tasks_of_mine cannot be imported"
    assert record["exc_info"].count("File ") == 2
    assert "helper_of_mine.py" in record["exc_info"]
    assert await store.workers.list() == []
