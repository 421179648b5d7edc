"""Object storage for these tests: a server on loopback that speaks S3, and a bucket of each test's own."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from threading import Lock
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

SECRET = "a-secret-access-key"  # noqa: S105 - of a server that knows none


class ObjectStorage:
    """A bucket, looked at from outside.

    Attributes:
        bucket: Its name.
        url: What a store is given: a prefix in it.
        client: Another library's client of it.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.bucket = f"bucket-{uuid.uuid4().hex}"
        self.url = f"s3://{self.bucket}/some/prefix"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key=SECRET,
            config=Config(retries={"max_attempts": 1}),
        )
        self.client.create_bucket(Bucket=self.bucket)

    def names(self) -> set[str]:
        """Return the names of all objects of the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {found["Key"] for page in pages for found in page.get("Contents", [])}

    def texts(self) -> set[str]:
        """Return the names of the objects below the prefix, relative to it, but for the marker."""
        prefix = "some/prefix/"
        return {name.removeprefix(prefix) for name in self.names() if name.startswith(prefix)} - {"store_id"}

    def get(self, path: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=f"some/prefix/{path}")["Body"].read()
        return data

    def put(self, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"some/prefix/{path}", Body=data)

    def destroy(self) -> None:
        """Remove the bucket with all that is in it."""
        for name in self.names():
            self.client.delete_object(Bucket=self.bucket, Key=name)
        self.client.delete_bucket(Bucket=self.bucket)

    def deny_all(self) -> None:
        """Refuse every request from now on: nobody has a right to anything."""
        self._allow(0)

    def allow_all(self) -> None:
        self._allow(10**9)

    def _allow(self, requests: int) -> None:
        url, told = f"{self.endpoint}/moto-api/reset-auth", str(requests).encode()
        with urlopen(Request(url, told, {"Content-Type": "text/plain"})):  # noqa: S310 - our own server
            pass


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    put_object, turn = S3Response.put_object, Lock()

    def put_in_one_step(response: S3Response) -> Any:  # noqa: ANN401
        """Look whether there is anything, and put: as S3 does; this server's threads might come in between."""
        with turn:
            return put_object(response)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_in_one_step)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def storage(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStorage]:
    """A bucket, and an environment in which this process and its children may use it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    storage = ObjectStorage(s3)
    yield storage
    storage.allow_all()
