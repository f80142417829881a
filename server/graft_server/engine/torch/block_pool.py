"""Which blocks of the KV cache are free. Pure state: no torch."""

from __future__ import annotations


class BlockPool:
    """Blocks ``0 .. total-1`` of ``block_size`` token places each (PagedAttention: Kwon et al. 2023)."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = list(range(total - 1, -1, -1))
        self._taken = [False] * total

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` free blocks.

        Raises:
            MemoryError: fewer are free; nothing is taken.
        """
        if count > len(self._free):
            raise MemoryError(f"{count} KV blocks wanted, {len(self._free)} free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._taken[block] = True
        return blocks

    def release(self, blocks: list[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: a block is free already.
        """
        for block in blocks:
            if not self._taken[block]:
                raise ValueError(f"KV block {block} is released twice")
            self._taken[block] = False
            self._free.append(block)
