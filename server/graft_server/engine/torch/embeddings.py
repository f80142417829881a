"""Texts to embed: computed many at a time, one batch between two steps, so that answers go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from graft_server.engine.base import Embeddings, EngineError
from graft_server.engine.torch.runner import ModelRunner
from graft_server.engine.torch.sequence import BASE, Chunk, Sequence


class Events(Protocol):
    """Where results go."""

    def embedded(self, request_id: str, result: Embeddings) -> None: ...

    def error(self, request_id: str, error: EngineError) -> None: ...


@dataclass(slots=True, eq=False)
class _Call:
    """The texts of one request, how many of them have been begun with how many tokens, and the vectors of those
    that are done."""

    id: str
    texts: tuple[str, ...]
    begun: int = 0
    tokens: int = 0
    vectors: list[list[float]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Text:
    """A text being computed, and the sum of its hidden states so far."""

    call: _Call
    sequence: Sequence
    total: torch.Tensor | float = 0.0


class Embedder:
    """Embeds texts with the base model, in the order in which they came.

    A text takes KV blocks from its first chunk to its last; while too few are free it waits. ``encode`` gives a
    text's tokens, or raises an ``EngineError`` where they fit neither the context nor the pool.
    """

    def __init__(
        self, runner: ModelRunner, encode: Callable[[str], list[int]], events: Events, *, max_batch_tokens: int
    ) -> None:
        self._runner = runner
        self._encode = encode
        self._events = events
        self._max_batch_tokens = max_batch_tokens
        self._calls: dict[str, _Call] = {}
        #: The text that goes on in the next batch, or that waits for blocks.
        self._next: _Text | None = None

    @property
    def idle(self) -> bool:
        return not self._calls

    @property
    def awaited_blocks(self) -> int:
        """How many blocks have to be free at once for the next text to begin; 0 if none waits for them."""
        if self._next is None or self._next.sequence.blocks:
            return 0
        return self._runner.pool.blocks_for(len(self._next.sequence.tokens))

    def add(self, request_id: str, texts: tuple[str, ...]) -> None:
        """Queue a call; its vectors, or the error of one of its texts, go to the events."""
        self._calls[request_id] = _Call(request_id, texts)

    def abort(self, request_id: str) -> None:
        """Forget a call, wherever it is."""
        call = self._calls.pop(request_id, None)
        if call is not None and self._next is not None and self._next.call is call:
            self._runner.pool.release(self._next.sequence.blocks)
            self._next = None

    def step(self) -> None:
        """Compute one batch and report the calls that it completes."""
        picked = self._pick()
        if picked:
            hidden = self._runner.hidden([chunk for _, chunk in picked]).float()
            parts = torch.split(hidden, [chunk.count for _, chunk in picked])
            for (text, chunk), rows in zip(picked, parts, strict=True):
                text.total = text.total + rows.sum(0)
                text.sequence.computed = chunk.end
                if chunk.finishes:
                    self._finish(text)
        for call in [call for call in self._calls.values() if len(call.vectors) == len(call.texts)]:
            del self._calls[call.id]
            self._events.embedded(call.id, Embeddings(call.vectors, call.tokens))

    def _pick(self) -> list[tuple[_Text, Chunk]]:
        """Chunks of the next texts, within the budget of tokens and the free blocks."""
        pool, budget = self._runner.pool, self._max_batch_tokens
        picked: list[tuple[_Text, Chunk]] = []
        while budget > 0 and (text := self._next or self._begin()) is not None:
            sequence = text.sequence
            needed = pool.blocks_for(len(sequence.tokens))
            self._next = text
            if not sequence.blocks:
                if needed > pool.free:
                    break
                sequence.blocks = pool.allocate(needed)
            chunk = Chunk(sequence, sequence.computed, min(sequence.remaining, budget))
            picked.append((text, chunk))
            budget -= chunk.count
            if chunk.finishes:
                self._next = None
        return picked

    def _begin(self) -> _Text | None:
        """The first text that has not been begun; a call with a text that can't be encoded fails."""
        for call in list(self._calls.values()):
            if call.begun == len(call.texts):
                continue
            try:
                tokens = self._encode(call.texts[call.begun])
            except EngineError as error:
                del self._calls[call.id]
                self._events.error(call.id, error)
                continue
            call.begun += 1
            call.tokens += len(tokens)
            return _Text(call, Sequence(f"embed {call.id}", BASE, tokens))
        return None

    def _finish(self, text: _Text) -> None:
        self._runner.pool.release(text.sequence.blocks)
        assert isinstance(text.total, torch.Tensor)
        # The mean and the sum point the same way.
        text.call.vectors.append(torch.nn.functional.normalize(text.total, dim=0).tolist())
