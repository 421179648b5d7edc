"""`jobstore why`: what keeps a job from running, or what became of it."""

from __future__ import annotations

from jobstore import Explanation, JobStore
from jobstore.cli import stores
from jobstore.cli.options import AsJson, Db, JobId
from jobstore.cli.screen import say, write_json


def why(job_id: JobId, *, db: Db = "", as_json: AsJson = False) -> None:
    """Say in a sentence why a job is not running.

    Its time, its lane's pauses, the workers that are registered and the jobs ahead of it are looked at.
    """

    async def act(store: JobStore) -> Explanation:
        return await store.jobs.explain(await stores.find(store, job_id))

    explanation = stores.run(db, act)
    if as_json:
        write_json(explanation)
    else:
        say(explanation.text)
