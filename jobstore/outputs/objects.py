"""Large texts in object storage, where workers on many hosts share them. Needs the extra `objects`.

A text is a row of objects of 1 MiB each, the last of them shorter: the first at the text's path, the others below
`<path>.more/`. So where a byte lies follows from its offset alone, for whole texts and for those that still grow:

- While a response streams, its last object is put again about every second, longer each time, until it is full.
  Each put is whole and durable or has not happened, so what a crash leaves is a readable beginning of the text.
- A reader asks for the range behind what it has. That is one request, on any host, without a list.
- When the response is complete, nothing is left to be done but its row. A multipart upload would have to send the
  whole text a second time then, and would be lost, unseen but paid for, with its process.

Most texts are one object. Nothing is ever put at a path that two writers share, but for the marker.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import from_url

from jobstore.clock import Clock
from jobstore.errors import DiskFull, OutputError
from jobstore.models import Text
from jobstore.outputs.base import SWEEP_AGE, Kind, Outputs
from jobstore.outputs.paths import MARKER, is_inside, new_path, parts

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import BackoffConfig, RetryConfig

SEGMENT_BYTES = 1024 * 1024
"""Of each object of a text but its last."""
PAGE = 500
"""Objects of a listing that are looked at together."""
REMOVERS = 8
"""Texts whose removal is prepared at the same time."""
RETRIES = 5
RETRY_SECONDS = 20.0
"""After which a request that failed is not tried again. One try ends after 30 s, or as AWS_TIMEOUT and the like say."""

_MORE = re.compile(r"(.+)\.more/\d{6,}")
_NO_ROOM = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"})
_NO_CONDITIONS = frozenset({"NotImplemented", "501"})
"""How a storage says that it cannot put an object only if there is none."""
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})


class ObjectOutputs(Outputs):
    """One store's large texts below a prefix of a bucket.

    Args:
        url: Such as `s3://bucket/prefix`, without any secret. Credentials and endpoint come from the environment.
        store_id: What the database calls itself; the prefix is marked with it.
        clock: The present time in milliseconds.

    Raises:
        OutputError: The environment does not say enough to use it.
    """

    tail_seconds = 0.5

    def __init__(self, url: str, store_id: str, clock: Clock) -> None:
        self.url = url
        self._store_id = store_id
        self._clock = clock
        self._marked = False
        with self._refusals(None):
            # Without client options, all of them come from the environment; with one, none would.
            self._store = from_url(url, retry_config=_retries())

    def check(self) -> bool:
        """Check that the prefix, if it is marked, belongs to this store; return whether it is.

        Raises:
            OutputError: It is another store's: each would take the other's texts for orphans; or it cannot be read.
        """
        owner = self._get(MARKER, None)
        if owner is None:
            return False
        if owner.strip() != self._store_id.encode():
            raise OutputError(f"{self.url} belongs to another store: choose another prefix")
        return True

    def check_there(self, path: str) -> None:
        """Check that it is the text's own trouble when it cannot be read, and not the storage's.

        Raises:
            OutputError: It is not: the storage cannot be reached, or the credentials have expired, or it is another.
        """
        if not is_inside(path):
            return
        if not self.check():
            raise OutputError(f"no store has its texts at {self.url}: is it another bucket or prefix?")
        with self._refusals(path):
            try:
                self._store.head(path)
            except (FileNotFoundError, ValueError):
                return  # missing, or not even a name
            except BaseError as error:
                if "400" not in _codes(error):  # a name that the storage does not take
                    raise

    def write(self, kind: Kind, job_id: str, text: bytes) -> Text:
        """Put a text at a path of its own, durably. What a failure leaves of it is for a sweep.

        Raises:
            DiskFull: There is no room.
            OutputError: The storage refuses, or cannot be reached.
        """
        return self._put_text(new_path(kind, job_id), [text])

    def copy_in(self, path: str, chunks: Iterable[bytes]) -> Text:
        """Put a text at a path, durably. What a failure leaves of it is no text, and for a sweep.

        Raises:
            DiskFull: There is no room.
            OutputError: The storage refuses, or cannot be reached.
        """
        parts(path)
        self.remove([path])
        return self._put_text(path, chunks)

    def size(self, path: str) -> int | None:
        """Return how many bytes a text has; None if it is not there.

        Raises:
            OutputError: Its path leads elsewhere, or it cannot be looked at.
        """
        parts(path)
        with self._refusals(path):
            try:
                first: int = self._store.head(path)["size"]
            except FileNotFoundError:
                return None
            pages = self._store.list(f"{path}.more", chunk_size=PAGE) if first == SEGMENT_BYTES else ()
            return first + sum(other["size"] for page in pages for other in page)

    def create(self, job_id: str) -> tuple[Text, ObjectFile]:
        """Put an empty text to stream a response into, durably.

        Raises:
            DiskFull: There is no room.
            OutputError: The storage refuses, or cannot be reached.
        """
        began = self._clock()
        path = new_path("responses", job_id)
        self._mark()
        self.put(path, 0, b"")
        return Text(None, path, 0, None, began), ObjectFile(self, path)

    def put(self, path: str, number: int, data: bytes | bytearray | memoryview) -> None:
        """Put one of the objects of a text.

        Raises:
            DiskFull: There is no room.
            OutputError: The storage refuses, or cannot be reached.
        """
        with self._refusals(path):
            self._store.put(_name(path, number), data, use_multipart=False)

    def chunks(self, path: str, offset: int) -> Iterator[bytes]:
        """Read a text object by object from an offset to its present end.

        Raises:
            OutputError: It is missing, or cannot be read.
        """
        parts(path)
        while data := self._part(path, offset):
            yield data
            offset += len(data)
            if offset % SEGMENT_BYTES:
                return

    def remove(self, paths: list[str]) -> int:
        """Remove texts that no row names any more, as far as they are there; return how many were."""
        with ThreadPoolExecutor(REMOVERS) as pool:
            found = [objects for objects in pool.map(self._objects, filter(is_inside, paths)) if objects]
        try:
            # The first objects of texts go last: what lies below a text that is gone is not looked for again.
            self._delete([name for _, *others in found for name in others])
            self._delete([first for first, *_ in found])
        except OutputError:
            return 0  # a sweep will do it
        return len(found)

    def old_files(self, age: float = SWEEP_AGE) -> Iterator[list[str]]:
        """Yield the paths of texts with an object that was put at least `age` seconds ago, page by page.

        Raises:
            OutputError: The storage cannot be listed.
        """
        latest = datetime.fromtimestamp(self._clock() / 1000 - age, UTC)
        for kind in ("prompts", "responses"):
            pages = self._store.list(kind, chunk_size=PAGE)
            with self._refusals(None):
                for page in pages:
                    old = (_text(found["path"]) for found in page if found["last_modified"] <= latest)
                    if paths := list(dict.fromkeys(old)):
                        yield paths

    def _put_text(self, path: str, chunks: Iterable[bytes]) -> Text:
        """Put the objects of a text, the first of them last: until then there is no text."""
        began = self._clock()
        self._mark()
        digest, size = hashlib.sha256(), 0
        segments = _segments(chunks)
        first = next(segments, b"")
        for number, segment in enumerate(itertools.chain([first], segments)):
            digest.update(segment)
            size += len(segment)
            if number:
                self.put(path, number, segment)
        self.put(path, 0, first)
        return Text(None, path, size, digest.hexdigest(), began)

    def _part(self, path: str, offset: int) -> bytes:
        """Read the rest of one object of a text, from an offset in the text."""
        number, begin = divmod(offset, SEGMENT_BYTES)
        # A range must not be empty: it begins with a byte that is there, as it was read before.
        skipped = 1 if begin else 0
        data = self._get(_name(path, number), (begin - skipped, SEGMENT_BYTES) if begin else None)
        if data is None and number == 0:
            raise OutputError(f"{path} is missing from {self.url}: restore it from a backup", path)
        return b"" if data is None else data[skipped:]

    def _get(self, name: str, span: tuple[int, int] | None) -> bytes | None:
        """Get an object, or a part of it; None if there is none."""
        options: GetOptions = {} if span is None else {"range": span}
        with self._refusals(name):
            try:
                found = self._store.get(name, options=options)
            except FileNotFoundError as error:
                if _codes(error) & _NO_BUCKET:
                    raise
                return None
            if span is None and found.meta["size"] > SEGMENT_BYTES:
                raise OutputError(f"{name} is not what was written (it is too large): restore it from a backup", name)
            return bytes(found.bytes())

    def _mark(self) -> None:
        """Put whose prefix it is, unless that stands there."""
        if self._marked or self.check():
            self._marked = True
            return
        owner = self._store_id.encode()
        with self._refusals(None):
            try:
                self._store.put(MARKER, owner, mode="create", use_multipart=False)
            except AlreadyExistsError:
                pass  # another process of this store, or another store: seen below
            except BaseError as error:
                if not isinstance(error, NotSupportedError) and not _codes(error) & _NO_CONDITIONS:
                    raise
                self._store.put(MARKER, owner, use_multipart=False)
        self._marked = self.check()

    def _objects(self, path: str) -> list[str]:
        """Return the names of the objects that a text has, its first one first; none if it is not there."""
        with contextlib.suppress(OutputError), self._refusals(path):
            first = _name(path, 0)
            try:
                if self._store.head(first)["size"] < SEGMENT_BYTES:
                    return [first]
                found = [first]
            except FileNotFoundError:
                found = []
            more = [other["path"] for page in self._store.list(f"{path}.more", chunk_size=PAGE) for other in page]
            return [first, *more] if found or more else []
        return []

    def _delete(self, names: list[str]) -> None:
        with self._refusals(None), contextlib.suppress(FileNotFoundError):
            if names:
                self._store.delete(names)

    @contextlib.contextmanager
    def _refusals(self, path: str | None) -> Iterator[None]:
        """Say in our words what the storage refused, with nothing in it that might be a secret or a text."""
        try:
            yield
        except OutputError:
            raise
        except Exception as error:  # noqa: BLE001 - the library raises its own, OSError and ValueError
            raise self._failure(error, path) from _scrubbed(error)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # which is no Exception: the library has given up
                raise
            advice = "is each address in the environment a whole URL, as AWS_ENDPOINT=https://host:9000?"
            raise OutputError(f"{self.url} cannot be used: {advice}") from None

    def _failure(self, error: Exception, path: str | None) -> OutputError | DiskFull:
        codes = _codes(error)
        said = ", ".join(sorted(codes)) or "it gave no answer that is known"
        what = self.url if path is None else f"{path} at {self.url}"
        if codes & _NO_ROOM:
            return DiskFull(f"no room to write {what} ({said}): free some space and try again")
        if codes & _NO_BUCKET:
            return OutputError(f"{self.url} cannot be used: there is no such bucket ({said})", path)
        if codes & {"416"}:
            return OutputError(f"{what} is not what was written (it is too short): restore it from a backup", path)
        if codes & {"401", "403"}:
            advice = "check the credentials, and that they may get, put, list and delete objects there"
            return OutputError(f"{what} cannot be used: access was denied ({said}): {advice}", path)
        return OutputError(f"{what} cannot be used ({said}): check that the storage can be reached", path)


class ObjectFile:
    """A text in object storage that is appended to. Its methods block.

    It holds at most one object of it in memory, which is put again as it grows.
    """

    def __init__(self, outputs: ObjectOutputs, path: str) -> None:
        self.path = path
        self.size = 0
        self._outputs = outputs
        self._number = 0
        self._segment = bytearray()
        self._dirty = False

    def append(self, data: bytes | bytearray) -> None:
        """Append bytes; objects that are full are put at once, the rest when synced.

        Raises:
            DiskFull: There is no room.
            OutputError: The storage refuses, or cannot be reached.
        """
        view = memoryview(data)
        while view:
            room = SEGMENT_BYTES - len(self._segment)
            self._segment += view[:room]
            view = view[room:]
            self._dirty = True
            if len(self._segment) == SEGMENT_BYTES:
                self.sync()
                self._number, self._segment = self._number + 1, bytearray()

    def sync(self) -> None:
        """Put what was appended: it is durable, and readable from everywhere.

        Raises:
            DiskFull: There is no room.
            OutputError: The storage refuses, or cannot be reached.
        """
        if self._dirty:
            self._outputs.put(self.path, self._number, self._segment)
            self.size = self._number * SEGMENT_BYTES + len(self._segment)
            self._dirty = False

    def close(self) -> None:
        """Let go of what is in memory. Doing it twice is fine."""
        self._segment = bytearray()


def _retries() -> RetryConfig:
    """Return how often, and for how long, a request that failed is tried again."""
    backoff: BackoffConfig = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2}
    return {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS), "backoff": backoff}


def _name(path: str, number: int) -> str:
    """Return the name of one of the objects of a text."""
    return f"{path}.more/{number:06}" if number else path


def _text(name: str) -> str:
    """Return the path of the text that an object belongs to."""
    match = _MORE.fullmatch(name)
    return match[1] if match else name


def _segments(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a text, which comes in chunks of any size, into what one object holds."""
    held = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            room = SEGMENT_BYTES - len(held)
            held += view[:room]
            view = view[room:]
            if len(held) == SEGMENT_BYTES:
                yield bytes(held)
                held.clear()
    if held:
        yield bytes(held)


def _codes(error: Exception) -> set[str]:
    """Return what an error says of its reason: the status of the answer, the storage's word for it, or what failed."""
    return set(re.findall(r"(?<=status code: )\d{3}|(?<=<Code>)\w+|(?<=HTTP error: )[a-z ]+", str(error)))


def _scrubbed(error: Exception) -> Exception:
    """Return an error as a cause to look at, without the body of an answer, what a URL was asked with, and by whom."""
    line = str(error).partition("\n")[0]
    line = re.sub(r"(status code: \d{3}[A-Za-z ]*).*", r"\1", line)
    return type(error)(re.sub(r"\?\S*|(?<=//)[^/\s]*@", "", line))
