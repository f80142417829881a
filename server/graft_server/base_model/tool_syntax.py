"""How a base model writes the call of a tool, found out from its chat template by letting it write one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from graft_server.engine.base import ToolSyntax

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAME = "graft_probe"
_USER = {"role": "user", "content": "?"}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
    },
}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "probe0000", "type": "function", "function": {"name": _NAME, "arguments": {"key": "value"}}}],
}


def tool_syntax(tokenizer: PreTrainedTokenizerBase) -> ToolSyntax | None:
    """The syntax of one call; ``None`` where the template knows no tools, or writes a call as anything but a JSON
    object with its name and arguments, between marks that an answer's text shows."""
    if not tokenizer.chat_template:
        return None
    try:
        before = str(_render(tokenizer, [_USER], add_generation_prompt=True))
        whole = str(_render(tokenizer, [_USER, _CALL]))
    except Exception:  # a chat template is a program of the model's authors
        return None
    if _NAME not in before or not whole.startswith(before):
        return None
    written = whole[len(before) :]
    for special in tokenizer.all_special_tokens:
        written = written.split(special, 1)[0]
    return _read(written)


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], **options: Any) -> Any:
    return tokenizer.apply_chat_template(turns, tools=[_TOOL], tokenize=False, **options)


def _read(written: str) -> ToolSyntax | None:
    at = written.find("{")
    try:
        call, end = json.JSONDecoder().raw_decode(written, max(at, 0))
    except ValueError:
        return None
    if not isinstance(call, dict) or call.get("name") != _NAME:
        return None
    arguments = next((key for key in ("arguments", "parameters") if call.get(key) == {"key": "value"}), None)
    if arguments is None:
        return None
    # In front of the mark may stand what opens every answer, such as an empty thought.
    opening = written[:at].split()[-1:]
    return ToolSyntax(opening="".join(opening), closing=written[end:].strip(), arguments=arguments)
