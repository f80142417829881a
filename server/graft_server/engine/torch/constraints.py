"""Constrained decoding: only tokens that keep the answer inside a grammar can be drawn (llguidance)."""

from __future__ import annotations

import json
from collections.abc import Sequence as Many
from functools import cached_property
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
        #: For each byte of a bitmask, what it adds to eight logits.
        self._added: torch.Tensor | None = None

    @cached_property
    def _executor(self) -> Any:
        import llguidance

        return llguidance.LLExecutor()

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
        return Matcher(matcher)

    @torch.inference_mode()
    def mask(self, logits: torch.Tensor, matchers: Many[tuple[int, Matcher]]) -> None:
        """Set the logits (``[N, vocabulary]``, changed in place) of every token that would leave its row's grammar to
        minus infinity; each matcher comes with its row."""
        import llguidance.numpy

        # Filled beside the interpreter, on several cores where there are several grammars.
        bits = llguidance.numpy.allocate_token_bitmask(len(matchers), self._vocabulary)
        grammars = [(matcher.grammar, at) for at, (_, matcher) in enumerate(matchers)]
        llguidance.numpy.fill_next_token_bitmask_par(self._executor, grammars, bits)
        if self._added is None:
            allowed = torch.arange(256)[:, None] >> torch.arange(8) & 1
            self._added = torch.where(allowed == 1, 0.0, -torch.inf).to(logits.device)
        octets = torch.from_numpy(bits).to(logits.device).view(torch.uint8)
        added = self._added.index_select(0, octets.flatten().int())
        rows = torch.tensor([row for row, _ in matchers], device=logits.device)
        logits.index_add_(0, rows, added.view(len(matchers), -1)[:, : self._vocabulary])


class Matcher:
    """The state of one constrained answer."""

    def __init__(self, matcher: Any) -> None:
        self.grammar = matcher

    def accept(self, token: int) -> None:
        """Record a drawn token."""
        self.grammar.consume_token(token)

    @property
    def fault(self) -> str | None:
        """Why the grammar can't be followed any further; ``finished`` then means nothing."""
        return str(self.grammar.get_error()) if self.grammar.is_error() else None

    @property
    def finished(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self.grammar.is_stopped())
