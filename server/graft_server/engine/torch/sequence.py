"""One stream of tokens being computed: an answer, or the candidates of one prompt. Pure state: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The adapter id of rows that use the base model alone. Registry ids start at 1.
BASE = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """Candidates that share a prompt, laid out behind it in one sequence (tree attention: Miao et al. 2024).

    Token ``i`` belongs to candidate ``segments[i]``, or to the prompt (-1). A candidate's tokens see the first
    ``prompt_length`` tokens and the earlier ones of their own candidate; their positions go on from the prompt's.
    """

    prompt_length: int
    segments: list[int]
    positions: list[int]


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known so far, how many of them are in the KV cache, and where.

    ``tokens[:computed]`` have their keys and values in the cache, in ``blocks``. Logits are wanted for the last known
    token, or where ``logits_at`` says otherwise.
    """

    id: str
    adapter: int
    tokens: list[int]
    logits_at: frozenset[int] | None = None
    tree: Tree | None = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    #: How many of the blocks can be found by others, and the entry of the last of them; see ``BlockPool``.
    remembered: int = 0
    entry: int = 0
    #: A place in the queue that preemption does not lose.
    arrival: int = 0

    @property
    def remaining(self) -> int:
        """Tokens known but not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def shareable(self) -> int:
        """Tokens that another sequence may have as its beginning: candidates behind a prompt are not."""
        return len(self.tokens) if self.tree is None else self.tree.prompt_length

    @property
    def reusable(self) -> int:
        """Tokens that need not be computed if they are in the cache: all before the first whose logits are wanted."""
        return len(self.tokens) - 1 if self.logits_at is None else min(self.logits_at)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that one step computes: ``tokens[start : start + count]``."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def finishes(self) -> bool:
        """Whether every known token is computed after this step, so that a next one can be drawn."""
        return self.end == len(self.sequence.tokens)

    def wanted(self) -> list[int]:
        """Indices into ``sequence.tokens`` whose logits this step must give."""
        if self.sequence.logits_at is None:
            return [self.end - 1] if self.finishes else []
        return [i for i in range(self.start, self.end) if i in self.sequence.logits_at]
