"""One step's tokens laid out as tensors: packed rows, where their keys go, and who attends to what.

All tokens of a step form one row of length ``T`` without padding; rows of one adapter lie together, base rows first.
Attention runs over a few padded groups of sequences with similar lengths, and over rows by themselves where there is a
kernel for that.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from graft_server.engine.torch.sequence import Chunk, Tree

#: Query rows of one attention group, times its padded context, stay below this, so that masks stay small.
_GROUP_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """``B`` sequences with ``Q`` query rows each (padded) over ``L`` places of context (padded).

    ``queries``: ``[B, Q]`` rows of the packed batch. ``blocks``: ``[B, L / block_size]``. ``mask``: ``[B, Q, L]``, true
    where a query may look. ``rows``, ``cells``: for each real query, its packed row and its flat index in ``B x Q``.
    ``positions``: ``[B, L]``, where in its text each place stands; ``None`` if all stand where they lie.
    """

    queries: torch.Tensor
    blocks: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    cells: torch.Tensor
    positions: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LoneRows:
    """Rows that attend by themselves, as sequences that decode do.

    ``rows``: ``[B]``, their packed rows; ``None`` if they are all of the batch, in its order. ``blocks``: ``[B, L /
    block_size]`` (int32). ``lengths``: ``[B]`` (int32), how many places of its blocks each sees.
    """

    rows: torch.Tensor | None
    blocks: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass.

    ``tokens``, ``positions``: ``[1, T]``. ``places``: ``[T]``, where each token's key and value go in the cache. Each
    row attends in one of the ``groups`` or is a ``lone`` one.
    ``adapters``: adapter id and row range of each run of rows, in order. ``logit_rows``: ``[N]``, the rows whose logits
    are wanted; ``logit_adapters`` their runs. ``wanted``: chunk and token index of each of the ``N``.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    groups: list[AttentionGroup]
    lone: LoneRows | None
    adapters: list[tuple[int, int, int]]
    logit_rows: torch.Tensor
    logit_adapters: list[tuple[int, int, int]]
    wanted: list[tuple[Chunk, int]]


def build_batch(chunks: Many[Chunk], *, block_size: int, device: torch.device, lone: bool) -> Batch:
    """Lay out the chunks of one step, in their order: rows that one batched product serves must lie together.

    ``lone`` says whether there is attention for rows by themselves; else those are in groups too.
    """
    tokens: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    starts: list[int] = []
    wanted: list[tuple[Chunk, int]] = []
    logit_rows: list[int] = []
    runs: list[tuple[int, int]] = []
    logit_runs: list[tuple[int, int]] = []
    for chunk in chunks:
        sequence = chunk.sequence
        first = len(tokens)
        starts.append(first)
        tokens += sequence.tokens[chunk.start : chunk.end]
        indices = range(chunk.start, chunk.end)
        positions += [sequence.tree.positions[i] for i in indices] if sequence.tree else indices
        blocks = sequence.blocks
        places += [blocks[i // block_size] * block_size + i % block_size for i in indices]
        runs.append((sequence.adapter, chunk.count))
        rows = chunk.wanted()
        wanted += [(chunk, i) for i in rows]
        logit_rows += [first + i - chunk.start for i in rows]
        if rows:
            logit_runs.append((sequence.adapter, len(rows)))
    alone: list[tuple[Chunk, int]] = []
    others: list[tuple[Chunk, int]] = []
    for chunk, first in zip(chunks, starts, strict=True):
        by_itself = lone and chunk.count == 1 and chunk.sequence.tree is None
        (alone if by_itself else others).append((chunk, first))
    as_long = {"dtype": torch.long, "device": device}
    return Batch(
        tokens=torch.tensor([tokens], **as_long),  # type: ignore[arg-type]
        positions=torch.tensor([positions], **as_long),  # type: ignore[arg-type]
        places=torch.tensor(places, **as_long),  # type: ignore[arg-type]
        groups=_attention_groups(others, block_size, device),
        lone=_lone_rows(alone, len(tokens), block_size, device) if alone else None,
        adapters=_merge(runs),
        logit_rows=torch.tensor(logit_rows, **as_long),  # type: ignore[arg-type]
        logit_adapters=_merge(logit_runs),
        wanted=wanted,
    )


def _merge(runs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Runs of equal adapter ids as (id, first row, end row)."""
    merged: list[tuple[int, int, int]] = []
    row = 0
    for adapter, count in runs:
        if merged and merged[-1][0] == adapter:
            merged[-1] = (adapter, merged[-1][1], row + count)
        else:
            merged.append((adapter, row, row + count))
        row += count
    return merged


def _attention_groups(members: list[tuple[Chunk, int]], block_size: int, device: torch.device) -> list[AttentionGroup]:
    """Sequences of similar shape together: padding never more than doubles a group's queries or its context."""
    groups: list[list[tuple[Chunk, int]]] = []
    for chunk, row in sorted(members, key=lambda member: (member[0].count, member[0].end)):
        if groups:
            first, size = groups[-1][0][0], len(groups[-1]) + 1
            same = chunk.count <= 2 * first.count - (first.count == 1)
            close = chunk.end <= max(2 * first.end, first.end + 256)
            small = size * chunk.count * chunk.end <= _GROUP_CELLS
            if same and close and small:
                groups[-1].append((chunk, row))
                continue
        groups.append([(chunk, row)])
    return [_attention_group(group, block_size, device) for group in groups]


def _attention_group(members: list[tuple[Chunk, int]], block_size: int, device: torch.device) -> AttentionGroup:
    most_queries = max(chunk.count for chunk, _ in members)
    most_blocks = max(-(-chunk.end // block_size) for chunk, _ in members)
    counts = torch.tensor([chunk.count for chunk, _ in members])
    first_rows = torch.tensor([row for _, row in members])
    first_places = torch.tensor([chunk.start for chunk, _ in members])
    offset = torch.arange(most_queries)
    real = offset < counts[:, None]
    # A padded query repeats the last real one: its result is dropped, and its mask is never empty (no NaN).
    clamped = torch.minimum(offset, counts[:, None] - 1)
    queries = first_rows[:, None] + clamped
    context = torch.arange(most_blocks * block_size)
    mask = context <= (first_places[:, None] + clamped)[:, :, None]
    positions = None
    for i, (chunk, _) in enumerate(members):
        if (tree := chunk.sequence.tree) is not None:
            mask[i] = _tree_mask(chunk, tree, clamped[i], context)
            positions = context.repeat(len(members), 1) if positions is None else positions
            known = torch.tensor(tree.positions[: len(context)])
            positions[i, : len(known)] = known
    table = [
        chunk.sequence.blocks[:most_blocks] + [0] * (most_blocks - len(chunk.sequence.blocks)) for chunk, _ in members
    ]
    return AttentionGroup(
        queries=queries.to(device),
        blocks=torch.tensor(table, dtype=torch.long, device=device),
        mask=mask.to(device),
        rows=queries[real].to(device),
        cells=real.flatten().nonzero().squeeze(1).to(device),
        positions=None if positions is None else positions.to(device),
    )


def _lone_rows(members: list[tuple[Chunk, int]], total: int, block_size: int, device: torch.device) -> LoneRows:
    used = [chunk.sequence.blocks[: -(-chunk.end // block_size)] for chunk, _ in members]
    table = torch.zeros(len(members), max(map(len, used)), dtype=torch.int32)
    for row, blocks in zip(table, used, strict=True):
        row[: len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
    return LoneRows(
        rows=None if len(members) == total else torch.tensor([row for _, row in members], device=device),
        blocks=table.to(device),
        lengths=torch.tensor([chunk.end for chunk, _ in members], dtype=torch.int32, device=device),
    )


def _tree_mask(chunk: Chunk, tree: Tree, offsets: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """``[Q, L]``: causal, and candidates see the prompt and themselves only."""
    segments = torch.full((len(context),), -2)
    known = torch.tensor(tree.segments[: len(context)])
    segments[: len(known)] = known
    place = chunk.start + offsets
    causal = context <= place[:, None]
    prompt = context < tree.prompt_length
    own = segments == segments[place][:, None]
    return causal & (prompt | own)
