"""Constrained decoding: only tokens that keep the answer inside a grammar can be drawn (llguidance)."""

from __future__ import annotations

import json
from typing import Any

import torch

from graft_server.engine.base import ConstraintSpec, InvalidRequestError

KINDS = ("choices", "regex", "json_schema")


class ConstraintCompiler:
    """Compiles constraints for one tokenizer; the vocabulary's trie is built at the first use."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stop_tokens = stop_tokens
        self._trie: Any = None

    def compile(self, spec: ConstraintSpec) -> Matcher:
        """
        Raises:
            InvalidRequestError: the pattern or the schema can't be compiled.
        """
        import llguidance
        import llguidance.hf

        if self._trie is None:
            self._trie = llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._vocabulary, eos_token=sorted(self._stop_tokens)
            )
        grammars = llguidance.LLMatcher
        try:
            if spec.kind == "json_schema":
                # A small model can fill its whole answer with white space where the grammar lets it.
                grammar = grammars.grammar_from_json_schema(spec.json_schema, overrides={"whitespace_flexible": False})
            elif spec.kind == "regex":
                grammar = grammars.grammar_from_regex(spec.pattern)
            else:
                options = " | ".join(json.dumps(choice) for choice in spec.choices)
                grammar = grammars.grammar_from_lark(f"start: {options}")
            matcher = grammars(self._trie, grammar)
        except ValueError as error:
            raise InvalidRequestError(f"the {spec.kind} constraint can't be compiled: {error}") from error
        if matcher.is_error():
            raise InvalidRequestError(f"the {spec.kind} constraint can't be compiled: {matcher.get_error()}")
        return Matcher(matcher, self._vocabulary)


class Matcher:
    """The state of one constrained answer."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        import llguidance.torch

        self._matcher = matcher
        self._bitmask = llguidance.torch.allocate_token_bitmask(1, vocabulary)

    def mask(self, logits: torch.Tensor) -> None:
        """Set the logits (``[vocabulary]``) of every token that would leave the grammar to minus infinity."""
        import llguidance.torch

        llguidance.torch.fill_next_token_bitmask(self._matcher, self._bitmask, 0)
        llguidance.torch.apply_token_bitmask_inplace(logits[None], self._bitmask.to(logits.device))

    def accept(self, token: int) -> None:
        """Record a drawn token."""
        self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())
