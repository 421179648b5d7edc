"""`store.jobs`: recording prompts, claiming jobs, reporting on them, and reading what became of them."""

from __future__ import annotations

from jobstore.repositories.job_control import JobControl
from jobstore.repositories.job_intake import JobIntake
from jobstore.repositories.job_queries import JobQueries


class JobRepository(JobIntake, JobControl, JobQueries):
    """The jobs of a store. Reached as `store.jobs`."""
