from jobstore import JobStatus, JobStore


async def test_a_job_goes_the_whole_way(store: JobStore) -> None:
    session = await store.sessions.create(name="demo", project_directory="/src/app")
    job = await store.jobs.enqueue("Write", task_type="plan", api_type="claude", session_id=session.id)
    [claim] = await store.jobs.claim("worker-1")
    async with store.jobs.output(claim) as output:
        await output.write("abc")
    await store.jobs.complete(claim)
    assert (await store.jobs.get(job.id)).status is JobStatus.COMPLETED
    async with store.jobs.record("hi", task_type="t", api_type="a") as call:
        await call.write("abc")
    assert await store.jobs.read_response(call.job.id) == "abc"
    assert len((await store.jobs.list()).items) == 2
