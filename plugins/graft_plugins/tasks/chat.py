"""Plain instruction data in OpenAI's messages format, for everything that has no task of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator

from graft_plugins.hookspecs import hookimpl
from graft_plugins.metrics import chrf, mean, token_f1
from graft_plugins.task import (
    AnyTask,
    Empty,
    Generate,
    Generation,
    Message,
    Metric,
    Output,
    Prompt,
    Report,
    RequestError,
    RowError,
    Sampling,
    Task,
)


class ChatExample(BaseModel):
    """A conversation that ends with the assistant turn to learn, and the functions that its turns may call."""

    messages: list[Message] = Field(min_length=2)
    tools: list[dict[str, Any]] = []

    @field_validator("messages")
    @classmethod
    def _ends_with_answer(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "assistant":
            raise ValueError("the last message must be from the assistant")
        if messages[-1].tool_calls:
            raise ValueError("the assistant's last message calls a tool; only text is learned")
        if not messages[-1].content.strip():
            raise ValueError("the assistant's last message is blank")
        return messages

    @field_validator("messages")
    @classmethod
    def _calls_have_arguments(cls, messages: list[Message]) -> list[Message]:
        for call in (call for message in messages for call in message.tool_calls):
            try:
                arguments = json.loads(call.arguments)
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                raise ValueError(f"the arguments of the call of {call.name!r} are no JSON object: {call.arguments!r}")
        return messages


class ChatRequest(BaseModel):
    """A conversation to go on with."""

    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] = Field([], description="Functions for the chat template, in OpenAI's shape.")


class ChatResponse(BaseModel):
    """The assistant's next turn."""

    content: str


class ChatTask(Task[ChatExample, ChatRequest, ChatResponse, Empty]):
    name = "chat"
    title = "Chat"
    description = "A conversation in, the assistant's next turn out; takes plain instruction data."
    example_model = ChatExample
    request_model = ChatRequest
    response_model = ChatResponse
    state_model = Empty
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 5e-4,
        "epochs": 2,
        "batch_size": 8,
        "warmup_ratio": 0.1,
        "max_length": 1024,
    }
    example_request: ClassVar[Mapping[str, Any]] = {
        "messages": [{"role": "user", "content": "Write a haiku about grafting."}]
    }

    def parse_row(self, row: Mapping[str, Any]) -> ChatExample:
        """``messages``, or ``instruction``/``input``/``output``, or ``prompt``/``completion``."""
        return ChatExample.model_validate({"messages": _messages(row), "tools": row.get("tools") or []})

    def group_key(self, example: ChatExample) -> str:
        """The conversation up to the answer, so that one prompt is never on both sides."""
        return "\n".join(f"{message.role}: {_told(message)}" for message in example.messages[:-1]).lower()

    def request_for(self, example: ChatExample, state: Empty) -> ChatRequest:
        return ChatRequest(messages=example.messages[:-1], tools=example.tools)

    def target(self, example: ChatExample) -> str:
        return example.messages[-1].content

    def prompt(self, request: ChatRequest, state: Empty) -> Prompt:
        return Prompt(messages=tuple(request.messages), tools=tuple(request.tools))

    def decoding(self, request: ChatRequest, state: Empty) -> Generate:
        return Generate(sampling=Sampling(max_tokens=256))

    def parse(self, request: ChatRequest, output: Output, state: Empty) -> ChatResponse:
        assert isinstance(output, Generation)
        return ChatResponse(content=output.text.strip())

    def request_from_text(self, text: str) -> ChatRequest:
        if not text.strip():
            raise RequestError("there is no message")
        return ChatRequest(messages=[Message(role="user", content=text)])

    def request_from_messages(self, messages: Sequence[Message]) -> None:
        """The messages are the prompt."""
        return

    def text_of(self, response: ChatResponse) -> str:
        return response.content

    def evaluate(self, pairs: Sequence[tuple[ChatExample, ChatResponse]], state: Empty) -> Report:
        answers = [response.content for _, response in pairs]
        references = [[self.target(example)] for example, _ in pairs]
        f1 = mean([token_f1(answer, texts) for answer, texts in zip(answers, references, strict=True)])
        metrics = {"chrf": chrf(answers, references), "f1": Metric(value=f1, signature="squad-v1.1")}
        return Report(primary="chrf", metrics=metrics, rows=len(pairs))


def _messages(row: Mapping[str, Any]) -> Any:
    if row.get("messages") is not None:
        messages = row["messages"]
        if row.get("functions"):
            raise RowError("functions are told as `tools` now", "functions")
        if not isinstance(messages, list):
            return messages
        if messages and isinstance(messages[-1], Mapping) and messages[-1].get("weight") == 0:
            raise RowError("the last message is what is learned, and its weight is 0: leave the row out", "messages")
        return [_message(message) for message in messages]
    for question, answer in (("instruction", "output"), ("prompt", "completion"), ("prompt", "response")):
        if row.get(question) is not None and row.get(answer) is not None:
            parts = [row[question], row.get("input")] if question == "instruction" else [row[question]]
            text = "\n\n".join(str(part) for part in parts if part)
            return [{"role": "user", "content": text}, {"role": "assistant", "content": str(row[answer])}]
    columns = ", ".join(key for key, value in row.items() if value is not None)
    raise RowError(
        "a row needs `messages`, or `instruction` and `output`, or `prompt` and `completion`; "
        f"this one has {columns or 'no fields'}"
    )


def _message(message: Any) -> Any:
    """OpenAI's variants of a turn in the plain form: text parts joined, developers as system, calls of functions."""
    if not isinstance(message, Mapping):
        return message
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if message.get("function_call"):
        raise RowError("a call is told in `tool_calls` now", "function_call")
    role, calls = message.get("role"), message.get("tool_calls") or []
    return {
        "role": "system" if role == "developer" else role,
        "content": "" if content is None and calls else content,
        "tool_calls": [_call(call) for call in calls] if isinstance(calls, list) else calls,
        "tool_call_id": message.get("tool_call_id"),
    }


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    # Some servers tell a call without arguments so.
    arguments = "{}" if function.get("arguments") == "" else function.get("arguments")
    return {"id": call.get("id"), "name": function.get("name"), "arguments": arguments}


def _told(message: Message) -> str:
    return " ".join([message.content, *(f"{call.name} {call.arguments}" for call in message.tool_calls)])


@hookimpl
def register_tasks(register: Callable[[AnyTask], None]) -> None:
    register(ChatTask())
