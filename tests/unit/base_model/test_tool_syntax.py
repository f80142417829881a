"""The syntax of tool calls, from chat templates as popular models have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graft_plugins.task import Message, ToolCall
from graft_server.base_model.prompt import encode_prompt
from graft_server.base_model.tool_syntax import tool_syntax
from graft_server.engine.base import ToolSyntax

_SYSTEM = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
)
_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
#: As Qwen's and Hermes'.
MARKED = (
    _SYSTEM + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}" + _END
)
#: As Qwen 3's, which opens with a thought that it did not have.
THINKING = MARKED.replace("{{ m.content }}", "{% if m.tool_calls %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}")
#: As Llama 3.1's.
BARE = MARKED.replace("<tool_call>\n", "").replace("\n</tool_call>", "").replace('"arguments"', '"parameters"')
#: As SmolLM2's: no word of tools.
NONE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + _END
#: Calls that are no JSON.
OTHER = MARKED.replace('{"name": "{{ c.function.name }}", "arguments":', "<f={{ c.function.name }}>")


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (MARKED, ToolSyntax("<tool_call>", "</tool_call>", "arguments")),
        (THINKING, ToolSyntax("<tool_call>", "</tool_call>", "arguments")),
        (BARE, ToolSyntax("", "", "parameters")),
        (NONE, None),
        (OTHER, None),
        ("{{ raise_exception('odd') }}", None),
        (None, None),
    ],
)
def test_the_syntax_is_that_of_the_template(tokenizer: Any, template: str | None, expected: ToolSyntax | None) -> None:
    tokenizer.chat_template = template
    assert tool_syntax(tokenizer) == expected


def test_tools_and_calls_stand_in_the_prompt(tokenizer: Any) -> None:
    tokenizer.chat_template = MARKED
    turns = [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="", tool_calls=(ToolCall(id="c1", name="clock", arguments='{"a": 1}'),)),
        Message(role="tool", content="noon", tool_call_id="c1"),
    ]
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    text = tokenizer.decode(encode_prompt(tokenizer, turns, None, [tool]))
    assert json.dumps(tool) in text
    assert '{"name": "clock", "arguments": {"a": 1}}' in text
    assert text.endswith("<|im_start|>tool\nnoon<|im_end|>\n<|im_start|>assistant\n")
