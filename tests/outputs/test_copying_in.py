"""A text that is copied in from another place: at the same path, whole or not at all, in a folder and in a bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobstore import OutputError
from jobstore.outputs import Outputs
from jobstore.outputs.folder import FolderOutputs
from jobstore.outputs.objects import SEGMENT_BYTES, ObjectOutputs
from jobstore.testing import FakeClock

PATH = "responses/ab/some-job.0123456789abcdef.txt"


@pytest.fixture(params=["folder", "bucket"])
def outputs(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Outputs:
    if request.param == "folder":
        return FolderOutputs(tmp_path / "texts", "me", clock)
    return ObjectOutputs(request.getfixturevalue("storage").url, "me", clock)


def pieces(data: bytes, size: int = 300_007) -> Iterator[bytes]:
    yield from (data[begin : begin + size] for begin in range(0, len(data), size))


def read(outputs: Outputs) -> bytes:
    return b"".join(outputs.chunks(PATH, 0))


@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES])
def test_a_text_of_any_size_comes_in_pieces_of_any_size(outputs: Outputs, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    assert outputs.size(PATH) is None
    text = outputs.copy_in(PATH, pieces(data))
    assert (text.file_path, text.size, text.sha256) == (PATH, size, hashlib.sha256(data).hexdigest())
    assert outputs.size(PATH) == size
    assert read(outputs) == data


def test_what_is_there_is_replaced_and_nothing_of_it_remains(outputs: Outputs) -> None:
    outputs.copy_in(PATH, [b"x" * (2 * SEGMENT_BYTES + 1)])
    outputs.copy_in(PATH, [b"y" * SEGMENT_BYTES])
    assert outputs.size(PATH) == SEGMENT_BYTES
    assert read(outputs) == b"y" * SEGMENT_BYTES


def test_where_its_source_fails_there_is_no_text(outputs: Outputs) -> None:
    def breaks_off() -> Iterator[bytes]:
        yield b"x" * (SEGMENT_BYTES + 1)
        raise OutputError("gone")

    with pytest.raises(OutputError, match="gone"):
        outputs.copy_in(PATH, breaks_off())
    assert outputs.size(PATH) is None
    with pytest.raises(OutputError, match="missing"):
        read(outputs)
    outputs.copy_in(PATH, [b"whole"])
    assert read(outputs) == b"whole"


@pytest.mark.parametrize("path", ["../outside", "responses/../../outside", "/outside", "store_id"])
def test_no_path_leads_out(outputs: Outputs, path: str) -> None:
    for use in (lambda: outputs.copy_in(path, [b"x"]), lambda: outputs.size(path)):
        with pytest.raises(OutputError, match="leads out"):
            use()


def test_a_copy_marks_the_place_as_the_store_s(outputs: Outputs) -> None:
    assert not outputs.check()
    outputs.copy_in(PATH, [b"x"])
    assert outputs.check()
