"""Steps recorded once and replayed, so that they cost no Python and no kernel launches (CUDA graphs).

A recording has fixed shapes and fixed tensors: the rows of a step, its sequences and their contexts are padded to a few
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
from graft_server.engine.torch.sequence import Chunk
from graft_server.engine.torch.static_step import Sizes, StaticStep

#: The shortest context of a recording, in blocks.
_LEAST_BLOCKS = 8
#: Rows of a recording at least, and of one with prompts: padding up to here costs next to nothing, since reading the
#: weights takes the time, and fewer shapes are recorded.
_LEAST_ROWS = 8
_LEAST_ROWS_OF_PROMPTS = 64
#: Rows of a recording with prompts at most. From about here on a step computes longer than Python takes to launch it.
_MOST_ROWS = 512
#: Places of context that the tokens of prompts look at, at most: in a recording every token reads its own.
_MOST_READ = 1 << 18
#: A shape is recorded when it has come this often: recording takes as long as several steps.
OFTEN = 4
#: Recordings kept; each holds the logits of its sequences.
_MOST_RECORDINGS = 64

Compute = Callable[[], torch.Tensor]


class Replay(Protocol):
    def replay(self) -> None:
        """Compute again what was recorded, into the same tensors."""
        ...


#: Runs a computation, and returns its replay and the tensor that holds the result now and after each replay.
Record = Callable[[Compute], tuple[Replay, torch.Tensor]]
#: A forward pass over a batch whose rows, and those whose logits are wanted, are mixed as given: ``[N, vocabulary]``.
Forward = Callable[[Batch, Sequence[MixedRows], Sequence[MixedRows]], torch.Tensor]


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
    """What a recording is good for: its sizes, and the stacks in use with their versions."""

    sizes: Sizes
    stacks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Recording:
    step: StaticStep
    graph: Replay
    logits: torch.Tensor


class StepGraphs:
    """Recordings by shape, the least recently used given up first.

    ``scratch_block`` is a block of the KV cache that no sequence has: padding rows write there.
    """

    def __init__(
        self,
        forward: Forward,
        mixer: Mixer,
        products: Products,
        record: Record,
        *,
        scratch_block: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._mixer = mixer
        self._products = products
        self._record = record
        self._scratch_block = scratch_block
        self._block_size = block_size
        self._device = device
        self._recordings: OrderedDict[Shape, Recording] = OrderedDict()
        self._seen: Counter[Shape] = Counter()
        #: Steps that were replayed.
        self.replays = 0

    def logits(self, chunks: Sequence[Chunk]) -> torch.Tensor | None:
        """The logits behind each chunk's last token, ``[N, vocabulary]``, valid until the next call; ``None`` if the
        step must be computed as usual.

        Replayed are steps of few rows in which no other logits are wanted, no adapter has a bottleneck, no candidates
        are scored, and whose shape has come before. ``chunks`` are in the order of the mixer.
        """
        rows = sum(chunk.count for chunk in chunks)
        prompts = sum((chunk.count - 1) * chunk.end for chunk in chunks)
        if rows > max(_MOST_ROWS, len(chunks)) or prompts > _MOST_READ or not all(map(_is_plain, chunks)):
            return None
        positions = self._mixer.positions([chunk.sequence.adapter for chunk in chunks])
        if positions is None:
            return None
        stacks = tuple((bucket, self._mixer.version(bucket)) for bucket in sorted(positions))
        most = max(-(-chunk.end // self._block_size) for chunk in chunks)
        least = _LEAST_ROWS_OF_PROMPTS if rows > len(chunks) else _LEAST_ROWS
        sizes = Sizes(
            rows=max(least, _padded(rows)),
            sequences=max(_LEAST_ROWS, _padded(len(chunks))),
            blocks=max(_LEAST_BLOCKS, _padded(most)),
        )
        shape = Shape(sizes, stacks)
        recording = self._recordings.get(shape)
        if recording is not None:
            recording.step.fill(chunks, positions)
            recording.graph.replay()
            self.replays += 1
        else:
            self._seen[shape] += 1
            if self._seen[shape] < OFTEN:
                return None
            recording = self._recordings[shape] = self._make(shape, chunks, positions)
            self._give_up()
        self._recordings.move_to_end(shape)
        return recording.logits[: len(chunks)]

    def _make(self, shape: Shape, chunks: Sequence[Chunk], positions: Mapping[int, list[int]]) -> Recording:
        step = StaticStep(
            shape.sizes,
            capacities={bucket: self._mixer.capacity(bucket) for bucket, _ in shape.stacks},
            scratch_block=self._scratch_block,
            block_size=self._block_size,
            device=self._device,
        )
        step.fill(chunks, positions)
        rows, logit_rows = (
            [IndexedRows(bucket, index, self._products) for bucket, index in indices.items()]
            for indices in (step.index, step.logit_index)
        )
        graph, logits = self._record(lambda: self._forward(step.batch(), rows, logit_rows))
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


def _is_plain(chunk: Chunk) -> bool:
    """Whether no logits but those behind its last token can be wanted, and its tokens see all before them."""
    return chunk.sequence.tree is None and chunk.sequence.logits_at is None


def _padded(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
