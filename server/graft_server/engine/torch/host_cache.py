"""Adapters in host memory, read and checked, ready for a slot: the least recently used leave first. Pure state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Generic, TypeVar

from graft_server.engine.integrity import require

ValueT = TypeVar("ValueT")


class HostCache(Generic[ValueT]):
    """Values by engine id within a budget of ``budget`` bytes. One that alone is larger is kept until the next comes:
    it was read to be used."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._values: OrderedDict[int, tuple[ValueT, int]] = OrderedDict()

    def __contains__(self, engine_id: int) -> bool:
        return engine_id in self._values

    def __len__(self) -> int:
        return len(self._values)

    def room_beside(self, kept: Collection[int], size: int | None = None) -> bool:
        """Whether one more value of ``size`` bytes, or as large as the largest here, can come in without pushing out
        one of these."""
        if size is None:
            size = max((size for _, size in self._values.values()), default=0)
        return size + sum(self._values[i][1] for i in kept if i in self._values) <= self.budget

    def get(self, engine_id: int) -> ValueT | None:
        """The value, which is now the most recently used."""
        if engine_id not in self._values:
            return None
        self._values.move_to_end(engine_id)
        return self._values[engine_id][0]

    def put(self, engine_id: int, value: ValueT, size: int, *, kept: Collection[int] = ()) -> None:
        """Take a value of ``size`` bytes in; older ones make room, those of ``kept`` last."""
        for older in kept:
            self.get(older)
        self.remove(engine_id)
        self._values[engine_id] = (value, size)
        self.bytes += size
        while self.bytes > self.budget and len(self._values) > 1:
            self.remove(next(iter(self._values)))

    def remove(self, engine_id: int) -> None:
        """Forget a value; unknown ids are ignored."""
        entry = self._values.pop(engine_id, None)
        if entry is not None:
            self.bytes -= entry[1]

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: the bytes are counted wrongly, or are over the budget.
        """
        total = sum(size for _, size in self._values.values())
        require(total == self.bytes, f"{total} bytes of adapters are in host memory, counted as {self.bytes}")
        within = self.bytes <= self.budget or len(self._values) == 1
        require(within, f"{self.bytes} bytes of adapters are in host memory, with a budget of {self.budget}")
