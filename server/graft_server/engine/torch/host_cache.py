"""Adapters in host memory, read and checked, ready for a slot: the least recently used leave first. Pure state."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

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

    @property
    def full(self) -> bool:
        return self.bytes >= self.budget

    def get(self, engine_id: int) -> ValueT | None:
        """The value, which is now the most recently used."""
        if engine_id not in self._values:
            return None
        self._values.move_to_end(engine_id)
        return self._values[engine_id][0]

    def put(self, engine_id: int, value: ValueT, size: int) -> None:
        """Take a value of ``size`` bytes in; older ones make room."""
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
