"""`store.cached_state` and `store.kv`: state by project, and of the whole application."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jobstore import JobStore
from jobstore.testing import FakeClock

VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**63, 10**30, 1e300, "", "a\0b", "👩🏽‍🚀", "\u2028", [], {},
    [1, [2, [3]]], {"a": {"b": [None]}, "": 0, "\0": 1, "é": 2},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_any_json_value_comes_back_identical(store: JobStore, value: object) -> None:
    await store.kv.set("key", value)
    await store.cached_state.set("/src/app", "key", value)
    for kept in (await store.kv.get("key", "none"), await store.cached_state.get("/src/app", "key", "none")):
        assert kept == value
        assert type(kept) is type(value)


# key values


async def test_a_key_without_a_value_gives_the_default(store: JobStore) -> None:
    assert await store.kv.get("key") is None
    assert await store.kv.get("key", {"a": 1}) == {"a": 1}
    await store.kv.set("key", None)
    assert await store.kv.get("key", "default") is None


async def test_a_value_is_replaced_and_deleted(store: JobStore) -> None:
    await store.kv.set("key", 1)
    await store.kv.set("key", 2)
    assert await store.kv.get("key") == 2
    assert await store.kv.delete("key") is True
    assert await store.kv.delete("key") is False
    assert await store.kv.get("key") is None


async def test_items_are_ordered_and_chosen_by_an_exact_prefix(store: JobStore) -> None:
    keys = ["a", "a/1", "a/2", "A/1", "a_1", "a%", "b", "a\U0010ffff", "a\U0010ffff\U0010ffff", "ä", "\ud7ff", "\ue000"]
    for number, key in enumerate(keys):
        await store.kv.set(key, number)
    numbers = {key: number for number, key in enumerate(keys)}
    assert list((await store.kv.items()).items()) == sorted(numbers.items())
    for prefix in ("", "a", "a/", "a%", "A", "a\U0010ffff", "ä", "x", "\ud7ff", "\U0010ffff"):
        expected = {key: number for key, number in sorted(numbers.items()) if key.startswith(prefix)}
        assert await store.kv.items(prefix) == expected


async def test_many_callers_set_values_at_the_same_time(store: JobStore) -> None:
    await asyncio.gather(*(store.kv.set(f"key {number}", number) for number in range(200)))
    assert sorted((await store.kv.items()).values()) == list(range(200))


# state by project


async def test_projects_do_not_see_each_others_state(store: JobStore) -> None:
    await store.cached_state.set("/one", "tabs", [1])
    await store.cached_state.set(Path("/two"), "tabs", [2])
    assert await store.cached_state.get(Path("/one"), "tabs") == [1]
    assert await store.cached_state.get("/two/", "tabs") == [2]
    assert await store.cached_state.get("/three", "tabs") is None
    assert await store.cached_state.get("/three", "tabs", "default") == "default"


async def test_all_state_of_a_project_is_read_at_once(store: JobStore) -> None:
    await store.cached_state.set("/one", "b", 1)
    await store.cached_state.set("/one", "a", {"x": None})
    await store.cached_state.set("/two", "c", 3)
    assert list((await store.cached_state.all("/one")).items()) == [("a", {"x": None}), ("b", 1)]
    assert await store.cached_state.all("/three") == {}


async def test_state_is_replaced_and_deleted(store: JobStore) -> None:
    await store.cached_state.set("/one", "key", 1)
    await store.cached_state.set("/one", "key", 2)
    assert await store.cached_state.all("/one") == {"key": 2}
    assert await store.cached_state.delete("/one", "key") is True
    assert await store.cached_state.delete("/one", "key") is False
    assert await store.cached_state.all("/one") == {}


async def test_state_with_a_time_to_live_is_gone_after_it(store: JobStore, clock: FakeClock) -> None:
    await store.cached_state.set("/one", "short", 1, ttl=10)
    await store.cached_state.set("/one", "long", 2)
    clock.advance(9.999)
    assert await store.cached_state.all("/one") == {"long": 2, "short": 1}
    clock.advance(0.001)
    assert await store.cached_state.get("/one", "short", "gone") == "gone"
    assert await store.cached_state.all("/one") == {"long": 2}


async def test_setting_again_sets_the_time_to_live_again(store: JobStore, clock: FakeClock) -> None:
    await store.cached_state.set("/one", "key", 1, ttl=10)
    clock.advance(8)
    await store.cached_state.set("/one", "key", 2, ttl=10)
    clock.advance(8)
    assert await store.cached_state.get("/one", "key") == 2
    await store.cached_state.set("/one", "key", 3)
    clock.advance(3600)
    assert await store.cached_state.get("/one", "key") == 3


async def test_expired_state_can_be_set_anew(store: JobStore, clock: FakeClock) -> None:
    await store.cached_state.set("/one", "key", 1, ttl=1)
    clock.advance(2)
    assert await store.cached_state.get("/one", "key") is None
    await store.cached_state.set("/one", "key", 2)
    assert await store.cached_state.get("/one", "key") == 2
