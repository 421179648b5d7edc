"""Large texts in object storage, looked at as objects: their places, their ends, and what a storage may refuse."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jobstore import DiskFull, JobStatus, JobStore, JobStoreError, OutputError
from jobstore.outputs import objects
from jobstore.outputs.objects import PAGE, SEGMENT_BYTES, ObjectOutputs
from jobstore.testing import FakeClock
from tests.conformance.support import SPILLED, claim, enqueue, eventually, files, start, streamed
from tests.outputs.conftest import SECRET, ObjectStorage
from tests.outputs.test_places import ESCAPES, point_to

LARGE = "0123456789 äöü 😀\n" * 120_000
"""Three objects, and characters that lie on both sides of a border."""
DAY = 24 * 3600


@pytest.fixture
def clock() -> FakeClock:
    """It begins with the present: the storage notes by its own clock when an object was put."""
    return FakeClock(time.time_ns() // 1_000_000)


@pytest.fixture
async def store(database: Path, clock: FakeClock, storage: ObjectStorage) -> AsyncIterator[JobStore]:
    async with JobStore(database, migrate=True, clock=clock, outputs=storage.url) as store:
        yield store


def objects_of(storage: ObjectStorage, path: str) -> list[str]:
    """Return the names of the objects of a text, in their order."""
    return sorted(name for name in storage.texts() if name == path or name.startswith(f"{path}.more/"))


# places


async def test_large_texts_lie_below_the_prefix_and_small_ones_in_their_rows(
    store: JobStore, storage: ObjectStorage
) -> None:
    await store.jobs.complete(await start(store, "small"), "small")
    assert storage.names() == set()
    claimed = await start(store, SPILLED)
    done = await store.jobs.complete(claimed, SPILLED)
    assert storage.texts() == {claimed.job.prompt_file_path, done.output_file_path}
    assert storage.get(done.output_file_path) == SPILLED.encode()
    assert f"some/prefix/{done.output_file_path}" in storage.names()
    [row] = await store.execute("SELECT store_id FROM store_identity")
    assert storage.get("store_id").decode() == row["store_id"]


@pytest.mark.parametrize("how", ["at once", "streamed"])
async def test_a_text_is_a_row_of_objects_of_which_all_but_the_last_are_full(
    store: JobStore, storage: ObjectStorage, how: str
) -> None:
    claimed = await start(store)
    if how == "streamed":
        await streamed(store, claimed, *(LARGE[place : place + 9_999] for place in range(0, len(LARGE), 9_999)))
        done = await store.jobs.complete(claimed)
    else:
        done = await store.jobs.complete(claimed, LARGE)
    parts = [storage.get(name) for name in objects_of(storage, done.output_file_path)]
    assert [len(part) for part in parts[:-1]] == [SEGMENT_BYTES] * 2
    assert b"".join(parts) == LARGE.encode()
    assert done.output_sha256 == hashlib.sha256(LARGE.encode()).hexdigest()
    assert "".join([part async for part in store.jobs.open_response(done.id)]) == LARGE
    assert await store.jobs.read_response(done.id) == LARGE


@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES])
async def test_texts_around_the_size_of_an_object_come_back_identical(storage: ObjectStorage, size: int) -> None:
    outputs = ObjectOutputs(storage.url, "of the test", int)
    text = bytes(number % 251 for number in range(size))
    written = await asyncio.to_thread(outputs.write, "responses", "job", text)
    assert await asyncio.to_thread(outputs.read, written.file_path, written.size, written.sha256) == text
    for offset in {0, min(1, size), size // 2, max(0, size - 1), size}:
        parts = await asyncio.to_thread(lambda begin=offset: list(outputs.chunks(written.file_path, begin)))
        assert b"".join(parts) == text[offset:]


async def test_all_objects_of_a_text_go_with_its_job(store: JobStore, storage: ObjectStorage, clock: FakeClock) -> None:
    claimed = await start(store, LARGE)
    kept = await enqueue(store, LARGE)
    await store.jobs.complete(claimed, LARGE)
    assert len(storage.texts()) == 9
    clock.advance(1)
    assert await store.jobs.prune(older_than=0) == 1
    await eventually(lambda: len(storage.texts()) == 3)
    assert await store.jobs.read_prompt(kept.id) == LARGE


async def test_a_folder_can_be_named_by_a_url(database: Path, tmp_path: Path) -> None:
    async with JobStore(database, migrate=True, outputs=f"file://{tmp_path}/shared%20folder") as store:
        job = await enqueue(store, SPILLED)
        assert (tmp_path / "shared folder" / job.prompt_file_path).read_bytes() == SPILLED.encode()


@pytest.mark.parametrize(
    "escape", [escape for escape in ESCAPES if "{" not in escape], ids=lambda path: repr(path)[:40]
)
async def test_a_path_out_of_the_prefix_is_refused_and_a_prompt_there_fails_its_job_alone(
    store: JobStore, storage: ObjectStorage, clock: FakeClock, escape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.outputs.test_places.outputs_folder", lambda _: Path("/nowhere/at/all"))
    storage.client.put_object(Bucket=storage.bucket, Key="some/outside/outside.txt", Body=b"outside")
    good = await start(store, SPILLED)
    await store.jobs.complete(good, SPILLED)
    bad = await enqueue(store, SPILLED)
    other = await enqueue(store, SPILLED)
    path = await point_to(store, bad.id, escape)
    with pytest.raises(OutputError) as refusal:
        await store.jobs.read_prompt(bad.id)
    assert refusal.value.path == path
    assert [claimed.job_id for claimed in await store.jobs.claim("worker", limit=5)] == [other.id]
    assert (await store.jobs.get(bad.id)).error_type == "prompt_unreadable"
    before = storage.names()
    await point_to(store, good.job_id, escape)
    clock.advance(1)
    assert await store.jobs.prune(older_than=0) == 2
    await store.close()  # it waits for what is to be removed
    assert storage.names() == before


# whose prefix it is


async def test_another_stores_prefix_is_refused(store: JobStore, storage: ObjectStorage, tmp_path: Path) -> None:
    await enqueue(store, SPILLED)
    with pytest.raises(OutputError, match="another store") as refusal:
        await JobStore(tmp_path / "another.db", migrate=True, outputs=storage.url).open()
    assert storage.url in str(refusal.value)
    async with JobStore(tmp_path / "another.db", outputs=f"{storage.url}/deeper") as theirs:
        await enqueue(theirs, SPILLED)


async def test_of_two_stores_that_take_a_prefix_at_once_one_is_refused(
    database: Path, storage: ObjectStorage, tmp_path: Path
) -> None:
    async with (
        JobStore(database, migrate=True, outputs=storage.url) as one,
        JobStore(tmp_path / "another.db", migrate=True, outputs=storage.url) as two,
    ):
        outcomes = await asyncio.gather(enqueue(one, SPILLED), enqueue(two, SPILLED), return_exceptions=True)
        assert sum(isinstance(outcome, OutputError) for outcome in outcomes) == 1
        assert len(storage.texts()) == 1


# sweeping


async def test_a_sweep_takes_old_objects_that_no_row_names(
    store: JobStore, storage: ObjectStorage, clock: FakeClock
) -> None:
    waiting = await enqueue(store, LARGE)
    live = await start_of(store, waiting.id)
    async with store.jobs.output(live) as output:
        await output.write(LARGE)
        await eventually(lambda: output.size > 2 * SEGMENT_BYTES)
        named = storage.texts()
        orphans = ["responses/00/a.txt", "prompts/ff/b.txt", "prompts/ff/b.txt.more/000001", "responses/zz/strange"]
        lost = "responses/01/c.txt.more/000007"  # its first object went before
        for name in (*orphans, lost):
            storage.put(name, b"x" if name != "prompts/ff/b.txt" else b"x" * SEGMENT_BYTES)
        clock.advance(DAY - 600)
        assert await store.sweep() == 0
        clock.advance(1200)
        assert await store.sweep() == 4
        assert storage.texts() == named
        assert await store.sweep() == 0
    done = await store.jobs.complete(live)
    assert await store.jobs.read_response(done.id) == LARGE


async def start_of(store: JobStore, job_id: str) -> object:
    [claimed] = await store.jobs.claim("worker", lease=3 * DAY)
    assert claimed.job_id == job_id
    return claimed


async def test_a_sweep_goes_page_by_page(store: JobStore, storage: ObjectStorage, clock: FakeClock) -> None:
    job = await enqueue(store, SPILLED)
    for number in range(PAGE + 100):
        storage.put(f"prompts/{number % 3:02}/{number}.txt", b"")
    clock.advance(DAY + 600)
    pages = list(await asyncio.to_thread(lambda: list(store.jobs._backend.outputs.old_files())))
    assert [len(page) for page in pages] == [PAGE, 101]
    assert await store.sweep() == PAGE + 100
    assert storage.texts() == {job.prompt_file_path}


# following


async def test_another_store_follows_what_is_streamed(
    store: JobStore, database: Path, storage: ObjectStorage, clock: FakeClock
) -> None:
    claimed = await start(store)
    heard = ""
    async with JobStore(database, outputs=storage.url, clock=clock) as other:
        tail = other.jobs.tail(claimed.job_id)
        async with store.jobs.output(claimed) as output:
            for piece in (LARGE, "a little more", "😀"):
                await output.write(piece)
                goal = len(heard) + len(piece)
                while len(heard) < goal:
                    heard += await anext(tail)
        assert heard == LARGE + "a little more😀"
        await store.jobs.complete(claimed)
        assert [rest async for rest in tail] == []


# what the storage refuses


async def test_a_stream_whose_storage_refuses_fails_and_its_partial_stays(
    store: JobStore, storage: ObjectStorage
) -> None:
    claimed = await start(store)
    first = "before the trouble 😀"

    async def stream() -> None:
        async with store.jobs.output(claimed) as output:
            await output.write(first)
            await eventually(lambda: output.size == len(first.encode()))
            storage.deny_all()
            await output.write("after it")

    with pytest.raises(OutputError, match="access was denied") as refusal:
        await stream()
    assert refusal.value.path is not None
    with pytest.raises(OutputError):
        await store.jobs.complete(claimed)
    storage.allow_all()
    failed = await store.jobs.fail(claimed, refusal.value)
    assert (failed.status, failed.error_type) == (JobStatus.FAILED, "OutputError")
    assert await store.jobs.read_response(claimed.job_id) == first
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert attempt.output_bytes == len(first.encode())


async def test_texts_are_refused_while_the_bucket_is_gone_and_nothing_is_half_recorded(
    store: JobStore, storage: ObjectStorage
) -> None:
    claimed = await start(store)
    storage.destroy()
    for call in (
        lambda: enqueue(store, SPILLED),
        lambda: store.jobs.complete(claimed, SPILLED),
        lambda: streamed(store, claimed, "text"),
        store.sweep,
    ):
        with pytest.raises(OutputError, match="no such bucket"):
            await call()
    assert await store.jobs.count() == 1
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert attempt.output_file_path is None
    assert (await store.jobs.complete(claimed, "small")).status is JobStatus.COMPLETED


async def test_a_claim_whose_storage_refuses_gives_its_jobs_back(store: JobStore, storage: ObjectStorage) -> None:
    job = await enqueue(store, SPILLED)
    storage.deny_all()
    with pytest.raises(OutputError, match="access was denied"):
        await store.jobs.claim("worker")
    storage.allow_all()
    await store.kv.set("behind", "what was given back")
    assert (await claim(store, job)).prompt == SPILLED


async def test_a_claim_loads_many_prompts_in_their_order_and_fails_the_jobs_of_missing_ones(
    store: JobStore, storage: ObjectStorage
) -> None:
    made = [await enqueue(store, f"{number} {SPILLED}") for number in range(40)]
    storage.client.delete_object(Bucket=storage.bucket, Key=f"some/prefix/{made[20].prompt_file_path}")
    claims = await store.jobs.claim("worker", limit=40)
    assert [claimed.prompt for claimed in claims] == [f"{n} {SPILLED}" for n in range(40) if n != 20]
    assert (await store.jobs.get(made[20].id)).error_type == "prompt_unreadable"


@pytest.mark.parametrize("damage", ["missing", "short", "too large"])
async def test_a_damaged_object_in_the_middle_is_an_error_and_no_other_text(
    store: JobStore, storage: ObjectStorage, damage: str
) -> None:
    done = await store.jobs.complete(await start(store), LARGE)
    middle = objects_of(storage, done.output_file_path)[1]
    if damage == "missing":
        storage.client.delete_object(Bucket=storage.bucket, Key=f"some/prefix/{middle}")
    else:
        storage.put(middle, b"x" * (SEGMENT_BYTES + (1 if damage == "too large" else -1)))
    with pytest.raises(OutputError):
        await store.jobs.read_response(done.id)


async def test_a_stream_of_which_something_got_lost_is_not_completed(store: JobStore, storage: ObjectStorage) -> None:
    claimed = await start(store)
    await streamed(store, claimed, LARGE)
    [*_, last] = sorted(files(store))
    storage.put(last, b"an older, shorter one")
    with pytest.raises(OutputError, match="instead of"):
        await store.jobs.complete(claimed)
    assert (await store.jobs.complete(claimed, "from memory")).response == "from memory"


def check_clear(error: JobStoreError) -> None:
    """Check that an error tells nothing that is secret, nor do those behind it."""
    seen: BaseException | None = error
    while seen is not None:
        assert SECRET not in str(seen)
        assert "<Error>" not in str(seen)
        seen = seen.__cause__


async def test_a_missing_bucket_wrong_credentials_and_a_storage_that_is_away_are_said_at_once(
    database: Path, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = JobStore(database, migrate=True, outputs="s3://no-such-bucket/prefix")
    with pytest.raises(OutputError, match=r"s3://no-such-bucket/prefix .*no such bucket") as refusal:
        await missing.open()
    check_clear(refusal.value)
    storage.deny_all()
    with pytest.raises(OutputError, match=r"check the credentials") as refusal:
        await JobStore(database, outputs=storage.url).open()
    check_clear(refusal.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="check that the storage can be reached") as refusal:
        await JobStore(database, outputs=storage.url).open()
    check_clear(refusal.value)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(OutputError) as refusal:
        await JobStore(database, outputs="az://container/prefix").open()
    check_clear(refusal.value)


@pytest.mark.parametrize("endpoint", ["minio:9000", "http://minio:70000"])
async def test_an_address_that_is_none_is_no_end_of_the_program(
    database: Path, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(OutputError, match="cannot be used"):
        await JobStore(database, migrate=True, outputs=storage.url).open()


async def test_a_password_in_an_address_is_not_told(
    database: Path, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(OutputError, match="check that the storage can be reached") as refusal:
        await JobStore(database, migrate=True, outputs=storage.url).open()
    check_clear(refusal.value)
    assert "http://127.0.0.1:9/" in str(refusal.value.__cause__)


class FullStorage(BaseHTTPRequestHandler):
    """Has nothing, and takes nothing: its quota is used up."""

    def do_GET(self) -> None:
        self._answer(404, "NoSuchKey")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(403, "QuotaExceeded")

    def log_message(self, *_: object) -> None: ...

    def _answer(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def full_storage(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FullStorage)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield storage.url
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_storage_whose_quota_is_used_up_is_full(database: Path, full_storage: str) -> None:
    async with JobStore(database, migrate=True, outputs=full_storage) as store:
        with pytest.raises(DiskFull, match="no room") as refusal:
            await enqueue(store, SPILLED)
        check_clear(refusal.value)
        assert await store.jobs.count() == 0
