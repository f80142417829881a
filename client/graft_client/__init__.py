"""The client of a graftwork server: ``Client``, ``AsyncClient`` and the ``graft`` command.

Names are loaded when they are first used, so that ``graft --help`` imports neither httpx nor pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft_client.aio import AsyncClient
    from graft_client.sync import Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Client":
        from graft_client.sync import Client

        return Client
    if name == "AsyncClient":
        from graft_client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
