"""Workers: programs that claim jobs, do them with the handlers that they are given, and report back.

Example:
    >>> worker = Worker(store, concurrency=16)
    >>> @worker.handles("implementation_plan", timeout=600)
    ... async def plan(job: JobContext) -> None:
    ...     async for text in ask_model(job.prompt):
    ...         await job.write(text)
    >>> await worker.run()
"""

from jobstore.workers.context import JobContext, SyncJobContext
from jobstore.workers.hooks import AttemptEvent
from jobstore.workers.llm import LLMHandler, outcome_of
from jobstore.workers.outcomes import Cancel, Fail, Outcome, Retry, Snooze
from jobstore.workers.retries import Retries, RetryPolicy, constant, exponential, linear, never
from jobstore.workers.worker import Worker

__all__ = [
    "AttemptEvent",
    "Cancel",
    "Fail",
    "JobContext",
    "LLMHandler",
    "Outcome",
    "Retries",
    "Retry",
    "RetryPolicy",
    "Snooze",
    "SyncJobContext",
    "Worker",
    "constant",
    "exponential",
    "linear",
    "never",
    "outcome_of",
]
