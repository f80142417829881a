"""What waits: tickets, and the queue of one adapter and one priority class."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

#: Whose requests: an engine id, or ``None`` for the base model, which is served like an adapter but needs no slot.
Adapter: TypeAlias = int | None


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way through the gate. ``cost`` is in tokens, ``arrived`` in the caller's seconds."""

    number: int
    adapter: Adapter
    cost: int
    background: bool
    arrived: float
    #: The gate's ``row_seconds`` and the time when it was let in.
    row_seconds: float = 0.0
    admitted: float | None = None


@dataclass(slots=True, eq=False)
class Queue:
    """First in, first out. Removing a ticket costs the same wherever it stands: callers hang up in crowds."""

    adapter: Adapter
    background: bool
    tokens: int = 0
    _tickets: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._tickets

    @property
    def head(self) -> Ticket:
        return next(iter(self._tickets))

    def append(self, ticket: Ticket) -> None:
        self._tickets[ticket] = None
        self.tokens += ticket.cost

    def remove(self, ticket: Ticket) -> None:
        del self._tickets[ticket]
        self.tokens -= ticket.cost
