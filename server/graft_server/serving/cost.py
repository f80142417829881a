"""What a request may make the engine compute, in tokens, guessed before anything has seen its tokens."""

from __future__ import annotations

from collections.abc import Iterable

from graft_plugins.task import Generate, Score
from graft_server.serving.pipeline import Plan

#: UTF-8 bytes of one token. Four is the usual mean for English; scripts that need more tokens a character also need
#: more bytes for one, so bytes are a better measure than characters.
_BYTES = 4


def estimated_tokens(plan: Plan, context_length: int) -> int:
    """Tokens of the prompt and of the longest answer, or of all candidates.

    The server's process has no tokenizer, and fair shares need proportions only. The whole of ``max_tokens`` counts: it
    is what the caller reserves, and how long the answer really becomes is known too late. No prompt with its answer is
    longer than the context, whatever was asked for.
    """
    prompt = prompt_tokens(plan)
    match plan.decoding:
        case Score(candidates=candidates):
            # A candidate is computed behind the prompt, which is computed once.
            return prompt + sum(1 + len(text.encode()) // _BYTES for text in candidates)
        case Generate(sampling=sampling):
            return min(prompt + sampling.max_tokens, context_length)


def prompt_tokens(plan: Plan) -> int:
    """Tokens of the prompt alone."""
    texts = [plan.prompt.text or "", *(message.content for message in plan.prompt.messages)]
    return len(plan.prompt.tokens) or text_tokens(texts)


def text_tokens(texts: Iterable[str]) -> int:
    """Tokens of all these texts together."""
    return sum(len(text.encode()) for text in texts) // _BYTES
