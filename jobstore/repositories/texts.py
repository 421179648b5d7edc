"""Reading the texts of jobs: whole, in parts, or while they are being written."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

from jobstore.aio import in_thread
from jobstore.clock import to_milliseconds
from jobstore.errors import OutputError, OutputRestarted
from jobstore.lifecycle import WAITING, JobStatus
from jobstore.models import Job
from jobstore.operations import jobs, leasing, texts
from jobstore.outputs import Outputs, TextDecoder, check_whole
from jobstore.repositories.backend import Backend

TAIL_SECONDS = 0.05
"""Between looks at a job that is being followed; its text is looked at as seldom as its place asks for."""


async def read_prompt(backend: Backend, job_id: str) -> str:
    """Return the whole prompt of a job."""
    job = await backend.read(jobs.get, job_id)
    return await load_prompt(backend, job)


async def load_prompt(backend: Backend, job: Job) -> str:
    """Return the whole prompt of a job that was read with its texts."""
    jobs.refuse_pruned(job)
    if job.prompt_file_path is None:
        return job.prompt or ""
    source = texts.Source(None, job.prompt_file_path, job.prompt_bytes, job.prompt_sha256)
    return await in_thread(_read_text, backend.outputs, job.prompt_file_path, source)


async def read_response(backend: Backend, job_id: str) -> str | None:
    """Return the whole response of a job, or what there is of it so far."""
    source = await backend.read(texts.response, job_id)
    while source.path is not None:
        try:
            return await in_thread(_read_text, backend.outputs, source.path, source)
        except OutputError:
            moved = await backend.read(texts.response, job_id)
            if moved == source:
                raise
            source = moved  # a small streamed answer moves from its file into its row when it is completed
    return source.inline


async def open_response(backend: Backend, job_id: str) -> AsyncIterator[str]:
    """Yield the response of a job in parts; if it is complete, its hash is compared at the end."""
    source = await backend.read(texts.response, job_id)
    if source.path is None:
        if source.inline:
            yield source.inline
        return
    decoder, digest, offset = TextDecoder(), hashlib.sha256(), 0
    while data := await _part(backend, job_id, source.path, offset):
        offset += len(data)
        digest.update(data)
        if text := decoder.decode(data, source.path):
            yield text
    check_whole(source.path, offset, digest.hexdigest(), source.size, source.sha256)


async def _part(backend: Backend, job_id: str, path: str, offset: int) -> bytes:
    """Return the next part of a response, also when it has just moved from its file into its row."""
    try:
        return await in_thread(backend.outputs.read_part, path, offset)
    except OutputError:
        moved = await backend.read(texts.response, job_id)
        if moved.inline is None:
            raise
        return moved.inline.encode()[offset:]


def _read_text(outputs: Outputs, path: str, source: texts.Source) -> str:
    data = outputs.read(path, source.size, source.sha256)
    return TextDecoder().decode(data, path)  # a character that is cut off at the end of a partial is left out


async def tail(backend: Backend, job_id: str) -> AsyncIterator[str]:
    """Yield what an attempt writes while it writes it; see `JobQueries.tail`."""
    reader = _Tail(backend, job_id)
    while True:
        state = await backend.read(texts.latest, job_id)
        if _place(state) is None:
            jobs.refuse_pruned(state.job)
        waiting = not state.job.status.is_terminal and state.job.status is not JobStatus.RUNNING
        # The state was read first: if it says that the attempt has ended, the file holds all of it.
        text = "" if waiting and not reader.attempt else await reader.new_text(state)
        if text:
            yield text
        elif state.job.status.is_terminal or (reader.attempt and waiting):
            return
        elif _is_forsaken(backend, state):
            await backend.write(leasing.rescue_due, wakes=True)
        else:
            await asyncio.sleep(TAIL_SECONDS)


def _is_forsaken(backend: Backend, state: texts.Latest) -> bool:
    """Whether nobody has claimed since the job's lease ended, its holder being gone, or since it expired waiting."""
    job, attempt = state
    end = job.expires_at if job.status in WAITING else None
    if job.status is JobStatus.RUNNING and attempt is not None:
        end = attempt.lease_expires_at
    return end is not None and to_milliseconds(end) <= backend.engine.clock()


class _Row(NamedTuple):
    """A response that lies in the row."""

    data: bytes


_Place = str | _Row | None
"""Where a response lies: in a file, in the row, or nowhere yet."""


def _place(state: texts.Latest) -> _Place:
    job, attempt = state
    if job.status is not JobStatus.COMPLETED:
        return None if attempt is None else attempt.output_file_path
    if job.output_file_path is None and job.response is not None:
        return _Row(job.response.encode())
    return job.output_file_path


class _Tail:
    """How far a reader has come in what one attempt writes.

    Attributes:
        attempt: The attempt that is followed; 0 before there is one.
    """

    def __init__(self, backend: Backend, job_id: str) -> None:
        self.attempt = 0
        self._backend = backend
        self._job_id = job_id
        self._place: _Place = None
        self._offset = 0
        self._digest = hashlib.sha256()
        self._decoder = TextDecoder()
        self._next_look = 0.0

    async def new_text(self, state: texts.Latest) -> str:
        """Return what has come since, wherever that lies by now; nothing if nothing has.

        Raises:
            OutputRestarted: Another attempt has begun, or another answer than this one was recorded.
        """
        self.attempt = self.attempt or state.job.attempt
        place = _place(state)
        if state.job.attempt != self.attempt or not await self._continues(place):
            raise OutputRestarted(self._job_id, self.attempt)
        if place == self._place and state.job.status is JobStatus.RUNNING and time.monotonic() < self._next_look:
            return ""
        self._place = place
        text = ""
        while not text and (data := await self._new_data(place)):
            self._offset += len(data)
            self._digest.update(data)
            text = self._decoder.decode(data, place if isinstance(place, str) else "the response")
        if not text and isinstance(place, str):
            self._next_look = time.monotonic() + self._backend.outputs.tail_seconds
        return text

    async def _new_data(self, place: _Place) -> bytes:
        try:
            return await self._read(place, self._offset)
        except OutputError:
            if _place(await self._backend.read(texts.latest, self._job_id)) == place:
                raise
            return b""  # a small streamed answer has just moved from its file into its row

    async def _continues(self, place: _Place) -> bool:
        """Whether a text begins with what was read: a worker may record another one than it streamed."""
        if place == self._place:
            return True
        digest, offset = hashlib.sha256(), 0
        while offset < self._offset and (data := await self._read(place, offset)):
            digest.update(data[: self._offset - offset])
            offset += len(data)
        return digest.digest() == self._digest.digest()

    async def _read(self, place: _Place, offset: int) -> bytes:
        if isinstance(place, str):
            return await in_thread(self._backend.outputs.read_part, place, offset)
        return b"" if place is None else place.data[offset:]
