"""Prompts, responses, metadata and errors of jobs are nobody else's to read: no repr, error or log line has them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from jobstore import JobStore, JobStoreError, NewJob
from jobstore.models import Text
from jobstore.sql import Operation, execute
from jobstore.testing import FakeClock

from .support import enqueue, outputs_folder, start, streamed

SECRET = "for your eyes only".replace(" ", "-")  # put together here, so that no source line in a traceback has it
LARGE = SECRET * 10_000
BROKEN = SECRET + "\ud800"


def told(error: BaseException) -> str:
    """Return everything that an error and all those behind it say."""
    seen: list[BaseException] = []

    def walk(one: BaseException | None) -> Iterator[str]:
        if one is not None and one not in seen:
            seen.append(one)
            yield from (str(one), repr(one), repr(one.args), repr(vars(one)), repr(getattr(one, "__notes__", "")))
            yield from walk(one.__cause__)
            yield from walk(one.__context__)

    return "\n".join([*walk(error), *traceback.format_exception(error)])


async def test_no_model_shows_a_private_text(store: JobStore) -> None:
    new = NewJob(prompt=SECRET, task_type="t", api_type="a", metadata={"a": SECRET})
    [job] = await store.jobs.enqueue_many([new])
    [claimed] = await store.jobs.claim("worker-1")
    progress = await store.jobs.progress(claimed, status_message=SECRET, metadata={"b": SECRET})
    await streamed(store, claimed, SECRET)
    done = await store.jobs.complete(claimed)
    failed = await store.jobs.fail(await start(store, SECRET), SECRET, error_type="refused")
    session = await store.sessions.create(name="demo", project_directory="/a", task_description=SECRET)
    async with store.jobs.record(SECRET, task_type="t", api_type="a") as call:
        await call.write(SECRET)
    shown = [
        new, job, claimed, progress, done, failed, session, call, call.job, call.claim, store,
        await store.jobs.get(job.id), await store.jobs.list(), await store.jobs.attempts(failed.id),
        await store.jobs.heartbeat([claimed]), await store.jobs.stats(), Text(SECRET),
    ]  # fmt: skip
    for one in shown:
        assert SECRET not in f"{one!r} {one}"


def write_privately(_now: int, sql: str, text: str) -> Operation[int]:
    return (yield from execute(sql, text=text))


async def bad_output(store: JobStore) -> None:
    async with store.jobs.output(await start(store)) as output:
        await output.write(BROKEN)


async def bad_record(store: JobStore) -> None:
    async with store.jobs.record(BROKEN, task_type="t", api_type="a", metadata={"a": SECRET}):
        pytest.fail("the call must not begin")


async def complete_badly(store: JobStore, response: object, metadata: object = None) -> None:
    await store.jobs.complete(await start(store, SECRET), response, metadata=metadata)


async def complete_too_late(store: JobStore, response: str) -> None:
    claimed = await start(store, SECRET, metadata={"a": SECRET})
    await store.jobs.fail(claimed, SECRET)
    await store.jobs.complete(claimed, response, metadata={"a": SECRET})


async def read_damaged(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, LARGE)
    await store.jobs.fail(claimed, SECRET)
    [attempt] = await store.jobs.attempts(claimed.job_id)
    file = outputs_folder(store) / attempt.output_file_path
    await asyncio.to_thread(lambda: file.write_bytes(file.read_bytes()[:-1] + b"\xff\xff"))
    await store.jobs.read_response(claimed.job_id)


def parameters(text: str) -> dict[str, str]:
    return {"text": text}


REFUSALS: dict[str, Callable[[JobStore], Awaitable[object]]] = {
    "a prompt": lambda store: enqueue(store, BROKEN),
    "a prompt of bytes": lambda store: enqueue(store, SECRET.encode()),
    "metadata with a set": lambda store: enqueue(store, SECRET, metadata={"a": {SECRET}}),
    "metadata with a strange key": lambda store: enqueue(store, metadata={SECRET: {5: SECRET}}),
    "metadata with a surrogate": lambda store: enqueue(store, SECRET, metadata={"a": BROKEN}),
    "metadata as a text": lambda store: enqueue(store, metadata=SECRET),
    "another field of a job with a secret": lambda store: enqueue(store, SECRET, priority=2**40),
    "an unknown session": lambda store: enqueue(store, SECRET, session_id="nobody", metadata={"a": SECRET}),
    "an unknown session and a file": lambda store: enqueue(store, LARGE, session_id="nobody"),
    "a response": lambda store: complete_badly(store, BROKEN),
    "a response of bytes": lambda store: complete_badly(store, SECRET.encode()),
    "changes of metadata": lambda store: complete_badly(store, SECRET, {"a": BROKEN}),
    "changes of metadata that are none": lambda store: complete_badly(store, SECRET, SECRET),
    "a late answer": lambda store: complete_too_late(store, SECRET),
    "a late large answer": lambda store: complete_too_late(store, LARGE),
    "a streamed piece": bad_output,
    "a recorded prompt": bad_record,
    "a damaged file": read_damaged,
    "a value": lambda store: store.kv.set("key", BROKEN),
    "a value that is no JSON": lambda store: store.kv.set("key", {SECRET}),
    "a session": lambda store: store.sessions.create(name="", project_directory="/a", task_description=SECRET),
    "a session's text": lambda store: store.sessions.create(name=BROKEN, project_directory="/a"),
    "a parameter": lambda store: store.execute("SELECT :text", parameters(BROKEN)),
    "a parameter of an operation": lambda store: store.run(write_privately, "SELECT :text", BROKEN),
    "a row that breaks a constraint": lambda store: store.run(
        write_privately, "INSERT INTO key_value_store (key, updated_at, value) VALUES ('k', 0, :text)", SECRET
    ),
    "a statement without its parameter": lambda store: store.execute("SELECT :other", parameters(SECRET)),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_no_error_nor_any_behind_it_quotes_a_private_text(
    store: JobStore, refusal: Callable[[JobStore], Awaitable[object]]
) -> None:
    with pytest.raises(JobStoreError) as raised:
        await refusal(store)
    assert SECRET not in told(raised.value)


@pytest.fixture
async def everything_logged(caplog: pytest.LogCaptureFixture) -> AsyncIterator[pytest.LogCaptureFixture]:
    names = ["", *(name for name in logging.root.manager.loggerDict if not name.startswith("hypothesis"))]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(caplog.at_level(logging.DEBUG, name))
        yield caplog


async def test_no_log_line_quotes_a_private_text(
    everything_logged: pytest.LogCaptureFixture, store: JobStore, clock: FakeClock
) -> None:
    for text in (SECRET, LARGE):
        await store.jobs.complete(await start(store, text, metadata={"a": SECRET}), text)
        claimed = await start(store, text)
        await streamed(store, claimed, text)
        await store.jobs.progress(claimed, status_message=SECRET)
        await store.jobs.fail(claimed, SECRET)
        await store.jobs.read_response(claimed.job_id)
        with store.jobs.lease_kept(await start(store, text), lease=0.01):
            async with store.jobs.record(text, task_type="t", api_type="a") as call:
                await call.write(text)
    for refusal in REFUSALS.values():
        with pytest.raises(JobStoreError):
            await refusal(store)
    clock.advance(3600)
    await store.jobs.claim("worker-1", limit=100)
    await store.jobs.prune(older_than=0)
    await store.close()
    for record in everything_logged.records:
        assert SECRET not in record.getMessage()
        assert SECRET not in logging.Formatter().format(record)
