"""A chat completion between its request and its answer: what the engine is asked, and the document made of what it
says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from graft_client.schemas.openai import ChatCompletionRequest
from graft_client.schemas.openai_answers import AnswerMessage, ChatChoice, ChatCompletion
from graft_client.schemas.openai_tools import Tool
from graft_plugins.task import Message
from graft_server.api.deps import require_engine
from graft_server.api.openai.shapes import chat_logprobs, constraint_of, messages_of, sampling_of, usage_of
from graft_server.api.openai.tool_calls import ToolCallReader, call_constraint, callable_tools, concerns_tools
from graft_server.engine.base import ToolSyntax
from graft_server.registry.reading import with_files
from graft_server.services import Services
from graft_server.serving.choices import answer_all, choices
from graft_server.serving.pipeline import Plan, plan_messages
from graft_server.serving.predictor import Answer, Terms


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """One request for a chat completion; ``plan`` is that of its prompt, ``plans`` one for each choice."""

    body: ChatCompletionRequest
    plan: Plan
    plans: list[Plan]
    tools: list[Tool] = field(default_factory=list)
    syntax: ToolSyntax | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{time.time_ns():x}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def answer(self, services: Services, terms: Terms) -> ChatCompletion:
        """All choices whole; the first failure ends the others.

        Raises:
            ProblemError: whatever ended one of them.
        """
        answers = await answer_all(services.predictor, self.plans, terms)
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.plan.answering.ref,
            choices=[self._choice(index, answer) for index, answer in enumerate(answers)],
            usage=usage_of([answer.usage for answer in answers], len(self.plans)),
            system_fingerprint=services.system_fingerprint,
        )

    def reader(self) -> ToolCallReader | None:
        """What finds the calls in one answer, where it may have some."""
        if self.syntax is None or not self.tools:
            return None
        return ToolCallReader(
            self.syntax,
            {tool.function.name for tool in self.tools},
            forced=self.plan.constraint is not None,
            parallel=self.body.parallel_tool_calls is not False,
        )

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        message, finish_reason = AnswerMessage(content=answer.parsed.text), answer.finish_reason
        if (reader := self.reader()) is not None:
            text = reader.push(answer.parsed.text)
            rest, calls = reader.finish()
            if calls:
                message, finish_reason = AnswerMessage(content=text.strip() or None, tool_calls=calls), "tool_calls"
            else:
                message = AnswerMessage(content=text + rest)
        return ChatChoice(
            index=index,
            message=message,
            logprobs=chat_logprobs(answer.tokens) if self.body.logprobs else None,
            finish_reason=finish_reason,
        )


async def plan_chat(services: Services, body: ChatCompletionRequest) -> ChatPlan:
    """Route the conversation and build its prompt.

    Raises:
        ProblemError: parameters that contradict each other, or what the adapter's task refuses: a conversation, or a
            format of the answer, or tools.
        UnknownError: there is no such model.
    """
    sampling = sampling_of(body)
    messages = messages_of(body.messages)
    syntax = None
    if concerns_tools(body):
        require_engine(services)
        syntax = services.engine.model.tool_syntax
    tools = callable_tools(body, syntax)
    constraint = call_constraint(body, tools, syntax) or constraint_of(body.response_format)
    told = [tool.model_dump(exclude_none=True) for tool in tools]

    def plan() -> Plan:
        route = services.resolver.resolve(body.model, None, _told(messages), key=body.user)
        most = services.settings.conversation_max_tokens
        return plan_messages(route, messages, sampling=sampling, constraint=constraint, tools=told, max_tokens=most)

    planned = await with_files(services.registry, plan)
    return ChatPlan(body, planned, choices(planned, body.n or 1), tools, syntax)


def _told(messages: Sequence[Message]) -> str:
    # What the conversation is for often stands in the system message alone ("Translate from English to German.").
    last = next((message for message in reversed(messages) if message.role == "user"), None)
    return "\n".join(message.content for message in messages if message.role == "system" or message is last)
