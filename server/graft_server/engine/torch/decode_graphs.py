"""Decode steps recorded once and replayed, so that they cost no Python and no kernel launches (CUDA graphs).

A recording has fixed shapes and fixed tensors: the rows of a step and the length of their contexts are padded to a few
sizes, and what differs from step to step is copied into the recording's own tensors before it is replayed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from graft_server.engine.torch.batch import Batch
from graft_server.engine.torch.indexed import IndexedRows, Products
from graft_server.engine.torch.mixer import Mixer
from graft_server.engine.torch.rows import MixedRows
from graft_server.engine.torch.static_step import StaticStep

#: The shortest context of a recording, in blocks.
_LEAST_BLOCKS = 8
#: A shape is recorded when it has come this often: recording takes as long as several steps.
_OFTEN = 4
#: Recordings kept; each holds the logits of its rows.
_MOST_RECORDINGS = 32

Compute = Callable[[], torch.Tensor]


class Replay(Protocol):
    def replay(self) -> None:
        """Compute again what was recorded, into the same tensors."""
        ...


#: Runs a computation, and returns its replay and the tensor that holds the result now and after each replay.
Record = Callable[[Compute], tuple[Replay, torch.Tensor]]
#: A forward pass over a batch whose rows are mixed as given: ``[N, vocabulary]``.
Forward = Callable[[Batch, Sequence[MixedRows]], torch.Tensor]


class CudaGraphs:
    """Records on the current CUDA device. The recordings share one memory pool: only one is replayed at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> tuple[Replay, torch.Tensor]:
        # Libraries set themselves up at their first call, which a recording must not contain.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = compute()
        graph.replay()
        return graph, result


@dataclass(frozen=True, slots=True)
class Shape:
    """What a recording is good for: rows, blocks of context, and the stacks in use with their versions."""

    rows: int
    blocks: int
    stacks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Recording:
    step: StaticStep
    graph: Replay
    logits: torch.Tensor


class DecodeGraphs:
    """Recordings by shape, the least recently used given up first.

    ``scratch_block`` is a block of the KV cache that no sequence has: padding rows write there.
    """

    def __init__(
        self, forward: Forward, mixer: Mixer, products: Products, record: Record, *, scratch_block: int, block_size: int
    ) -> None:
        self._forward = forward
        self._mixer = mixer
        self._products = products
        self._record = record
        self._scratch_block = scratch_block
        self._block_size = block_size
        self._recordings: OrderedDict[Shape, Recording] = OrderedDict()
        self._seen: Counter[Shape] = Counter()
        #: Steps that were replayed.
        self.replays = 0

    def logits(self, batch: Batch) -> torch.Tensor | None:
        """The step's logits, ``[T, vocabulary]``, valid until the next call; ``None`` if it must be computed as usual.

        Replayed are steps in which each sequence computes one token, all their contexts are of similar length, no
        adapter has a bottleneck, no candidates are scored, and the shape has come before.
        """
        rows = batch.tokens.shape[1]
        if len(batch.groups) != 1 or batch.groups[0].queries.shape != (rows, 1) or len(batch.logit_rows) != rows:
            return None
        if batch.groups[0].positions is not None:
            return None
        positions = self._mixer.positions(batch.adapters)
        if positions is None:
            return None
        stacks = tuple((bucket, self._mixer.version(bucket)) for bucket in sorted(positions))
        blocks = max(_LEAST_BLOCKS, _padded(batch.groups[0].blocks.shape[1]))
        shape = Shape(_padded(rows), blocks, stacks)
        recording = self._recordings.get(shape)
        if recording is not None:
            recording.step.fill(batch, positions)
            recording.graph.replay()
            self.replays += 1
        else:
            self._seen[shape] += 1
            if self._seen[shape] < _OFTEN:
                return None
            recording = self._recordings[shape] = self._make(shape, batch, positions)
            self._give_up()
        self._recordings.move_to_end(shape)
        return recording.logits[:rows]

    def _make(self, shape: Shape, batch: Batch, positions: Mapping[int, list[int]]) -> Recording:
        step = StaticStep(
            shape.rows,
            shape.blocks,
            buckets=positions,
            scratch_block=self._scratch_block,
            block_size=self._block_size,
            device=batch.tokens.device,
        )
        step.fill(batch, positions)
        rows = [IndexedRows(bucket, own, self._products) for bucket, own in step.positions.items()]
        graph, logits = self._record(lambda: self._forward(step.batch, rows))
        return Recording(step, graph, logits)

    def _give_up(self) -> None:
        """Shapes of stacks that have changed never come again; the oldest of the others go when there are too many."""
        outdated = [shape for shape in self._seen if any(self._mixer.version(own) != at for own, at in shape.stacks)]
        for shape in outdated:
            del self._seen[shape]
            self._recordings.pop(shape, None)
        while len(self._recordings) > _MOST_RECORDINGS:
            shape, _ = self._recordings.popitem(last=False)
            del self._seen[shape]


def _padded(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
