"""Requests in progress: what to do with the logits that a step gives them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import torch

from graft_server.engine.base import (
    Delta,
    EchoedPrompt,
    GenerateRequest,
    Scored,
    ScoreRequest,
    ScoreResult,
    TokenLogprob,
)
from graft_server.engine.token_bytes import TokenBytes
from graft_server.engine.torch.constraints import Matcher
from graft_server.engine.torch.sampler import Draw, Drawn
from graft_server.engine.torch.sequence import Sequence, Tree
from graft_server.engine.torch.text import TextStream

#: Candidate tokens computed at once for one prompt; the mask grows with the square of it.
_TREE_TOKENS = 256
#: Rows whose full distribution is in memory at once while scoring or reading a prompt.
_SCORE_ROWS = 256


@dataclass(slots=True, eq=False)
class Answer:
    """A generation in progress."""

    request: GenerateRequest
    sequence: Sequence
    prompt_tokens: int
    max_tokens: int
    stop_tokens: frozenset[int]
    token_bytes: TokenBytes
    draw: Draw
    text: TextStream
    matcher: Matcher | None = None
    #: Of a prompt that is to be echoed.
    reading: PromptReading | None = None
    generated: int = 0
    #: No token comes behind the one recorded last.
    ended: bool = False
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    #: Since the last delta.
    _held_text: str = ""
    _held_tokens: tuple[TokenLogprob, ...] = ()

    @property
    def tells_at_once(self) -> bool:
        """Whether its tokens must be told as they are drawn: its text or a grammar says where it ends, or its prompt is
        to be echoed."""
        return bool(self.request.sampling.stop) or self.matcher is not None or self.reading is not None

    def advance(self, drawn: Drawn) -> None:
        """Record a drawn token: the sequence goes on with it, or has ``ended``."""
        self.generated += 1
        self.draw.record(drawn.token)
        if drawn.token in self.stop_tokens:
            self.ended = True
            return
        if self.matcher is not None:
            self.matcher.accept(drawn.token)
        self.sequence.tokens.append(drawn.token)
        self.ended = self.generated >= self.max_tokens

    def tell(self, drawn: Drawn) -> Delta:
        """What the token recorded last adds to the answer: a delta with a finish reason if it was the last, and nothing
        while it is held back. Sets ``ended`` where its text says so."""
        prompt = self._echoed()
        ended = drawn.token in self.stop_tokens
        may_stop = self.generated > self.request.sampling.min_tokens
        text = "" if ended else self.text.push(drawn.token, may_stop=may_stop)
        tokens: tuple[TokenLogprob, ...] = ()
        if drawn.logprob is not None and (not ended or self.request.echo):
            tokens = (_told(self.token_bytes, drawn.token, drawn.logprob, drawn.top),)
        text, tokens = self._held_text + text, (*self._held_tokens, *tokens)
        self._held_text, self._held_tokens = "", ()
        stopped = ended or self.text.stopped or (self.matcher is not None and self.matcher.finished)
        self.ended = self.ended or stopped
        if not self.ended:
            if self.generated > 1 and self.generated % self.request.tokens_per_delta:
                self._held_text, self._held_tokens = text, tokens
                return Delta()
            return Delta(
                text=text,
                tokens=tokens,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.generated,
                prompt=prompt,
            )
        return Delta(
            text=text if self.text.stopped else text + self.text.flush(),
            tokens=tokens,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated,
            queued_seconds=self._queued_seconds,
            prompt=prompt,
        )

    def end(self) -> Delta:
        """The only delta of an answer without tokens, once its prompt is computed."""
        return Delta(
            finish_reason="length",
            prompt_tokens=self.prompt_tokens,
            queued_seconds=self._queued_seconds,
            prompt=self._echoed(),
        )

    @property
    def _queued_seconds(self) -> float:
        return (self.started or self.arrived) - self.arrived

    def _echoed(self) -> EchoedPrompt | None:
        """The prompt, in front of the first token; its logits are not wanted again, also if it is computed again."""
        if self.reading is None:
            return None
        echoed = self.reading.echoed()
        self.reading, self.sequence.logits_at = None, None
        return echoed


class PromptReading:
    """The log-probabilities of a prompt's own tokens, as the steps that compute it give them."""

    def __init__(self, tokenizer: Any, token_bytes: TokenBytes, tokens: Many[int], alternatives: int) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._tokens = list(tokens)
        self._alternatives = alternatives
        self._told: list[TokenLogprob | None] = [None] * (len(tokens) - 1)

    def take(self, rows: Many[int], logits: torch.Tensor) -> None:
        """Record the logits (``[N, vocabulary]``) of rows of the prompt, the last one's not among them. Preemption may
        compute a row again."""
        for at in range(0, len(rows), _SCORE_ROWS):
            part = list(rows[at : at + _SCORE_ROWS])
            logprobs = torch.log_softmax(logits[at : at + _SCORE_ROWS].float(), -1)
            wanted = torch.tensor([self._tokens[row + 1] for row in part], device=logits.device)
            own = logprobs.gather(-1, wanted[:, None])[:, 0].tolist()
            values, ids = logprobs.topk(min(self._alternatives, logprobs.shape[-1]))
            tops = [list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
            for row, logprob, top in zip(part, own, tops, strict=True):
                self._told[row] = _told(self._token_bytes, self._tokens[row + 1], logprob, top)

    def echoed(self) -> EchoedPrompt:
        """The prompt, once all of its rows were taken."""
        others = [told for told in self._told if told is not None]
        if len(others) != len(self._told):
            raise RuntimeError("a prompt's logits are wanted before they are computed")
        text = str(self._tokenizer.decode(self._tokens))
        return EchoedPrompt(text, self._token_bytes(self._tokens[0]), tuple(others))


def _told(token_bytes: TokenBytes, token: int, logprob: float, top: Iterable[tuple[int, float]]) -> TokenLogprob:
    return TokenLogprob(token_bytes(token), logprob, tuple((token_bytes(other), likely) for other, likely in top))


@dataclass(slots=True, eq=False)
class Scoring:
    """Candidates of one prompt being scored: the prompt once, then the candidates behind it, many at a time."""

    request: ScoreRequest
    sequence: Sequence
    candidates: list[list[int]]
    sums: list[float] = field(default_factory=list)
    _prompt: list[int] = field(default_factory=list)
    _next: int = 0
    #: Row of ``sequence.tokens`` -> the candidate and the token that the row's logits should predict.
    _targets: dict[int, tuple[int, int]] = field(default_factory=dict)
    _missing: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._prompt = list(self.sequence.tokens)
        self.sums = [0.0] * len(self.candidates)
        self.sequence.logits_at = frozenset({len(self._prompt) - 1})

    def take(self, rows: Many[int], logits: torch.Tensor) -> ScoreResult | None:
        """Record the logits (``[N, vocabulary]``) of rows of the sequence; the result once all are known."""
        if not self._targets:
            logprobs = torch.log_softmax(logits[-1].float(), -1)
            first = torch.tensor([tokens[0] for tokens in self.candidates], device=logits.device)
            self.sums = logprobs[first].tolist()
            return self._advance()
        for at in range(0, len(rows), _SCORE_ROWS):
            part = list(rows[at : at + _SCORE_ROWS])
            logprobs = torch.log_softmax(logits[at : at + _SCORE_ROWS].float(), -1)
            wanted = torch.tensor([self._targets[row][1] for row in part], device=logits.device)
            picked = logprobs.gather(-1, wanted[:, None])[:, 0].tolist()
            for row, logprob in zip(part, picked, strict=True):
                if row in self._missing:  # preemption may compute a row again
                    self._missing.discard(row)
                    self.sums[self._targets[row][0]] += logprob
        return self._advance() if not self._missing else None

    def _advance(self) -> ScoreResult | None:
        """Lay the next candidates out behind the prompt, or finish. A candidate's last token needs no logits."""
        prompt = len(self._prompt)
        tokens = list(self._prompt)
        segments = [-1] * prompt
        positions = list(range(prompt))
        self._targets = {}
        while self._next < len(self.candidates):
            candidate = self.candidates[self._next]
            inputs = candidate[:-1]
            if len(tokens) > prompt and len(tokens) - prompt + len(inputs) > _TREE_TOKENS:
                break
            for offset, token in enumerate(inputs):
                self._targets[len(tokens)] = (self._next, candidate[offset + 1])
                tokens.append(token)
                segments.append(self._next)
                positions.append(prompt + offset)
            self._next += 1
        if not self._targets:
            lengths = [len(candidate) for candidate in self.candidates]
            scores = tuple(Scored(total, n) for total, n in zip(self.sums, lengths, strict=True))
            return ScoreResult(scores, prompt_tokens=prompt, scored_tokens=sum(lengths))
        self._missing = set(self._targets)
        self.sequence.tokens = tokens
        self.sequence.tree = Tree(prompt, segments, positions)
        self.sequence.logits_at = frozenset(self._targets)
        self.sequence.computed = min(self.sequence.computed, prompt)
        return None

    @property
    def longest(self) -> int:
        """Tokens of the sequence at most, for the check against the KV cache."""
        return len(self._prompt) + max(_TREE_TOKENS, max(len(candidate) for candidate in self.candidates))
