"""Which adapters are in device memory: the least recently used goes first, never one in use. Pure state: no torch."""

from __future__ import annotations

from collections import OrderedDict


class Slots:
    """At most ``total`` adapters by engine id, with the number of requests that use each."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._users: OrderedDict[int, int] = OrderedDict()

    def __contains__(self, engine_id: int) -> bool:
        return engine_id in self._users

    def __len__(self) -> int:
        return len(self._users)

    def ids(self) -> list[int]:
        """Least recently used first."""
        return list(self._users)

    def in_use(self, engine_id: int) -> bool:
        return self._users.get(engine_id, 0) > 0

    def room(self) -> bool:
        """Whether an adapter can come in, be it in place of an idle one."""
        return len(self._users) < self.total or any(users == 0 for users in self._users.values())

    def put(self, engine_id: int) -> int | None:
        """Take a slot; returns the id that had to leave for it.

        Raises:
            LookupError: every slot is in use.
        """
        if engine_id in self._users:
            return None
        evicted = None
        if len(self._users) >= self.total:
            evicted = next((i for i, users in self._users.items() if users == 0), None)
            if evicted is None:
                raise LookupError("every adapter slot is in use")
            del self._users[evicted]
        self._users[engine_id] = 0
        return evicted

    def acquire(self, engine_id: int) -> None:
        self._users[engine_id] += 1
        self._users.move_to_end(engine_id)

    def release(self, engine_id: int) -> None:
        if self._users[engine_id] < 1:
            raise ValueError(f"adapter {engine_id} is released more often than acquired")
        self._users[engine_id] -= 1

    def remove(self, engine_id: int) -> None:
        """Free an idle adapter's slot; unknown ids are ignored.

        Raises:
            ValueError: requests still use it.
        """
        if self.in_use(engine_id):
            raise ValueError(f"adapter {engine_id} is in use")
        self._users.pop(engine_id, None)
