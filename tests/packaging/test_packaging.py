"""What is published: the public names, the packages of the wheel, and no top-level name but one."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import pytest

import jobstore
import jobstore.workers
from jobstore import errors

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

WORKERS = [
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
PUBLIC = [
    "UNCHANGED",
    "AnswerUnfinished",
    "ApiCall",
    "AppliedMigration",
    "Attempt",
    "AttemptOutcome",
    "CallNotFound",
    "CallStatus",
    "Claim",
    "Clock",
    "ConnectionLost",
    "ConstraintFailed",
    "DatabaseBusy",
    "DatabaseCorrupt",
    "DatabaseError",
    "DatabaseInUse",
    "DatabaseNotFound",
    "DiskFailed",
    "DiskFull",
    "DiskLow",
    "Explanation",
    "ExplanationReason",
    "Heartbeat",
    "InvalidArgument",
    "InvalidJob",
    "InvalidTransition",
    "Job",
    "JobNotFound",
    "JobStats",
    "JobStatus",
    "JobStore",
    "JobStoreError",
    "Lane",
    "LaneStats",
    "LeaseLost",
    "LoadError",
    "MakeOperation",
    "MigrationRequired",
    "NewJob",
    "NotFound",
    "Operation",
    "OutputError",
    "OutputRestarted",
    "OutputTooLarge",
    "Page",
    "Pause",
    "PoolTimeout",
    "PromotionError",
    "ReadOnlyDatabase",
    "RetentionPolicy",
    "Row",
    "SchemaMismatch",
    "Session",
    "SessionNotFound",
    "Settlement",
    "Space",
    "StatementFailed",
    "StoreClosed",
    "TextsPruned",
    "Unchanged",
    "UnknownPolicy",
    "Usage",
    "Vacuumed",
    "WorkerInfo",
    "close_database",
    "drive",
    "enqueue",
    "ensure_connection",
    "execute",
    "execute_many",
    "fetch_all",
    "fetch_one",
]


def test_the_public_names_are_these() -> None:
    assert jobstore.__all__ == PUBLIC
    assert all(hasattr(jobstore, name) for name in PUBLIC)
    assert jobstore.workers.__all__ == WORKERS


def test_every_error_is_public_drawn_in_the_tree_and_below_one_root() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert errors.__doc__ is not None
    for one in classes:
        assert issubclass(one, jobstore.JobStoreError)
        assert one.__name__ in PUBLIC
        assert one.__name__ in errors.__doc__


@pytest.mark.parametrize(
    "kind", [jobstore.JobStore, type(jobstore.JobStore.jobs), jobstore.Job, jobstore.workers.Worker]
)
def test_public_classes_say_what_they_are(kind: type) -> None:
    assert inspect.getdoc(kind)


def test_every_public_method_of_the_repositories_is_documented() -> None:
    store = jobstore.JobStore
    for name in (
        "jobs",
        "lanes",
        "workers",
        "retention",
        "tables",
        "sessions",
        "files",
        "cached_state",
        "kv",
        "migrations",
    ):
        repository = inspect.signature(getattr(store, name).fget).return_annotation
        module = inspect.getmodule(store)
        assert module is not None
        for method, function in inspect.getmembers(vars(module)[repository], inspect.isfunction):
            assert method.startswith("_") or inspect.getdoc(function), f"{name}.{method}"


def test_the_packages_of_the_wheel_are_those_of_the_tree() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    inside = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "jobstore").rglob("__init__.py")
        if not path.parent.is_symlink()
    }
    mapped = {f"jobstore.{folder}" for folder in ("workers", "migrations", "migrations.sqlite", "migrations.postgres")}
    assert listed == inside | mapped


def test_the_folders_beside_the_package_are_linked_into_it() -> None:
    for folder in ("workers", "migrations"):
        link = ROOT / "jobstore" / folder
        assert link.is_symlink()
        assert link.resolve() == ROOT / folder


def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (requirement for group in groups for requirement in group):
        [line] = {line for line in text.splitlines() if f'"{requirement}"' in line}
        if not requirement.startswith(("jobstore[", "pytest")):
            assert "# " in line, requirement
