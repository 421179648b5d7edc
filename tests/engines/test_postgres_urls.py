"""PostgreSQL that cannot be reached or used: errors that say what to do, and a password that is never told."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from jobstore import (
    ConnectionLost,
    DatabaseNotFound,
    InvalidArgument,
    JobStore,
    MigrationRequired,
    OutputError,
    PoolTimeout,
    SchemaMismatch,
)
from jobstore.databases import find_database, without_secrets
from jobstore.engines import postgres as engine_module
from jobstore.engines import postgres_server as server_module
from tests import postgres

USER, PASSWORD = "worker", "s3cret/@:?#%&pw"
ESCAPED = "s3cret%2F%40%3A%3F%23%25%26pw"
WRONG = "wr0ng-s3cret"
SECRET = "s3cret"  # noqa: S105 - what no message may hold
LOGGERS = ("", "psycopg", "psycopg.pool", "jobstore", "asyncio")


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{place}"))


@pytest.fixture(scope="module")
def strict_server() -> Iterator[str]:
    """Return the URL, as its owner, of a server that asks everyone else for a password."""
    with postgres.own_server() as server:
        url = server.url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
            (server.data / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
            connection.execute("SELECT pg_reload_conf()")
        while can_connect(with_user(url, USER, WRONG)):  # the server reads its file in its own time
            pass
        yield url


@pytest.fixture
def private_database(strict_server: str) -> Iterator[str]:
    """Return the URL, as its owner, of a database that the user with the password may write."""
    with postgres.new_database(strict_server) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"GRANT ALL ON SCHEMA public TO {USER}")
        yield url


def can_connect(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(autouse=True)
def _logs_keep_the_secret(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, logger=name)
    yield
    assert SECRET not in caplog.text


def told_by(error: BaseException) -> str:
    """Return all that an error and those behind it could tell anyone."""
    texts, following = ["".join(traceback.format_exception(error))], [error]
    while following:
        one = following.pop()
        texts += [str(one), repr(one), repr(one.args), repr(vars(one))]
        following += [behind for behind in (one.__cause__, one.__context__) if behind is not None]
    return "\n".join(line for text in texts for line in text.splitlines() if not line.startswith("    "))  # our source


def made_for(url: str) -> JobStore | InvalidArgument:
    try:
        return JobStore(url)
    except InvalidArgument as error:
        return error


async def refusal_of(url: str) -> BaseException:
    """Return the error that opening a store ends with, and show that migrating ends with it as well."""
    store = made_for(url)
    if isinstance(store, InvalidArgument):
        assert SECRET not in told_by(store)
        return store
    assert SECRET not in repr(store) + store.name
    with pytest.raises(Exception) as refusal:
        await store.open()
    assert SECRET not in told_by(refusal.value)
    assert SECRET not in repr(store)
    if not isinstance(refusal.value, MigrationRequired):
        with pytest.raises(type(refusal.value)) as other:
            await asyncio.to_thread(lambda: find_database(url).migrator().status())
        assert str(other.value) == str(refusal.value)
        assert SECRET not in told_by(other.value)
    return refusal.value


async def test_the_right_password_opens_the_store(private_database: str, tmp_path: Path) -> None:
    url = with_user(private_database, USER, ESCAPED)
    required = await refusal_of(url)
    assert isinstance(required, MigrationRequired)
    assert required.command.startswith("python -m jobstore.migrate --db ")
    assert f"run `{required.command}`" in str(required)
    async with JobStore(url, migrate=True, outputs=tmp_path / "outputs") as store:
        job = await store.jobs.enqueue("p", task_type="t", api_type="a")
        assert (await store.jobs.get(job.id)).id == job.id
        assert repr(store).endswith(" open>")
        assert SECRET not in repr(store)


async def test_a_wrong_password_says_where_one_is_taken_from(private_database: str) -> None:
    error = await refusal_of(with_user(private_database, USER, WRONG))
    assert isinstance(error, DatabaseNotFound)
    assert f'password authentication failed for user "{USER}"' in str(error)
    assert "taken from the URL, PGPASSWORD or ~/.pgpass" in str(error)


async def test_a_missing_password_says_where_to_give_one(
    private_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    monkeypatch.delenv("PGPASSWORD", raising=False)
    error = await refusal_of(with_user(private_database, USER, ""))
    assert isinstance(error, DatabaseNotFound)
    assert "no password supplied" in str(error)
    assert "PGPASSWORD" in str(error)


@pytest.mark.parametrize("part", ["database", "user"])
async def test_an_unknown_database_or_user_is_named(postgres_server: str, part: str) -> None:
    if part == "database":
        url = urlunsplit(urlsplit(with_user(postgres_server, "postgres", WRONG))._replace(path="/no_such"))
    else:
        url = with_user(postgres_server, "no_such", WRONG)
    error = await refusal_of(url)
    assert isinstance(error, DatabaseNotFound)
    assert '"no_such" does not exist' in str(error)


async def test_a_port_where_nobody_listens_is_told_with_the_reason() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        error = await refusal_of(f"postgresql://me:{WRONG}@127.0.0.1:{port}/jobs")
    assert isinstance(error, DatabaseNotFound)
    assert error.path == f"postgresql://me@127.0.0.1:{port}/jobs"
    assert "Connection refused" in str(error)


async def test_a_host_that_does_not_exist_is_named() -> None:
    error = await refusal_of(f"postgresql://me:{WRONG}@no-such-host.invalid/jobs")
    assert isinstance(error, DatabaseNotFound)
    assert "no-such-host.invalid" in str(error)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        (f"postgresql://me:{SECRET}@[::1/jobs", "write postgresql://user:password@host:port/database"),
        (f"postgresql://me:{SECRET}@host:port/jobs", "write postgresql://user:password@host:port/database"),
        (f"postgresql://me:a/{SECRET}@host/jobs", "%2F for /"),
        (f"postgresql://me:a@{SECRET}@host/jobs", "%40 for @"),
        (f"postgresql://me:a@{SECRET}@host/jobs?x=1", "%40 for @"),
        (f"postgresql://me:{SECRET}%zz@host/jobs", "write % in a password as %25"),
        (f"postgresql://me:{SECRET}\0@host/jobs", "write postgresql://user:password@host:port/database"),
        (f"postgresql://host/jobs?password=a&{SECRET}", "%26 for &"),
        (f"postgresql://me:{SECRET}@host/jobs?nonsense=1", 'invalid URI query parameter: "nonsense"'),
        (f"postgresql:me:{SECRET}@host/jobs", "write two slashes: postgresql://"),
        (f"POSTGRESQL://me:{SECRET}@host/jobs", "POSTGRESQL:// is not supported"),
        (f"postgresql+asyncpg://me:{SECRET}@host/jobs", "use a path, sqlite:/// or postgresql://"),
        (f"sqlite://[{SECRET}", "write three slashes"),
    ],
)
async def test_a_url_that_is_none_is_refused_before_anything_is_done(url: str, advice: str) -> None:
    error = await refusal_of(url)
    assert isinstance(error, InvalidArgument)
    assert error.field == "url"
    assert advice in str(error)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://me:s3cret@host/jobs", "postgresql://me@host/jobs"),
        ("postgresql://me:a?s3cret@host/jobs", "postgresql://me@host/jobs"),
        ("postgresql://me:a#s3cret@host/jobs", "postgresql://me@host/jobs"),
        ("postgresql://me:a:s3cret@[::1]:5432,other:5433/jobs", "postgresql://me@[::1]:5432,other:5433/jobs"),
        ("postgresql://:s3cret@host/jobs", "postgresql://host/jobs"),
        ("postgresql:///jobs?host=/run/pg&password=s3cret&user=me", "postgresql:///jobs?host=/run/pg&user=me"),
        ("postgres://host/jobs?pass%77ord=s3cret&sslpassword=s3cret", "postgres://host/jobs"),
        ("postgresql://host/jobs?options=-csearch_path%3Da", "postgresql://host/jobs?options=-csearch_path%3Da"),
        ("postgresql://", "postgresql://"),
    ],
)
def test_the_name_of_a_database_is_its_url_without_the_password(url: str, name: str) -> None:
    assert without_secrets(url) == name
    read = psycopg.conninfo.conninfo_to_dict(url)  # libpq understands both, and alike
    secrets = {key: value for key, value in read.items() if SECRET in str(value)}
    assert psycopg.conninfo.conninfo_to_dict(name) == {k: v for k, v in read.items() if k not in secrets}


async def test_a_server_that_is_too_old_is_refused(postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MINIMUM_SERVER", 990000)
    error = await refusal_of(postgres_server)
    assert isinstance(error, SchemaMismatch)
    assert "99 is needed" in str(error)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_that_cannot_hold_every_text_is_refused(postgres_server: str, encoding: str) -> None:
    with postgres.new_database(postgres_server, f"ENCODING '{encoding}' LOCALE 'C'") as url:
        error = await refusal_of(url)
    assert isinstance(error, SchemaMismatch)
    assert f"the encoding {encoding}" in str(error)
    assert "ENCODING 'UTF8'" in str(error)


async def test_the_encoding_that_other_programs_are_told_to_use_is_not_ours(
    fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    async with JobStore(fresh_database, migrate=True) as store:
        job = await store.jobs.enqueue("€ 😀", task_type="t", api_type="a", metadata={"€": "😀"})
        read = await store.jobs.get(job.id)
        assert (read.prompt, read.metadata) == ("€ 😀", {"€": "😀"})


async def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def find_others(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.startswith("psycopg") else find(name, package)

    monkeypatch.setattr("jobstore.databases.find_spec", find_others)
    error = await refusal_of(f"postgresql://me:{WRONG}@host/jobs")
    assert isinstance(error, InvalidArgument)
    assert 'pip install "jobstore[postgres]"' in str(error)


async def test_a_password_that_stops_being_right_is_not_told_either(
    private_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "POOL_TIMEOUT", 0.5)
    monkeypatch.setattr(engine_module, "PATIENCE", 0.5)
    url = with_user(private_database, USER, ESCAPED)

    def change_password(password: str) -> None:
        with psycopg.connect(private_database, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {USER} PASSWORD '{password}'")
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'")

    async with JobStore(url, migrate=True, outputs=tmp_path / "outputs") as store:
        await asyncio.to_thread(change_password, "another")
        acts: list[Callable[[], Awaitable[object]]] = [
            store.jobs.list,
            lambda: store.jobs.enqueue("p", task_type="t", api_type="a"),
        ]
        try:
            for act in acts:
                with pytest.raises((PoolTimeout, ConnectionLost)) as refusal:
                    await act()
                assert SECRET not in told_by(refusal.value)
        finally:
            await asyncio.to_thread(change_password, PASSWORD)


async def test_the_values_of_a_refused_statement_are_not_logged(fresh_database: str, tmp_path: Path) -> None:
    async with JobStore(fresh_database, migrate=True, outputs=tmp_path / "outputs") as store:
        for value in (f'{{"text": "{SECRET}"', None):
            with pytest.raises(Exception) as refusal:
                await store.execute(
                    "INSERT INTO key_value_store (key, updated_at, value) VALUES (:key, :at, :value)",
                    {"key": SECRET, "at": None, "value": value},
                )
            assert SECRET not in told_by(refusal.value)


async def test_a_large_text_needs_a_folder_that_was_named(fresh_database: str, tmp_path: Path) -> None:
    async with JobStore(fresh_database, migrate=True) as store:
        for text in ("x" * 100_000, "with \0"):
            with pytest.raises(OutputError, match="open the store with outputs=<a folder>"):
                await store.jobs.enqueue(text, task_type="t", api_type="a")
        assert await store.jobs.count() == 0
        await store.jobs.enqueue("small", task_type="t", api_type="a")
        [claimed] = await store.jobs.claim("worker-1")
        with pytest.raises(OutputError, match="outputs="):
            await store.jobs.complete(claimed, "x" * 100_000)
        with pytest.raises(OutputError, match="outputs="):
            async with store.jobs.output(claimed):
                pass
        await store.jobs.complete(claimed, "small")
    async with JobStore(fresh_database, outputs=tmp_path / "outputs") as store:
        await store.jobs.enqueue("x" * 100_000, task_type="t", api_type="a")


async def test_without_a_folder_files_that_are_named_no_more_are_left_to_a_sweep(
    fresh_database: str, tmp_path: Path
) -> None:
    async with JobStore(fresh_database, migrate=True, outputs=tmp_path / "outputs") as store:
        session = await store.sessions.create(name="s", project_directory="/src")
        for _ in range(2):
            await store.jobs.enqueue("p", task_type="t", api_type="a", session_id=session.id)
        claims = await store.jobs.claim("worker-1", limit=2)
        for claimed in claims:
            await store.jobs.complete(claimed, "x" * 100_000)
    async with JobStore(fresh_database) as store:
        retried = await store.jobs.retry(claims[0].job_id)
        assert retried.status == "idle"
        await store.sessions.delete(session.id)
        assert await store.jobs.count() == 0
    assert len([path for path in (tmp_path / "outputs/responses").rglob("*") if path.is_file()]) == 2


async def test_without_a_folder_a_claim_of_a_large_prompt_is_given_back(fresh_database: str, tmp_path: Path) -> None:
    async with JobStore(fresh_database, migrate=True, outputs=tmp_path / "outputs") as store:
        job = await store.jobs.enqueue("x" * 100_000, task_type="t", api_type="a")
    async with JobStore(fresh_database) as store:
        with pytest.raises(OutputError, match="outputs="):
            await store.jobs.claim("worker-1")
    async with JobStore(fresh_database, outputs=tmp_path / "outputs") as store:
        [claimed] = await store.jobs.claim("worker-2")
        assert (claimed.job_id, claimed.job.attempts_used) == (job.id, 1)
        assert claimed.job.prompt == "x" * 100_000
