"""What OpenTelemetry and Prometheus are told of a worker: spans, counters, histograms, lanes, and no texts."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from jobstore import JobStore
from jobstore.testing import FakeClock
from jobstore.workers import Fail, JobContext, Snooze, SyncJobContext, Worker, constant, telemetry
from jobstore.workers.telemetry import instrument, serving_metrics
from tests.conformance.support import eventually

SECRET = "a secret in a prompt"  # noqa: S105


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, the lanes are told."""
    monkeypatch.setattr(telemetry, "ASK_SECONDS", 60)


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    yield reader
    reader.shutdown()


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def worker(store: JobStore, reader: InMemoryMetricReader, spans: InMemorySpanExporter) -> Worker:
    """A worker that is watched, with handlers that end in each way."""
    worker = Worker(store, worker_id="w", retry=constant(60))

    @worker.handles("async")
    async def answer(job: JobContext) -> str:
        with trace.get_tracer("of the user").start_as_current_span("a call"):
            return job.prompt

    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    instrument(worker, meter_provider=MeterProvider([reader]), tracer_provider=tracers)

    @worker.handles("sync")
    def answer_in_thread(job: SyncJobContext) -> str:
        return job.prompt

    @worker.handles("raising")
    async def raise_error(job: JobContext) -> None:
        raise ValueError(job.prompt)

    @worker.handles("failing")
    async def fail(job: JobContext) -> None:
        raise Fail(job.prompt, error_type="quota")

    @worker.handles("snoozing")
    async def snooze(_job: JobContext) -> None:
        raise Snooze(60)

    return worker


async def enqueue(store: JobStore, *task_types: str) -> None:
    for task_type in task_types:
        await store.jobs.enqueue(SECRET, task_type=task_type, api_type="api")


def points(reader: InMemoryMetricReader) -> dict[str, dict[str, Any]]:
    """Return the points of each metric by the task type, status and error that they are about."""
    found: dict[str, dict[str, Any]] = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        named = found.setdefault(metric.name, {})
        for point in metric.data.data_points:
            about = {**(point.attributes or {})}
            assert about.pop("api_type") == "api"
            named[" ".join(str(about[key]) for key in sorted(about, reverse=True))] = point
    return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_attempts_are_counted_by_how_they_ended(
    store: JobStore, clock: FakeClock, worker: Worker, reader: InMemoryMetricReader
) -> None:
    await enqueue(store, "async", "async", "sync", "raising", "failing", "snoozing")
    clock.advance(7)
    await worker.run(drain=True)
    found = points(reader)
    claimed = {about: point.value for about, point in found["jobstore.jobs.claimed"].items()}
    assert claimed == {"async": 2, "sync": 1, "raising": 1, "failing": 1, "snoozing": 1}
    completed = {about: point.value for about, point in found["jobstore.jobs.completed"].items()}
    assert completed == {"async": 2, "sync": 1}
    failed = {about: point.value for about, point in found["jobstore.jobs.failed"].items()}
    assert failed == {"raising ValueError": 1, "failing quota": 1}
    waited, ran = found["jobstore.job.wait"]["async"], found["jobstore.job.run"]["async"]
    assert (waited.count, waited.sum, waited.max) == (2, 14.0, 7.0)
    assert ran.count == 2
    assert ran.sum > 0


async def test_a_lost_lease_is_counted(
    store: JobStore, clock: FakeClock, worker: Worker, reader: InMemoryMetricReader
) -> None:
    @worker.handles("losing")
    async def lose(job: JobContext) -> str:
        clock.advance(31)
        await store.jobs.claim("another", task_types=["losing"])
        return job.prompt

    await enqueue(store, "losing")
    running = asyncio.ensure_future(worker.run())
    await eventually(lambda: "jobstore.jobs.lease_lost" in counted(reader))
    worker.stop()
    await running


def counted(reader: InMemoryMetricReader) -> set[str]:
    data = reader.get_metrics_data()
    if data is None:
        return set()
    return {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics}


async def test_the_lanes_are_read_when_somebody_asks_from_any_thread(
    store: JobStore, clock: FakeClock, reader: InMemoryMetricReader
) -> None:
    worker = Worker(store, concurrency=1)
    instrument(worker, meter_provider=MeterProvider([reader]))
    release = asyncio.Event()

    @worker.handles("held")
    async def hold(_job: JobContext) -> str:
        await release.wait()
        return "done"

    await enqueue(store, "held", "held", "other")
    await store.jobs.enqueue("p", task_type="other", api_type="api", run_at=None)
    clock.advance(5)
    running = asyncio.ensure_future(worker.run(drain=True))
    await eventually(lambda: worker.running == 1)
    found = await asyncio.to_thread(points, reader)
    depth = {about: point.value for about, point in found["jobstore.lane.depth"].items()}
    assert depth == {
        "held idle": 1, "held running": 1, "held scheduled": 0,
        "other idle": 2, "other running": 0, "other scheduled": 0,
    }  # fmt: skip
    assert {about: point.value for about, point in found["jobstore.lane.oldest"].items()} == {"held": 5, "other": 5}
    release.set()
    await running


async def test_whoever_reads_the_metrics_in_the_event_loop_learns_nothing_of_lanes_and_does_not_hang(
    store: JobStore, worker: Worker, reader: InMemoryMetricReader
) -> None:
    await enqueue(store, "other")
    running = asyncio.ensure_future(worker.run())
    await eventually(lambda: worker.event_loop is not None)
    assert "jobstore.lane.depth" not in counted(reader)
    worker.stop()
    await running
    assert "jobstore.lane.depth" not in await asyncio.to_thread(counted, reader)


async def test_reading_in_the_event_loop_does_not_wait_for_a_thread_that_waits_for_the_loop(
    store: JobStore, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = asyncio.ensure_future(worker.run())
    await eventually(lambda: worker.event_loop is not None)
    lanes, asking, ask = telemetry._Lanes(worker), threading.Event(), store.lanes.list

    def tell_and_ask() -> Any:  # noqa: ANN401 - a coroutine
        asking.set()
        return ask()

    monkeypatch.setattr(store.lanes, "list", tell_and_ask)
    thread = threading.Thread(target=lanes.now)
    thread.start()
    assert asking.wait(60)  # now it waits for this loop
    assert lanes.now() == []
    assert thread.is_alive()
    await asyncio.to_thread(thread.join)
    worker.stop()
    await running


async def test_lanes_that_nobody_can_tell_are_none_and_no_error(
    store: JobStore, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = telemetry._Lanes(worker)
    await enqueue(store, "other")
    running = asyncio.ensure_future(worker.run())
    await eventually(lambda: worker.event_loop is not None)
    assert len(await asyncio.to_thread(lanes.now)) == 1
    worker.stop()
    await running
    assert lanes.now() == []
    await store.close()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Worker, "event_loop", property(lambda _: loop))  # the moment before it ends
    monkeypatch.setattr(telemetry, "KEEP_SECONDS", 0.0)
    assert await asyncio.to_thread(lanes.now) == []


async def test_each_attempt_has_a_span_that_what_it_calls_is_a_child_of(
    store: JobStore, worker: Worker, spans: InMemorySpanExporter
) -> None:
    parents: list[trace.SpanContext] = []

    @worker.handles("looking")
    async def look(_job: JobContext) -> str:
        parents.append(trace.get_current_span().get_span_context())
        return "done"

    @worker.handles("looking in a thread")
    def look_in_thread(_job: SyncJobContext) -> str:
        parents.append(trace.get_current_span().get_span_context())
        return "done"

    await enqueue(store, "looking", "looking in a thread")
    await worker.run(drain=True)
    finished = sorted(spans.get_finished_spans(), key=lambda span: span.name)
    assert [span.name for span in finished] == ["process looking", "process looking in a thread"]
    assert {span.context.span_id for span in finished if span.context} == {parent.span_id for parent in parents}
    assert {span.kind for span in finished} == {SpanKind.CONSUMER}
    [job] = (await store.jobs.list(task_type="looking")).items
    assert attributes(finished[0]) == {
        "messaging.system": "jobstore",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "looking",
        "messaging.message.id": job.id,
        "jobstore.api_type": "api",
        "jobstore.attempt": 1,
        "jobstore.worker_id": "w",
    }


@pytest.mark.parametrize(
    ("task_type", "error_type", "status"),
    [
        ("raising", "ValueError", StatusCode.ERROR),
        ("failing", "quota", StatusCode.ERROR),
        ("snoozing", None, StatusCode.UNSET),
        ("async", None, StatusCode.UNSET),
        ("sync", None, StatusCode.UNSET),
    ],
)
async def test_a_span_tells_how_its_attempt_ended_and_no_text(
    store: JobStore,
    worker: Worker,
    spans: InMemorySpanExporter,
    task_type: str,
    error_type: str | None,
    status: StatusCode,
) -> None:
    await enqueue(store, task_type)
    await worker.run(drain=True)
    [span] = spans.get_finished_spans()
    assert span.status.status_code is status
    assert attributes(span).get("error.type") == error_type
    assert SECRET not in span.to_json()


async def test_a_span_of_what_was_interrupted_says_so(
    store: JobStore, worker: Worker, spans: InMemorySpanExporter
) -> None:
    begun = asyncio.Event()

    @worker.handles("endless")
    async def go_on(_job: JobContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    await enqueue(store, "endless")
    running = asyncio.ensure_future(worker.run())
    await begun.wait()
    worker.stop(at_once=True)
    await running
    [span] = spans.get_finished_spans()
    assert attributes(span)["jobstore.interrupted"] is True
    assert span.status.status_code is StatusCode.UNSET


async def test_prometheus_scrapes_the_metrics_on_loopback(store: JobStore) -> None:
    worker = Worker(store)
    begun: list[str] = []
    release = asyncio.Event()

    @worker.handles("task")
    async def handle(job: JobContext) -> str:
        begun.append(job.job.id)
        await release.wait()
        return job.prompt

    await enqueue(store, "task", "task")
    async with serving_metrics(worker, 0) as url:
        assert url.startswith("http://127.0.0.1:")
        running = asyncio.ensure_future(worker.run(drain=True))
        await eventually(lambda: len(begun) == 2)
        scraped = await asyncio.to_thread(scrape, url)
        assert sample(scraped, "jobstore_jobs_claimed_total") == 2
        assert sample(scraped, "jobstore_lane_depth", status="running") == 2
        assert sample(scraped, "jobstore_lane_depth", status="idle") == 0
        release.set()
        await running
        scraped = await asyncio.to_thread(scrape, url)
        assert sample(scraped, "jobstore_jobs_completed_total") == 2
        assert sample(scraped, "jobstore_job_run_seconds_count") == 2
        assert sample(scraped, "jobstore_job_wait_seconds_bucket", le="3600") == 2
        assert SECRET not in scraped
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scrape, url)


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own
        text: str = answer.read().decode()
        return text


def sample(scraped: str, name: str, **labels: str) -> float:
    for line in scraped.splitlines():
        wanted = all(f'{key}="{value}"' in line for key, value in labels.items())
        if wanted and (match := re.match(rf"{name}(\{{.*\}})? (\S+)$", line)):
            return float(match[2])
    raise AssertionError(f"no {name} {labels} in {scraped}")


async def test_a_port_that_is_taken_is_told(store: JobStore) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            async with serving_metrics(Worker(store), taken.getsockname()[1]):
                pytest.fail("it was served")
