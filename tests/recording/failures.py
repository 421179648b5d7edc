"""What becomes of a job, its call and its partial answer, for each way in which a provider can end an answer.

`python -m tests.recording.failures` writes the README's table of it, from what it sees.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

from jobstore import CallStatus, JobStatus, JobStore, UnknownPolicy
from jobstore.providers import ToolCall
from jobstore.testing import Answer, FakeClock, LLMServer, Refusal
from jobstore.testing.llm_answers import API
from jobstore.workers import Worker, constant
from jobstore.workers.llm import QUOTA_PAUSE
from tests.providers.support import APIS, MODELS, Speaker, speaking

README = Path(__file__).parents[2] / "README.md"
_TABLE = re.compile(r"(<!-- failures: [^>]*-->\n).*?(<!-- end of failures -->)", re.DOTALL)

TEXT, HALF = "first half second half", "first half "
POLICY, ASKED = 7.0, 2.5
"""Seconds: what the worker's policy says, and what a provider asks for."""
SILENCE, LONGEST_SILENCE = 0.3, 60.0
"""Seconds after which a client takes a stream that says nothing for broken; more where the machine is slow."""

_TOO_LONG: dict[API, str] = {
    "anthropic": "max_tokens",
    "openai": "max_output_tokens",
    "openai_chat": "length",
    "gemini": "MAX_TOKENS",
}
_WITHHELD: dict[API, str] = {
    "anthropic": "refusal",
    "openai": "content_filter",
    "openai_chat": "content_filter",
    "gemini": "SAFETY",
}
_CALL = ToolCall(id="call_1", name="look", arguments='{"at": "it"}')


class Case(NamedTuple):
    """One thing that a provider can do."""

    told: str
    """As the README tells it."""
    reply: Answer | Refusal
    stop_reasons: dict[API, str] | None = None


CASES = (
    Case("ends its answer", Answer(TEXT)),
    Case("ends it at `max_tokens`", Answer(TEXT), _TOO_LONG),
    Case("ends it with calls of tools", Answer(TEXT, tool_calls=(_CALL,))),
    Case("withholds it (content filter)", Answer(TEXT), _WITHHELD),
    Case("closes the stream without its end", Answer(TEXT, ending="early_end")),
    Case("drops the connection in mid-stream", Answer(TEXT, ending="abort")),
    Case("falls silent in mid-stream", Answer(TEXT, ending="stall")),
    Case("sends an error in mid-stream", Answer(TEXT, ending="error")),
    Case("answers 429 with Retry-After", Refusal("rate_limited", retry_after=ASKED)),
    Case("answers 429 without", Refusal("rate_limited")),
    Case("is overloaded (529, 503)", Refusal("overloaded")),
    Case("fails (500)", Refusal("server_error")),
    Case("takes too long itself (408, 504)", Refusal("timeout")),
    Case("says that the quota is used up", Refusal("quota")),
    Case("refuses the request (400)", Refusal("invalid")),
    Case("refuses its length", Refusal("context_too_long")),
    Case("refuses the key (401)", Refusal("expired")),
)


class Seen(NamedTuple):
    """What became of it."""

    error_type: str
    call: str
    text: str
    next_step: str


class Scene:
    """A store of its own, a server and a client of each SDK."""

    def __init__(self, store: JobStore, clock: FakeClock, server: LLMServer, speakers: dict[API, Speaker]) -> None:
        self._store = store
        self._clock = clock
        self._server = server
        self._speakers = speakers
        self._number = 0

    async def play(self, case: Case, api: API) -> Seen:
        """Let a worker do one job while the provider does what the case says."""
        reply: Any = case.reply
        if not isinstance(reply, Answer) or reply.ending != "stall":
            return await self._play(case, api, self._speakers[api].client)
        silence = SILENCE
        while True:
            async with speaking(api, self._server.url, silence) as impatient:
                seen = await self._play(case, api, impatient.client)
            if seen.text != "nothing" or silence > LONGEST_SILENCE:
                return seen
            silence *= 2  # so short that it may have ended before anything came

    async def _play(self, case: Case, api: API, client: object) -> Seen:
        self._number += 1
        task_type = f"case {self._number}"  # of its own, so that no pause of another case matters
        reply: Any = case.reply
        if case.stop_reasons is not None:
            reply = Answer(TEXT, stop_reason=case.stop_reasons[api], chunk_size=4)
        elif isinstance(reply, Answer):
            reply = Answer(TEXT, ending=reply.ending, tool_calls=reply.tool_calls, chunk_size=4)
        self._server._script.clear()  # of a request that was given up before it arrived
        self._server.script(reply)
        job = await self._store.jobs.enqueue("ask", task_type=task_type, api_type=api, model_used=MODELS[api])
        worker = Worker(self._store, retry=constant(POLICY))
        worker.handles_llm(task_type, client=client, max_tokens=1000)
        await worker.run(drain=True)
        return await self._seen(job.id)

    async def lose(self, policy: UnknownPolicy) -> Seen:
        """Let a worker be lost in the middle of an answer, and its lease end."""
        self._number += 1
        lane = {"task_type": f"case {self._number}", "api_type": "lost"}
        job = await self._store.jobs.enqueue("ask", **lane)
        [held] = await self._store.jobs.claim("lost", task_types=[lane["task_type"]])
        await self._store.calls.begin(held, provider="anthropic", on_unknown=policy, idempotency_key="key")
        async with self._store.jobs.output(held) as output:
            await output.write(HALF)
        self._clock.advance(31)
        await self._store.jobs.wake()
        await self._store.jobs.claim("another", task_types=["of no job"])
        return await self._seen(job.id)

    async def _seen(self, job_id: str) -> Seen:
        job = await self._store.jobs.get(job_id)
        [call] = await self._store.calls.list(job_id)
        if call.error_category is not None:
            assert job.error_type == call.error_category
        assert (job.status is JobStatus.COMPLETED) == (call.status is CallStatus.SUCCEEDED)
        came = {None: "nothing", HALF: "kept", TEXT: "kept"}[await self._store.jobs.read_response(job_id)]
        text = "the answer" if job.status is JobStatus.COMPLETED else came
        step = await self._next_step(job_id)
        self._clock.advance(QUOTA_PAUSE)
        await self._store.lanes.resume()
        return Seen(job.error_type or "", call.status, text, step)

    async def _next_step(self, job_id: str) -> str:
        job = await self._store.jobs.get(job_id)
        pauses = await self._store.lanes.pauses()
        if job.status is JobStatus.COMPLETED:
            calls = ", with `tool_calls`" if "tool_calls" in job.metadata else ""
            return f"completed: `{job.metadata['finish_reason']}`{calls}"
        if job.status is JobStatus.IDLE:
            key = await self._store.calls.key_to_reuse(job_id)
            [call] = await self._store.calls.list(job_id)
            return "tried again at once" + (
                ", with the same key" if key and call.on_unknown == "idempotency_key" else ""
            )
        if job.status is JobStatus.FAILED:
            held = ", held for `jobstore retry`" if job.error_type == "call_unknown" else " for good"
            paused = "; its API is paused for an hour" if any(pause.task_type is None for pause in pauses) else ""
            return f"failed{held}{paused}"
        wait = (job.run_at.timestamp() * 1000 - self._clock.now) / 1000
        when = {POLICY: "by the policy", ASKED: "after the time it asks for"}[wait]
        return f"tried again {when}" + ("; its lane is paused until then" if pauses else "")


@asynccontextmanager
async def setting(store: JobStore, clock: FakeClock) -> AsyncIterator[Scene]:
    """Yield a scene in a store."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(LLMServer())
        speakers = {api: await stack.enter_async_context(speaking(api, server.url)) for api in APIS}
        yield Scene(store, clock, server, speakers)


def table(seen: Sequence[tuple[str, Seen]]) -> str:
    """Return the README's table."""
    rows = [
        (told, f"`{row.error_type}`" if row.error_type else "", f"`{row.call}`", row.text, row.next_step)
        for told, row in seen
    ]
    heading = "| The provider … | `error_type` | The call | What came | The job |\n|---|---|---|---|---|\n"
    return heading + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written() -> str:
    """Return the table that stands in the README."""
    found = _TABLE.search(README.read_text(encoding="utf-8"))
    assert found is not None, "the README has no place for the table"
    return found[0].removeprefix(found[1]).removesuffix(found[2])


async def look(scene: Scene, api: API) -> list[tuple[str, Seen]]:
    """Return what becomes of each case with one SDK, and with a worker that is lost."""
    seen = [(case.told, await scene.play(case, api)) for case in CASES]
    lost = [
        (f"is asked, and the worker dies; `{policy}`", await scene.lose(policy)) for policy in get_args(UnknownPolicy)
    ]
    return seen + lost


async def _write() -> None:
    clock = FakeClock()
    with TemporaryDirectory() as folder:
        async with (
            JobStore(Path(folder, "jobs.db"), migrate=True, clock=clock) as store,
            setting(store, clock) as scene,
        ):
            made = table(await look(scene, "anthropic"))
    text = README.read_text(encoding="utf-8")
    README.write_text(_TABLE.sub(lambda found: found[1] + made + found[2], text), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(_write())
