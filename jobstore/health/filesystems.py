"""Which file system a path lies on, and whether it is one whose locks and shared memory SQLite cannot rely on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MOUNTS = Path("/proc/self/mountinfo")
_OF_OTHER_HOSTS = re.compile(
    r"(fuse\.)?(nfs\d*|cifs|smb\d?|smbfs|9p|v9fs|virtiofs|ceph|glusterfs|lustre|afs|afpfs|webdav|davfs2?|beegfs\w*|gpfs|"
    r"gfs2|ocfs2|vboxsf|vmhgfs\S*|prl_fs|drvfs|osxfs|grpcfuse|sshfs|s3fs|gcsfuse|blobfuse\d?|rclone|goofys|mountpoint-s3|"
    r"juicefs)"
)
"""Over a network, or another operating system's. SQLite's write-ahead log needs memory that all its processes share,
and locks that hold: https://sqlite.org/wal.html and https://sqlite.org/faq.html#q5."""


class FileSystem(NamedTuple):
    """What a path lies on."""

    kind: str
    """As the operating system calls it, such as `ext4`, `nfs4` or `apfs`."""
    mounted_at: str

    @property
    def is_network(self) -> bool:
        """Whether it is a network's, or shared with another operating system: no place for an SQLite database."""
        return _OF_OTHER_HOSTS.fullmatch(self.kind) is not None


def filesystem_of(path: Path) -> FileSystem | None:
    """Return the file system that a path, which need not exist, lies on; None where it cannot be told.

    Example:
        >>> filesystem_of(Path("/srv/jobs.db"))
        FileSystem(kind='ext4', mounted_at='/')
    """
    try:
        if sys.platform == "darwin":
            shown = subprocess.run(["/sbin/mount"], capture_output=True, text=True, check=True, timeout=5).stdout
            return _innermost(path, _read_mount(shown))
        return _innermost(path, _read_mountinfo(_MOUNTS.read_bytes()))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _innermost(path: Path, mounts: Iterator[FileSystem]) -> FileSystem | None:
    """Return the deepest that holds the path; of several at the same place, the last covers the others."""
    real = Path(os.path.realpath(path))
    places = {real, *real.parents}
    found: FileSystem | None = None
    for mount in mounts:
        if Path(mount.mounted_at) in places and (found is None or len(mount.mounted_at) >= len(found.mounted_at)):
            found = mount
    return found


def _read_mountinfo(text: bytes) -> Iterator[FileSystem]:
    """Read what `man 5 proc_pid_mountinfo` tells of; special characters are written in octal."""
    for line in text.splitlines():
        before, _, after = line.partition(b" - ")
        place = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), before.split()[4])
        yield FileSystem(after.split()[0].decode(), os.fsdecode(place))


def _read_mount(text: str) -> Iterator[FileSystem]:
    """Read what macOS's `mount` prints, such as `//me@host/share on /Volumes/share (smbfs, nodev)`."""
    for match in re.finditer(r"^.+? on (/.*) \(([\w.-]+)[^()]*\)$", text, re.MULTILINE):
        yield FileSystem(match[2], match[1])
