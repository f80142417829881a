"""The blocks of the KV cache: who uses them, which are free, and which still hold a prefix worth keeping.

Pure state: no torch. A block that is full of computed tokens can be *remembered* under what stands before it and in it
(PagedAttention: Kwon et al. 2023; RadixAttention: Zheng et al. 2024). Without users it then stays findable until its
place is needed, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict

from graft_server.engine.integrity import require

#: What stands before a block (the entry of the block in front of it, or a root) and its own tokens. Exact: two
#: different prefixes never share a key, as hashes could.
Key = tuple[int, tuple[int, ...]]


def root(adapter: int) -> int:
    """The entry before the first block. Each adapter has its own, so that no adapter ever finds another's blocks."""
    return -1 - adapter


class BlockPool:
    """Blocks ``0 .. total-1`` of ``block_size`` token places each."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._users = [0] * total
        self._empty = list(range(total - 1, -1, -1))
        #: Remembered blocks without users, least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._entries: dict[int, tuple[int, Key]] = {}
        self._blocks: dict[Key, int] = {}
        self._next_entry = 1

    @property
    def free(self) -> int:
        """Blocks that can be taken, remembered ones among them."""
        return len(self._empty) + len(self._idle)

    @property
    def used(self) -> int:
        return self.total - self.free

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for one user.

        Raises:
            MemoryError: fewer are free; nothing is taken.
        """
        if count > self.free:
            raise MemoryError(f"{count} KV blocks wanted, {self.free} free")
        blocks = [self._empty.pop() if self._empty else self._forget_oldest() for _ in range(count)]
        for block in blocks:
            self._users[block] = 1
        return blocks

    def share(self, blocks: list[int]) -> None:
        """Count one more user of remembered blocks."""
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Count one user less of each block.

        Raises:
            ValueError: a block has no user.
        """
        # From the end: the last block of a prefix is the first to be forgotten.
        for block in reversed(blocks):
            if self._users[block] < 1:
                raise ValueError(f"KV block {block} is released twice")
            self._users[block] -= 1
            if self._users[block] == 0:
                if block in self._entries:
                    self._idle[block] = None
                else:
                    self._empty.append(block)

    def idle(self, blocks: list[int]) -> int:
        """How many of these blocks are counted as free now."""
        return sum(block in self._idle for block in blocks)

    def find(self, adapter: int, tokens: list[int], limit: int) -> tuple[list[int], int]:
        """The longest remembered prefix of ``tokens[:limit]`` as blocks, and the entry of its last one."""
        blocks: list[int] = []
        entry = root(adapter)
        for start in range(0, limit - self.block_size + 1, self.block_size):
            block = self._blocks.get((entry, tuple(tokens[start : start + self.block_size])))
            if block is None:
                break
            blocks.append(block)
            entry = self._entries[block][0]
        return blocks, entry

    def remember(self, block: int, before: int, tokens: list[int]) -> int:
        """Make a full block findable behind the entry ``before``; returns its entry. Where another block holds the same
        already, that one stays, and its entry is returned."""
        key = (before, tuple(tokens))
        known = self._blocks.get(key)
        if known is not None:
            return self._entries[known][0]
        entry = self._next_entry
        self._next_entry += 1
        self._entries[block] = (entry, key)
        self._blocks[key] = block
        return entry

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: a block is lost, free though it has users, or findable under two prefixes.
        """
        unused = {block for block, users in enumerate(self._users) if users == 0}
        free = [*self._empty, *self._idle]
        require(len(free) == len(unused) and set(free) == unused, f"KV blocks {unused ^ set(free)} are lost")
        found = {block: key for key, block in self._blocks.items()}
        remembered = {block: key for block, (_, key) in self._entries.items()}
        require(len(found) == len(self._blocks) and found == remembered, "KV blocks are findable under wrong prefixes")
        require(self._idle.keys() <= remembered.keys(), "idle KV blocks can't be found")
        require(remembered.keys().isdisjoint(self._empty), "empty KV blocks can be found")

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        _, key = self._entries.pop(block)
        del self._blocks[key]
        return block
