"""Dumping tables and loading them: exactly, in every format, with their large texts, from one engine into another."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import pytest

from jobstore import InvalidArgument, JobStore, LoadError, OutputError
from jobstore.formats import Format
from jobstore.operations.promotion import TABLES
from tests.promotion.support import LARGE, fill, rows_of

from .support import damage_stored, enqueue, files, start, stored, streamed

FORMATS: tuple[Format, ...] = get_args(Format)
NAMES = [table.name for table in TABLES]
every_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[JobStore]:
    """Another, empty store: of SQLite, so that rows go from engine to engine and back."""
    async with JobStore(tmp_path / "other.db", migrate=True) as other:
        yield other


async def dumped(store: JobStore, *tables: str, **how: Any) -> dict[str, io.BytesIO]:  # noqa: ANN401
    """Dump some tables, or all, and return the files from their beginnings."""
    written = {name: io.BytesIO() for name in tables or NAMES}
    await store.tables.dump(written, **how)  # type: ignore[arg-type]
    for file in written.values():
        file.seek(0)
    return written


async def load(store: JobStore, dump: dict[str, io.BytesIO], **how: Any) -> dict[str, int]:  # noqa: ANN401
    return await store.tables.load(dump, **how)  # type: ignore[arg-type]


def contents(dump: dict[str, io.BytesIO]) -> dict[str, bytes]:
    return {name: file.getvalue() for name, file in dump.items()}


@every_format
async def test_all_tables_come_back_the_same(store: JobStore, other: JobStore, name: Format) -> None:
    await fill(store)
    await store.lanes.pause(api_type="claude", reason='a "reason",\nof two lines')
    dump = await dumped(store, format=name, texts="inline")
    counts = await load(other, dict(reversed(dump.items())), format=name)  # in whatever order they are given
    assert await rows_of(other) == await rows_of(store)
    assert {path: stored(other, path) for path in files(other)} == {path: stored(store, path) for path in files(store)}
    assert len(files(store)) > 3
    assert counts["background_jobs"] == await store.jobs.count()
    again = await dumped(other, format=name, texts="inline")
    if name != "parquet":  # whose groups of rows need not be the same
        assert contents(again) == contents(dump)


async def test_what_one_engine_cannot_hold_in_a_row_lies_beside_it(store: JobStore, other: JobStore) -> None:
    job = await enqueue(other, "before\0behind")
    claim = (await other.jobs.claim("w"))[0]
    await other.jobs.complete(claim, "an answer\0")
    await load(store, await dumped(other, texts="inline"))
    assert await store.jobs.read_prompt(job.id) == "before\0behind"
    assert await store.jobs.read_response(job.id) == "an answer\0"


@every_format
async def test_rows_may_name_texts_that_lie_where_they_lay(store: JobStore, name: Format) -> None:
    await fill(store)
    before = await rows_of(store)
    dump = await dumped(store, format=name)
    lying = {path: stored(store, path) for path in files(store)}
    for table in reversed(NAMES):
        await store.execute(f"DELETE FROM {table}")
    await load(store, dump, format=name)
    assert await rows_of(store) == before
    assert {path: stored(store, path) for path in files(store)} == lying


async def test_a_row_that_names_a_missing_text_is_refused(store: JobStore, other: JobStore) -> None:
    await enqueue(store, "a small one")
    await enqueue(store, LARGE)
    with pytest.raises(LoadError, match="which is not there: dump it with its texts inline") as refusal:
        await load(other, await dumped(store, "background_jobs"))
    assert (refusal.value.table, refusal.value.number) == ("background_jobs", 2)
    assert await other.jobs.count() == 0


async def test_a_text_that_is_not_what_its_row_says_is_refused(store: JobStore, other: JobStore) -> None:
    await enqueue(store, LARGE)
    dump = await dumped(store, "background_jobs", texts="inline")
    row = json.loads(dump["background_jobs"].getvalue())
    row["prompt_file_text"] = row["prompt_file_text"].replace("groß", "klein")
    changed = io.BytesIO(json.dumps(row).encode())
    with pytest.raises(LoadError, match="prompt_file_text is not what its prompt_sha256 says"):
        await load(other, {"background_jobs": changed})
    assert files(other) == set()
    row["prompt_file_path"] = "../../outside.txt"
    with pytest.raises(LoadError):
        await load(other, {"background_jobs": io.BytesIO(json.dumps(row).encode())})
    assert await other.jobs.count() == 0


async def test_a_partial_answer_and_a_running_job_come_along(store: JobStore, other: JobStore) -> None:
    claim = await start(store)
    await streamed(store, claim, "so far")
    await load(other, await dumped(store, texts="inline"))
    assert await other.jobs.read_response(claim.job_id) == "so far"
    assert await rows_of(other) == await rows_of(store)


async def test_a_damaged_text_stops_a_dump_and_a_partial_that_is_gone_does_not(store: JobStore) -> None:
    claim = await start(store)
    await streamed(store, claim, "so far")
    [path] = files(store)
    damage_stored(store, path, Path.unlink)
    row = json.loads((await dumped(store, "job_attempts", texts="inline"))["job_attempts"].getvalue())
    assert row["output_file_path"] is None
    await enqueue(store, LARGE)
    for path in files(store):
        damage_stored(store, path, Path.unlink)
    with pytest.raises(OutputError, match="missing"):
        await dumped(store, "background_jobs", texts="inline")


@every_format
async def test_a_table_that_is_not_empty_is_left_alone_unless_asked(
    store: JobStore, other: JobStore, name: Format
) -> None:
    await store.kv.set("a", 1)
    await store.kv.set("b", 2)
    dump = await dumped(store, "key_value_store", format=name)
    await other.kv.set("b", "another")
    with pytest.raises(InvalidArgument, match="key_value_store is not empty"):
        await load(other, dump, format=name)
    assert await other.kv.items() == {"b": "another"}
    assert await load(other, dump, format=name, existing="skip") == {"key_value_store": 1}
    assert await other.kv.items() == {"a": 1, "b": "another"}
    dump["key_value_store"].seek(0)
    assert await load(other, dump, format=name, existing="replace") == {"key_value_store": 2}
    assert await other.kv.items() == {"a": 1, "b": 2}


HEADER = "key,updated_at,value\n"
BAD_LINES: dict[str, tuple[Format, str, int, str]] = {
    "no JSON": ("jsonl", '{"key": "a", "updated_at": 1, "value": "1"}\nnonsense\n', 2, "no JSON object"),
    "no object": ("jsonl", "[1]\n", 1, "no JSON object"),
    "an empty line": ("jsonl", "\n", 1, "no JSON object"),
    "half a line": ("jsonl", '{"key": "a", "updated', 1, "no JSON object"),
    "another column": ("jsonl", '{"key": "a", "weight": 1}\n', 1, "no column 'weight'"),
    "no key": ("jsonl", '{"updated_at": 1, "value": "1"}\n', 1, "no key"),
    "a text for a number": ("jsonl", '{"key": "a", "updated_at": "1", "value": "1"}\n', 1, "updated_at is no integer"),
    "a number for a text": ("jsonl", '{"key": "a", "updated_at": 1, "value": 1}\n', 1, "value is no text"),
    "true": ("jsonl", '{"key": "a", "updated_at": true, "value": "1"}\n', 1, "updated_at is no integer"),
    "too large": ("jsonl", f'{{"key": "a", "updated_at": {2**63}, "value": "1"}}\n', 1, "updated_at is no integer"),
    "a lone surrogate": ("jsonl", '{"key": "\\ud800", "updated_at": 1, "value": "1"}\n', 1, "key is no text"),
    "no header": ("csv", "", 1, "no header"),
    "another header": ("csv", "key,weight\n", 1, "no column 'weight'"),
    "too few fields": ("csv", f"{HEADER}a,1,1\nb,1\n", 3, "2 fields instead of 3"),
    "an open quote": ("csv", f'{HEADER}a,1,"1\n', 2, "no CSV"),
    "a word for a number": ("csv", f"{HEADER}a,soon,1\n", 2, "updated_at is no integer"),
    "an empty number": ("csv", f"{HEADER}a,,1\n", 2, "updated_at is no integer"),
    "an endless number": ("csv", f"{HEADER}a,{'1' * 10_000},1\n", 2, "updated_at is no integer"),
    "lines within fields": ("csv", f'{HEADER}"a\n\nb",1,1\nc,x,1\n', 5, "updated_at is no integer"),
    "no Parquet": ("parquet", "PAR1 something PAR1", 1, "no whole Parquet file"),
}


async def test_a_bad_line_is_named_before_anything_is_written(store: JobStore) -> None:
    for case, (name, text, number, said) in BAD_LINES.items():
        with pytest.raises(LoadError, match=said) as refusal:
            await load(store, {"key_value_store": io.BytesIO(text.encode())}, format=name)
        found = refusal.value
        assert (found.table, found.number, found.loaded) == ("key_value_store", number, 0), case
    assert await store.kv.items() == {}


async def test_text_that_is_not_utf_8_is_refused_without_quoting_it(store: JobStore) -> None:
    for name in ("jsonl", "csv"):
        data = HEADER.encode() + b"secret\xff,1,1\n" if name == "csv" else b'{"key": "secret\xff"}\n'
        with pytest.raises(LoadError) as refusal:
            await load(store, {"key_value_store": io.BytesIO(data)}, format=name)
        assert "secret" not in f"{refusal.value!r} {refusal.value.__cause__!r} {refusal.value.__context__!r}"


async def test_a_row_that_the_database_refuses_is_named_and_those_before_it_stay(store: JobStore) -> None:
    lines = [json.dumps({"key": f"{number:04}", "updated_at": 1, "value": "1"}) for number in range(700)]
    lines[600] = lines[600].replace('"value": "1"', '"value": "no JSON"')
    dump = {"key_value_store": io.BytesIO("\n".join(lines).encode())}
    with pytest.raises(LoadError, match="the 600 rows before it stay") as refusal:
        await load(store, dump)
    assert (refusal.value.number, refusal.value.loaded) == (601, 600)
    assert len(await store.kv.items()) == 600
    lines[600] = lines[600].replace("no JSON", "true")
    dump = {"key_value_store": io.BytesIO("\n".join(lines).encode())}
    assert await load(store, dump, existing="skip") == {"key_value_store": 100}


async def test_a_row_without_its_parent_is_refused(store: JobStore) -> None:
    row = {"session_id": "unknown", "path": "a", "position": 0}
    with pytest.raises(LoadError, match="the database refuses it"):
        await load(store, {"included_files": io.BytesIO(json.dumps(row).encode())})


async def test_a_file_that_can_be_read_only_once_stops_at_a_bad_line(store: JobStore) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    lines = [json.dumps({"key": f"{number:04}", "updated_at": 1, "value": "1"}) for number in range(700)]
    with pytest.raises(LoadError, match="no JSON object; the 500 rows before it stay") as refusal:
        await load(store, {"key_value_store": Pipe("\n".join([*lines, "half a"]).encode())})
    assert (refusal.value.number, refusal.value.loaded) == (701, 500)


async def test_columns_that_a_dump_lacks_get_their_defaults(store: JobStore) -> None:
    job = {"id": "a", "task_type": "t", "api_type": "a", "status": "idle", "prompt": "p"}
    job |= dict.fromkeys(("run_at", "created_at", "updated_at"), 1)
    assert await load(store, {"background_jobs": io.BytesIO(json.dumps(job).encode())}) == {"background_jobs": 1}
    assert (await store.jobs.get("a")).max_attempts == 3
    [claim] = await store.jobs.claim("w")
    assert claim.prompt == "p"


async def test_a_column_of_bytes_is_refused(store: JobStore) -> None:
    kind = "BYTEA" if store.path is None else "BLOB"
    await store.execute(f"ALTER TABLE sessions ADD COLUMN picture {kind}")
    with pytest.raises(InvalidArgument, match="'picture' that is no number and no text"):
        await dumped(store, "sessions")


async def test_all_tables_are_of_one_moment(store: JobStore) -> None:
    loop = asyncio.get_running_loop()

    class Meanwhile(io.BytesIO):
        def write(self, data: Any) -> int:  # noqa: ANN401
            asyncio.run_coroutine_threadsafe(store.cached_state.set("/src", "tabs", 1), loop).result(60)
            return super().write(data)

    await store.kv.set("a", 1)
    written = {"key_value_store": Meanwhile(), "cached_state": io.BytesIO()}
    assert await store.tables.dump(written) == {"key_value_store": 1, "cached_state": 0}  # type: ignore[arg-type]
    assert await store.cached_state.get("/src", "tabs") == 1


async def test_what_cannot_be_meant_is_refused(store: JobStore) -> None:
    for refused, field in (
        (dumped(store, "sessions", format="xml"), "format"),
        (dumped(store, "sessions", texts="both"), "texts"),
        (load(store, {"sessions": io.BytesIO()}, format="xml"), "format"),
        (load(store, {"sessions": io.BytesIO()}, existing="keep"), "existing"),
        (dumped(store, "migrations"), "table"),
        (load(store, {"migrations": io.BytesIO()}), "table"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            await refused
        assert refusal.value.field == field
