"""On whose account the running request is."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field

from graft_client.schemas.limits import Limits
from graft_server.quotas.ledger import Owner


@dataclass(slots=True, eq=False)
class Account:
    """The key of one request, or everybody together where a server has none. ``adapters`` are those that the request
    has asked, with their limits."""

    owner: Owner
    title: str
    limits: Limits
    adapters: dict[str, Limits] = field(default_factory=dict)
    #: Of those parts of a request that wait for a limit, one looks at a time.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


#: What the server does by itself is on nobody's account and is not counted.
current_account: ContextVar[Account | None] = ContextVar("graft_account", default=None)
