"""Deficit round robin (Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin", 1996).

Queues take turns. Each turn is worth ``quantum`` tokens; what a queue can't spend on its head it keeps for its next
turn, and loses when it runs empty. So queues that always have something waiting are served the same number of
tokens, but for one quantum and two requests, however large their requests are and however many of them wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from graft_server.admission.queues import Queue


class RoundRobin:
    """A ring of queues, none of them empty. The caller takes tickets out and tells what they cost."""

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        #: Each queue's deficit in tokens, in the order of their turns. The first one's turn it is.
        self._ring: OrderedDict[Queue, int] = OrderedDict()
        self._begun = False

    def __len__(self) -> int:
        return len(self._ring)

    def __iter__(self) -> Iterator[Queue]:
        return iter(self._ring)

    def __contains__(self, queue: Queue) -> bool:
        return queue in self._ring

    def add(self, queue: Queue) -> None:
        """Join the ring as the last one, with nothing saved."""
        self._ring[queue] = 0

    def discard(self, queue: Queue) -> None:
        """Leave the ring and what was saved behind."""
        if queue in self._ring:
            if queue is self._front:
                self._begun = False
            del self._ring[queue]

    def pick(self, may: Callable[[Queue], bool]) -> Queue | None:
        """The queue whose head is next among those that ``may`` be served now; ``None`` where there is none.

        Those that may not are passed over and save nothing meanwhile.
        """
        while self._ring:
            for _ in range(len(self._ring)):
                queue = self._front
                if may(queue):
                    if not self._begun:
                        self._ring[queue] += self.quantum
                        self._begun = True
                    if self._ring[queue] >= queue.head.cost:
                        return queue
                self._ring.move_to_end(queue)
                self._begun = False
            able = [queue for queue in self._ring if may(queue)]
            if not able:
                return None
            # The rounds in which nobody could be served yet, in one go: a request of many quanta costs no loop.
            rounds = min(-(-(queue.head.cost - self._ring[queue]) // self.quantum) for queue in able) - 1
            for queue in able:
                self._ring[queue] += rounds * self.quantum
        return None

    def charge(self, queue: Queue, cost: int) -> None:
        """Its head was served; an empty queue leaves the ring."""
        self._ring[queue] -= cost
        if not queue:
            self.discard(queue)

    @property
    def _front(self) -> Queue:
        return next(iter(self._ring))
