"""`store.sessions` and `store.files`: sessions by project, and the paths selected for them."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from jobstore.encoding import check_name, dump_json, first_problem
from jobstore.errors import InvalidArgument
from jobstore.models import Session
from jobstore.operations import files, sessions
from jobstore.repositories.arguments import check_iterable, identifier, path_text
from jobstore.repositories.backend import Backend, new_id
from jobstore.repositories.pruning import delete_of_session
from jobstore.sql import Value


def hash_project(project_directory: str | Path) -> str:
    """Return what a project is kept by, after checking its directory's path."""
    return sessions.hash_project(path_text("project_directory", project_directory))


class _Settings(BaseModel):
    """The columns of a session that its user sets."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1)]
    project_directory: Annotated[str, Field(min_length=1)]
    task_description: str = ""
    search_term: str = ""
    title_regex: str = ""
    content_regex: str = ""
    negative_title_regex: str = ""
    negative_content_regex: str = ""
    is_regex_active: bool = False
    search_selected_files_only: bool = False
    codebase_structure: str = ""
    model_used: str | None = None
    model_settings: dict[str, JsonValue] = Field(default_factory=dict)


class SessionRepository:
    """The sessions of a store. Reached as `store.sessions`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def create(self, *, name: str, project_directory: str | Path, **settings: Any) -> Session:  # noqa: ANN401
        """Create a session.

        Args:
            name: What the user calls it.
            project_directory: Which project it is about.
            **settings: Any other field of `Session` but its id, hash and times.

        Raises:
            InvalidArgument: A field cannot be accepted; it names the field.

        Example:
            >>> session = await store.sessions.create(name="demo", project_directory="/src/app")
        """
        fields = {"name": name, "project_directory": project_directory, **settings}
        columns = _columns(fields, new=True)
        return await self._backend.write(sessions.create, columns | {"id": new_id()})

    async def get(self, session_id: str) -> Session:
        """Return a session.

        Raises:
            SessionNotFound: There is no such session.
        """
        return await self._backend.read(sessions.get, identifier("session_id", session_id))

    async def update(self, session_id: str, **changes: Any) -> Session:  # noqa: ANN401
        """Change fields of a session, those that `create` takes, and return it.

        Raises:
            InvalidArgument: A field cannot be accepted; it names the field.
            SessionNotFound: There is no such session.
        """
        session_id = identifier("session_id", session_id)
        return await self._backend.write(sessions.update, session_id, _columns(changes, new=False))

    async def delete(self, session_id: str) -> None:
        """Delete a session with its jobs, their files, and the paths selected for it.

        Raises:
            SessionNotFound: There is no such session.
        """
        session_id = identifier("session_id", session_id)
        await delete_of_session(self._backend, session_id)
        await self._backend.write(sessions.delete, session_id)

    async def list(self, project_directory: str | Path | None = None) -> builtins.list[Session]:
        """Return the sessions of a project, or all, the newest first."""
        project_hash = None if project_directory is None else hash_project(project_directory)
        return await self._backend.read(sessions.list_sessions, project_hash)


class FileRepository:
    """The paths selected for a session, or forced out of it. Reached as `store.files`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def included(self, session_id: str) -> list[str]:
        """Return the selected paths in the order given; none for an unknown session."""
        return await self._backend.read(files.paths, "included_files", identifier("session_id", session_id))

    async def excluded(self, session_id: str) -> list[str]:
        """Return the paths forced out in the order given; none for an unknown session."""
        return await self._backend.read(files.paths, "excluded_files", identifier("session_id", session_id))

    async def set_included(self, session_id: str, paths: Iterable[str | Path]) -> None:
        """Select exactly these paths.

        Raises:
            SessionNotFound: There is no such session.
        """
        await self._backend.write(files.replace, "included_files", identifier("session_id", session_id), _paths(paths))

    async def set_excluded(self, session_id: str, paths: Iterable[str | Path]) -> None:
        """Force exactly these paths out.

        Raises:
            SessionNotFound: There is no such session.
        """
        await self._backend.write(files.replace, "excluded_files", identifier("session_id", session_id), _paths(paths))

    async def add_included(self, session_id: str, paths: Iterable[str | Path]) -> None:
        """Select these paths as well, behind those that are selected.

        Raises:
            SessionNotFound: There is no such session.
        """
        await self._backend.write(files.add, "included_files", identifier("session_id", session_id), _paths(paths))

    async def add_excluded(self, session_id: str, paths: Iterable[str | Path]) -> None:
        """Force these paths out as well.

        Raises:
            SessionNotFound: There is no such session.
        """
        await self._backend.write(files.add, "excluded_files", identifier("session_id", session_id), _paths(paths))

    async def remove_included(self, session_id: str, paths: Iterable[str | Path]) -> int:
        """Select these paths no more; return how many were selected."""
        return await self._backend.write(
            files.remove, "included_files", identifier("session_id", session_id), _paths(paths)
        )

    async def remove_excluded(self, session_id: str, paths: Iterable[str | Path]) -> int:
        """Force these paths out no more; return how many were."""
        return await self._backend.write(
            files.remove, "excluded_files", identifier("session_id", session_id), _paths(paths)
        )


def _columns(fields: dict[str, Any], *, new: bool) -> dict[str, Value]:
    """Check fields of a session and return them as columns: all of a new one, else those that change."""
    columns = _validated(fields).model_dump(include=None if new else set(fields))
    for name, value in columns.items():
        if isinstance(value, str):
            check_name(name, value, InvalidArgument)
        elif isinstance(value, bool):
            columns[name] = int(value)
    if "model_settings" in columns:
        columns["model_settings"] = dump_json("model_settings", columns["model_settings"])
    if "project_directory" in columns:
        columns["project_hash"] = hash_project(columns["project_directory"])
    return columns


def _validated(fields: dict[str, Any]) -> _Settings:
    given = {"name": "-", "project_directory": "-", **fields}
    given["project_directory"] = path_text("project_directory", given["project_directory"])
    try:
        return _Settings.model_validate(given)
    except ValidationError as error:  # it quotes its input, which is nobody else's to read
        problem = first_problem(error)
    raise InvalidArgument(*problem)


def _paths(paths: Iterable[str | Path]) -> list[str]:
    check_iterable("paths", paths)
    return list(dict.fromkeys(path_text("paths", path) for path in paths))
