"""The checks of the engine's books: a breach of each kind is found, and reported without stopping the engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from graft_server.engine.integrity import IntegrityError, require
from graft_server.engine.process import RestChecks
from graft_server.engine.slots import Slots
from graft_server.engine.torch.block_pool import BlockPool, root
from graft_server.engine.torch.host_cache import HostCache


def used_pool() -> BlockPool:
    """Four blocks: one in use, one remembered and idle, two empty."""
    pool = BlockPool(4, 2)
    first, second = pool.allocate(2)
    pool.remember(second, root(1), [5, 6])
    pool.release([second])
    assert first == 0
    pool.check_integrity()
    return pool


def _lose(pool: BlockPool) -> None:
    pool._empty.pop()


def _free_twice(pool: BlockPool) -> None:
    pool._empty.append(pool._empty[0])


def _free_one_in_use(pool: BlockPool) -> None:
    pool._empty.append(0)


def _forget_half(pool: BlockPool) -> None:
    pool._blocks.clear()


def _hide_an_idle_one(pool: BlockPool) -> None:
    pool._blocks.clear()
    pool._entries.clear()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_lose, "lost"),
        (_free_twice, "lost"),
        (_free_one_in_use, "lost"),
        (_forget_half, "wrong prefixes"),
        (_hide_an_idle_one, "can't be found"),
    ],
)
def test_a_pool_that_does_not_balance_is_found(spoil: Callable[[BlockPool], None], told: str) -> None:
    pool = used_pool()
    spoil(pool)
    with pytest.raises(IntegrityError, match=told):
        pool.check_integrity()


def test_slots_and_host_memory_that_do_not_balance_are_found() -> None:
    slots = Slots(1)
    slots._users.update({1: 0, 2: 0})
    with pytest.raises(IntegrityError, match="2 adapters are in 1 slots"):
        slots.check_integrity()
    cache: HostCache[str] = HostCache(10)
    cache.put(1, "value", 3)
    cache.bytes = 4
    with pytest.raises(IntegrityError, match="3 bytes of adapters are in host memory, counted as 4"):
        cache.check_integrity()


class Books:
    """An engine whose books are balanced or not."""

    def __init__(self, *, balanced: bool = True) -> None:
        self.checked = 0
        self._balanced = balanced

    def check_integrity(self) -> None:
        self.checked += 1
        require(self._balanced, "3 KV blocks are in use")


def test_an_engine_at_rest_is_checked_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 100.0, 100.5, 100.9, 101.1, 101.1, 101.5, 250.0, 250.0])
    monkeypatch.setattr("graft_server.engine.process.time.monotonic", lambda: next(clock))
    books = Books()
    checks = RestChecks(books)
    for _ in range(6):
        checks.at_rest()
    assert books.checked == 3
    assert next(clock, None) is None


def test_a_breach_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    RestChecks(Books(balanced=False)).at_rest()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == "the engine's books don't balance: 3 KV blocks are in use"
