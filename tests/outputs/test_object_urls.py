"""URLs of places for large texts: which are taken, and that none of their secrets is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobstore import InvalidArgument, JobStore
from jobstore.outputs import place_of
from tests.processes.support import run


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("gs://bucket/a/b/", "gs://bucket/a/b"),
        ("az://container/a=b/c_d.e", "az://container/a=b/c_d.e"),
    ],
)
def test_a_url_names_a_bucket_and_a_prefix(url: str, shown: str) -> None:
    assert str(place_of(url)) == shown


@pytest.mark.parametrize(
    "outputs",
    [
        "s3://", "s3:///prefix", "s3://key:HIDDEN@bucket/prefix", "s3://HIDDEN@bucket", "s3://bucket/p?secret=HIDDEN",
        "s3://bucket/p#HIDDEN", "s3://bucket/a/../b", "s3://bucket//a//b", "s3://bucket/a b", "s3://bucket/a%2F..",
        "http://HIDDEN.example/bucket", "ftp://HIDDEN", "file://host/HIDDEN", "file://", "file:///", "s3://[HIDDEN",
        "file:///a%00b", "nul\0", Path("s3://bucket/HIDDEN"), b"bytes", 5,
    ],
)  # fmt: skip
def test_what_names_no_place_is_refused_without_repeating_it(outputs: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        JobStore(tmp_path / "jobs.db", outputs=outputs)
    assert refusal.value.field == "outputs"
    assert "HIDDEN" not in str(refusal.value)


def test_without_the_extra_the_error_says_what_to_install_and_folders_need_nothing(database: Path) -> None:
    code, output, errors = run(
        """
        import asyncio, sys
        sys.modules["obstore"] = None  # as if it were not installed
        from jobstore import JobStore, OutputError

        async def main(path):
            async with JobStore(path, migrate=True) as store:
                await store.jobs.enqueue("x" * 100_000, task_type="t", api_type="a")
            try:
                await JobStore(path, outputs="s3://bucket/prefix").open()
            except OutputError as error:
                print(error)

        asyncio.run(main(sys.argv[1]))
        """,
        database,
    )
    assert (code, errors) == (0, "")
    assert 'pip install "jobstore[objects]"' in output


def test_without_the_extra_nothing_is_checked_or_repaired_as_if_there_were_no_texts(database: Path) -> None:
    code, output, errors = run(
        """
        import sys
        sys.modules["obstore"] = None  # as if it were not installed
        from pathlib import Path
        from jobstore import OutputError
        from jobstore.health import check, repair
        from jobstore.migrate import Migrator

        Migrator(Path(sys.argv[1])).run()
        for act in (check, repair):
            try:
                act(sys.argv[1], outputs="s3://bucket/prefix")
            except OutputError as error:
                print(error)
        """,
        database,
    )
    assert (code, errors) == (0, "")
    assert output.count('pip install "jobstore[objects]"') == 2


def test_importing_the_store_does_not_import_the_extra() -> None:
    code, output, errors = run("import jobstore, sys; print('obstore' in sys.modules)")
    assert (code, output, errors) == (0, "False\n", "")
