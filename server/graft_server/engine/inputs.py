"""A request's texts as tokens, and whether they are ones that an engine can compute with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from graft_server.base_model.prompt import encode_prompt, encode_target
from graft_server.engine.base import InvalidRequestError, PromptInput, PromptTooLongError, SamplingParams, ScoreRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Inputs:
    """A base model's tokenizer and limits: tokens of its context, tokens that the KV cache holds, its vocabulary."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, context_length: int, cache_tokens: int, vocabulary: int
    ) -> None:
        self._tokenizer = tokenizer
        self.context_length = context_length
        self.cache_tokens = cache_tokens
        self._vocabulary = vocabulary

    @property
    def longest(self) -> int:
        """Tokens of one sequence at most."""
        return min(self.context_length, self.cache_tokens)

    def prompt(self, prompt: PromptInput) -> list[int]:
        """Its tokens.

        Raises:
            InvalidRequestError: the chat template refuses it, nothing is left of it, or a token is none of the base
                model's.
        """
        if prompt.tokens:
            self._check_tokens("prompt", prompt.tokens)
            return list(prompt.tokens)
        try:
            tokens = encode_prompt(
                self._tokenizer, prompt.messages, prompt.text, [json.loads(tool) for tool in prompt.tools]
            )
        except Exception as error:  # a chat template is a program of the model's authors
            raise InvalidRequestError(f"the base model's chat template refuses the messages: {error}") from error
        if not tokens:
            raise InvalidRequestError("the prompt is empty")
        return tokens

    def candidates(self, request: ScoreRequest) -> list[list[int]]:
        """The tokens of each candidate, with the request's ending.

        Raises:
            InvalidRequestError: there are none, or one is empty.
        """
        if not request.candidates:
            raise InvalidRequestError("there are no candidates to score")
        found = [encode_target(self._tokenizer, candidate, ending=request.ending) for candidate in request.candidates]
        if not all(found):
            raise InvalidRequestError("a candidate to score is empty")
        return found

    def room(self, tokens: int) -> int:
        """Tokens of an answer that fit behind a prompt of so many.

        Raises:
            PromptTooLongError: none.
        """
        if tokens >= self.longest:
            raise self.too_long(tokens)
        return self.longest - tokens

    def check_sampling(self, sampling: SamplingParams) -> None:
        """
        Raises:
            InvalidRequestError: a token that it names is none of the base model's.
        """
        self._check_tokens("logit_bias", sampling.logit_bias)
        self._check_tokens("stop_token_ids", sampling.stop_token_ids)

    def too_long(self, tokens: int) -> PromptTooLongError:
        """What to tell about a prompt of so many tokens."""
        if self.cache_tokens < self.context_length:
            return PromptTooLongError(
                f"the prompt has {tokens} tokens and the server's KV cache holds {self.cache_tokens}; "
                "shorten the prompt or raise kv_cache_mib"
            )
        return PromptTooLongError(
            f"the prompt has {tokens} tokens and the model's context is {self.context_length}, "
            "with no room for an answer; shorten the prompt"
        )

    def _check_tokens(self, name: str, tokens: Iterable[int]) -> None:
        unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise InvalidRequestError(
                f"`{name}` names the token {unknown}; the base model's tokens are 0 to {self._vocabulary - 1}"
            )
