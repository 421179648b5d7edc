"""`store.cached_state` and `store.kv`: state by project, and state of the whole application, as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from jobstore.encoding import check_identifier, encode_json, encode_text
from jobstore.errors import InvalidArgument
from jobstore.operations import cached_state, key_value
from jobstore.repositories.arguments import path_text, positive
from jobstore.repositories.backend import Backend
from jobstore.repositories.sessions import hash_project


class CachedStateRepository:
    """User interface state and preferences by project. Reached as `store.cached_state`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get(self, project_directory: str | Path, key: str, default: JsonValue = None) -> JsonValue:
        """Return a value, or the default if there is none or it has expired."""
        text = await self._backend.read(cached_state.get, hash_project(project_directory), key)
        return default if text is None else _decode(text)

    async def set(self, project_directory: str | Path, key: str, value: JsonValue, *, ttl: float | None = None) -> None:
        """Set a value, for `ttl` seconds or for good.

        Raises:
            InvalidArgument: The value is not JSON, or the key or the time cannot be accepted.

        Example:
            >>> await store.cached_state.set("/src/app", "open_tabs", ["main.py"], ttl=3600)
        """
        check_identifier("key", key, InvalidArgument)
        await self._backend.write(
            cached_state.put,
            hash_project(project_directory),
            path_text("project_directory", project_directory),
            key,
            encode_json("value", value),
            None if ttl is None else positive("ttl", ttl),
        )

    async def delete(self, project_directory: str | Path, key: str) -> bool:
        """Delete a value; return whether there was one."""
        return await self._backend.write(cached_state.delete, hash_project(project_directory), key)

    async def all(self, project_directory: str | Path) -> dict[str, JsonValue]:
        """Return all values of a project by key."""
        texts = await self._backend.read(cached_state.all_of, hash_project(project_directory))
        return {key: _decode(text) for key, text in texts.items()}


class KeyValueRepository:
    """General application state. Reached as `store.kv`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get(self, key: str, default: JsonValue = None) -> JsonValue:
        """Return a value, or the default if there is none."""
        text = await self._backend.read(key_value.get, key)
        return default if text is None else _decode(text)

    async def set(self, key: str, value: JsonValue) -> None:
        """Set a value.

        Raises:
            InvalidArgument: The value is not JSON, or the key cannot be accepted.

        Example:
            >>> await store.kv.set("theme", {"dark": True})
        """
        check_identifier("key", key, InvalidArgument)
        await self._backend.write(key_value.put, key, encode_json("value", value))

    async def delete(self, key: str) -> bool:
        """Delete a value; return whether there was one."""
        return await self._backend.write(key_value.delete, key)

    async def items(self, prefix: str | None = None) -> dict[str, JsonValue]:
        """Return values by key, in the order of their keys: all, or those whose key begins with `prefix`."""
        if prefix is not None:
            encode_text("prefix", prefix, InvalidArgument)
        texts = await self._backend.read(key_value.items, prefix)
        return {key: _decode(text) for key, text in texts.items()}


def _decode(text: str) -> JsonValue:
    value: JsonValue = json.loads(text)
    return value
