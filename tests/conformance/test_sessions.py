"""Sessions by project, and the paths selected for them."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobstore import InvalidArgument, JobNotFound, JobStore, LeaseLost, SessionNotFound
from jobstore.testing import FakeClock

from .support import SPILLED, enqueue, eventually, everything, files, start, streamed


async def create(store: JobStore, name: str = "demo", directory: str = "/src/app", **settings: Any) -> str:  # noqa: ANN401
    return (await store.sessions.create(name=name, project_directory=directory, **settings)).id


# sessions


async def test_a_session_has_defaults_and_is_what_get_returns(store: JobStore, clock: FakeClock) -> None:
    session = await store.sessions.create(name="demo", project_directory="/src/app")
    assert (session.name, session.project_directory) == ("demo", "/src/app")
    assert session.project_hash == hashlib.sha256(b"/src/app").hexdigest()
    assert session.created_at == session.updated_at == datetime.fromtimestamp(clock() / 1000, UTC)
    assert (session.is_regex_active, session.search_selected_files_only) == (False, False)
    assert (session.task_description, session.codebase_structure, session.model_used) == ("", "", None)
    assert session.model_settings == {}
    assert await store.sessions.get(session.id) == session


async def test_every_setting_of_a_session_is_kept_and_can_be_changed(store: JobStore, clock: FakeClock) -> None:
    first = {
        "name": "a name",
        "project_directory": "/src/app",
        "task_description": "what to do\r\n😀",
        "search_term": "needle",
        "title_regex": "^a.*",
        "content_regex": "\\d+",
        "negative_title_regex": "test",
        "negative_content_regex": "TODO?",
        "is_regex_active": True,
        "search_selected_files_only": True,
        "codebase_structure": "src/\n  main.py",
        "model_used": "claude-opus-5-5",
        "model_settings": {"temperature": 0.5, "stop": ["\n\n"], "nested": {"a": None}},
    }
    second = {name: not value if isinstance(value, bool) else f"{value}!" for name, value in first.items()} | {
        "model_settings": {"temperature": 1}
    }
    session = await store.sessions.create(**first)
    assert {name: getattr(session, name) for name in first} == first
    clock.advance(1)
    for name, value in second.items():
        changed = await store.sessions.update(session.id, **{name: value})
        assert getattr(changed, name) == value
    assert {name: getattr(changed, name) for name in second} == second
    assert changed.project_hash == hashlib.sha256(b"/src/app!").hexdigest()
    assert (changed.created_at, changed.updated_at) == (session.created_at, datetime.fromtimestamp(clock() / 1000, UTC))
    assert await store.sessions.get(session.id) == changed
    assert (await store.sessions.update(session.id, model_used=None)).model_used is None


async def test_an_update_changes_nothing_else(store: JobStore) -> None:
    session = await store.sessions.create(name="demo", project_directory="/a", search_term="x", is_regex_active=True)
    changed = await store.sessions.update(session.id, task_description="new")
    assert changed == session.model_copy(update={"task_description": "new"})


async def test_sessions_of_a_project_are_listed_newest_first(store: JobStore, clock: FakeClock) -> None:
    ids = []
    for number in range(4):
        ids.append(await create(store, directory=f"/project/{number % 2}"))
        clock.advance(0.001 * (number % 3))
    assert [session.id for session in await store.sessions.list()] == ids[::-1]
    assert [session.id for session in await store.sessions.list("/project/1")] == [ids[3], ids[1]]
    assert [session.id for session in await store.sessions.list(Path("/project/1"))] == [ids[3], ids[1]]
    assert await store.sessions.list("/project") == []


async def test_a_slash_at_its_end_makes_no_other_project(store: JobStore) -> None:
    await create(store, directory="/src/app/")
    await create(store, directory="/")
    assert len(await store.sessions.list("/src/app")) == 1
    assert len(await store.sessions.list(Path("/"))) == 1


async def test_an_unknown_session_is_not_found_by_any_verb(store: JobStore) -> None:
    before = await everything(store)
    for call in (
        lambda: store.sessions.get("nobody"),
        lambda: store.sessions.update("nobody", name="x"),
        lambda: store.sessions.update("nobody"),
        lambda: store.sessions.delete("nobody"),
        lambda: store.jobs.cancel_session("nobody"),
        *(lambda call=call: call("nobody", ["a.py"]) for call in setters(store)),
        *(lambda call=call: call("nobody", []) for call in setters(store)),
    ):
        with pytest.raises(SessionNotFound) as refusal:
            await call()
        assert refusal.value.session_id == "nobody"
    assert await everything(store) == before


async def test_deleting_a_session_deletes_its_jobs_their_files_and_its_paths(store: JobStore) -> None:
    mine, other = await create(store), await create(store)
    done = await start(store, SPILLED, session_id=mine)
    await store.jobs.complete(done, SPILLED)
    running = await start(store, session_id=mine)
    await streamed(store, running, "a partial")
    kept = await enqueue(store, SPILLED, session_id=other)
    await store.files.set_included(mine, ["a.py"])
    await store.files.set_included(other, ["b.py"])
    await store.sessions.delete(mine)
    with pytest.raises(SessionNotFound):
        await store.sessions.get(mine)
    with pytest.raises(JobNotFound):
        await store.jobs.get(done.job_id)
    with pytest.raises(LeaseLost):
        await store.jobs.complete(running, "too late")
    assert await store.files.included(mine) == []
    assert await store.files.included(other) == ["b.py"]
    assert [job.id for job in (await store.jobs.list()).items] == [kept.id]
    await eventually(lambda: files(store) == {kept.prompt_file_path})


async def test_a_session_of_many_jobs_is_deleted_whole(store: JobStore) -> None:
    session = await create(store)
    await asyncio.gather(*(enqueue(store, session_id=session) for _ in range(600)))
    await store.sessions.delete(session)
    assert await store.jobs.count() == 0


# files


def setters(store: JobStore) -> list[Any]:
    return [store.files.set_included, store.files.set_excluded, store.files.add_included, store.files.add_excluded]


async def test_paths_come_back_in_the_order_given_and_once(store: JobStore) -> None:
    session = await create(store)
    await store.files.set_included(session, ["z.py", Path("a/b.py"), "ü 😀.md", "z.py"])
    assert await store.files.included(session) == ["z.py", "a/b.py", "ü 😀.md"]
    assert await store.files.excluded(session) == []


async def test_included_and_excluded_paths_are_kept_apart(store: JobStore) -> None:
    one, two = await create(store), await create(store)
    await store.files.set_included(one, ["a", "b"])
    await store.files.set_excluded(one, ["b", "c"])
    await store.files.add_excluded(two, ["d"])
    assert await store.files.included(one) == ["a", "b"]
    assert await store.files.excluded(one) == ["b", "c"]
    assert await store.files.excluded(two) == ["d"]


@pytest.mark.parametrize("kind", ["included", "excluded"])
async def test_paths_are_set_added_and_removed(store: JobStore, kind: str) -> None:
    session = await create(store)
    set_, add, remove, get = (
        getattr(store.files, name) for name in (f"set_{kind}", f"add_{kind}", f"remove_{kind}", kind)
    )
    await set_(session, ["c", "a", "b"])
    await add(session, ["d", "a", "e"])
    assert await get(session) == ["c", "a", "b", "d", "e"]
    assert await remove(session, ["a", "no such path", "e", "a"]) == 2
    assert await get(session) == ["c", "b", "d"]
    await add(session, ["a"])
    assert await get(session) == ["c", "b", "d", "a"]
    await set_(session, iter(["x"]))
    assert await get(session) == ["x"]
    await set_(session, [])
    assert await get(session) == []


async def test_an_unknown_session_has_no_paths(store: JobStore) -> None:
    assert await store.files.included("nobody") == []
    assert await store.files.excluded("nobody") == []
    assert await store.files.remove_included("nobody", ["a.py"]) == 0


async def test_a_whole_code_base_can_be_selected(store: JobStore) -> None:
    session = await create(store)
    paths = [f"src/module_{number}.py" for number in range(5000)]
    await store.files.set_included(session, paths)
    assert await store.files.included(session) == paths


async def test_a_refused_path_leaves_the_selection_as_it_was(store: JobStore) -> None:
    session = await create(store)
    await store.files.set_included(session, ["a"])
    with pytest.raises(InvalidArgument):
        await store.files.set_included(session, ["b", ""])
    assert await store.files.included(session) == ["a"]
