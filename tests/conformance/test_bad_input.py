"""What cannot be accepted is refused by an error that names it, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from jobstore import InvalidArgument, InvalidJob, JobStore, NewJob, SessionNotFound, Usage

from .support import SPILLED, enqueue, eventually, everything, files, start


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"inner": value}
    return value


NOT_JSON = {
    "NaN": {"a": math.nan},
    "infinity": {"a": [math.inf]},
    "a set": {"a": {1, 2}},
    "a tuple": {"a": (1, 2)},
    "bytes": {"a": b"x"},
    "an object": {"a": object()},
    "a datetime": {"a": datetime(2025, 1, 1, tzinfo=UTC)},
    "a number for a key": {1: "a"},
    "None for a key": {"a": {None: 1}},
    "a lone surrogate": {"a": ["\ud800"]},
    "a lone surrogate for a key": {"\udfff": 1},
    "too many digits": {"a": 10**5000},
    "too deep": nested(400),
}
NO_MAPPING = {"a list": [1], "a text": "abc", "pairs": [("a", 1)], "a number": 5}

BAD_FIELDS = [
    ("prompt", "broken \ud83d text"),
    ("prompt", b"bytes"),
    ("prompt", None),
    ("task_type", ""),
    ("task_type", "nul\0"),
    ("task_type", "\ud800"),
    ("task_type", 5),
    ("task_type", None),
    ("api_type", ""),
    ("api_type", ["claude"]),
    ("model_used", 5),
    ("model_used", "nul\0"),
    ("session_id", 5),
    ("priority", 2**31),
    ("priority", -(2**31) - 1),
    ("priority", 1.0),
    ("priority", "1"),
    ("priority", True),
    ("priority", None),
    ("run_at", datetime(2025, 1, 1)),  # noqa: DTZ001 - naive on purpose
    ("run_at", "2025-01-01T00:00:00Z"),
    ("run_at", 1_750_000_000),
    ("max_attempts", 0),
    ("max_attempts", 2**31),
    ("max_attempts", 1.5),
    ("timeout", 0),
    ("timeout", -1),
    ("timeout", math.nan),
    ("timeout", math.inf),
    ("timeout", "60"),
    ("idempotency_key", ""),
    ("idempotency_key", 5),
    ("idempotency_key", "\ud800"),
    *(("metadata", value) for value in (*NOT_JSON.values(), *NO_MAPPING.values())),
]
BAD_NAMES = [f"{field}-{number}" for number, (field, _) in enumerate(BAD_FIELDS)]


async def refused(
    store: JobStore, call: Callable[[], Awaitable[object]], field: str, kind: type[InvalidArgument] = InvalidJob
) -> None:
    """Check that a call is refused for a field, and that nothing was written."""
    before, names = await everything(store), files(store)
    with pytest.raises(kind) as refusal:
        await call()
    assert refusal.value.field == field
    assert str(refusal.value).startswith(f"{field}: ")
    assert await everything(store) == before
    await eventually(lambda: files(store) == names)


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=BAD_NAMES)
async def test_enqueue_names_the_field_that_it_refuses(store: JobStore, field: str, value: object) -> None:
    fields = {"prompt": SPILLED, "task_type": "t", "api_type": "a"} | {field: value}
    await refused(store, lambda: store.jobs.enqueue(fields.pop("prompt"), **fields), field)


RECORDED = ("prompt", "task_type", "metadata", "priority", "timeout")


@pytest.mark.parametrize(("field", "value"), [bad for bad in BAD_FIELDS if bad[0] in RECORDED][::3])
async def test_record_names_the_field_that_it_refuses(store: JobStore, field: str, value: object) -> None:
    fields = {"prompt": SPILLED, "task_type": "t", "api_type": "a"} | {field: value}

    async def record() -> None:
        async with store.jobs.record(fields.pop("prompt"), **fields):
            pytest.fail("the call must not begin")

    await refused(store, record, field)


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=BAD_NAMES)
def test_a_new_job_is_refused_when_it_is_made(field: str, value: object) -> None:
    with pytest.raises(InvalidJob) as refusal:
        NewJob(**({"prompt": "x", "task_type": "t", "api_type": "a"} | {field: value}))
    assert refusal.value.field == field


def test_a_new_job_has_no_other_fields() -> None:
    with pytest.raises(InvalidJob) as refusal:
        NewJob(prompt="x", task_type="t", api_type="a", prio=1)
    assert refusal.value.field == "prio"


@pytest.mark.parametrize("bad", ["text", 5, None, {"prompt": "x"}])
async def test_enqueue_many_takes_nothing_but_new_jobs(store: JobStore, bad: object) -> None:
    good = NewJob(prompt=SPILLED, task_type="t", api_type="a")
    await refused(store, lambda: store.jobs.enqueue_many([good, bad]), "new_jobs")
    if not isinstance(bad, dict):
        await refused(store, lambda: store.jobs.enqueue_many(bad), "new_jobs")


async def test_an_unknown_session_is_not_found_and_nothing_is_written(store: JobStore) -> None:
    before = await everything(store)

    async def record() -> None:
        async with store.jobs.record(SPILLED, task_type="t", api_type="a", session_id="nobody"):
            pytest.fail("the call must not begin")

    for call in (lambda: enqueue(store, SPILLED, session_id="nobody"), record):
        with pytest.raises(SessionNotFound) as refusal:
            await call()
        assert refusal.value.session_id == "nobody"
    assert await everything(store) == before
    await eventually(lambda: not files(store))


NO_DURATIONS = [-1, math.nan, math.inf, "5", None, True, 1e300]

BAD_CLAIMS = [
    *(("worker_id", value) for value in ("", None, 5, "\ud800", "nul\0")),
    *(("limit", value) for value in (0, -1, 10_001, 1.0, "1", None, True)),
    *(("lease", value) for value in (*NO_DURATIONS, 0)),
    *(("task_types", value) for value in ("plan", [""], [None], 5, ["\ud800"])),
    *(("api_types", value) for value in ("claude", [5])),
]


@pytest.mark.parametrize(("field", "value"), BAD_CLAIMS, ids=repr)
async def test_claim_names_the_argument_that_it_refuses(store: JobStore, field: str, value: object) -> None:
    await enqueue(store)
    arguments = {"worker_id": "worker-1"} | {field: value}
    await refused(store, lambda: store.jobs.claim(arguments.pop("worker_id"), **arguments), field)


@pytest.mark.parametrize("value", [*NO_DURATIONS, 0])
async def test_a_heartbeat_wants_a_lease_of_some_seconds(store: JobStore, value: object) -> None:
    claimed = await start(store)
    await refused(store, lambda: store.jobs.heartbeat([claimed], lease=value), "lease")


@pytest.mark.parametrize("value", NO_DURATIONS)
async def test_durations_are_numbers_of_seconds(store: JobStore, value: object) -> None:
    claimed = await start(store)
    await refused(store, lambda: store.jobs.snooze(claimed, value), "seconds")
    await refused(store, lambda: store.jobs.prune(older_than=value), "older_than")
    if value is not None:
        await refused(store, lambda: store.jobs.fail(claimed, "no", retry_in=value), "retry_in")
        await refused(store, lambda: store.jobs.clear(older_than=value), "older_than")


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
async def test_changes_of_metadata_must_be_json(store: JobStore, value: object) -> None:
    claimed = await start(store, metadata={"kept": 1})
    await refused(store, lambda: store.jobs.progress(claimed, metadata=value), "metadata")
    await refused(store, lambda: store.jobs.complete(claimed, SPILLED, metadata=value), "metadata")


@pytest.mark.parametrize("value", NO_MAPPING.values(), ids=NO_MAPPING)
async def test_changes_of_metadata_must_be_a_mapping(store: JobStore, value: object) -> None:
    claimed = await start(store)
    await refused(store, lambda: store.jobs.complete(claimed, "x", metadata=value), "metadata")


@pytest.mark.parametrize("response", ["broken \ud83d", b"bytes", 5])
async def test_a_response_that_cannot_be_stored_is_refused_and_the_job_goes_on(
    store: JobStore, response: object
) -> None:
    claimed = await start(store)
    await refused(store, lambda: store.jobs.complete(claimed, response), "response")
    assert (await store.jobs.complete(claimed, "better")).response == "better"


async def test_reports_name_the_argument_that_they_refuse(store: JobStore) -> None:
    claimed = await start(store)
    await refused(store, lambda: store.jobs.progress(claimed, status_message=5), "status_message")
    await refused(store, lambda: store.jobs.fail(claimed, "no", error_type=5), "error_type")
    await refused(store, lambda: store.jobs.progress(claimed, usage={"cost": 1}), "usage")
    await refused(store, lambda: store.jobs.complete(claimed, "x", usage=5), "usage")


async def open_output(store: JobStore, claimed: Any) -> None:  # noqa: ANN401 - anything but a claim
    async with store.jobs.output(claimed):
        pytest.fail("there is nothing to write to")


async def test_what_is_no_claim_is_refused_by_every_report(store: JobStore) -> None:
    job = (await start(store)).job
    reports: dict[str, Callable[[Any], Awaitable[object]]] = {
        "complete": lambda it: store.jobs.complete(it, SPILLED),
        "fail": lambda it: store.jobs.fail(it, "no"),
        "snooze": lambda it: store.jobs.snooze(it, 1),
        "release": store.jobs.release,
        "progress": lambda it: store.jobs.progress(it, status_message="x"),
        "cancel_claimed": lambda it: store.jobs.cancel_claimed(it, "x"),
        "heartbeat": lambda it: store.jobs.heartbeat([it]),
        "output": lambda it: open_output(store, it),
    }
    for report in reports.values():
        for value in (job, job.id, None):
            await refused(store, lambda report=report, value=value: report(value), "claim", InvalidArgument)


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "reasoning_tokens", "cost"])
@pytest.mark.parametrize("value", [-1, "1", math.nan, True])
def test_usage_is_made_of_numbers_that_are_not_negative(field: str, value: object) -> None:
    with pytest.raises(InvalidJob) as refusal:
        Usage(**{field: value})
    assert refusal.value.field == field


BAD_LISTS = [
    ("status", "finished"),
    ("status", ["idle", "finished"]),
    ("status", 5),
    ("cleared", "no"),
    ("cleared", 5),
    ("created_before", datetime(2025, 1, 1)),  # noqa: DTZ001 - naive on purpose
    ("created_after", "2025-01-01"),
    ("order", "oldest"),
    ("limit", 0),
    ("limit", 1001),
    ("limit", None),
    ("limit", True),
]


@pytest.mark.parametrize(("field", "value"), BAD_LISTS, ids=repr)
async def test_list_and_count_name_the_argument_that_they_refuse(store: JobStore, field: str, value: object) -> None:
    await refused(store, lambda: store.jobs.list(**{field: value}), field, InvalidArgument)
    if field not in {"order", "limit"}:
        await refused(store, lambda: store.jobs.count(**{field: value}), field, InvalidArgument)


BAD_SESSIONS = [
    ("name", ""),
    ("name", None),
    ("name", "\ud800"),
    ("name", "nul\0"),
    ("project_directory", ""),
    ("project_directory", None),
    ("project_directory", 5),
    ("project_directory", "nul\0"),
    ("task_description", "\ud800"),
    ("task_description", "nul\0"),
    ("is_regex_active", "yes"),
    ("is_regex_active", 1),
    ("model_settings", [1]),
    ("model_settings", {"a": {1}}),
    ("model_settings", {"a": math.nan}),
    ("model_settings", {"a": "\ud800"}),
    ("id", "mine"),
    ("project_hash", "mine"),
    ("color", "red"),
]


@pytest.mark.parametrize(("field", "value"), BAD_SESSIONS, ids=repr)
async def test_sessions_name_the_field_that_they_refuse(store: JobStore, field: str, value: object) -> None:
    session = await store.sessions.create(name="demo", project_directory="/src/app")
    fields = {"name": "demo", "project_directory": "/src/app"} | {field: value}
    await refused(store, lambda: store.sessions.create(**fields), field, InvalidArgument)
    await refused(store, lambda: store.sessions.update(session.id, **{field: value}), field, InvalidArgument)


@pytest.mark.parametrize("paths", ["a.py", 5, None, [""], [5], [None], ["nul\0"], ["\ud800"]], ids=repr)
async def test_files_are_lists_of_paths(store: JobStore, paths: object) -> None:
    session = await store.sessions.create(name="demo", project_directory="/src/app")
    await store.files.set_included(session.id, ["kept.py"])
    for change in (store.files.set_included, store.files.add_excluded, store.files.remove_included):
        await refused(store, lambda change=change: change(session.id, paths), "paths", InvalidArgument)


@pytest.mark.parametrize("key", ["", None, 5, "nul\0", "\ud800"], ids=repr)
async def test_keys_are_texts(store: JobStore, key: object) -> None:
    await refused(store, lambda: store.kv.set(key, 1), "key", InvalidArgument)
    await refused(store, lambda: store.cached_state.set("/src/app", key, 1), "key", InvalidArgument)
    if key in {5, "\ud800"}:
        await refused(store, lambda: store.kv.items(prefix=key), "prefix", InvalidArgument)


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
async def test_values_are_json(store: JobStore, value: object) -> None:
    await refused(store, lambda: store.kv.set("key", value), "value", InvalidArgument)
    await refused(store, lambda: store.cached_state.set("/src/app", "key", value), "value", InvalidArgument)


@pytest.mark.parametrize("ttl", [0, *(value for value in NO_DURATIONS if value is not None)], ids=repr)
async def test_a_time_to_live_is_some_seconds(store: JobStore, ttl: object) -> None:
    await refused(store, lambda: store.cached_state.set("/a", "key", 1, ttl=ttl), "ttl", InvalidArgument)


@pytest.mark.parametrize("project", [None, "", 5, "\ud800"], ids=repr)
async def test_a_project_is_a_path(store: JobStore, project: object) -> None:
    for call in (
        lambda: store.cached_state.set(project, "key", 1),
        lambda: store.cached_state.get(project, "key"),
        lambda: store.cached_state.delete(project, "key"),
        lambda: store.cached_state.all(project),
    ):
        await refused(store, call, "project_directory", InvalidArgument)


@pytest.mark.parametrize("job_id", [None, 5, b"id", "\ud800"], ids=repr)
async def test_a_job_is_named_by_its_id(store: JobStore, job_id: object) -> None:
    async def all_of(chunks: AsyncIterator[str]) -> list[str]:
        return [chunk async for chunk in chunks]

    for call in (
        lambda: store.jobs.get(job_id),
        lambda: store.jobs.attempts(job_id),
        lambda: store.jobs.read_prompt(job_id),
        lambda: store.jobs.read_response(job_id),
        lambda: all_of(store.jobs.open_response(job_id)),
        lambda: all_of(store.jobs.tail(job_id)),
        lambda: store.jobs.wait(job_id),
        lambda: store.jobs.cancel(job_id),
        lambda: store.jobs.retry(job_id),
    ):
        await refused(store, call, "job_id", InvalidArgument)
    await refused(store, lambda: store.jobs.clear([job_id]), "job_ids", InvalidArgument)


async def test_a_job_itself_is_no_id(store: JobStore) -> None:
    job = await enqueue(store)
    with pytest.raises(InvalidArgument, match="job_id: must be an id, which is a str, not Job"):
        await store.jobs.get(job)  # type: ignore[arg-type]


@pytest.mark.parametrize("session_id", [None, 5, "\ud800"], ids=repr)
async def test_a_session_is_named_by_its_id(store: JobStore, session_id: object) -> None:
    for call in (
        lambda: store.sessions.get(session_id),
        lambda: store.sessions.update(session_id, name="other"),
        lambda: store.sessions.delete(session_id),
        lambda: store.jobs.cancel_session(session_id),
        lambda: store.files.included(session_id),
        lambda: store.files.set_excluded(session_id, ["a.py"]),
    ):
        await refused(store, call, "session_id", InvalidArgument)


@pytest.mark.parametrize("params", [(1,), [1], "one", 5], ids=repr)
async def test_parameters_of_a_statement_have_names(store: JobStore, params: object) -> None:
    await refused(store, lambda: store.execute("SELECT ?", params), "params", InvalidArgument)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", 5),
        ("url", b"jobs.db"),
        ("url", ""),
        ("url", ":memory:"),
        ("url", "mysql://host/jobs"),
        ("url", "sqlite://jobs.db"),
        ("url", "sqlite:///tmp/jobs.db?mode=ro"),
        ("url", "sqlite:///tmp/jobs.db#part"),
        ("pool_size", 0),
        ("pool_size", "4"),
        ("pool_size", 10**6),
        ("inline_limit", -1),
        ("inline_limit", 1.5),
        ("inline_limit", 10**10),
        ("max_output_bytes", 0),
        ("max_output_bytes", "1 GB"),
        ("min_free_bytes", -1),
        ("min_free_bytes", 0.5),
        ("durability", "none"),
    ],
    ids=repr,
)
def test_a_store_names_the_argument_that_it_refuses(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        JobStore(**({"url": "jobs.db"} | {field: value}))  # type: ignore[arg-type]
    assert refusal.value.field == field
