"""Prompts and targets as token ids, in one place: an adapter is served exactly what it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

#: End-of-turn tokens of common chat templates, for models whose configuration names only the end of the text.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>")


class Call(Protocol):
    """A tool call; ``arguments`` is a JSON object as text."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> str: ...


class Turn(Protocol):
    """One message: ``graft_plugins.task.Message`` and ``engine.base.ChatMessage`` both fit."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...

    @property
    def tool_calls(self) -> Sequence[Call]: ...

    @property
    def tool_call_id(self) -> str | None: ...


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Turn],
    text: str | None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Token ids of a prompt, ready for the model to answer.

    Messages go through the tokenizer's chat template, up to the opening of the assistant's turn. A template without a
    system role gets the system text at the head of the first user turn. Without a chat template each turn is written as
    ``Role:``, a newline, its content and an empty line, and the prompt ends with ``Assistant:`` and a newline.
    ``tools`` are for a template that knows them. ``text`` is taken verbatim, behind a beginning-of-text token if the
    tokenizer adds one.

    Raises:
        ValueError: both or neither of ``messages`` and ``text`` are given.
    """
    if (text is None) == (not messages):
        raise ValueError("a prompt is either messages or text")
    if text is not None:
        return _encode_verbatim(tokenizer, text)
    turns = [_document(turn) for turn in messages]
    if not tokenizer.chat_template:
        return _encode_verbatim(tokenizer, _plain_layout(turns))
    # The template writes its own special tokens.
    return list(tokenizer(_render(tokenizer, turns, tools), add_special_tokens=False)["input_ids"])


def encode_target(tokenizer: PreTrainedTokenizerBase, target: str, *, ending: str | None = None) -> list[int]:
    """Token ids of an answer to learn or to score: no special token in front and the end-of-turn token behind, or
    ``ending`` in its place."""
    ids = list(tokenizer(f"{target}{ending or ''}", add_special_tokens=False)["input_ids"])
    end = end_of_turn_id(tokenizer) if ending is None else None
    return ids if end is None else [*ids, end]


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> frozenset[int]:
    """Tokens that end an answer: the end of the text, and every end of a turn that the vocabulary has."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list | tuple) else [configured])
    ids |= {tokenizer.eos_token_id, end_of_turn_id(tokenizer)}
    added = tokenizer.get_added_vocab()
    ids |= {added[token] for token in _END_OF_TURN if token in added}
    return frozenset(int(token) for token in ids if token is not None)


@lru_cache(maxsize=8)
def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes behind an assistant's turn, or the end of the text."""
    eos: int | None = tokenizer.eos_token_id
    if not tokenizer.chat_template:
        return eos
    probe = "graftwork"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
    rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    behind = tokenizer(rendered.rpartition(probe)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return next((int(token) for token in behind if token in special), eos)


def _document(turn: Turn) -> dict[str, Any]:
    """A turn as chat templates expect it."""
    document: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        document["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        document["tool_call_id"] = turn.tool_call_id
    return document


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    from jinja2 import TemplateError

    system = turns[0]["content"].strip() if turns[0]["role"] == "system" else ""
    try:
        rendered = _apply(tokenizer, turns, tools)
    except TemplateError:
        if not system:
            raise
        return _apply(tokenizer, _fold_system(turns), tools)
    # Some templates drop a system turn instead of refusing it.
    return rendered if system in rendered else _apply(tokenizer, _fold_system(turns), tools)


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    told = [dict(tool) for tool in tools] or None
    return str(tokenizer.apply_chat_template(turns, tools=told, tokenize=False, add_generation_prompt=True))


def _fold_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system, *rest = turns
    if rest and rest[0]["role"] == "user":
        content = f"{system['content']}\n\n{rest[0]['content']}"
        return [{"role": "user", "content": content}, *rest[1:]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _plain_layout(turns: list[dict[str, Any]]) -> str:
    written = "".join(f"{turn['role'].capitalize()}:\n{turn['content']}\n\n" for turn in turns)
    return f"{written}Assistant:\n"


def _encode_verbatim(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[Any] = list(tokenizer(text)["input_ids"])
    # A tokenizer that closes every text would end the answer before it starts.
    closes = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if closes else ids
