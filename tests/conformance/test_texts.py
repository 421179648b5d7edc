"""Text is kept exactly, wherever it lies."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobstore import JobStore, OutputError

from .support import SPILLED, claim, damage_stored, enqueue, eventually, files, start, streamed

LIMIT = 65_536
TEXTS = {
    "empty": "",
    "NUL characters": "a\0b\0\0c",
    "line ends": "a\r\nb\rc\nd\u2028e\x85",
    "a byte order mark": "\ufeffa\ufeff",
    "emoji": "👩🏽‍🚀🏴󠁧󠁢󠁳󠁣󠁴󠁿 🇪🇺",
    "every plane": "".join(map(chr, (0x7F, 0x7FF, 0xFFFF, 0x10000, 0x10FFFF, 0xFFFE, 0x1F600))),
    "looks like SQL": "'; DROP TABLE background_jobs; -- :name ? %s",
    "looks like JSON": '{"a": "\\u0000"}',
    "combining characters": "e\u0301 é",
}


@pytest.mark.parametrize("size", ["inline", "spilled"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_prompts_and_responses_come_back_identical(store: JobStore, text: str, size: str) -> None:
    if size == "spilled":
        text += "\0x😀\r\n" * LIMIT + text
    claimed = await start(store, text)
    assert claimed.prompt == text
    assert await store.jobs.read_prompt(claimed.job_id) == text
    await store.jobs.complete(claimed, text)
    assert await store.jobs.read_response(claimed.job_id) == text
    assert "".join([part async for part in store.jobs.open_response(claimed.job_id)]) == text


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.text(max_size=40), total=st.integers(LIMIT - 3, LIMIT + 3), cut=st.integers(0, 200))
@example(text="😀", total=LIMIT, cut=1)
async def test_texts_around_the_inline_limit_come_back_identical_written_at_once_or_streamed(
    store: JobStore, text: str, total: int, cut: int
) -> None:
    text += "x" * max(0, total - len(text.encode()))
    whole = await start(store, text)
    await store.jobs.complete(whole, text)
    pieces = await start(store, text)
    await streamed(store, pieces, text[:cut], text[cut:LIMIT], text[LIMIT:])
    done = await store.jobs.complete(pieces)
    for job_id in (whole.job_id, pieces.job_id):
        assert await store.jobs.read_prompt(job_id) == text
        assert await store.jobs.read_response(job_id) == text
    assert (done.response is None) == (not store.jobs._backend.fits_row(text.encode()))


async def test_fifty_megabytes_come_back_identical(store: JobStore) -> None:
    text = "0123456789 äöü\0😀\r\n" * 2_400_000
    assert len(text.encode()) > 50_000_000
    claimed = await start(store, text)
    assert claimed.prompt == text
    done = await store.jobs.complete(claimed, text)
    assert done.output_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert await store.jobs.read_response(claimed.job_id) == text


async def test_metadata_comes_back_identical(store: JobStore) -> None:
    metadata = {name: [text, {text: None}] for name, text in TEXTS.items()}
    claimed = await start(store, metadata=metadata)
    done = await store.jobs.complete(claimed, "x", metadata={"more\0": "👩🏽‍🚀"})
    assert (await store.jobs.get(done.id)).metadata == metadata | {"more\0": "👩🏽‍🚀"}


async def test_every_character_of_a_large_response_arrives_however_it_is_cut_into_parts(store: JobStore) -> None:
    text = "x" + "😀" * 600_000  # no part of a file ends between two characters
    claimed = await start(store)
    await store.jobs.complete(claimed, text)
    parts = [part async for part in store.jobs.open_response(claimed.job_id)]
    assert len(parts) > 1
    assert "".join(parts) == text


async def test_a_partial_response_is_read_in_parts_too(store: JobStore) -> None:
    claimed = await start(store)
    assert await store.jobs.read_response(claimed.job_id) is None
    assert [part async for part in store.jobs.open_response(claimed.job_id)] == []
    await streamed(store, claimed, "so ", "far")
    assert "".join([part async for part in store.jobs.open_response(claimed.job_id)]) == "so far"


async def test_of_several_partials_the_latest_is_read(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "first try")
    again = await store.jobs.fail(claimed, "no", retry_in=0)
    assert await store.jobs.read_response(claimed.job_id) == "first try"
    second = await claim(store, again)
    assert await store.jobs.read_response(claimed.job_id) == "first try"
    await streamed(store, second, "")
    assert await store.jobs.read_response(claimed.job_id) == ""


# damaged files


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def alter(path: Path) -> None:
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [remove, truncate, lengthen, alter, replace_by_folder]


async def check_unreadable(store: JobStore, job_id: str, path: str, *, prompt: bool) -> None:
    """Check that reading says which file is damaged, and that the job itself can still be read."""

    async def parts() -> list[str]:
        return [part async for part in store.jobs.open_response(job_id)]

    for read in (
        [lambda: store.jobs.read_prompt(job_id)] if prompt else [lambda: store.jobs.read_response(job_id), parts]
    ):
        with pytest.raises(OutputError) as error:
            await read()
        assert error.value.path == path
        assert path in str(error.value)
    assert (await store.jobs.get(job_id)).id == job_id
    assert [job.id for job in (await store.jobs.list()).items] == [job_id]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_response_file_is_an_error_that_names_it(store: JobStore, damage: object) -> None:
    claimed = await start(store)
    done = await store.jobs.complete(claimed, SPILLED)
    damage_stored(store, done.output_file_path, damage)
    await check_unreadable(store, done.id, done.output_file_path, prompt=False)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_prompt_file_is_an_error_that_names_it(store: JobStore, damage: object) -> None:
    job = await enqueue(store, SPILLED)
    damage_stored(store, job.prompt_file_path, damage)
    await check_unreadable(store, job.id, job.prompt_file_path, prompt=True)


@pytest.mark.parametrize("damage", [remove, alter, replace_by_folder])
async def test_a_damaged_partial_is_an_error_that_names_it(store: JobStore, damage: object) -> None:
    claimed = await start(store)
    await streamed(store, claimed, SPILLED)
    await store.jobs.fail(claimed, "no")
    [path] = files(store)
    damage_stored(store, path, damage)
    await check_unreadable(store, claimed.job_id, path, prompt=False)
    with pytest.raises(OutputError) as error:
        await anext(store.jobs.tail(claimed.job_id))
    assert error.value.path == path


async def test_a_damaged_stream_cannot_be_completed_as_if_it_were_whole(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, SPILLED)
    [path] = files(store)
    damage_stored(store, path, remove)
    with pytest.raises(OutputError) as error:
        await store.jobs.complete(claimed)
    assert error.value.path == path
    done = await store.jobs.complete(claimed, "from memory")
    assert done.response == "from memory"


async def test_a_small_answer_that_moves_into_its_row_is_never_missed(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "the answer")
    part = store.jobs.open_response(claimed.job_id)
    assert await anext(part) == "the answer"
    await store.jobs.complete(claimed)
    await eventually(lambda: not files(store))
    assert [rest async for rest in part] == []
    assert await store.jobs.read_response(claimed.job_id) == "the answer"


async def test_reading_while_a_small_answer_is_completed_never_fails(store: JobStore) -> None:
    async def parts(job_id: str) -> str:
        return "".join([part async for part in store.jobs.open_response(job_id)])

    for _ in range(30):
        claimed = await start(store)
        await streamed(store, claimed, "the answer")
        readers = [read(claimed.job_id) for read in (store.jobs.read_response, parts) for _ in range(5)]
        _, *answers = await asyncio.gather(store.jobs.complete(claimed), *readers)
        assert answers == ["the answer"] * 10
