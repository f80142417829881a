"""Which adapters are in device memory: the least recently used goes first, never one in use or pinned. Pure state: no
torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set

from graft_server.engine.integrity import require


class Slots:
    """At most ``total`` adapters by engine id, with the number of requests that use each."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.evictions = 0
        self._users: OrderedDict[int, int] = OrderedDict()
        self._pinned: set[int] = set()

    def __contains__(self, engine_id: int) -> bool:
        return engine_id in self._users

    def __len__(self) -> int:
        return len(self._users)

    @property
    def pinned(self) -> Set[int]:
        """Ids that stay in their slot, or get one that they keep."""
        return self._pinned

    def ids(self) -> list[int]:
        """Least recently used first."""
        return list(self._users)

    def in_use(self, engine_id: int) -> bool:
        return self._users.get(engine_id, 0) > 0

    def room(self) -> bool:
        """Whether an adapter can come in, be it in place of an idle one."""
        return len(self._users) < self.total or self._evictable() is not None

    def put(self, engine_id: int) -> int | None:
        """Take a slot; returns the id that had to leave for it.

        Raises:
            LookupError: every slot is in use or pinned.
        """
        if engine_id in self._users:
            return None
        evicted = None
        if len(self._users) >= self.total:
            evicted = self._evictable()
            if evicted is None:
                raise LookupError("every adapter slot is in use")
            del self._users[evicted]
            self.evictions += 1
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
        """Free an idle adapter's slot, pinned or not; unknown ids are ignored.

        Raises:
            ValueError: requests still use it.
        """
        if self.in_use(engine_id):
            raise ValueError(f"adapter {engine_id} is in use")
        self._users.pop(engine_id, None)
        self._pinned.discard(engine_id)

    def pin(self, engine_id: int) -> None:
        """Keep an adapter in its slot, now or as soon as it has one.

        Raises:
            LookupError: one slot has to stay free for all the others.
        """
        if engine_id not in self._pinned and len(self._pinned) >= self.total - 1:
            raise LookupError(f"{len(self._pinned)} of {self.total} slots are pinned, and one has to stay free")
        self._pinned.add(engine_id)

    def unpin(self, engine_id: int) -> None:
        """Let the adapter leave again; one that is not pinned is left as it is."""
        self._pinned.discard(engine_id)

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: there are more adapters or pins than allowed, or a negative number of users.
        """
        require(len(self._users) <= self.total, f"{len(self._users)} adapters are in {self.total} slots")
        require(len(self._pinned) < self.total, f"{len(self._pinned)} of {self.total} slots are pinned")
        require(all(users >= 0 for users in self._users.values()), f"slots have users {dict(self._users)}")

    def _evictable(self) -> int | None:
        return next((i for i, users in self._users.items() if users == 0 and i not in self._pinned), None)
