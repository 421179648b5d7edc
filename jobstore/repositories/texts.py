"""Reading the texts of jobs: whole, in parts, or while they are being written."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
from collections.abc import AsyncIterator
from typing import NamedTuple

from jobstore.aio import in_thread
from jobstore.errors import OutputError, OutputRestarted
from jobstore.lifecycle import JobStatus
from jobstore.models import Attempt, Job
from jobstore.operations import attempts, jobs
from jobstore.outputs import check_whole
from jobstore.repositories.backend import Backend
from jobstore.sql import Operation

TAIL_SECONDS = 0.05
"""Between looks at a file that is being written."""


class _State(NamedTuple):
    job: Job
    attempt: Attempt | None


def _state(now: int, job_id: str) -> Operation[_State]:
    """Return a job and its latest attempt, of one moment."""
    job = yield from jobs.get(now, job_id)
    return _State(job, (yield from attempts.get_attempt(now, job_id, job.attempt)))


async def read_prompt(backend: Backend, job_id: str) -> str:
    """Return the whole prompt of a job."""
    job = await backend.read(jobs.get, job_id)
    return await load_prompt(backend, job)


async def load_prompt(backend: Backend, job: Job) -> str:
    """Return the whole prompt of a job that was read with its texts."""
    if job.prompt_file_path is None:
        return job.prompt or ""
    data = await in_thread(backend.outputs.read, job.prompt_file_path, job.prompt_bytes, job.prompt_sha256)
    return data.decode()


async def read_response(backend: Backend, job_id: str) -> str | None:
    """Return the whole response of a job, or what there is of it so far."""
    job = await backend.read(jobs.get, job_id)
    if job.status is JobStatus.COMPLETED and job.output_file_path is not None:
        data = await in_thread(backend.outputs.read, job.output_file_path, job.output_bytes, job.output_sha256)
        return data.decode()
    partial = await _partial_path(backend, job)
    if partial is None:
        return await _earlier_response(backend, job)
    data = await in_thread(backend.outputs.read, partial)
    return _decoder().decode(data)  # a character that is cut off at the end is left out


async def open_response(backend: Backend, job_id: str) -> AsyncIterator[str]:
    """Yield the response of a job in parts; if it is complete, its hash is compared at the end."""
    job = await backend.read(jobs.get, job_id)
    path = job.output_file_path if job.status is JobStatus.COMPLETED else await _partial_path(backend, job)
    if path is None:
        response = await _earlier_response(backend, job)
        if response:
            yield response
        return
    decoder, digest, offset = _decoder(), hashlib.sha256(), 0
    while data := await in_thread(backend.outputs.read_part, path, offset):
        offset += len(data)
        digest.update(data)
        if text := decoder.decode(data):
            yield text
    if path == job.output_file_path:
        check_whole(path, offset, digest.hexdigest(), job.output_bytes, job.output_sha256)


async def tail(backend: Backend, job_id: str) -> AsyncIterator[str]:
    """Yield what an attempt writes while it writes it; see `JobRepository.tail`."""
    decoder, offset, followed = _decoder(), 0, 0
    while True:
        state = await backend.read(_state, job_id)
        waiting = not state.job.status.is_terminal and state.job.status is not JobStatus.RUNNING
        if not followed and not waiting:
            followed = state.job.attempt
        if followed and state.job.attempt != followed:
            raise OutputRestarted(job_id, followed)
        # The state was read first: if it says that the attempt has ended, the file holds all of it.
        data = await _new_data(backend, state, offset) if followed else b""
        offset += len(data)
        if text := decoder.decode(data):
            yield text
        if data:
            continue
        if state.job.status.is_terminal or (followed and waiting):
            return
        await asyncio.sleep(TAIL_SECONDS)


async def _new_data(backend: Backend, state: _State, offset: int) -> bytes:
    """Return what stands behind an offset of the latest attempt's output, wherever that is by now."""
    job, attempt = state
    if job.status is JobStatus.COMPLETED and job.response is not None:
        return job.response.encode()[offset:]
    path = job.output_file_path
    if job.status is not JobStatus.COMPLETED:
        path = None if attempt is None else attempt.output_file_path
    if path is None:
        return b""
    try:
        return await in_thread(backend.outputs.read_part, path, offset)
    except OutputError:
        # A small answer has just moved from its file into its row?
        if job.status is JobStatus.RUNNING:
            return b""
        raise


async def _partial_path(backend: Backend, job: Job) -> str | None:
    """Return the file of the latest partial answer of a job that is not completed."""
    if job.status is JobStatus.COMPLETED:
        return None
    return await backend.read(attempts.latest_output, job.id)


async def _earlier_response(backend: Backend, job: Job) -> str | None:
    """Return the response in the row; of a job that was retried, that of before."""
    if job.output_file_path is None:
        return job.response
    data = await in_thread(backend.outputs.read, job.output_file_path, job.output_bytes, job.output_sha256)
    return data.decode()


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")()
