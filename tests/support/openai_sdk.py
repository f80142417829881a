"""The official OpenAI SDK against a server on a socket, as an application uses it: only the base URL is another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from graft_server.services import Services
from support.serving import on_socket


class Sdk(NamedTuple):
    """Both clients of the SDK. The blocking one is for threads: the server runs in the test's event loop."""

    blocking: OpenAI
    asynchronous: AsyncOpenAI


@asynccontextmanager
async def openai_sdk(services: Services, **options: Any) -> AsyncIterator[Sdk]:
    """Clients of a server over ``services``; ``options`` are the SDK's own."""
    async with on_socket(services) as (http, _):
        options = {"api_key": "none", "max_retries": 0, "base_url": f"{http.base_url}/v1", **options}
        # Without proxies of the environment, as all other tests.
        with OpenAI(http_client=DefaultHttpxClient(trust_env=False), **options) as blocking:
            async with AsyncOpenAI(http_client=DefaultAsyncHttpxClient(trust_env=False), **options) as asynchronous:
                yield Sdk(blocking, asynchronous)
