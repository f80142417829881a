"""Which tokens the next step computes: continuous batching with chunked prefill. Pure state: no torch.

Sequences join and leave at any step (Orca: Yu et al. 2022). Running sequences come first, so that a long prompt
never stalls decoding; what is left of the token budget goes to prompts, in pieces if need be (Sarathi-Serve:
Agrawal et al. 2024). A prompt whose beginning was computed before for the same adapter, or is computed in the same
step, starts behind it. When the KV cache is full the latest arrival gives its blocks back and is recomputed later.
"""

from __future__ import annotations

from collections import deque

from graft_server.engine.torch.block_pool import BlockPool
from graft_server.engine.torch.sequence import Chunk, Sequence


class Scheduler:
    """Waiting and running sequences over one block pool.

    A sequence is in exactly one of: waiting (holds no block), running, or gone (``finish``). ``schedule`` reserves the
    blocks of what it returns; ``advance`` records that the step was computed. A sequence must fit the pool by
    itself; the caller checks that before ``add``.
    """

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_sequences: int) -> None:
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        #: Prompt tokens that were found in the cache instead of computed.
        self.reused_tokens = 0
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind all others."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and give its blocks back. Finishing it twice is harmless."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def schedule(self, *, reserved: int = 0) -> list[Chunk]:
        """The chunks of the next step; empty only when nothing waits or runs, or what waits would take one of so many
        free blocks that are ``reserved``: whoever waits for them comes first."""
        budget = self.max_batch_tokens
        chunks: list[Chunk] = []
        # Sequences that decode (one token left) before those in the middle of their prompt.
        for sequence in sorted(self.running, key=lambda s: (s.remaining > 1, s.arrival)):
            count = min(sequence.remaining, budget)
            if sequence.blocks and count > 0 and self._reserve(sequence, count, chunks):
                chunks.append(self._chunk(sequence, count))
                budget -= count
        while self.waiting and budget > 0 and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            blocks, entry = self.pool.find(sequence.adapter, sequence.tokens, sequence.reusable)
            computed = len(blocks) * self.pool.block_size
            count = min(len(sequence.tokens) - computed, budget)
            fresh = self.pool.blocks_for(computed + count) - len(blocks)
            if fresh + self.pool.idle(blocks) + reserved > self.pool.free:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            self.pool.share(blocks)
            sequence.blocks, sequence.computed = blocks, computed
            sequence.remembered, sequence.entry = len(blocks), entry
            self.reused_tokens += computed
            self._grow(sequence, count)
            chunks.append(self._chunk(sequence, count))
            budget -= count
        return chunks

    def advance(self, chunks: list[Chunk]) -> None:
        """Record that the step's tokens are in the cache."""
        for chunk in chunks:
            chunk.sequence.computed = chunk.end

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        """The next tokens of a sequence that has the blocks for them. The blocks that they fill can be found at once:
        each layer writes the keys of a whole step before any of its rows attends."""
        chunk = Chunk(sequence, sequence.computed, count)
        size = self.pool.block_size
        while (sequence.remembered + 1) * size <= min(chunk.end, sequence.shareable):
            block, start = sequence.remembered, sequence.remembered * size
            tokens = sequence.tokens[start : start + size]
            sequence.entry = self.pool.remember(sequence.blocks[block], sequence.entry, tokens)
            sequence.remembered += 1
        return chunk

    def _missing(self, sequence: Sequence, count: int) -> int:
        return max(0, self.pool.blocks_for(sequence.computed + count) - len(sequence.blocks))

    def _grow(self, sequence: Sequence, count: int) -> None:
        sequence.blocks += self.pool.allocate(self._missing(sequence, count))

    def _reserve(self, sequence: Sequence, count: int, chunks: list[Chunk]) -> bool:
        """Make room for a running sequence at the cost of the latest arrival that is not in this step yet; if that is
        the sequence itself, it gives way and ``False`` is returned."""
        while self._missing(sequence, count) > self.pool.free:
            scheduled = {id(chunk.sequence) for chunk in chunks}
            victim = max((s for s in self.running if id(s) not in scheduled), key=lambda s: s.arrival)
            self._preempt(victim)
            if victim is sequence:
                return False
        self._grow(sequence, count)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
        self.preemptions += 1
        # Back to its place by arrival, so that it is not overtaken for ever.
        behind = next((i for i, s in enumerate(self.waiting) if s.arrival > sequence.arrival), len(self.waiting))
        self.waiting.insert(behind, sequence)
