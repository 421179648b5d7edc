"""OpenTelemetry for a worker: a span for each attempt, and metrics of attempts and lanes. Needs `jobstore[otel]`.

Neither carries a text of the user's: an exception is told by its type.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any
from wsgiref.simple_server import WSGIServer

from jobstore import Job, JobStoreError, Lane, StoreClosed
from jobstore.aio import in_thread
from jobstore.version import VERSION
from jobstore.workers.context import JobContext, SyncJobContext
from jobstore.workers.handlers import Handler
from jobstore.workers.hooks import AttemptEvent
from jobstore.workers.outcomes import Fail, Outcome, Retry
from jobstore.workers.worker import Worker

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider
except ImportError as error:
    raise ImportError("jobstore.workers.telemetry needs OpenTelemetry: pip install 'jobstore[otel]'") from error

NAME = "jobstore"
BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Seconds: from what waits for nothing to the longest of plans."""
ASK_SECONDS = 5.0
"""How long whoever reads the metrics waits for the lanes; half of Prometheus' own patience."""
KEEP_SECONDS = 1.0
"""For how long the lanes serve all that is read of them."""


def instrument(
    worker: Worker, *, meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
) -> None:
    """Tell OpenTelemetry what a worker does.

    Spans are named `process {task type}` and current while the handler runs, so that what it calls becomes their
    children. Metrics: the counters `jobstore.jobs.claimed`, `.completed`, `.failed` and `.lease_lost`, the histograms
    `jobstore.job.wait` and `jobstore.job.run` in seconds, and by lane the gauges `jobstore.lane.depth` (with `status`)
    and `jobstore.lane.oldest` in seconds, which are read from the database when somebody asks.

    Args:
        worker: Whose attempts.
        meter_provider: By default the global one.
        tracer_provider: By default the global one.

    Example:
        >>> instrument(worker)
    """
    meter = metrics.get_meter(NAME, VERSION, meter_provider)
    _count(worker, meter)
    _observe_lanes(worker, meter)
    tracer = trace.get_tracer(NAME, VERSION, tracer_provider)
    worker.wrap(lambda handler: _traced(handler, tracer, worker.id))


@asynccontextmanager
async def serving_metrics(worker: Worker, port: int, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve a worker's metrics to Prometheus meanwhile.

    Args:
        worker: Whose metrics.
        port: Which port; 0 is any that is free.
        host: At which of this machine's addresses.

    Yields:
        The URL to scrape.

    Raises:
        OSError: The port is taken, or reserved, or the address is not this machine's.
    """
    server, provider = await in_thread(_serve, port, host)
    instrument(worker, meter_provider=provider)
    try:
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{server.server_port}/metrics"
    finally:
        await in_thread(_end, server, provider)


def _serve(port: int, host: str) -> tuple[WSGIServer, MeterProvider]:
    # Here, for those who bring a provider of their own need neither the SDK nor the exporter; and in a thread, for
    # they read files as they are imported.
    from opentelemetry.exporter.prometheus import PrometheusMetricReader  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider as Provider  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415

    registry = CollectorRegistry()
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": NAME}
    provider = Provider([PrometheusMetricReader(registry=registry)], Resource.create(named))
    server, _thread = start_http_server(port, host, registry)
    return server, provider


def _end(server: WSGIServer, provider: Any) -> None:  # noqa: ANN401 - the SDK's own, of which the API knows no end
    server.shutdown()
    server.server_close()
    provider.shutdown()


def _count(worker: Worker, meter: metrics.Meter) -> None:
    claimed = meter.create_counter("jobstore.jobs.claimed", "{job}", "Attempts that began")
    completed = meter.create_counter("jobstore.jobs.completed", "{job}", "Attempts whose answer was recorded")
    failed = meter.create_counter("jobstore.jobs.failed", "{job}", "Attempts that failed, for good or not")
    lost = meter.create_counter("jobstore.jobs.lease_lost", "{job}", "Attempts whose result was dropped")
    waited = _histogram(meter, "jobstore.job.wait", "How long jobs waited, once due, for an attempt")
    ran = _histogram(meter, "jobstore.job.run", "How long attempts took")

    def begun(event: AttemptEvent) -> None:
        claimed.add(1, _lane(event.job))
        waited.record(event.waited, _lane(event.job))

    def ended(counter: metrics.Counter) -> Callable[[AttemptEvent], None]:
        def tell(event: AttemptEvent) -> None:
            why = {"error.type": event.error_type} if counter is failed and event.error_type else {}
            counter.add(1, _lane(event.job) | why)
            ran.record(event.ran, _lane(event.job))

        return tell

    worker.on_claim(begun)
    worker.on_complete(ended(completed))
    worker.on_failure(ended(failed))
    worker.on_lease_lost(ended(lost))


def _histogram(meter: metrics.Meter, name: str, description: str) -> metrics.Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)


def _lane(job: Job | Lane) -> dict[str, str]:
    return {"task_type": job.task_type, "api_type": job.api_type}


def _observe_lanes(worker: Worker, meter: metrics.Meter) -> None:
    lanes = _Lanes(worker)

    def depth(_options: CallbackOptions) -> Iterable[Observation]:
        for lane in lanes.now():
            for status in ("idle", "scheduled", "running"):
                yield Observation(getattr(lane, status), {**_lane(lane), "status": status})

    def oldest(_options: CallbackOptions) -> Iterable[Observation]:
        for lane in lanes.now():
            yield Observation(lane.oldest_seconds or 0.0, _lane(lane))

    meter.create_observable_gauge("jobstore.lane.depth", [depth], "{job}", "Unfinished jobs of a lane")
    meter.create_observable_gauge("jobstore.lane.oldest", [oldest], "s", "How long the oldest idle job has waited")


class _Lanes:
    """Asks how the lanes stand, from whichever thread the metrics are read; knows none while nobody can tell."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._known: list[Lane] = []
        self._asked = -KEEP_SECONDS

    def now(self) -> list[Lane]:
        """Return how they stand, or have stood a moment ago; asked by the event loop itself, what is known.

        While the worker does not run, nothing is.
        """
        loop = self._worker.event_loop
        if loop is None:
            return []
        if _is_own_loop(loop):  # to wait for it here, or for one who does, would be to wait for ever
            return self._known
        with self._lock:
            if time.monotonic() - self._asked >= KEEP_SECONDS:
                self._known = self._ask(loop)
                self._asked = time.monotonic()
            return self._known

    def _ask(self, loop: asyncio.AbstractEventLoop) -> list[Lane]:
        try:
            asking = self._worker.store.lanes.list()
        except StoreClosed:
            return []
        try:
            future = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError:  # it has just ended
            asking.close()
            return []
        try:
            return future.result(ASK_SECONDS)
        except (TimeoutError, JobStoreError, asyncio.CancelledError):
            future.cancel()
            return []


def _is_own_loop(loop: asyncio.AbstractEventLoop) -> bool:
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop() is loop
    return False


def _traced(handler: Handler, tracer: Tracer, worker_id: str) -> Handler:
    """Return a handler that runs in a span."""
    function = handler.function

    async def run(job: JobContext) -> Any:  # noqa: ANN401 - whatever the handler returns
        with _span(tracer, job, worker_id):
            return await function(job)

    def run_in_thread(job: SyncJobContext) -> Any:  # noqa: ANN401 - the same
        with _span(tracer, job, worker_id):
            return function(job)

    return replace(handler, function=run if handler.is_async else run_in_thread)


@contextmanager
def _span(tracer: Tracer, context: JobContext | SyncJobContext, worker_id: str) -> Iterator[None]:
    """Run in a span that is named by the conventions for messaging of OpenTelemetry."""
    job = context.job
    about: dict[str, str | int] = {
        "messaging.system": NAME,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": job.task_type,
        "messaging.message.id": job.id,
        "jobstore.api_type": job.api_type,
        "jobstore.attempt": context.attempt,
        "jobstore.worker_id": worker_id,
    }
    # What an exception says may quote a prompt: its type is told alone.
    with tracer.start_as_current_span(
        f"process {job.task_type}",
        kind=SpanKind.CONSUMER,
        attributes=about,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as error:
            _note(span, error)
            raise


def _note(span: Span, error: BaseException) -> None:
    if isinstance(error, asyncio.CancelledError):
        span.set_attribute("jobstore.interrupted", value=True)
        return
    if isinstance(error, Outcome) and not error.is_failure:
        return
    named = error.error_type if isinstance(error, Retry | Fail) else type(error).__qualname__
    span.set_attribute("error.type", named)
    span.set_status(StatusCode.ERROR)
