"""Network file systems are recognised."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobstore.health import filesystems
from jobstore.health.filesystems import FileSystem, filesystem_of

MOUNTINFO = rb"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /mnt rw,nosuid - tmpfs tmpfs rw
41 30 0:51 / /mnt/two\040words rw,relatime shared:9 master:2 - nfs4 host:/export rw,vers=4.2
42 30 0:52 / /mnt/covered rw - ext4 /dev/vdb rw
43 30 0:53 / /mnt/covered rw - cifs //host/share rw
44 22 0:54 / /mn rw - 9p host rw
""".strip()
MOUNT = """/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse, protect)
//me@host/share on /Volumes/my share (1) (smbfs, nodev, nosuid, mounted by me)
"""


@pytest.mark.parametrize(
    ("path", "kind", "is_network"),
    [
        ("/srv/jobs.db", "ext4", False),
        ("/mnt/jobs.db", "tmpfs", False),
        ("/mnt/two words/app/jobs.db", "nfs4", True),
        ("/mnt/covered/jobs.db", "cifs", True),
        ("/mnt/coveredjobs.db", "tmpfs", False),
    ],
)
def test_the_innermost_mount_counts(
    path: str, kind: str, *, is_network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "mountinfo"
    listed.write_bytes(MOUNTINFO)
    monkeypatch.setattr(filesystems, "_MOUNTS", listed)
    found = filesystem_of(Path(path))
    assert found is not None
    assert (found.kind, found.is_network) == (kind, is_network)


def test_what_macos_prints_is_read() -> None:
    assert [tuple(found) for found in filesystems._read_mount(MOUNT)] == [
        ("apfs", "/"),
        ("apfs", "/System/Volumes/Data"),
        ("smbfs", "/Volumes/my share (1)"),
    ]


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "fuse.glusterfs", "ceph"]
)
def test_these_are_networks(kind: str) -> None:
    assert FileSystem(kind, "/").is_network


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "fuse.bindfs", "f2fs"])
def test_these_are_none(kind: str) -> None:
    assert not FileSystem(kind, "/").is_network


def test_this_machines_own_is_told_as_others_tell_it(tmp_path: Path) -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("only Linux lists it there")
    shown = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True)  # noqa: S607
    found = filesystem_of(tmp_path / "none" / "jobs.db")
    assert found is not None
    assert shown.stdout.strip().partition("/")[0].startswith(found.kind[:3])


def test_where_it_cannot_be_told_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_MOUNTS", tmp_path / "none")
    assert filesystem_of(tmp_path) is None
