"""Prompts and targets as tokens: one encoding for training and for serving."""

from __future__ import annotations

import pytest

from graft_plugins.task import Message
from graft_server.base_model.prompt import encode_prompt, encode_target, end_of_turn_id, stop_token_ids
from graft_server.engine.base import ChatMessage

pytestmark = pytest.mark.torch

_PLAIN_TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + _PLAIN_TURNS
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}[{{ m['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


SYSTEM = Message(role="system", content="Be brief.")
USER = Message(role="user", content="Grüße, {name}!")


def test_messages_open_the_assistants_turn(tokenizer):
    ids = encode_prompt(tokenizer, [SYSTEM, USER], None)
    assert text_of(tokenizer, ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGrüße, {name}!<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3


def test_a_plugins_message_and_an_engines_message_are_the_same_prompt(tokenizer):
    engine = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Grüße, {name}!")]
    assert encode_prompt(tokenizer, engine, None) == encode_prompt(tokenizer, [SYSTEM, USER], None)


def test_prompt_and_target_are_what_the_template_makes_of_the_whole_conversation(tokenizer):
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hallo!"}], tokenize=False
    )
    ids = encode_prompt(tokenizer, [Message(role="user", content="Hi")], None) + encode_target(tokenizer, "Hallo!")
    assert whole.startswith(text_of(tokenizer, ids))
    assert ids[-1] in stop_token_ids(tokenizer, None)


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_its_text_heads_the_first_user_turn(tokenizer, template):
    tokenizer.chat_template = template
    text = text_of(tokenizer, encode_prompt(tokenizer, [SYSTEM, USER], None))
    assert "Be brief.\n\nGrüße, {name}!" in text
    assert "system" not in text
    assert "Be brief." in text_of(tokenizer, encode_prompt(tokenizer, [SYSTEM], None))


def test_other_faults_of_a_template_are_not_hidden(tokenizer):
    from jinja2 import TemplateError

    tokenizer.chat_template = "{{ raise_exception('odd') }}"
    with pytest.raises(TemplateError, match="odd"):
        encode_prompt(tokenizer, [USER], None)


def test_without_a_template_turns_are_written_plainly(tokenizer):
    tokenizer.chat_template = None
    text = text_of(tokenizer, encode_prompt(tokenizer, [SYSTEM, USER], None))
    assert text == "System:\nBe brief.\n\nUser:\nGrüße, {name}!\n\nAssistant:\n"
    assert encode_target(tokenizer, "x")[-1] == tokenizer.eos_token_id


def test_text_is_taken_verbatim_behind_the_tokenizers_own_start(tokenizer):
    from tokenizers.processors import TemplateProcessing

    assert text_of(tokenizer, encode_prompt(tokenizer, [], "The capital")) == "The capital"
    start, end = "<|im_start|>", "<|im_end|>"
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (start, end)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    assert text_of(tokenizer, encode_prompt(tokenizer, [], "The capital")) == "<|im_start|>The capital"
    assert text_of(tokenizer, encode_prompt(tokenizer, [USER], None)).count(start) == 2
    assert text_of(tokenizer, encode_target(tokenizer, "Paris")) == "Paris<|im_end|>"


def test_the_end_of_a_turn_is_found_where_it_is_not_the_end_of_text(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn_id(tokenizer) == end
    assert encode_target(tokenizer, "x")[-1] == end
    assert stop_token_ids(tokenizer, None) == {end, tokenizer.eos_token_id}


def test_every_configured_end_stops(tokenizer):
    from transformers import GenerationConfig

    assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=[7, 9])) == {7, 9, tokenizer.eos_token_id}


@pytest.mark.parametrize(("messages", "text"), [([], None), ([USER], "x")])
def test_a_prompt_is_either_messages_or_text(tokenizer, messages, text):
    with pytest.raises(ValueError, match="either"):
        encode_prompt(tokenizer, messages, text)
