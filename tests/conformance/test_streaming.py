"""Streaming a response through `output()`, completing with it, and following it with `tail()`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import anyio
import pytest

from jobstore import (
    AttemptOutcome,
    InvalidJob,
    JobStatus,
    JobStore,
    LeaseLost,
    OutputError,
    OutputRestarted,
    StoreClosed,
)
from jobstore.testing import FakeClock

from .support import SPILLED, claim, enqueue, eventually, files, start, stored, stored_in, streamed


async def length(store: JobStore) -> int:
    """Return the size of the one file that there is."""
    [path] = files(store)
    return len(await asyncio.to_thread(stored, store, path))


async def test_what_is_streamed_is_the_response_once_completed(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "one ", "", "two ", "😀")
    assert (await store.jobs.get(claimed.job_id)).status is JobStatus.RUNNING
    done = await store.jobs.complete(claimed)
    assert (done.status, done.response) == (JobStatus.COMPLETED, "one two 😀")
    assert await store.jobs.read_response(claimed.job_id) == "one two 😀"


async def test_a_small_streamed_answer_ends_up_in_the_row_and_its_file_goes_away(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "small")
    assert len(files(store)) == 1
    done = await store.jobs.complete(claimed)
    assert (done.response, done.output_file_path, done.output_sha256) == ("small", None, None)
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert (attempt.output_file_path, attempt.output_bytes) == (None, 5)
    await eventually(lambda: not files(store))


async def test_a_large_streamed_answer_stays_in_its_file_with_its_size_and_hash(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, *[SPILLED] * 10)
    done = await store.jobs.complete(claimed)
    data = (SPILLED * 10).encode()
    assert (done.response, done.output_bytes) == (None, len(data))
    assert done.output_sha256 == hashlib.sha256(data).hexdigest()
    assert {done.output_file_path} == files(store)
    assert stored(store, done.output_file_path) == data
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert (attempt.output_file_path, attempt.output_bytes) == (done.output_file_path, len(data))
    assert await store.jobs.read_response(claimed.job_id) == SPILLED * 10


@pytest.mark.parametrize("text", ["small", SPILLED])
async def test_complete_inside_the_output_takes_what_was_written_so_far(store: JobStore, text: str) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write(text)
        done = await store.jobs.complete(claimed)
        with pytest.raises(OutputError):
            await output.write("too late")
    assert done.status is JobStatus.COMPLETED
    assert await store.jobs.read_response(claimed.job_id) == text
    assert (await store.jobs.get(claimed.job_id)) == done.model_copy(update={"prompt": "Say hello"})


@pytest.mark.parametrize("text", ["small", SPILLED])
async def test_completing_inside_the_output_and_leaving_it_is_one_write(store: JobStore, text: str) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write(text)
        before = store.stats().writer.operations
        await store.jobs.complete(claimed)
    assert store.stats().writer.operations == before + 1
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert attempt.output_bytes == len(text.encode())


@pytest.mark.parametrize("text", ["small", SPILLED])
async def test_completing_inside_the_output_twice_at_once_gives_both_callers_the_job(
    store: JobStore, text: str
) -> None:
    for _ in range(10):
        claimed = await start(store)
        async with store.jobs.output(claimed) as output:
            await output.write(text)
            one, two = await asyncio.gather(store.jobs.complete(claimed), store.jobs.complete(claimed))
            again = await store.jobs.complete(claimed)
        assert one.status is two.status is again.status is JobStatus.COMPLETED
        assert await store.jobs.read_response(claimed.job_id) == text


async def test_completing_inside_the_output_of_a_job_that_is_gone_is_refused(store: JobStore) -> None:
    session = await store.sessions.create(name="demo", project_directory="/src/app")
    claimed = await start(store, session_id=session.id)
    async with store.jobs.output(claimed) as output:
        await output.write("small")
        await store.sessions.delete(session.id)
        store.jobs._backend.discard([output.path])
        await eventually(lambda: not files(store))
        with pytest.raises(LeaseLost):
            await store.jobs.complete(claimed)


@pytest.mark.parametrize("text", ["small", SPILLED])
async def test_completing_a_stream_twice_at_once_gives_both_callers_the_job(store: JobStore, text: str) -> None:
    for _ in range(10):
        claimed = await start(store)
        await streamed(store, claimed, text)
        one, two = await asyncio.gather(store.jobs.complete(claimed), store.jobs.complete(claimed))
        assert one.status is two.status is JobStatus.COMPLETED
        assert await store.jobs.read_response(claimed.job_id) == text
        assert (await store.jobs.complete(claimed)).status is JobStatus.COMPLETED


async def test_repeating_a_completion_without_its_answer_takes_no_file_away(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "a draft")
    names = files(store)
    for answer in ("the answer", None, None):
        await store.jobs.complete(claimed, answer)
    await asyncio.gather(store.jobs.complete(claimed), store.jobs.complete(claimed, "another"))
    outputs = store.jobs._backend.outputs
    await store.close()  # it waits for what is to be removed
    assert all(stored_in(outputs, name) is not None for name in names)


async def test_an_output_with_nothing_written_is_an_empty_answer(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed)
    assert await store.jobs.read_response(claimed.job_id) == ""
    assert (await store.jobs.complete(claimed)).response == ""


@pytest.mark.parametrize("answer", ["small", SPILLED])
async def test_an_answer_that_is_given_counts_instead_of_what_was_streamed(store: JobStore, answer: str) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("a draft")
        done = await store.jobs.complete(claimed, answer)
    assert await store.jobs.read_response(claimed.job_id) == answer
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert attempt.outcome is AttemptOutcome.COMPLETED
    assert attempt.output_bytes == len(stored(store, attempt.output_file_path))
    assert done.output_bytes == len(answer.encode())


async def test_eight_kilobytes_reach_the_file_while_the_output_is_open(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("x" * 8192)
        async with asyncio.timeout(60):
            while await length(store) < 8192:
                await asyncio.sleep(0.001)
        assert await store.jobs.read_response(claimed.job_id) == "x" * 8192


async def test_a_few_characters_reach_the_file_soon_too(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("abc")
        await eventually(lambda: output.size == 3)
        assert await store.jobs.read_response(claimed.job_id) == "abc"
        await output.write("def")
        await eventually(lambda: output.size == 6)


async def test_the_row_names_the_file_from_the_moment_the_output_opens(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed):
        [attempt] = await store.jobs.attempts(claimed.job_id)
        assert {attempt.output_file_path} == files(store)
        assert attempt.output_bytes == 0


async def test_the_partial_of_a_failed_attempt_is_readable(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "as far as it got")
    await store.jobs.fail(claimed, "no")
    assert await store.jobs.read_response(claimed.job_id) == "as far as it got"
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert attempt.output_bytes == 16


async def test_the_partial_of_a_lost_attempt_is_readable(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, max_attempts=1)
    async with store.jobs.output(claimed) as output:
        await output.write("as far as it got")
        clock.advance(30)
        await store.jobs.claim("worker-2")
    assert (await store.jobs.get(claimed.job_id)).error_type == "worker_lost"
    assert await store.jobs.read_response(claimed.job_id) == "as far as it got"


async def test_a_second_output_of_an_attempt_is_refused(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("mine")
        names = files(store)
        with pytest.raises(OutputError):
            await streamed(store, claimed, "another")
        await eventually(lambda: files(store) == names)
        await output.write(" alone")
    with pytest.raises(OutputError):
        await streamed(store, claimed, "another")
    assert (await store.jobs.complete(claimed)).response == "mine alone"


async def test_the_next_attempt_has_an_output_of_its_own(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "first")
    again = await store.jobs.fail(claimed, "no", retry_in=0)
    second = await claim(store, again)
    await streamed(store, second, "second")
    assert (await store.jobs.complete(second)).response == "second"
    one, two = await store.jobs.attempts(claimed.job_id)
    assert (one.output_bytes, two.output_bytes) == (5, 6)


async def test_leaving_an_output_by_an_exception_keeps_the_partial(store: JobStore) -> None:
    claimed = await start(store)

    async def stream() -> None:
        async with store.jobs.output(claimed) as output:
            await output.write("until then")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stream()
    assert await store.jobs.read_response(claimed.job_id) == "until then"
    assert (await store.jobs.attempts(claimed.job_id))[0].output_bytes == 10


async def test_cancelling_the_task_keeps_the_partial(store: JobStore) -> None:
    claimed = await start(store)
    written = asyncio.Event()

    async def stream() -> None:
        async with store.jobs.output(claimed) as output:
            await output.write("until then")
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stream())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.jobs.read_response(claimed.job_id) == "until then"
    assert (await store.jobs.attempts(claimed.job_id))[0].output_bytes == 10


async def test_a_cancel_scope_keeps_the_partial(store: JobStore) -> None:
    claimed = await start(store)
    with anyio.CancelScope() as scope:
        async with store.jobs.output(claimed) as output:
            await output.write("until then")
            scope.cancel()
            await anyio.sleep_forever()
    assert await store.jobs.read_response(claimed.job_id) == "until then"


async def test_cancelling_while_an_output_opens_leaves_no_file_that_no_row_names(store: JobStore) -> None:
    for turns in range(0, 40, 2):
        claimed = await start(store)
        task = asyncio.create_task(streamed(store, claimed, "x"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.jobs.complete(claimed, "done")
    named = set()
    for job in (await store.jobs.list()).items:
        named |= {attempt.output_file_path for attempt in await store.jobs.attempts(job.id)}
    await eventually(lambda: files(store) == named - {None})


async def test_a_lone_surrogate_is_refused_and_nothing_else_is_harmed(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("before ")
        for bad in ("x\ud83d", b"bytes", None):
            with pytest.raises(InvalidJob):
                await output.write(bad)
        await output.write("after")
    assert (await store.jobs.complete(claimed)).response == "before after"


async def test_writing_after_the_output_was_left_is_refused(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("x")
    with pytest.raises(OutputError):
        await output.write("y")


async def test_an_output_of_an_ended_attempt_is_refused_and_leaves_no_file(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.release(claimed)
    with pytest.raises(LeaseLost):
        await streamed(store, claimed, "x")
    await eventually(lambda: not files(store))


async def test_the_partial_of_an_output_whose_store_was_closed_is_readable(store: JobStore) -> None:
    claimed = await start(store)

    async def stream() -> None:
        async with store.jobs.output(claimed) as output:
            await output.write("until then")
            await store.close()

    with pytest.raises(StoreClosed):
        await stream()
    async with store:
        assert await store.jobs.read_response(claimed.job_id) == "until then"
        assert (await store.jobs.complete(claimed)).response == "until then"


async def test_many_attempts_stream_at_the_same_time(store: JobStore) -> None:
    claims = [await start(store) for _ in range(20)]
    await asyncio.gather(*(streamed(store, one, *[f"{number} "] * 3000) for number, one in enumerate(claims)))
    for number, one in enumerate(claims):
        assert (await store.jobs.complete(one)).response == f"{number} " * 3000


# tail


class Follower:
    """Collects what a tail yields, in a task of its own."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self.text = ""
        self.task = asyncio.create_task(self._follow(store.jobs.tail(job_id)))

    async def _follow(self, parts: AsyncIterator[str]) -> str:
        async for part in parts:
            assert part
            self.text += part
        return self.text

    async def has(self, text: str) -> None:
        await eventually(lambda: self.text == text or self.task.done())
        assert self.text == text

    async def ends_with(self, text: str) -> None:
        assert await asyncio.wait_for(self.task, 60) == text


async def test_a_tail_yields_what_is_written_while_it_is_written(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("one ")
        follower = Follower(store, claimed.job_id)
        await follower.has("one ")
        await output.write("two 😀")
        await follower.has("one two 😀")
        assert not follower.task.done()
    await store.jobs.complete(claimed)
    await follower.ends_with("one two 😀")


async def test_a_tail_waits_for_a_job_that_waits(store: JobStore) -> None:
    job = await enqueue(store)
    follower = Follower(store, job.id)
    claimed = await claim(store, job)
    await streamed(store, claimed, SPILLED)
    await follower.has(SPILLED)
    await store.jobs.complete(claimed)
    await follower.ends_with(SPILLED)


@pytest.mark.parametrize("text", ["small", SPILLED])
@pytest.mark.parametrize("how", ["given", "streamed"])
async def test_a_tail_of_a_finished_job_yields_all_of_it(store: JobStore, text: str, how: str) -> None:
    claimed = await start(store)
    if how == "streamed":
        await streamed(store, claimed, text)
    await store.jobs.complete(claimed, text if how == "given" else None)
    await Follower(store, claimed.job_id).ends_with(text)


async def test_a_tail_of_a_failed_job_yields_its_partial_and_of_a_canceled_one_nothing(store: JobStore) -> None:
    claimed, idle = await start(store), await enqueue(store)
    await streamed(store, claimed, "partial")
    await store.jobs.fail(claimed, "no")
    await store.jobs.cancel(idle.id)
    await Follower(store, claimed.job_id).ends_with("partial")
    await Follower(store, idle.id).ends_with("")


@pytest.mark.parametrize("end", ["release", "fail", "lost"])
async def test_a_tail_ends_with_its_attempt(store: JobStore, clock: FakeClock, end: str) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "so far")
    follower = Follower(store, claimed.job_id)
    await follower.has("so far")
    if end == "release":
        await store.jobs.release(claimed)
    elif end == "fail":
        await store.jobs.fail(claimed, "no", retry_in=60)
    else:
        clock.advance(30)
        await store.jobs.claim("worker-2", task_types=["another"])
    await follower.ends_with("so far")


async def test_a_tail_tells_that_a_new_attempt_has_begun(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "the first try")
    parts = store.jobs.tail(claimed.job_id)
    assert await anext(parts) == "the first try"
    clock.advance(30)
    second = await claim(store, claimed.job)
    await streamed(store, second, "the second")
    with pytest.raises(OutputRestarted) as restarted:
        await anext(parts)
    assert (restarted.value.job_id, restarted.value.attempt) == (claimed.job_id, 1)
    follower = Follower(store, claimed.job_id)
    await follower.has("the second")
    await store.jobs.complete(second)
    await follower.ends_with("the second")


@pytest.mark.parametrize("answer", ["日本", "a drafted answer", SPILLED])
async def test_a_tail_tells_that_another_answer_was_recorded_than_was_streamed(store: JobStore, answer: str) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "a draft")
    parts = store.jobs.tail(claimed.job_id)
    assert await anext(parts) == "a draft"
    await store.jobs.complete(claimed, answer)
    if answer.startswith("a draft"):
        assert [part async for part in parts] == ["ed answer"]
        return
    with pytest.raises(OutputRestarted):
        await anext(parts)
    await Follower(store, claimed.job_id).ends_with(answer)


async def test_a_tail_goes_on_when_a_small_answer_moves_into_its_row(store: JobStore) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as output:
        await output.write("one ")
        follower = Follower(store, claimed.job_id)
        await follower.has("one ")
        await output.write("two")
        await store.jobs.complete(claimed)
    await follower.ends_with("one two")


async def test_a_tail_can_be_given_up(store: JobStore) -> None:
    claimed = await start(store)
    follower = Follower(store, claimed.job_id)
    await asyncio.sleep(0)
    follower.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower.task
    assert (await store.jobs.complete(claimed, "x")).response == "x"
