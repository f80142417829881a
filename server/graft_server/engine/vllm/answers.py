"""What vLLM gives for one request, as deltas of the engine contract. Pure: duck-typed over vLLM's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from graft_server.engine.base import Delta, EchoedPrompt, EngineError, FinishReason, TokenLogprob


@dataclass(slots=True)
class Answer:
    """A generation in progress. The first delta goes out at once, later ones every ``tokens_per_delta`` tokens."""

    prompt_tokens: int
    tokens_per_delta: int
    stop_tokens: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    whole: Callable[[Sequence[int]], str]
    piece: Callable[[int], bytes]
    top: int | None
    #: The prompt's tokens, where it is to be echoed.
    echo: tuple[int, ...] = ()
    #: vLLM generates one token at least; this is dropped where none was asked for.
    nothing: bool = False
    queued_seconds: float = 0.0
    generated: int = 0
    _ids: list[int] = field(default_factory=list)
    _sent: int = 0
    _text: str = ""
    _tokens: tuple[TokenLogprob, ...] = ()
    _prompt: list[Any] = field(default_factory=list)

    def take(self, output: Any) -> Delta | None:
        """Record an output; ``None`` while it is held back."""
        if self.echo:
            self._prompt += output.prompt_logprobs or []
        completion = output.outputs[0]
        if self.nothing:
            return self._end() if completion.finish_reason is not None else None
        before = self.generated
        self.generated += len(completion.token_ids)
        self._ids += [token for token in completion.token_ids if token not in self.stop_tokens]
        self._text += completion.text
        if self.top is not None and completion.logprobs:
            self._tokens += tuple(
                self._logprob(token, choices)
                for token, choices in zip(completion.token_ids, completion.logprobs, strict=False)
                if self.echo or token not in self.stop_tokens
            )
        finish: FinishReason | None = None
        if completion.finish_reason is not None:
            if completion.finish_reason not in ("stop", "length"):
                raise EngineError(f"vLLM ended the answer before it was complete ({completion.finish_reason})")
            finish = completion.finish_reason
            if not isinstance(completion.stop_reason, str):
                self._text = self._flushed()
        crossed = before == 0 or self.generated // self.tokens_per_delta > before // self.tokens_per_delta
        if finish is None and (self.generated == before or not crossed):
            return None
        delta = Delta(
            text=self._text,
            tokens=self._tokens,
            finish_reason=finish,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated,
            queued_seconds=self.queued_seconds if finish else 0.0,
            prompt=self._echoed() if before == 0 else None,
        )
        self._sent += len(self._text)
        self._text, self._tokens = "", ()
        return delta

    def _end(self) -> Delta:
        return Delta(
            finish_reason="length",
            prompt_tokens=self.prompt_tokens,
            queued_seconds=self.queued_seconds,
            prompt=self._echoed(),
        )

    def _echoed(self) -> EchoedPrompt | None:
        if not self.echo:
            return None
        # Nothing is told of the first token.
        rows = zip(self.echo[1:], self._prompt[1:], strict=True)
        others = tuple(self._logprob(token, choices) for token, choices in rows)
        return EchoedPrompt(self.whole(self.echo), self.piece(self.echo[0]), others)

    def _flushed(self) -> str:
        """What has not been sent, with the bytes at the end that never became a character, which vLLM leaves out."""
        whole = self.decode(self._ids)
        return whole[self._sent :] if whole[self._sent :].startswith(self._text) else self._text

    def _logprob(self, token: int, choices: Any) -> TokenLogprob:
        ranked = sorted(choices.items(), key=lambda item: item[1].rank)[: self.top or 0]
        top = tuple((self.piece(other), float(choice.logprob)) for other, choice in ranked)
        return TokenLogprob(self.piece(token), float(choices[token].logprob), top)
