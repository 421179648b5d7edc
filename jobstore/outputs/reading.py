"""What is done with the bytes of a text that was read: decoding them, and comparing them with their row."""

from __future__ import annotations

import codecs
import contextlib

from jobstore.errors import OutputError


class TextDecoder:
    """Decodes a text that comes in parts; a character that is cut off at the end of a part waits for the next."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def decode(self, data: bytes, path: str, *, last: bool = False) -> str:
        """Decode the next part, of the file at a path; after the last part no character may be cut off.

        Raises:
            OutputError: It is no text.
        """
        with contextlib.suppress(UnicodeDecodeError):  # which quotes what it could not read
            return self._decoder.decode(data, last)
        raise OutputError(f"{path} is not what was written (it is no text): restore it from a backup", path)


def check_whole(path: str, size: int, sha256: str, expected_size: int | None, expected_sha256: str | None) -> None:
    """Compare a file that was read with what its row says.

    Raises:
        OutputError: They differ.
    """
    if expected_size is not None and size != expected_size:
        raise OutputError(f"{path} has {size} bytes instead of {expected_size}: restore it from a backup", path)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise OutputError(f"{path} is not what was written (its SHA-256 differs): restore it from a backup", path)
