"""Tells the other processes on this machine of a commit at once, by a datagram to each that has the file open.

SQLite has no notifications, so processes look at the file's `data_version` from time to time. That stays, as the
safety net: a datagram may be lost, a process may be unable to bind a socket, and Windows has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Protocol

WORK, CHANGE = b"w", b"c"
MAX_DATAGRAM = 16
OPEN_TRIES = 100
STILL_CHANGING = 1_000_000_000
"""Nanoseconds. Within the same tick of a file system's clock a folder may change again without a trace."""


class Heard(Protocol):
    """What is called when another process has committed."""

    def __call__(self, *, work: bool) -> None:
        """Be told, and whether that may have made work."""


class Doorbell:
    """One process's socket in the folder `<database>.wake`, and how it reaches those of the others.

    Each process binds a socket of its own there. `ring` sends to all others, and removes those that nobody has bound
    any more: left behind by processes that were killed.

    Args:
        database: The file that the processes share.
        heard: Called in the event loop when another process rang.
    """

    def __init__(self, database: Path, heard: Heard) -> None:
        self._folder = Path(f"{database}.wake")
        self._heard = heard
        self._name = f"{os.getpid()}.{secrets.token_hex(4)}"
        self._socket: socket.socket | None = None
        self._directory = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen = -1
        self._others: list[str] = []

    def __del__(self) -> None:
        """Let go of it; another process removes its name. The store itself warns of a forgotten close."""
        if self._socket is not None:
            self._socket.close()
            os.close(self._directory)

    def open(self) -> bool:
        """Bind the socket; return whether that was possible. It blocks."""
        if not hasattr(socket, "AF_UNIX") or not hasattr(os, "O_DIRECTORY"):
            return False
        for _ in range(OPEN_TRIES):
            try:
                self._bind()
            except (FileNotFoundError, FileExistsError):  # the last of the others is just removing the folder
                self._release()
            except OSError:  # a folder that may not be written, a path too long, too many files
                self._release()
                return False
            else:
                return True
        return False

    def _bind(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - the name of the standard library
        self._socket.bind(self._address(self._name))

    def close(self) -> None:
        """Unbind it, and remove the folder after the last one. Doing it twice is fine."""
        self.listen(None)
        if self._socket is not None:
            self._remove(self._name)
            self._release()
            with contextlib.suppress(OSError):  # others are there
                self._folder.rmdir()

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def listen(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Call back in this event loop from now on, or in none; return whether it does.

        What came while nobody listened is heard at once: the kernel keeps some of it.
        """
        if self._loop is not None and self._socket is not None:
            self._loop.remove_reader(self._socket)
        self._loop = None
        if loop is None or self._socket is None:
            return False
        try:
            loop.add_reader(self._socket, self._receive)
        except NotImplementedError:  # an event loop that waits for no sockets
            return False
        self._loop = loop
        return True

    def ring(self, *, work: bool) -> None:
        """Tell the others of a commit, and whether it may have made work. It never waits for them."""
        if self._socket is None:
            return
        for name in self._find_others():
            try:
                self._socket.sendto(WORK if work else CHANGE, self._address(name))
            except BlockingIOError:
                continue  # it has enough of them to wake up
            except (ConnectionRefusedError, FileNotFoundError):
                self._remove(name)
            except OSError:
                continue  # it looks for itself

    def _find_others(self) -> list[str]:
        changed = os.fstat(self._directory).st_mtime_ns
        if changed != self._seen or time.time_ns() - changed < STILL_CHANGING:
            self._seen = changed
            self._others = [name for name in os.listdir(self._directory) if name != self._name]  # noqa: PTH208 - it is open
        return self._others

    def _remove(self, name: str) -> None:
        self._seen = -1
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._directory)

    def _address(self, name: str) -> str:
        """Return a path to a socket that is short, whatever the folder's is: an address takes about 100 bytes."""
        short = f"/proc/self/fd/{self._directory}/{name}"
        return short if os.path.isdir("/proc/self/fd") else str(self._folder / name)  # noqa: PTH112 - it is asked often

    def _receive(self) -> None:
        work = False
        with contextlib.suppress(OSError):
            while self._socket is not None:
                work |= self._socket.recv(MAX_DATAGRAM) == WORK
        self._heard(work=work)
