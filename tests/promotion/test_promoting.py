"""A store is copied into another of any engine: nothing is lost, nothing is changed, and nothing that is in use."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

from jobstore import InvalidArgument, JobStatus, JobStore, LeaseLost, MigrationRequired, OutputError, PromotionError
from jobstore.clock import system_clock
from jobstore.operations.promotion import NOT_COPIED, PAGE_CHARACTERS, PAGE_ROWS, TABLES
from jobstore.promotion import Progress, promote
from tests.outputs.conftest import ObjectStorage, s3, storage

from .support import LANE, LARGE, WITH_NUL, claimed, completed, rows_of, texts_of

__all__ = ["s3", "storage"]  # fixtures


async def there(source: Path, target: str, outputs: Path, **options: Any) -> Any:  # noqa: ANN401
    return await promote(source, target, target_outputs=outputs, **options)


async def snapshot(url: str | Path, outputs: Path | None = None) -> tuple[Any, Any]:
    async with JobStore(url, outputs=outputs) as store:
        return await rows_of(store), await texts_of(store)


async def test_all_of_a_store_goes_there_and_back_again(
    source: Path, target: str, target_outputs: Path, back: Path
) -> None:
    before = await snapshot(source)
    done = await there(source, target, target_outputs)
    assert done.changed
    assert {name: found.rows for name, found in done.tables.items()} == {
        name: len(rows) for name, rows in before[0].items() if name != "lanes"
    }
    rows, texts = await snapshot(target, target_outputs)
    assert texts == before[1]
    assert _without_texts(rows) == _without_texts(before[0])
    assert rows["lanes"] == before[0]["lanes"]

    again = await promote(target, back, source_outputs=target_outputs)
    assert (await snapshot(back))[1] == before[1]
    assert again.tables == done.tables  # row by row what the server holds
    assert (await snapshot(source)) == before


def _without_texts(rows: dict[str, list[Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return rows without what differs where one database cannot hold a text in a row."""
    moved = {"prompt", "response"} | {
        f"{kind}_{fact}" for kind in ("prompt", "output") for fact in ("file_path", "bytes", "sha256")
    }
    jobs = [{name: value for name, value in row.items() if name not in moved} for row in rows["background_jobs"]]
    return {**{name: [dict(row) for row in found] for name, found in rows.items()}, "background_jobs": jobs}


async def test_every_table_of_the_schema_is_copied_or_known_to_be_each_store_s_own(source: Path, target: str) -> None:
    async with JobStore(source) as store:
        here = await store.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    async with JobStore(target) as store:
        on_server = await store.execute(
            "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = current_schema()"
        )
    assert {row["name"] for row in [*here, *on_server]} == {table.name for table in TABLES} | NOT_COPIED


async def test_twice_changes_nothing(source: Path, target: str, target_outputs: Path) -> None:
    first = await there(source, target, target_outputs)
    before = await snapshot(target, target_outputs), _files(target_outputs)
    second = await there(source, target, target_outputs)
    assert not second.changed
    assert (second.tables, second.files) == (first.tables, first.files)
    assert (await snapshot(target, target_outputs), _files(target_outputs)) == before


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


async def test_a_text_that_the_target_cannot_hold_goes_beside_it(
    source: Path, target: str, target_outputs: Path
) -> None:
    await there(source, target, target_outputs)
    async with JobStore(target, outputs=target_outputs) as store:
        [row] = await store.execute(
            "SELECT prompt, response, prompt_file_path, output_sha256 FROM background_jobs WHERE prompt_bytes = :bytes"
            " AND prompt_file_path IS NOT NULL",
            {"bytes": len(WITH_NUL)},
        )
    assert (row["prompt"], row["response"]) == ("", None)
    assert (target_outputs / row["prompt_file_path"]).read_text() == WITH_NUL
    assert row["output_sha256"] == hashlib.sha256(WITH_NUL.encode()).hexdigest()


async def test_it_is_refused_while_workers_hold_leases(source: Path, target: str, target_outputs: Path) -> None:
    async with JobStore(source) as store:
        claim = await claimed(store, "running")
        with pytest.raises(PromotionError, match=r"1 jobs are running, held by worker: .*--force-rescue"):
            await there(source, target, target_outputs)
        assert (await store.jobs.get(claim.job_id)).status is JobStatus.RUNNING
    async with JobStore(target) as store:  # nothing was begun
        assert await store.jobs.count() == 0


async def test_forced_it_ends_the_leases_and_their_jobs_wait_in_the_target(
    source: Path, target: str, target_outputs: Path
) -> None:
    async with JobStore(source) as store:
        claim = await claimed(store, "running")
        await there(source, target, target_outputs, force_rescue=True)
        assert (await store.jobs.get(claim.job_id)).status is JobStatus.IDLE
        with pytest.raises(LeaseLost):
            await store.jobs.progress(claim, status_message="still here")
    async with JobStore(target, outputs=target_outputs) as store:
        [again] = await store.jobs.claim("other")
        assert (again.job_id, again.attempt) == (claim.job_id, 2)


async def test_a_job_whose_lease_has_ended_is_copied_as_it_is_and_rescued_in_the_target(
    source: Path, target: str, target_outputs: Path
) -> None:
    async with JobStore(source) as store:
        job = await store.jobs.enqueue("forsaken", priority=100, **LANE)
        await store.jobs.claim("dead", lease=0.001)
        while (await store.jobs.attempts(job.id))[0].lease_expires_at.timestamp() * 1000 > system_clock():
            await asyncio.sleep(0.001)
    await there(source, target, target_outputs)
    async with JobStore(target, outputs=target_outputs) as store:
        assert (await store.jobs.get(job.id)).status is JobStatus.RUNNING
        [again] = await store.jobs.claim("other")
        assert (again.job_id, again.attempt) == (job.id, 2)


async def test_an_interrupted_copy_cannot_be_opened_and_goes_on(
    source: Path, target: str, target_outputs: Path
) -> None:
    await _interrupt(source, target, target_outputs, "copying job_attempts")
    with pytest.raises(PromotionError, match=r"being filled.*run the same `jobstore promote` again"):
        async with JobStore(target):
            pass
    done = await there(source, target, target_outputs)
    assert done.changed
    assert (await snapshot(target, target_outputs))[1] == (await snapshot(source))[1]


async def _interrupt(source: Path, target: str, outputs: Path, stage: str) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await there(source, target, outputs, report=stop)


async def test_what_changed_in_the_source_since_an_interruption_is_copied_again(
    source: Path, target: str, target_outputs: Path
) -> None:
    await _interrupt(source, target, target_outputs, "comparing sessions")
    async with JobStore(source) as store:
        [claim, *others] = await store.jobs.claim("worker", limit=3)
        await store.jobs.complete(claim, LARGE)
        for other in others:
            await store.jobs.release(other)
    await there(source, target, target_outputs)
    assert (await snapshot(target, target_outputs))[1] == (await snapshot(source))[1]


async def test_what_changes_in_the_source_meanwhile_is_found_and_copied_the_next_time(
    source: Path, target: str, target_outputs: Path
) -> None:
    added: list[str] = []
    async with JobStore(source) as store:

        async def promoted_while_in_use() -> None:
            def enqueue(progress: Progress) -> None:
                if progress.stage == "copying large texts" and not added:
                    added.append("")
                    pending.append(asyncio.ensure_future(store.jobs.enqueue("late", **LANE)))

            await there(source, target, target_outputs, report=enqueue)

        pending: list[asyncio.Future[Any]] = []
        with pytest.raises(PromotionError, match=r"differ.*background_jobs.*stop the programs that use it") as refused:
            await promoted_while_in_use()
        assert refused.value.differences == ("background_jobs",)
        late = await pending[0]
    await there(source, target, target_outputs)
    async with JobStore(target, outputs=target_outputs) as store:
        assert await store.jobs.read_prompt(late.id) == "late"


async def test_a_target_that_was_used_since_is_not_touched(source: Path, target: str, target_outputs: Path) -> None:
    await there(source, target, target_outputs)
    async with JobStore(target, outputs=target_outputs) as store:
        await store.jobs.enqueue("of its own", **LANE)
    before = await snapshot(target, target_outputs)
    with pytest.raises(PromotionError, match=r"differ.*used since; nothing was changed"):
        await there(source, target, target_outputs)
    assert await snapshot(target, target_outputs) == before


async def test_a_target_that_holds_anything_is_refused(source: Path, target: str, target_outputs: Path) -> None:
    async with JobStore(target) as store:
        await store.kv.set("mine", 1)
    with pytest.raises(PromotionError, match="not empty, it has key_value_store"):
        await there(source, target, target_outputs)
    async with JobStore(target) as store:
        assert await store.kv.get("mine") == 1
        assert await store.jobs.count() == 0


async def test_a_row_that_the_target_cannot_hold_is_named(source: Path, target: str, target_outputs: Path) -> None:
    async with JobStore(source) as store:
        found = await store.sessions.create(name="another", project_directory="/src/app")
        await store.execute("UPDATE sessions SET search_term = 'SECRET' || char(0) WHERE id = :id", {"id": found.id})
    named = rf"row of sessions with id '{found.id}' \(.*: change it in the source"
    with pytest.raises(PromotionError, match=named) as refusal:
        await there(source, target, target_outputs)
    assert refusal.value.differences == ("sessions",)
    assert "SECRET" not in str(refusal.value)
    async with JobStore(source) as store:
        await store.sessions.update(found.id, search_term="")
    assert (await there(source, target, target_outputs)).changed


async def test_a_target_that_is_filled_from_another_store_is_refused(
    source: Path, target: str, target_outputs: Path, back: Path
) -> None:
    await _interrupt(source, target, target_outputs, "copying background_jobs")
    with pytest.raises(PromotionError, match="filled from another store"):
        await there(back, target, target_outputs)


@pytest.fixture
def _blocking_is_meant(_no_blocking_of_the_event_loop: BlockBuster) -> None:
    _no_blocking_of_the_event_loop.deactivate()


@pytest.mark.usefixtures("_blocking_is_meant")
async def test_of_two_at_once_the_earlier_gives_way(source: Path, target: str, target_outputs: Path) -> None:
    """The later runs to its end in the middle of the earlier, which waits for it."""
    later: list[Any] = []

    def overtake(progress: Progress) -> None:
        if progress.stage == "copying background_jobs" and not later:
            with ThreadPoolExecutor(1) as thread:
                later.append(thread.submit(asyncio.run, there(source, target, target_outputs)).result())

    with pytest.raises(PromotionError, match="another process is filling, or has filled"):
        await there(source, target, target_outputs, report=overtake)
    assert later[0].changed


async def test_a_store_is_not_copied_into_itself(source: Path) -> None:
    with pytest.raises(InvalidArgument, match="is the source itself"):
        await promote(source, source)


async def test_a_target_that_is_not_migrated_is_refused_with_the_command(source: Path, fresh_database: str) -> None:
    with pytest.raises(MigrationRequired, match=r"python -m jobstore.migrate --db"):
        await promote(source, fresh_database)


@pytest.mark.parametrize("side", ["source", "target"])
async def test_without_a_place_for_large_texts_it_is_refused_before_anything_is_written(
    source: Path, target: str, target_outputs: Path, back: Path, side: str
) -> None:
    if side == "target":
        with pytest.raises(InvalidArgument, match="target_outputs: there are large texts"):
            await promote(source, target)
        untouched: str | Path = target
    else:
        await there(source, target, target_outputs)
        with pytest.raises(InvalidArgument, match="source_outputs: there are large texts"):
            await promote(target, back)
        untouched = back
    async with JobStore(untouched) as store:
        assert await store.jobs.count() == 0


async def test_columns_of_one_s_own_are_copied_if_both_have_them(
    source: Path, target: str, target_outputs: Path
) -> None:
    async with JobStore(source) as store:
        await store.execute('ALTER TABLE sessions ADD COLUMN "my colour" TEXT')
        await store.execute('UPDATE sessions SET "my colour" = :colour', {"colour": "red"})
    with pytest.raises(PromotionError, match="only one of the two has the columns my colour of sessions"):
        await there(source, target, target_outputs)
    async with JobStore(target) as store:
        await store.execute('ALTER TABLE sessions ADD COLUMN "my colour" TEXT')
    await there(source, target, target_outputs)
    async with JobStore(target) as store:
        assert await store.execute('SELECT "my colour" FROM sessions') == [{"my colour": "red"}]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
async def test_a_text_that_is_damaged_in_the_source_is_named_and_left_out_on_demand(
    source: Path, target: str, target_outputs: Path, harm: str
) -> None:
    async with JobStore(source) as store:
        [row] = await store.execute(
            "SELECT id, prompt_file_path AS path FROM background_jobs WHERE idempotency_key = 'once'"
        )
    file = Path(f"{source}.outputs", row["path"])
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    for _ in range(2):
        with pytest.raises(PromotionError, match="1 large texts are missing or damaged") as refused:
            await there(source, target, target_outputs)
        assert refused.value.differences == (row["path"],)
    for changed in (True, False):
        done = await there(source, target, target_outputs, leave_damaged=True)
        assert (done.changed, done.damaged) == (changed, [row["path"]])
    assert not (target_outputs / row["path"]).exists()
    async with JobStore(target, outputs=target_outputs) as store:
        assert await store.jobs.read_response(row["id"]) == LARGE[::-1]


async def test_a_copy_that_is_not_what_it_was_is_found_and_made_again(
    source: Path, target: str, target_outputs: Path
) -> None:
    """Also of a text whose row names no hash: of an attempt that failed."""

    await _interrupt(source, target, target_outputs, "comparing sessions")
    harmed = list(target_outputs.glob("responses/*/*.txt"))
    for file in harmed:
        file.write_bytes(b"!" * file.stat().st_size)
    with pytest.raises(PromotionError, match="source and target differ") as refused:
        await there(source, target, target_outputs)
    assert set(refused.value.differences) == {str(file.relative_to(target_outputs)) for file in harmed}
    await there(source, target, target_outputs)
    assert (await snapshot(target, target_outputs))[1] == (await snapshot(source))[1]


async def test_pages_are_bounded_in_rows_and_in_size(tmp_path: Path, target: str, target_outputs: Path) -> None:
    path = tmp_path / "large.db"
    async with JobStore(path, migrate=True, inline_limit=10_000_000) as store:
        for _ in range(3):
            await store.jobs.enqueue("x" * (PAGE_CHARACTERS - 1_000_000), **LANE)
        await store.jobs.enqueue("x" * (PAGE_CHARACTERS + 1), **LANE)
        for number in range(PAGE_ROWS + 1):
            await store.kv.set(f"key {number}", number)
    steps: list[tuple[str, int]] = []
    await there(path, target, target_outputs, report=lambda told: steps.append((told.stage, told.done)))
    assert [done for stage, done in steps if stage == "copying background_jobs"] == [0, 1, 2, 3, 4]
    assert [done for stage, done in steps if stage == "copying key_value_store"] == [0, PAGE_ROWS, PAGE_ROWS + 1]


async def test_files_are_readable_by_their_owner_alone(source: Path, target: str, target_outputs: Path) -> None:
    await there(source, target, target_outputs)
    modes = {path.stat().st_mode & 0o777 for path in target_outputs.rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in target_outputs.rglob("*") if path.is_dir()}
    assert (modes, folders) == ({0o600}, {0o700})


async def test_a_store_that_is_being_filled_is_no_source(
    source: Path, target: str, target_outputs: Path, back: Path
) -> None:
    await _interrupt(source, target, target_outputs, "copying background_jobs")
    with pytest.raises(PromotionError, match="being filled"):
        await promote(target, back, source_outputs=target_outputs)


async def test_large_texts_go_into_a_bucket_and_come_back(
    source: Path, target: str, storage: ObjectStorage, back: Path
) -> None:
    large = "äöü" * 1_000_000  # several objects
    async with JobStore(source) as store:
        await completed(store, "of several objects", large)
    before = (await snapshot(source))[1]
    await promote(source, target, target_outputs=storage.url)
    assert any(".more/" in name for name in storage.texts())
    async with JobStore(target, outputs=storage.url) as store:
        assert await texts_of(store) == before
    await promote(target, back, source_outputs=storage.url)
    assert (await snapshot(back))[1] == before


async def test_a_place_that_is_away_is_not_taken_for_missing_texts(
    source: Path, target: str, target_outputs: Path
) -> None:
    Path(f"{source}.outputs").rename(source.with_name("elsewhere"))
    with pytest.raises(OutputError, match="is not there"):
        await there(source, target, target_outputs, leave_damaged=True)
    source.with_name("elsewhere").rename(f"{source}.outputs")
    assert (await there(source, target, target_outputs)).damaged == []
