"""A response between its request and its answer: the conversation that it goes on with, and the document that it
becomes. What is kept is the document and the whole conversation, so that going on needs no other response."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graft_client.schemas.openai import ChatCompletionRequest, ChatMessage, JsonSchemaFormat, NamedJsonSchema
from graft_client.schemas.openai_responses import (
    IncompleteDetails,
    InputItem,
    InputText,
    KeptInput,
    NamedSchemaFormat,
    OutputMessage,
    OutputText,
    ResponseObject,
    ResponseRequest,
    ResponseUsage,
    TextConfig,
)
from graft_server.api.openai.chat_plan import plan_chat
from graft_server.api.openai.shapes import chat_logprobs
from graft_server.problems import ProblemError
from graft_server.registry.documents import Documents
from graft_server.registry.errors import UnknownError
from graft_server.services import Services
from graft_server.serving.pipeline import Plan
from graft_server.serving.predictor import Answer, Terms

_TEXTS = frozenset({"input_text", "output_text"})


@dataclass(frozen=True, slots=True)
class ResponsePlan:
    """One request; ``document`` is what is known before the answer, ``conversation`` what goes before it, without the
    instructions, which hold for one answer. The last ``given`` of its turns came with the request."""

    plan: Plan
    document: ResponseObject
    conversation: list[ChatMessage]
    given: int
    message_id: str
    logprobs: bool

    def message(self, answer: Answer) -> OutputMessage:
        """The item that the answer is."""
        text = OutputText(
            text=answer.parsed.text, logprobs=chat_logprobs(answer.tokens)["content"] if self.logprobs else []
        )
        status = "incomplete" if answer.finish_reason == "length" else "completed"
        return OutputMessage(id=self.message_id, status=status, content=[text])

    async def answer(self, services: Services, terms: Terms) -> ResponseObject:
        """The whole document of an answer that is not streamed.

        Raises:
            ProblemError: whatever ended it.
        """
        return await self.finish(services, await services.predictor.answer(self.plan, terms))

    async def finish(self, services: Services, answer: Answer) -> ResponseObject:
        """The whole document, kept if it is to be."""
        message = self.message(answer)
        usage = answer.usage
        document = self.document.model_copy(
            update={
                "model": self.plan.answering.ref,
                "status": message.status,
                "completed_at": int(time.time()) if message.status == "completed" else None,
                "incomplete_details": IncompleteDetails(reason="max_output_tokens")
                if message.status == "incomplete"
                else None,
                "output": [message],
                "usage": ResponseUsage(
                    input_tokens=usage.prompt_tokens,
                    output_tokens=usage.completion_tokens,
                    total_tokens=usage.total_tokens,
                ),
            }
        )
        if document.store:
            answered = ChatMessage(role="assistant", content=answer.parsed.text)
            data = {
                "response": document.model_dump(mode="json"),
                "input": [_kept(turn).model_dump(mode="json") for turn in self.conversation[-self.given :]],
                "conversation": [turn.model_dump(mode="json") for turn in (*self.conversation, answered)],
            }
            await asyncio.to_thread(services.registry.documents.add, "response", data, identity=document.id)
        return document


async def plan_response(services: Services, body: ResponseRequest) -> ResponsePlan:
    """Put the conversation together, route it and build its prompt.

    Raises:
        ProblemError: the response to go on from is not kept, or an item or parameter can't be served.
        UnknownError: there is no such model.
    """
    if body.tools:
        raise ProblemError("unsupported-parameter", "`tools`: responses are text here; leave it out", param="tools")
    turns = _turns(body.input)
    conversation = [*await asyncio.to_thread(_before, services, body.previous_response_id), *turns]
    logprobs = bool(body.include) or body.top_logprobs is not None
    chat = ChatCompletionRequest(
        model=body.model,
        messages=[*_instructions(body), *conversation],
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=logprobs,
        top_logprobs=body.top_logprobs if logprobs else None,
        response_format=_format(body.text),
        user=body.user,
    )
    planned = await plan_chat(services, chat)
    document = _document(body, planned.plan)
    return ResponsePlan(planned.plan, document, conversation, len(turns), f"msg_{_token()}", logprobs)


def _before(services: Services, previous: str | None) -> list[ChatMessage]:
    if previous is None:
        return []
    try:
        record = services.registry.documents.get("response", previous)
    except UnknownError as error:
        detail = f"Previous response with id '{previous}' not found; it was not stored, or is deleted"
        raise ProblemError("previous-response-not-found", detail, param="previous_response_id") from error
    return [ChatMessage.model_validate(turn) for turn in record.data["conversation"]]


def _instructions(body: ResponseRequest) -> list[ChatMessage]:
    return [ChatMessage(role="system", content=body.instructions)] if body.instructions else []


def _turns(given: str | Sequence[InputItem]) -> list[ChatMessage]:
    if isinstance(given, str):
        return [ChatMessage(role="user", content=given)]
    return [_turn(item, f"input.{at}") for at, item in enumerate(given)]


def _turn(item: InputItem, place: str) -> ChatMessage:
    if item.type != "message" or item.role is None:
        raise ProblemError("invalid-request", f"{place}: only items of type `message` are served", param=place)
    if item.content is None or isinstance(item.content, str):
        return ChatMessage(role=item.role, content=item.content or "")
    for number, part in enumerate(item.content):
        if part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            where = f"{place}.content.{number}"
            raise ProblemError("invalid-request", f"{where}: only parts that are text are served", param=where)
    return ChatMessage(role=item.role, content="".join(part["text"] for part in item.content))


def _kept(turn: ChatMessage) -> KeptInput:
    text = str(turn.content)
    part = OutputText(text=text) if turn.role == "assistant" else InputText(text=text)
    return KeptInput.model_validate({"id": f"msg_{_token()}", "role": turn.role, "content": [part]})


def _format(text: TextConfig | None) -> Any:
    if text is None or not isinstance(text.format, NamedSchemaFormat):
        return None if text is None else text.format
    schema = NamedJsonSchema.model_validate(text.format.model_dump(by_alias=True, exclude={"type"}))
    return JsonSchemaFormat(type="json_schema", json_schema=schema)


def _document(body: ResponseRequest, plan: Plan) -> ResponseObject:
    return ResponseObject(
        id=Documents.new_id("response"),
        created_at=int(time.time()),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=plan.route.ref,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        store=body.store is not False,
        temperature=body.temperature,
        text=(body.text or TextConfig()).model_dump(mode="json", by_alias=True, exclude_none=True),
        tool_choice=body.tool_choice or "auto",
        top_logprobs=body.top_logprobs or 0,
        top_p=body.top_p,
        user=body.user,
    )


def _token() -> str:
    return secrets.token_hex(12)
