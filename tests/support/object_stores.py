"""A real S3 server on a port of this machine, which can be stopped, and whose objects can be damaged."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class S3Server:
    """Buckets of one server."""

    def __init__(self, server: Any) -> None:
        self._server = server
        host, port = server.get_host_and_port()
        #: What a process needs in its environment to find the server.
        self.environment: Mapping[str, str] = {**_KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}

    def stop(self) -> None:
        self._server.stop()

    def new_url(self) -> str:
        """The URL of a prefix in an empty bucket."""
        bucket = f"bucket-{secrets.token_hex(4)}"
        self.driver().mkdir(bucket)
        return f"s3://{bucket}/some/prefix"

    def driver(self) -> Any:
        """An fsspec file system, for looking at what is there and spoiling it."""
        import s3fs

        return s3fs.S3FileSystem(
            key="test", secret="test", endpoint_url=self.environment["AWS_ENDPOINT_URL"], skip_instance_cache=True
        )


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server, with the environment that finds it; the test is skipped where it is not installed."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'graftwork[dev]')")
    moto = pytest.importorskip("moto.server", reason="moto is not installed (pip install 'graftwork[dev]')")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    made = S3Server(server)
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)
    try:
        yield made
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.stop()
